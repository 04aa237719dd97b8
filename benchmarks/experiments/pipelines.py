"""A user's own diffusers pipeline and images in place of the small networks and data sets.

The folder is what `DDPMPipeline.save_pretrained` or `DDIMPipeline.save_pretrained` writes: unet/ (a UNet2DModel, no
conditioning) and scheduler/. Images are all files that Pillow reads in a folder, cut to a square and brought to the
model's size.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any, NoReturn

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
        self.network, self.schedule, self.prediction = unet, schedule, prediction
        self.description = Description(
            name, name, "epsilon", (0, 0, 0), 0, 0.0, schedule.sigma_min, schedule.sigma_max, 0, 0, 0.0, 0.0
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
        alpha = (1 + level.square()).rsqrt()
        return alpha * found + alpha * level * inputs

    def forward(self, y: Tensor, sigma: Tensor) -> Tensor:
        level = sigma[:, None, None, None]
        return y - level * self.raw(y / (1 + level.square()).sqrt(), sigma)


def refuse(folder: pathlib.Path, why: str) -> NoReturn:
    """End with the reason why the pipeline cannot be compared."""
    raise SystemExit(f"{folder.name}: {why}")


def config_of(folder: pathlib.Path, part: str) -> dict[str, Any]:
    """unet/config.json or scheduler/scheduler_config.json."""
    path = folder / part / ("config.json" if part == "unet" else "scheduler_config.json")
    if not path.is_file():
        refuse(folder, f"no {part}/{path.name}; a folder that DDPMPipeline.save_pretrained writes is needed")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def noise_schedule(folder: pathlib.Path) -> fastkl.NoiseSchedule:
    """Noise levels of the pipeline's table."""
    from diffusers import DDPMScheduler

    config = config_of(folder, "scheduler")
    if config.get("trained_betas") is None and config.get("beta_schedule") is None:
        refuse(
            folder,
            f"{config.get('_class_name')} has no table of betas; only models with timesteps can be compared",
        )
    table = DDPMScheduler.from_config(config).alphas_cumprod.double().numpy()
    schedule = fastkl.NoiseSchedule.from_alphas_cumprod(table)
    if not np.isfinite(schedule.sigma_max):
        refuse(
            folder,
            "its first level is infinite (zero terminal SNR), where the prediction of noise says nothing",
        )
    return schedule


def shape(folder: pathlib.Path) -> tuple[int, int]:
    """Side and channels of the images; refuses what this comparison cannot run."""
    for part in ("vae", "vqvae", "movq"):
        if (folder / part).exists():
            refuse(folder, f"has a {part}: a latent model, whose latents need a loop of their own")
    config = config_of(folder, "unet")
    size, channels = config.get("sample_size"), config.get("in_channels")
    if config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None:
        refuse(folder, "is conditional on classes")
    if not isinstance(size, int) or channels not in (1, 3) or config.get("out_channels") != channels:
        refuse(
            folder,
            f"sample_size {size}, channels {channels} to {config.get('out_channels')}: must be 1 or 3",
        )
    return size, channels


def load(folder: pathlib.Path) -> PipelineDenoiser:
    """The network of a saved pipeline, in evaluation mode."""
    from diffusers import UNet2DModel

    shape(folder)
    unet = UNet2DModel.from_pretrained(folder / "unet").eval()
    prediction = config_of(folder, "scheduler").get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        refuse(folder, f"prediction_type must be 'epsilon' or 'v_prediction', got {prediction!r}")
    return PipelineDenoiser(unet, noise_schedule(folder), prediction, folder.name)


def digest(*folders: pathlib.Path) -> str:
    """Tells one content of folders from another: names and bytes of all files, not where the folders are."""
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            found.update(f"{folder.name}/{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return found.hexdigest()[:16]


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
        except OSError as error:
            raise SystemExit(f"{path.name}: {error}") from error
        pixels = np.asarray(ImageOps.fit(image, (size, size)))
        found.append(pixels.reshape(size, size, channels).transpose(2, 0, 1))
    if len(found) < 20:
        raise SystemExit(f"{folder.name}: {len(found)} images; the spectrum and the scores need at least 20")
    held = np.arange(len(found)) % 10 == 9
    stacked = np.stack(found)
    none = np.zeros(len(found), np.int64)
    return data.Images(folder.name, stacked[~held], none[~held], stacked[held], none[held])
