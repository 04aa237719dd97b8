"""The levels that a scheduler visits, read off the object itself once its timesteps are set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Path", "alphas", "read_path", "table_levels"]

Array = NDArray[np.float64]
SAME = 1e-6  # relative difference of levels that float32 does not tell apart

# Classes whose state is x = y (they divide the network's input by sqrt(1 + sigma^2)), x = alpha y with alpha^2 +
# sigma^2 = 1, or x = alpha y with alpha + sigma = 1.
VE = frozenset({"EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler",
                "LMSDiscreteScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"})  # fmt: skip
FLOW = frozenset({"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"})
TWICE = frozenset({"HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"})  # list inner levels twice


@dataclass(frozen=True, eq=False)
class Path:
    """N steps, from the levels `here` that the network is evaluated at to the levels `there`.

    Parameters
    ----------
    here, there : ndarray, shape (N,)
        Noise-to-signal ratios; the first may be inf. They form one chain where there[k] = here[k+1].
    told : ndarray, shape (N,)
        Levels of the timesteps that the network is told.
    timesteps : ndarray, shape (N,)
        Those timesteps.
    coordinates : {"ve", "vp", "flow"}
        What the scheduler's x is of y = x/alpha: alpha 1, (1 + s^2)^(-1/2), 1/(1 + s).
    start_std : float
        Standard deviation of the first x.
    config : mapping
        Options of the scheduler, of which set_timesteps may have changed some.
    middles : tuple of float or None
        Levels between those of PNDM's Runge-Kutta steps.
    """

    here: Array
    there: Array
    told: Array
    timesteps: Array
    coordinates: str
    start_std: float
    config: Any
    middles: tuple[float, ...] | None = None

    @property
    def steps(self) -> int:
        """Number of steps N."""
        return len(self.here)

    @property
    def is_chain(self) -> bool:
        """Whether every step ends where the next one begins."""
        return bool(np.array_equal(self.there[:-1], self.here[1:]))

    @property
    def levels(self) -> Array:
        """The N+1 levels of a chain, or of the evaluations and the end."""
        return np.append(self.here, self.there[-1])

    @property
    def start_variance(self) -> float:
        """Variance of the first y; of the noise itself at an infinite level."""
        first = self.here[0]
        scale = 1.0 if self.coordinates == "ve" or np.isinf(first) else alphas(first, self.coordinates)
        return float((self.start_std / scale) ** 2)

    @property
    def wasted(self) -> list[int]:
        """Steps that end where they begin, to the digits of float32."""
        gap = np.abs(self.here - self.there) <= SAME * self.here
        return np.flatnonzero(np.isfinite(self.here) & gap).tolist()


def alphas(levels: Any, coordinates: str) -> Any:
    """Return the alpha that the network's input has at these levels."""
    return 1.0 / (1.0 + levels) if coordinates == "flow" else 1.0 / np.hypot(1.0, levels)


def read_path(scheduler: Any) -> Path:
    """Return the path of a scheduler whose timesteps are set."""
    name = type(scheduler).__name__
    reader = {"DDIMScheduler": ddim_path, "DDPMScheduler": ddpm_path, "PNDMScheduler": pndm_path}
    return reader.get(name, sigma_path)(scheduler)


def numpy(values: Any) -> Array:
    """Return a tensor or list as float64."""
    return np.asarray(values.tolist() if hasattr(values, "tolist") else values, dtype=np.float64)


def table_levels(scheduler: Any) -> Array:
    """Return the levels of the training timesteps as the scheduler's float32 table has them."""
    table = numpy(scheduler.alphas_cumprod)
    with np.errstate(divide="ignore"):
        return np.sqrt((1.0 - table) / table)


def told_levels(table: Array, timesteps: Array, visited: Array) -> Array:
    """Return the levels of timesteps, log sigma linear between two; outside of the table those that are visited."""
    inside = (timesteps >= 0.0) & (timesteps <= len(table) - 1)
    low = np.clip(np.floor(timesteps).astype(int), 0, len(table) - 1)
    high = np.minimum(low + 1, len(table) - 1)
    share = np.where(inside, timesteps - low, 0.0)
    with np.errstate(invalid="ignore"):
        between = table[low] * np.exp(share * np.log(table[high] / table[low]))
    return np.where(inside, np.where(share > 0.0, between, table[low]), visited)


def table_path(scheduler: Any, timesteps: Array, previous: Array, last: float, **more: Any) -> Path:
    """Return the path of a class that reads the table of alphas: -1 is its last entry, as Python has it."""
    table = table_levels(scheduler)
    here = table[timesteps.astype(int)]
    there = np.where(previous >= 0.0, table[np.maximum(previous, 0.0).astype(int)], last)
    return Path(
        here, there, here, timesteps, "vp", float(scheduler.init_noise_sigma), scheduler.config, **more
    )


def ddim_path(scheduler: Any) -> Path:
    """DDIM steps from t to t - T//N, whatever timestep comes next."""
    timesteps = numpy(scheduler.timesteps)
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    return table_path(scheduler, timesteps, timesteps - stride, final_level(scheduler))


def ddpm_path(scheduler: Any) -> Path:
    """DDPM steps to the next timestep of its list, and to 0 where that is -1 or there is none."""
    timesteps = numpy(scheduler.timesteps)
    return table_path(scheduler, timesteps, np.append(timesteps[1:], -1.0), 0.0)


def pndm_path(scheduler: Any) -> Path:
    """PNDM too steps to t - T//N; its Runge-Kutta steps are evaluated in the middle."""
    steps = scheduler.num_inference_steps
    stride = scheduler.config.num_train_timesteps // steps
    timesteps = numpy(scheduler._timesteps)[::-1]
    middles = None
    if not scheduler.config.skip_prk_steps:
        halves = (timesteps[:3] - stride // 2).astype(int)
        middles = tuple(table_levels(scheduler)[np.maximum(halves, 0)].tolist())
    return table_path(scheduler, timesteps, timesteps - stride, final_level(scheduler), middles=middles)


def final_level(scheduler: Any) -> float:
    """Return the level that DDIM and PNDM take for timesteps below 0."""
    alpha = float(scheduler.final_alpha_cumprod)
    return float(np.sqrt((1.0 - alpha) / alpha))


def sigma_path(scheduler: Any) -> Path:
    """The classes with a table of sigmas, one for each timestep and one for the end (Euler may have one more)."""
    name, config = type(scheduler).__name__, scheduler.config
    sigmas, timesteps = numpy(scheduler.sigmas), numpy(scheduler.timesteps)
    if name in TWICE:
        sigmas = np.concatenate([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]])
        timesteps = np.append(timesteps[:1], timesteps[1::2])
    sigmas = sigmas[: len(timesteps) + 1]
    is_flow = name in FLOW or bool(config.get("use_flow_sigmas", False))
    if is_flow:
        with np.errstate(divide="ignore"):
            sigmas = sigmas / (1.0 - sigmas)
            share = timesteps / config.num_train_timesteps
            told = share / (1.0 - share)
    elif name.startswith("EDM"):
        told = np.exp(4.0 * timesteps)
    else:
        told = told_levels(table_levels(scheduler), timesteps, sigmas[:-1])
    coordinates = "flow" if is_flow else "ve" if name in VE else "vp"
    start = float(getattr(scheduler, "init_noise_sigma", 1.0))
    return Path(sigmas[:-1], sigmas[1:], told, timesteps, coordinates, start, config)
