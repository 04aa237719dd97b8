"""Samples of a model at given levels: a plain DDIM loop for EDM networks, diffusers' schedulers for epsilon ones."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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

        config = pipelines.load(self.pipeline).network.config
        return pipelines.images(pathlib.Path(self.data), config.sample_size, config.in_channels)


SETUPS = {
    setup.name: setup
    for setup in (
        Setup("mnist-edm-ddim", "mnist-edm", "mnist", "ddim"),
        Setup("patches-edm-ddim", "patches-edm", "patches", "ddim"),
        Setup("mnist-epsilon-ddim", "mnist-epsilon", "mnist", "ddim"),
        Setup("mnist-epsilon-dpmpp_2m", "mnist-epsilon", "mnist", "dpmpp_2m"),
    )
}

Denoise = Callable[[Tensor, float], Tensor]
Run = Callable[[NDArray[np.float64], Tensor], Tensor]


def ready(setup: Setup, *, device: str = "cpu", compiled: bool = False, exact: bool = False) -> Any:
    """The model for sampling. Committed ones compute in bfloat16 unless `exact`, a user's as it was saved."""
    if setup.pipeline is not None:
        import pipelines

        model: Any = pipelines.load(setup.pipeline).to(device)
    else:
        model = networks.load(setup.model).to(device)
        if not exact:
            model.network.to(torch.bfloat16)
            model.network.frequencies = model.network.frequencies.float()
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


def scheduler_for(setup: Setup) -> Any:
    """diffusers' scheduler. DDIMScheduler takes no timesteps of one's own; DPM-Solver of order 1 is the same map."""
    from diffusers import DPMSolverMultistepScheduler

    config: dict[str, Any] = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    if setup.pipeline is not None:
        import pipelines

        config = pipelines.scheduler_config(setup.pipeline)
    order = {"ddim": 1, "dpmpp_2m": 2}[setup.sampler]
    return DPMSolverMultistepScheduler.from_config(config, solver_order=order, final_sigmas_type="zero")


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
    schedule, denoise = setup.schedule, denoiser(model, device)

    def epsilon(x: Tensor, timestep: int) -> Tensor:
        return model.raw(x, torch.full((len(x),), float(schedule.sigmas(timestep)), device=device))

    def run(sigmas: NDArray[np.float64], noise: Tensor) -> Tensor:
        if model.description.kind == "edm":
            return ddim(denoise, sigmas, noise)
        timesteps = schedule.timesteps(sigmas[:-1]).astype(int).tolist()
        return with_scheduler(scheduler_for(setup), epsilon, timesteps, noise)

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
    model: Any, images: NDArray[np.float32], sigmas: NDArray[np.float64], seed: int = 7
) -> NDArray[np.float64]:
    """Mean over the images of |D(x + sigma n) - x|^2, summed over pixels, at every level."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.from_numpy(images)
    errors = []
    for sigma in sigmas.tolist():
        total = 0.0
        for batch in pixels.split(BATCH):
            noisy = batch + sigma * torch.randn(batch.shape, generator=generator)
            total += float((model(noisy, torch.full((len(batch),), sigma)) - batch).double().square().sum())
        errors.append(total / len(pixels))
    return np.array(errors)
