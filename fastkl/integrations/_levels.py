"""The best levels for a sampler: what `fastkl.search` finds, or what is better where that has no proof."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastkl._sampler_base import Sampler
from fastkl._search import SearchResult, search
from fastkl._validation import choice
from fastkl.evaluate import divergence
from fastkl.schedule import NoiseSchedule
from fastkl.spectrum import Spectrum, as_spectrum

__all__ = ["LEVELS_OF", "Found", "best_levels", "check_options", "constrained", "with_variance"]

Array = NDArray[np.float64]
LEVELS_OF = ("sampler", "ddim")  # whose errors the levels are the best for
PER_FAMILY = 200
MOST_STEPS = 50  # for which a local search is worth its time, some seconds
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


def constrained(options: dict[str, Any]) -> bool:
    """Return whether options ask for constraints that other levels do not keep to."""
    return options.get("visit") is not None or options.get("min_spacing", 1) > 1


def with_variance(spectrum: Spectrum | ArrayLike) -> Spectrum:
    """Return a spectrum, or raise if there is nothing in it that a schedule could lose."""
    data = as_spectrum("spectrum", spectrum)
    if not data.eigenvalues.max() > 0.0:
        raise ValueError("spectrum: must have an eigenvalue above 0")
    return data


def searchable(sampler: Sampler, schedule: NoiseSchedule, steps: int, free_start: bool) -> bool:
    """Return whether `fastkl.search` finds levels for a sampler in some seconds."""
    starts = free_start or np.isfinite(schedule.sigma_max) or not sampler.finite_start
    soon = sampler.is_ddim or steps <= MOST_STEPS
    return bool(starts and soon and steps >= sampler.least_steps)


@dataclass(frozen=True, eq=False)
class Found:
    """Levels (N+1,), where they come from, and what the search found."""

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
    *,
    rival: Array | None = None,
    first: float = np.inf,
    free_start: bool = False,
    levels_of: str = "sampler",
    **options: Any,
) -> Found:
    """Return the best levels for a sampler, or those of DDIM for it (`of_ddim`).

    Where there is no proof, what was found (for DDIM, if the sampler cannot be searched for soon) competes with all
    families of `fastkl rank`, and with the levels `rival`, unless `options` ask for constraints that those do not keep
    to. `first` is what a first level of inf becomes in the scheduler. With `free_start` all may begin at a lower level
    than the noisiest, and begin as noise of the variance that `prior` has there.
    """
    if choice("levels_of", levels_of, LEVELS_OF) == "ddim" and not sampler.is_ddim:
        return of_ddim(schedule, data, steps, metric, sampler, prior, free_start=free_start, **options)
    rule = sampler if searchable(sampler, schedule, steps, free_start) else "ddim"
    result = search(data, schedule, steps, rule, metric, prior, free_start=free_start, **options)
    levels = result.sigmas if result.refined_sigmas is None else result.refined_sigmas
    best = Found(levels, "search", result)
    if sampler.is_ddim or constrained(options) or steps < sampler.least_steps:
        return best
    names, levels = contenders(best, schedule, data, rival, free_start)
    if sampler.above_zero:
        last = float(best.levels[-1]) or lowest(schedule)
        if not last > 0.0:
            return best
        levels, names = ending_at(last, levels, names)
    tried = np.where(np.isinf(levels), first, levels)
    falls = tried[:, 0] > tried[:, 1]
    kept = np.flatnonzero(falls & (np.isfinite(tried[:, 0]) | (not sampler.finite_start)))
    if not len(kept):
        return best
    least = kept[np.argmin(divergence(data, tried[kept], metric, sampler, prior))]
    return Found(levels[least], names[least], result)


def of_ddim(
    schedule: NoiseSchedule,
    data: Spectrum,
    steps: int,
    metric: str,
    sampler: Sampler,
    prior: str,
    *,
    visit: Any = None,
    **options: Any,
) -> Found:
    """Return the best levels of DDIM that go down to the lowest that the network knows.

    From there the last step of a sampler with a memory, which is of order 1, has nothing to do. The errors of single
    steps of DDIM hardly cancel, so its levels suit networks better than those where such a sampler's errors do.
    """
    low = lowest(schedule)
    if not low > 0.0:
        raise ValueError(
            "levels_of = 'ddim': the schedule must have a lowest level above 0; flow matching has none"
        )
    if sampler.above_zero:
        raise ValueError(
            f"levels_of = 'ddim': must be of a sampler that ends at 0; {sampler.name} ends above"
        )
    if steps < 2:
        raise ValueError(
            f"steps = {steps}: must be at least 2 with levels_of = 'ddim', which visits the lowest level"
        )
    lowest_place = 0 if schedule.is_discrete else low
    visited = [lowest_place] if visit is None else np.append(np.atleast_1d(visit), lowest_place)
    result = search(data, schedule, steps, "ddim", metric, prior, visit=np.unique(visited), **options)
    return Found(result.sigmas, "ddim", result)  # refined levels would leave the lowest one


def lowest(schedule: NoiseSchedule) -> float:
    """Return the lowest level that is told to the network."""
    return float(schedule.sigmas(0) if schedule.is_discrete else schedule.sigma_min)


def ending_at(last: float, levels: Array, names: list[str]) -> tuple[Array, list[str]]:
    """Return rows with another last level, of those that are above it."""
    above = np.flatnonzero(levels[:, -2] > last)
    return np.concatenate([levels[above, :-1], np.full((len(above), 1), last)], axis=1), [
        names[i] for i in above
    ]


def contenders(
    best: Found, schedule: NoiseSchedule, data: Spectrum, rival: Array | None, free_start: bool
) -> tuple[list[str], Array]:
    """Return names and levels of what may be best, all from the noisiest level on unless the first one is free."""
    from fastkl.cli.candidates import all_candidates

    families = all_candidates(schedule, data, best.search.steps, PER_FAMILY, schedule.is_discrete)
    kept = free_start | (families.levels[:, 0] >= best.levels[0] * (1.0 - 1e-9))
    names = ["search", *(label[0] for label, keep in zip(families.labels, kept, strict=True) if keep)]
    levels = np.concatenate([best.levels[None, :], families.levels[kept]])
    if rival is not None:
        names.append("as shipped")
        levels = np.concatenate([levels, np.append(schedule.sigma_max, rival[1:])[None, :]])
    return names, levels
