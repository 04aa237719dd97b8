"""A user's own diffusers pipeline and images in place of the small networks and data sets.

The folder is what `DDPMPipeline.save_pretrained` or `DDIMPipeline.save_pretrained` writes: unet/ (a UNet2DModel, no
conditioning) and scheduler/. Images are all files that Pillow reads in a folder, cut to a square and brought to the
model's size.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import data
import numpy as np
import torch
from networks import Description
from torch import Tensor, nn

import fastkl


class PipelineDenoiser(nn.Module):
    """D(y, sigma) of a UNet2DModel that predicts the noise or v."""

    def __init__(self, unet: nn.Module, schedule: fastkl.NoiseSchedule, prediction: str, name: str) -> None:
        super().__init__()
        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type must be 'epsilon' or 'v_prediction', got {prediction!r}")
        self.network, self.schedule, self.prediction = unet, schedule, prediction
        self.description = Description(
            name, name, "epsilon", (0, 0, 0), 0.0, schedule.sigma_min, schedule.sigma_max, 0, 0, 0.0, 0.0
        )

    def raw(self, inputs: Tensor, sigma: Tensor) -> Tensor:
        """The noise that the network sees in x = y / sqrt(1 + sigma^2)."""
        low, high = self.schedule.sigma_min, self.schedule.sigma_max
        levels = np.clip(sigma.cpu().double().numpy(), low, high)  # float32 may have left the table's range
        timesteps = torch.from_numpy(np.asarray(self.schedule.timesteps(levels)))
        found = self.network(inputs, timesteps.to(inputs.device, torch.float32)).sample
        if self.prediction == "epsilon":
            return found
        level = sigma[:, None, None, None]
        return (found + level * inputs) / (
            1 + level.square()
        ).sqrt()  # alpha v + sigma_vp x, sigma_vp = alpha sigma

    def forward(self, y: Tensor, sigma: Tensor) -> Tensor:
        level = sigma[:, None, None, None]
        return y - level * self.raw(y / (1 + level.square()).sqrt(), sigma)


def scheduler_config(folder: pathlib.Path) -> dict[str, Any]:
    """The pipeline's scheduler_config.json."""
    return dict(json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8")))


def noise_schedule(folder: pathlib.Path) -> fastkl.NoiseSchedule:
    """Noise levels of the pipeline's table."""
    from diffusers import DDPMScheduler

    table = DDPMScheduler.from_config(scheduler_config(folder)).alphas_cumprod
    return fastkl.NoiseSchedule.from_alphas_cumprod(table.double().numpy())


def load(folder: pathlib.Path) -> PipelineDenoiser:
    """The network of a saved pipeline, in evaluation mode."""
    from diffusers import UNet2DModel

    unet = UNet2DModel.from_pretrained(folder / "unet").eval()
    prediction = scheduler_config(folder).get("prediction_type", "epsilon")
    return PipelineDenoiser(unet, noise_schedule(folder), prediction, folder.name)


def images(folder: pathlib.Path, size: int, channels: int) -> data.Images:
    """Images of a folder, every tenth held out; all get one label, so that no classifier can be trained on them."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        try:
            image = Image.open(path).convert("L" if channels == 1 else "RGB")
        except UnidentifiedImageError:
            continue
        pixels = np.asarray(ImageOps.fit(image, (size, size)))
        found.append(pixels.reshape(size, size, channels).transpose(2, 0, 1))
    if len(found) < 20:
        raise SystemExit(f"{folder.name}: {len(found)} images; the spectrum and the scores need at least 20")
    held = np.arange(len(found)) % 10 == 9
    stacked = np.stack(found)
    none = np.zeros(len(found), np.int64)
    return data.Images(folder.name, stacked[~held], none[~held], stacked[held], none[held])
