"""The best levels for a sampler: searched for where `fastkl.search` knows it, else the best of what is at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl._sampler_base import Sampler
from fastkl._search import SearchResult, search
from fastkl.evaluate import divergence
from fastkl.schedule import NoiseSchedule
from fastkl.spectrum import Spectrum

__all__ = ["Found", "best_levels", "check_options"]

Array = NDArray[np.float64]
PER_FAMILY = 200
FREE = (
    "time_limit",
    "grid",
    "visit",
    "min_spacing",
)  # options of fastkl.search that a scheduler does not settle


def check_options(options: dict[str, Any]) -> None:
    """Raise for options that the scheduler settles, or that do not exist."""
    for name in options:
        if name not in FREE:
            raise TypeError(
                f"{name}: is no option here; {', '.join(FREE)} are, the scheduler settles the rest"
            )


def searchable(sampler: Sampler) -> bool:
    """Return whether `fastkl.search` takes a sampler."""
    return sampler.is_ddim


@dataclass(frozen=True, eq=False)
class Found:
    """Levels (N+1,), from which family of `fastkl rank`, or "search", and the search for DDIM's best."""

    levels: Array
    origin: str
    search: SearchResult


def best_levels(
    schedule: NoiseSchedule,
    data: Spectrum,
    steps: int,
    metric: str,
    sampler: Sampler,
    prior: str,
    **options: Any,
) -> Found:
    """Return the best levels for a sampler.

    Where it cannot be searched for, DDIM's best levels compete with all families of `fastkl rank` under the sampler
    itself, unless `options` ask for constraints that families do not keep to.
    """
    result = search(data, schedule, steps, "ddim", metric, prior, **options)
    levels = result.sigmas if result.refined_sigmas is None else result.refined_sigmas
    best = Found(levels, "search", result)
    constrained = options.get("visit") is not None or options.get("min_spacing", 1) > 1
    if searchable(sampler) or constrained or sampler.above_zero or steps < sampler.least_steps:
        return best
    return best_of_families(best, schedule, data, metric, sampler, prior)


def best_of_families(
    best: Found, schedule: NoiseSchedule, data: Spectrum, metric: str, sampler: Sampler, prior: str
) -> Found:
    """Return what is best under a sampler among levels found for DDIM and the families of `fastkl rank`."""
    from fastkl.cli.candidates import all_candidates

    families = all_candidates(schedule, data, best.search.steps, PER_FAMILY, schedule.is_discrete)
    names = ["search", *(family for family, _, _ in families.labels)]
    levels = np.concatenate([best.levels[None, :], families.levels])
    # the network knows no noisier level than the first, and starting lower is the prior's business
    kept = levels[:, 0] >= best.levels[0] * (1.0 - 1e-9)
    kept &= np.isfinite(levels[:, 0]) | (not sampler.finite_start)
    if not kept.any():
        return best
    levels, names = levels[kept], [name for name, keep in zip(names, kept, strict=True) if keep]
    least = int(np.argmin(divergence(data, levels, metric, sampler, prior)))
    return Found(levels[least], names[least], best.search)
