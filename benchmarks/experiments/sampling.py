"""Samples of a model at given levels: plain loops for EDM networks, diffusers' schedulers for epsilon ones."""

from __future__ import annotations

import itertools
import math
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import data
import networks
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fastkl

BATCH = 250


@dataclass(frozen=True)
class Setup:
    """A trained model and the sampler that it is run with."""

    name: str
    model: str  # file in weights/, or folder of a diffusers pipeline
    data: str  # key of data.DATA_SETS, or folder of images
    sampler: str  # fastkl's name of the sampler

    @property
    def pipeline(self) -> pathlib.Path | None:
        """Folder of the user's pipeline, None for a committed model."""
        folder = pathlib.Path(self.model)
        return folder if folder.is_dir() else None

    @property
    def model_name(self) -> str:
        """The model's name in result files."""
        return self.model if self.pipeline is None else self.pipeline.resolve().name

    @cached_property
    def made_from(self) -> dict[str, str]:
        """What results of a user's pipeline and images depend on; committed ones are known by their names."""
        if self.pipeline is None:
            return {}
        import pipelines

        images = pathlib.Path(self.data).resolve()
        return {
            "network": pipelines.digest(self.pipeline / "unet", self.pipeline / "scheduler"),
            "images": f"{images.name} {pipelines.digest(images)}",
        }

    @property
    def schedule(self) -> fastkl.NoiseSchedule:
        """Noise levels that the model was trained for."""
        if self.pipeline is not None:
            import pipelines

            return pipelines.noise_schedule(self.pipeline)
        if self.model.endswith("epsilon"):
            return fastkl.NoiseSchedule.ddpm_linear()
        return fastkl.NoiseSchedule.edm(0.002, 80.0)

    def images(self) -> data.Images:
        """Images that the model was trained on, or stands for."""
        if self.pipeline is None:
            return data.DATA_SETS[self.data]()
        import pipelines

        size, channels = pipelines.shape(self.pipeline)
        return pipelines.images(pathlib.Path(self.data), size, channels)


SETUPS = {
    setup.name: setup
    for setup in (
        Setup("mnist-edm-ddim", "mnist-edm", "mnist", "ddim"),
        Setup("patches-edm-ddim", "patches-edm", "patches", "ddim"),
        Setup("mnist-epsilon-ddim", "mnist-epsilon", "mnist", "ddim"),
        Setup("mnist-epsilon-dpmpp_2m", "mnist-epsilon", "mnist", "dpmpp_2m"),
        Setup("mnist-edm-dpmpp_2m", "mnist-edm", "mnist", "dpmpp_2m"),
        Setup("patches-edm-dpmpp_2m", "patches-edm", "patches", "dpmpp_2m"),
    )
}

Denoise = Callable[[Tensor, float], Tensor]
Run = Callable[[NDArray[np.float64], Tensor], Tensor]


def ready(setup: Setup, *, device: str = "cpu", compiled: bool = False, exact: bool = False) -> Any:
    """The model for sampling; an EDM model computes in bfloat16 unless `exact`, which is nearly twice as fast.

    A model that predicts the noise stays in float32: its rounding, 0.4 %, would move the image by 0.004 sigma.
    """
    if setup.pipeline is not None:
        import pipelines

        model: Any = pipelines.load(setup.pipeline).to(device)
    else:
        model = networks.load(setup.model).to(device)
        if not exact and model.description.kind == "edm":
            frequencies = model.network.frequencies
            model.network.to(torch.bfloat16).frequencies = frequencies
    if compiled:
        model.network.compile()
    return model


def noises(shape: tuple[int, ...], count: int, seed: int) -> Iterator[Tensor]:
    """Standard normal first states in batches: the same for every choice of levels."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, BATCH):
        yield torch.randn(min(BATCH, count - start), *shape, generator=generator)


def ddim(denoise: Denoise, sigmas: NDArray[np.float64], noise: Tensor) -> Tensor:
    """Euler's method on the probability flow in sigma from sigmas[0] * noise."""
    y = noise * float(sigmas[0])
    for sigma, after in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        y = torch.lerp(denoise(y, sigma), y, after / sigma)
    return y


def dpmpp_2m(denoise: Denoise, sigmas: NDArray[np.float64], noise: Tensor) -> Tensor:
    """DPM-Solver++ 2M in y = x / alpha; the first step and the last, to 0, are of order 1 as in diffusers."""
    levels = sigmas.tolist()
    y, before = noise * levels[0], None
    for k, (sigma, after) in enumerate(itertools.pairwise(levels)):
        clean = denoise(y, sigma)
        ahead = clean
        if before is not None and after > 0:
            share = math.log(sigma / after) / (2 * math.log(levels[k - 1] / sigma))
            ahead = clean + share * (clean - before)
        y, before = torch.lerp(ahead, y, after / sigma), clean
    return y


def scheduler_for(schedule: fastkl.NoiseSchedule, sampler: str) -> Any:
    """diffusers' scheduler for a table of levels and a network that answers with the noise; nothing is clipped.

    DDIMScheduler takes no timesteps of one's own; DPM-Solver of order 1 is the same map.
    """
    from diffusers import DPMSolverMultistepScheduler

    kept = 1.0 / (1.0 + np.square(schedule.sigmas(np.arange(schedule.num_train_timesteps))))  # alphas_cumprod
    betas = 1.0 - kept / np.concatenate([[1.0], kept[:-1]])
    return DPMSolverMultistepScheduler(
        num_train_timesteps=len(betas),
        trained_betas=betas,
        solver_order={"ddim": 1, "dpmpp_2m": 2}[sampler],
        prediction_type="epsilon",
        final_sigmas_type="zero",
    )


def with_scheduler(scheduler: Any, epsilon: Denoise, timesteps: list[int], noise: Tensor) -> Tensor:
    """diffusers' sampling loop; epsilon(x, timestep) is the network."""
    scheduler.set_timesteps(timesteps=timesteps)
    x = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        x = scheduler.step(epsilon(x, int(timestep)), timestep, x).prev_sample
    return x


def denoiser(model: Any, device: str) -> Denoise:
    """The model as a function of y and one level."""
    return lambda y, sigma: model(y, torch.full((len(y),), sigma, device=device))


def runner(setup: Setup, model: Any, device: str) -> Run:
    """A function of levels and noise that returns images."""
    if model.description.kind == "edm":
        denoise = denoiser(model, device)
        solve = {"ddim": ddim, "dpmpp_2m": dpmpp_2m}[setup.sampler]
        return lambda sigmas, noise: solve(denoise, sigmas, noise)
    schedule = setup.schedule
    scheduler = scheduler_for(schedule, setup.sampler)

    def epsilon(x: Tensor, timestep: int) -> Tensor:
        return model.raw(x, torch.full((len(x),), float(schedule.sigmas(timestep)), device=device))

    def run(sigmas: NDArray[np.float64], noise: Tensor) -> Tensor:
        timesteps = schedule.timesteps(sigmas[:-1]).astype(int).tolist()
        return with_scheduler(scheduler, epsilon, timesteps, noise)

    return run


@torch.no_grad()
def samples(
    run: Run,
    sigmas: NDArray[np.float64],
    shape: tuple[int, ...],
    count: int,
    seed: int,
    device: str = "cpu",
) -> NDArray[np.float32]:
    """`count` images (count, *shape)."""
    found = [run(sigmas, noise.to(device)).cpu().numpy() for noise in noises(shape, count, seed)]
    return np.concatenate(found).astype(np.float32)


@torch.no_grad()
def denoising_errors(
    model: Any, images: NDArray[np.float32], sigmas: NDArray[np.float64], device: str = "cpu", seed: int = 7
) -> NDArray[np.float64]:
    """Mean over the images of |D(x + sigma n) - x|^2, summed over pixels, at every level."""
    generator = torch.Generator().manual_seed(seed)
    denoise = denoiser(model, device)
    errors = []
    for sigma in sigmas.tolist():
        total = 0.0
        for clean in torch.from_numpy(images).split(BATCH):
            noisy = clean + sigma * torch.randn(clean.shape, generator=generator)
            total += float((denoise(noisy.to(device), sigma).cpu() - clean).double().square().sum())
        errors.append(total / len(images))
    return np.array(errors)
