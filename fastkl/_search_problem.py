"""A search that has been validated, on one spectrum: what paths are compared on, and what is made of those found."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fastkl._dispatch import GUARD
from fastkl._objective import Objective
from fastkl._refinement import refined_levels
from fastkl._search_result import SearchResult
from fastkl._search_setting import Setting
from fastkl._stand_in import prior_cost
from fastkl.evaluate import divergence
from fastkl.spectrum import Spectrum

__all__ = ["COMPRESSION", "FOREVER", "Problem"]

Array = NDArray[np.float64]

COMPRESSION = 1e-9  # of the spectrum that paths are compared on; the result is evaluated on the whole one
ROUNDING = 1e-11  # of two evaluations of a divergence
FOREVER = 1e9  # seconds


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
        self.margins = self.slack * cancelled(self.small, setting, starts)
        kind = BoundedSearch if setting.metric == "w2" else ConvexSearch
        self.search = kind(grid, self.objective, starts, self.margins)

    def solve(self, steps: int, prove: bool, time_limit: float | None) -> SearchResult:
        """Search, evaluate what may be best on the whole spectrum, and say what is proved."""
        began = time.monotonic()
        outcome = self.search.run(steps, began + (time_limit or FOREVER), prove, self.slack)
        paths, values = np.stack(outcome.paths), np.array(outcome.values)
        margins = self.margins[np.searchsorted(self.search.starts, paths[:, 0])]
        near = paths[values - margins <= (values + margins).min() * (1.0 + self.slack)]
        setting = self.setting
        exact = self.values(setting.sigmas(near))
        best = int(np.argmin(exact))
        value = float(exact[best])
        bound = outcome.bound * (1.0 - self.slack)
        refined = setting.refined(near[best], value, partial(refined_levels, self.objective), self.values)
        return setting.result(near[best], value, bound, outcome.complete, refined, outcome.iterations, began)

    def values(self, sigmas: Array) -> Array:
        """Return the divergences of schedules on the whole spectrum."""
        found: Array = divergence(self.data, sigmas, self.setting.metric, prior=self.setting.prior)
        return found


def cancelled(small: Spectrum, setting: Setting, starts: NDArray[np.int64]) -> Array:
    """Return what the relative error of a compression refers to beside the value, for every start.

    Where a prior's mismatch P < 0 cancels what the steps lose, the error is relative to the sums of S^2 and P^2, and
    S^2 + P^2 <= 2 (S + P)^2 + 3 P^2 (`fastkl._stand_in`).
    """
    first = setting.levels[starts]
    if setting.prior not in ("vp", "flow") or not small.rtol > 0.0:
        return np.zeros(len(first))
    cost, _ = prior_cost(small, first, setting.metric, setting.prior)
    return 3.0 * np.asarray(cost)
