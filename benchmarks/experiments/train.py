"""Train one of the small diffusion models on the CPU in under 45 minutes (or on a GPU where there is one).

    python benchmarks/experiments/train.py mnist-edm | mnist-epsilon | patches-edm [--images 1400000] [--threads 1]

Writes weights/<name>.safetensors (exponential moving average, float16). Adam, warm-up and cosine decay, bfloat16
arithmetic with float32 weights; --compile needs a C++ compiler and is about 1.5 times faster.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import time
from functools import cache

import data
import networks
import torch
from torch import Tensor

import fastkl

BATCH = 64
RATE = 1.5e-3
WARM_UP = 1000
MODELS = {
    "mnist-edm": ("mnist", "edm"),
    "mnist-epsilon": ("mnist", "epsilon"),
    "patches-edm": ("patches", "edm"),
}


@cache
def table() -> Tensor:
    """Levels of DDPM's timesteps."""
    return torch.from_numpy(fastkl.NoiseSchedule.ddpm_linear().sigmas(range(1000))).float()


def training_sigmas(description: networks.Description, count: int) -> Tensor:
    """Noise levels of a batch: log-normal about the spread of the data, or those of DDPM's timesteps.

    Karras et al. 2022 have exp(-1.2 +- 1.2) at a spread of 0.5; higher and wider serves images that are decided early.
    """
    if description.kind == "edm":
        return torch.exp(math.log(description.sigma_data) + 0.1 + 1.5 * torch.randn(count))
    return table()[torch.randint(1000, (count,))]


def loss_of(model: networks.Denoiser, images: Tensor, sigma: Tensor) -> Tensor:
    """Mean square error of F: the denoising error divided by c_out^2 (edm) or by sigma^2 (epsilon)."""
    level = sigma[:, None, None, None]
    error = model(images + level * torch.randn_like(images), sigma) - images
    if model.description.kind == "epsilon":
        weight = level.square().reciprocal()
    else:
        weight = level.square().reciprocal() + model.description.sigma_data**-2
    return (weight * error.square()).mean()


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a half cosine to 0."""
    return RATE * min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))


def train(
    model: networks.Denoiser, images: Tensor, steps: int, device: str, compiled: bool
) -> tuple[networks.Denoiser, float]:
    """Run the steps; the moving average of the weights and of the loss."""
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, betas=(0.9, 0.99))
    if compiled:
        model.network.compile()
    running, start = 0.0, time.monotonic()
    for step in range(steps):
        batch = images[torch.randint(len(images), (BATCH,))].to(device).float() * (2 / 255) - 1
        sigma = training_sigmas(model.description, BATCH).to(device)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = loss_of(model, batch, sigma)
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        keep = min(0.999, (1 + step) / (10 + step))
        for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs.detach(), 1 - keep)
        running += (loss.item() - running) * max(1e-3, 1 / (step + 1))
        if step % 1000 == 0:
            done = (step + 1) * BATCH
            print(
                f"{done:9d} images  loss {running:.5f}  {done / (time.monotonic() - start):.0f} images/s",
                flush=True,
            )
    return average, running


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("--images", type=int, default=1_400_000, help="images seen in all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--suffix", default="", help="added to the model's name")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    name, kind = MODELS[arguments.name]
    images = data.DATA_SETS[name]()
    pixels = torch.from_numpy(images.training)
    description = networks.Description(
        name=arguments.name + arguments.suffix,
        data=name,
        kind=kind,
        channels=(32, 64, 96),
        sigma_data=round(float(data.scaled(images.training).std()), 2),
        sigma_min=0.002 if kind == "edm" else float(table()[0]),
        sigma_max=80.0 if kind == "edm" else float(table()[-1]),
        seed=arguments.seed,
        images_seen=arguments.images // BATCH * BATCH,
        minutes=0.0,
        loss=0.0,
    )
    print(description, flush=True)
    model = networks.Denoiser(description).to(arguments.device, memory_format=torch.channels_last)
    start = time.monotonic()
    average, loss = train(model, pixels, arguments.images // BATCH, arguments.device, arguments.compile)
    minutes = round((time.monotonic() - start) / 60, 1)
    path = networks.save(average, dataclasses.replace(description, minutes=minutes, loss=round(loss, 5)))
    print(f"{minutes} minutes, loss {loss:.5f}, {path.name} {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
