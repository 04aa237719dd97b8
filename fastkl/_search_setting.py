"""Where and for what is searched: the levels to choose from, the constraints, the spectrum, and the form of results."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastkl._search_result import SearchResult
from fastkl._validation import integer, real_array, real_number
from fastkl.schedule import NoiseSchedule
from fastkl.spectrum import Spectrum, as_spectrum

__all__ = ["Setting", "combined", "grid_levels", "several", "warn_of_missing_mean", "weights_of"]

Array = NDArray[np.float64]

DECADES = 3  # that a grid goes past the spectrum's deviations where the schedule goes on to 0 or inf
LEAST, MOST = 1e-15, 1e15  # levels that can be evaluated
MOST_LEVELS = 10**7  # of a grid
SAME = 1e-12  # relative distance within which a level to visit takes the place of one of the grid


class Setting:
    """Where and for what is searched: levels, metric, prior, constraints."""

    def __init__(
        self,
        schedule: NoiseSchedule,
        grid: Any,
        eigenvalues: Array,
        metric: str,
        prior: str,
        free_start: bool,
        visit: ArrayLike | None,
        min_spacing: int,
    ) -> None:
        self.schedule, self.metric, self.prior = schedule, metric, prior
        self.free_start, self.min_spacing = free_start, min_spacing
        self.levels = grid_levels(schedule, grid, eigenvalues)
        self.visit = np.empty(0, dtype=np.int64)
        if visit is not None and schedule.is_discrete:
            self.visit = timesteps_to_visit(visit, len(self.levels) - 1)
        elif visit is not None:
            self.levels, self.visit = with_levels(self.levels, sigmas_to_visit(visit, schedule))

    def checked_steps(self, name: str, steps: Any) -> int:
        """Return a number of steps for which there is a path, or raise."""
        fewest = 2 if np.isinf(self.levels[0]) and not self.free_start else 1
        return integer(name, steps, minimum=fewest, maximum=len(self.levels))

    def candidates(self, steps: int) -> int | None:
        """Return how many choices there are; None where levels must be visited."""
        if len(self.visit):
            return None
        size = len(self.levels) - (steps - 1) * (self.min_spacing - 1)
        return math.comb(size, steps) if self.free_start else math.comb(size - 1, steps - 1)

    def sigmas(self, paths: NDArray[np.int64]) -> Array:
        """Return the levels of paths, ending in 0."""
        return np.concatenate([self.levels[paths], np.zeros((len(paths), 1))], axis=1)

    @property
    def apart(self) -> float:
        """Least distance in log s^2 of neighbours that are moved off the grid of a continuous schedule."""
        if self.min_spacing == 1:
            return 0.0
        finite = self.levels[np.isfinite(self.levels)]
        return self.min_spacing * float(np.max(-2.0 * np.diff(np.log(finite)), initial=0.0))

    def refined(
        self,
        path: NDArray[np.int64],
        value: float,
        refine: Callable[..., Array],
        values: Callable[[Array], Array],
    ) -> tuple[Array | None, float | None]:
        """Return the local optimum beside a choice of levels and its value, for continuous schedules."""
        if self.schedule.is_discrete:
            return None, None
        sigmas = self.sigmas(path[None])[0]
        with np.errstate(divide="ignore"):
            gaps = -2.0 * np.diff(np.log(sigmas[:-1]))
        apart = float(np.min(gaps, initial=self.apart))  # levels to visit may lie closer than others
        held = np.isin(path[1:], self.visit)
        finite = self.levels[np.isfinite(self.levels)]
        moved = refine(sigmas, float(finite[-1]), held=held, apart=apart, most=float(finite[0]))
        moved_value = float(values(moved[None])[0])
        return (moved, moved_value) if moved_value <= value else (sigmas, value)

    def result(
        self,
        path: NDArray[np.int64],
        value: float,
        bound: float | None,
        proved: bool,
        refined: tuple[Array | None, float | None],
        iterations: int,
        began: float,
    ) -> SearchResult:
        """Return the result of a search."""
        if bound is not None:
            bound = value if proved else min(value, max(0.0, bound))
        return SearchResult(
            steps=len(path),
            timesteps=len(self.levels) - 1 - path if self.schedule.is_discrete else None,
            sigmas=self.sigmas(path[None])[0],
            value=value,
            lower_bound=bound,
            proved_optimal=proved,
            refined_sigmas=refined[0],
            refined_value=refined[1],
            metric=self.metric,
            prior=self.prior,
            sampler="ddim",
            candidates=self.candidates(len(path)),
            iterations=iterations,
            seconds=time.monotonic() - began,
        )


def grid_levels(schedule: NoiseSchedule, grid: Any, eigenvalues: Array) -> Array:
    """Return the levels to choose from, noisiest first; the first may be inf.

    The timesteps of a discrete schedule; of a continuous one `grid` levels, evenly spaced in log sigma from the least
    to the largest, and as far as the spectrum matters where it goes on to 0 and inf.
    """
    grid = integer("grid", grid, minimum=2, maximum=MOST_LEVELS)
    if schedule.is_discrete:
        levels = np.ascontiguousarray(schedule.sigmas(np.arange(schedule.num_train_timesteps))[::-1])
    else:
        levels = spaced_levels(schedule, grid, eigenvalues)
    for i, level in enumerate(levels.tolist()):
        if not (LEAST <= level <= MOST or (i == 0 and level == math.inf)):
            rule = f"must be within {LEAST:g} and {MOST:g} to be evaluated"
            raise ValueError(f"schedule = {schedule!r}: has the level {level!r}, {rule}")
    if len(levels) == 1 and np.isinf(levels[0]):
        raise ValueError(f"schedule = {schedule!r}: its only level is inf, there is nothing to choose from")
    return levels


def spaced_levels(schedule: NoiseSchedule, grid: int, eigenvalues: Array) -> Array:
    """Return levels of a continuous schedule that are evenly spaced in log sigma."""
    low, high = schedule.sigma_min, schedule.sigma_max
    positive = eigenvalues[eigenvalues > 0.0]
    # whole decades, so that a compression of the spectrum has the same grid
    scales = 0.5 * np.log10(positive if positive.size else np.ones(1))
    top = high if np.isfinite(high) else min(10.0 ** (math.ceil(scales.max()) + DECADES), MOST)
    bottom = low if low > 0.0 else max(10.0 ** (math.floor(scales.min()) - DECADES), LEAST)
    size = grid - int(np.isinf(high))
    levels = np.geomspace(top, bottom, size) if size > 1 else np.array([math.sqrt(top) * math.sqrt(bottom)])
    return np.append(math.inf, levels) if np.isinf(high) else levels


def timesteps_to_visit(visit: ArrayLike, last: int) -> NDArray[np.int64]:
    """Return the grid indices of timesteps that must be visited."""
    values = real_array("visit", visit)
    for i, value in enumerate(values.tolist()):
        if not (value.is_integer() and 0 <= value <= last):
            raise ValueError(f"visit[{i}] = {value!r}: must be a timestep, an integer within 0 and {last}")
    return np.unique(last - values.astype(np.int64))


def sigmas_to_visit(visit: ArrayLike, schedule: NoiseSchedule) -> Array:
    """Return levels of a continuous schedule that must be visited, descending."""
    values = real_array("visit", visit)
    low, high = max(schedule.sigma_min, LEAST), min(schedule.sigma_max, MOST)
    for i, value in enumerate(values.tolist()):
        real_number(f"visit[{i}]", value, at_least=low, at_most=high)
    return np.unique(values)[::-1]


def with_levels(levels: Array, visit: Array) -> tuple[Array, NDArray[np.int64]]:
    """Return a grid with levels to visit in it, and their places."""
    with np.errstate(invalid="ignore"):
        near = (np.abs(levels[:, None] - visit) <= SAME * visit).any(axis=1)
    merged = np.sort(np.concatenate([levels[~near], visit]))[::-1].copy()
    return merged, np.searchsorted(-merged, -visit)


def several(spectrum: Any) -> bool:
    """Whether the argument is a sequence of spectra."""
    return (
        isinstance(spectrum, Sequence) and bool(spectrum) and all(isinstance(s, Spectrum) for s in spectrum)
    )


def warn_of_missing_mean(spectrum: Any) -> None:
    """Warn the caller of the library, where the first level is chosen, of a mean not given."""
    named = (
        {f"spectrum[{i}]": one for i, one in enumerate(spectrum)}
        if several(spectrum)
        else {"spectrum": spectrum}
    )
    for name, one in named.items():
        if not isinstance(one, Spectrum) or one.mean is None:
            warnings.warn(
                f"free_start = True: {name} has no mean, which counts as 0 then, and the first level may come out far "
                "too low; pass Spectrum(..., mean=...), of zeros where the mean is 0",
                UserWarning,
                stacklevel=level_outside(),
            )
            return


def level_outside() -> int:
    """Return the stack level, for a warning that its caller gives, of the first frame outside this package."""
    package = str(Path(__file__).parent)
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        frame, level = frame.f_back, level + 1
    return level


def weights_of(spectrum: Any, weights: ArrayLike | None) -> Array:
    """Return the weights of several spectra, or of one."""
    if not several(spectrum):
        if weights is not None:
            raise ValueError("weights: must be left out where there is only one spectrum")
        return np.ones(1)
    shares = np.ones(len(spectrum)) if weights is None else real_array("weights", weights)
    if shares.shape != (len(spectrum),):
        raise ValueError(
            f"weights: must have shape ({len(spectrum)},) like spectrum, got shape {shares.shape}"
        )
    for i, share in enumerate(shares.tolist()):
        real_number(f"weights[{i}]", share, at_least=1e-9, at_most=1e9)
    return shares


def combined(spectrum: Any, shares: Array) -> Spectrum:
    """Return one spectrum whose divergences are the weighted sum of those of several."""
    if not several(spectrum):
        return as_spectrum("spectrum", spectrum)
    ones = [np.ones(len(s)) if s.counts is None else s.counts for s in spectrum]
    means = [np.zeros(len(s)) if s.mean is None else s.mean for s in spectrum]
    return Spectrum._trusted(
        np.concatenate([s.eigenvalues for s in spectrum]),
        np.concatenate([counts * share for counts, share in zip(ones, shares, strict=True)]),
        np.concatenate(means),
        max(s.rtol for s in spectrum),
    )
