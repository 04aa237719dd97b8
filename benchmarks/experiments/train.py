"""Train one of the small diffusion models on the CPU in under 45 minutes (or on a GPU where there is one).

    python benchmarks/experiments/train.py mnist-edm | mnist-epsilon | patches-edm [--images 1200000] [--threads 1]

Writes weights/<name>.safetensors (exponential moving average, float16). Muon for the matrices between the first and the
last layer and Adam for the rest, warm-up and cosine decay, bfloat16 arithmetic with float32 weights; --compile needs a
C++ compiler and is about 1.5 times faster.
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

BATCH = 128
RATE = 1.5e-3
MUON_RATE = 4e-3  # steps as large as those of Adam with a fifth of it
WARM_UP = 500
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

    Karras et al. 2022 have exp(-1.2 +- 1.2) at a spread of 0.5; higher serves small networks, which learn
    what the image is, decided early, far slower than its details.
    """
    if description.kind == "edm":
        return torch.exp(math.log(description.sigma_data) + 0.8 + 1.3 * torch.randn(count))
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


def share_of_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a half cosine to 0."""
    return min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))


def as_matrix(weight: Tensor) -> Tensor:
    """A row for each output, of the same memory if channels come last: Muon takes matrices, not convolutions."""
    return weight if weight.ndim == 2 else weight.permute(0, 2, 3, 1).flatten(1)


class Optimizer:
    """Muon (Jordan et al. 2024) for the matrices inside the network, Adam for all else: both of PyTorch."""

    def __init__(self, model: networks.Denoiser, steps: int) -> None:
        network = model.network
        ends = {id(layer.weight) for layer in (network.enter, network.leave, network.embed1)}
        self.inside = [p for p in model.parameters() if p.ndim in (2, 4) and id(p) not in ends]
        chosen = {id(p) for p in self.inside}
        rest = [p for p in model.parameters() if id(p) not in chosen]
        self.views = [as_matrix(p.detach()).requires_grad_() for p in self.inside]
        if any(view.data_ptr() != p.data_ptr() for view, p in zip(self.views, self.inside, strict=True)):
            raise ValueError("the model's memory format must be channels_last")
        self.both = (
            torch.optim.Muon(self.views, lr=MUON_RATE, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.Adam(rest, lr=RATE, betas=(0.9, 0.99)),
        )
        self.schedules = [
            torch.optim.lr_scheduler.LambdaLR(one, lambda step: share_of_rate(step, steps))
            for one in self.both
        ]

    def step(self) -> None:
        """One step along the gradients."""
        for view, weight in zip(self.views, self.inside, strict=True):
            view.grad = as_matrix(weight.grad)
        for one, schedule in zip(self.both, self.schedules, strict=True):
            one.step()
            schedule.step()


def train(
    model: networks.Denoiser, images: Tensor, steps: int, device: str, compiled: bool
) -> tuple[networks.Denoiser, float]:
    """Run the steps; the moving average of the weights and of the loss."""
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = Optimizer(model, steps)
    if compiled:
        model.network.compile()
    running, start = 0.0, time.monotonic()
    for step in range(steps):
        batch = images[torch.randint(len(images), (BATCH,))].to(device).float() * (2 / 255) - 1
        sigma = training_sigmas(model.description, BATCH).to(device)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = loss_of(model, batch, sigma)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        keep = min(0.999, (1 + step) / (10 + step))
        for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs.detach(), 1 - keep)
        running += (loss.item() - running) * max(1e-3, 1 / (step + 1))
        if step % 500 == 0:
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
    parser.add_argument("--images", type=int, default=1_200_000, help="images seen in all")
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
        channels=(32, 64, 64),
        size=images.size,
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
