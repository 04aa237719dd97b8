"""A search that has been validated: the grid, the objective, and how a result is made of what was found."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastkl._dispatch import GUARD
from fastkl._objective import Objective
from fastkl._refinement import refined_levels
from fastkl._search_result import SearchResult
from fastkl._validation import integer, real_array, real_number
from fastkl.evaluate import divergence
from fastkl.schedule import NoiseSchedule
from fastkl.spectrum import Spectrum, as_spectrum

__all__ = ["COMPRESSION", "FOREVER", "Problem", "Setting", "combined", "grid_levels", "several", "weights_of"]

Array = NDArray[np.float64]

COMPRESSION = 1e-9  # of the spectrum that paths are compared on; the result is evaluated on the whole one
ROUNDING = 1e-11  # of two evaluations of a divergence
FOREVER = 1e9  # seconds


class Setting:
    """Where and for what is searched: levels, metric, prior, constraints."""

    def __init__(
        self,
        schedule: NoiseSchedule,
        grid: Any,
        metric: str,
        prior: str,
        free_start: bool,
        visit: ArrayLike | None,
        min_spacing: int,
    ) -> None:
        self.schedule, self.metric, self.prior = schedule, metric, prior
        self.free_start, self.min_spacing = free_start, min_spacing
        self.levels = grid_levels(schedule, grid)
        self.visit = self._places_to_visit(visit)

    def _places_to_visit(self, visit: ArrayLike | None) -> NDArray[np.int64]:
        """Return the grid indices of levels that must be visited."""
        if visit is None:
            return np.empty(0, dtype=np.int64)
        values = real_array("visit", visit)
        if self.schedule.is_discrete:
            last = len(self.levels) - 1
            for i, value in enumerate(values.tolist()):
                if not (value.is_integer() and 0 <= value <= last):
                    raise ValueError(
                        f"visit[{i}] = {value!r}: must be a timestep, an integer within 0 and {last}"
                    )
            places = last - values.astype(np.int64)
        else:
            for i, value in enumerate(values.tolist()):
                real_number(f"visit[{i}]", value, above=0.0)
            with np.errstate(divide="ignore"):
                distance = np.abs(np.log(self.levels)[:, None] - np.log(values))
            places = np.argmin(distance, axis=0)
        return np.unique(places)

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

    def result(
        self,
        path: NDArray[np.int64],
        value: float,
        bound: float,
        proved: bool,
        refined: tuple[Array | None, float | None],
        iterations: int,
        began: float,
    ) -> SearchResult:
        """Return the result of a search."""
        return SearchResult(
            steps=len(path),
            timesteps=len(self.levels) - 1 - path if self.schedule.is_discrete else None,
            sigmas=self.sigmas(path[None])[0],
            value=value,
            lower_bound=value if proved else min(value, max(0.0, bound)),
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


def grid_levels(schedule: NoiseSchedule, grid: Any) -> Array:
    """Return the levels to choose from, noisiest first; the first may be inf."""
    if schedule.is_discrete:
        return np.ascontiguousarray(schedule.sigmas(np.arange(schedule.num_train_timesteps))[::-1])
    grid = integer("grid", grid, minimum=2)
    return np.asarray(schedule.sigmas(np.arange(grid, 0, -1) / grid))


def several(spectrum: Any) -> bool:
    """Whether the argument is a sequence of spectra."""
    return (
        isinstance(spectrum, Sequence) and bool(spectrum) and all(isinstance(s, Spectrum) for s in spectrum)
    )


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


class Problem:
    """A search on one spectrum, or on what stands for it already, for any number of steps."""

    def __init__(self, data: Spectrum, setting: Setting, compress: bool = True) -> None:
        with GUARD.importing:
            from fastkl._bounded_search import BoundedSearch
            from fastkl._convex_search import ConvexSearch
            from fastkl._grid import Grid

        self.data, self.setting = data, setting
        self.small = data.compress(COMPRESSION) if compress else data
        self.slack = 4.0 * (self.small.rtol + ROUNDING)
        self.objective = Objective(self.small, setting.metric, setting.prior)
        grid = Grid(setting.levels, setting.visit, setting.min_spacing, self.objective.eigenvalues)
        starts = np.flatnonzero(grid.may_start) if setting.free_start else np.zeros(1, dtype=np.int64)
        kind = BoundedSearch if setting.metric == "w2" else ConvexSearch
        self.search = kind(grid, self.objective, starts)

    def solve(self, steps: int, prove: bool, time_limit: float | None) -> SearchResult:
        """Search, evaluate what may be best on the whole spectrum, and say what is proved."""
        began = time.monotonic()
        outcome = self.search.run(steps, began + (time_limit or FOREVER), prove, self.slack)
        values = np.array(outcome.values)
        near = np.flatnonzero(values <= values.min() * (1.0 + self.slack))
        paths = np.stack([outcome.paths[i] for i in near])
        setting = self.setting
        exact = divergence(self.data, setting.sigmas(paths), setting.metric, prior=setting.prior)
        best = int(np.argmin(exact))
        value = float(exact[best])
        bound = outcome.bound * (1.0 - self.slack)
        refined = self._refined(setting.sigmas(paths[best : best + 1])[0], value)
        return setting.result(paths[best], value, bound, outcome.complete, refined, outcome.iterations, began)

    def _refined(self, sigmas: Array, value: float) -> tuple[Array | None, float | None]:
        """Return the local optimum beside a choice of levels and its value, for continuous schedules."""
        if self.setting.schedule.is_discrete:
            return None, None
        moved = refined_levels(self.objective, sigmas, float(self.setting.levels[-1]))
        moved_value = divergence(self.data, moved, self.setting.metric, prior=self.setting.prior)
        return (moved, moved_value) if moved_value <= value else (sigmas, value)
