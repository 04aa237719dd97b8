"""A validated search for samplers of two evaluations a step, and how results are made of what it finds."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fastkl._dispatch import GUARD
from fastkl._sampler_base import Sampler
from fastkl._sampler_dispatch import checked_sampler
from fastkl._search_problem import COMPRESSION, FOREVER, ROUNDING
from fastkl._search_result import SearchResult
from fastkl._search_setting import Setting
from fastkl.evaluate import divergence
from fastkl.spectrum import Spectrum

__all__ = ["StepProblem", "can_be_proved"]

Array = NDArray[np.float64]

MOST_ENTRIES = 100_000  # of a spectrum on which a proof is tried: a path takes some milliseconds there
MOST_OFFSETS = 1 << 22  # (start, entry) pairs, of which a table is kept
SLACK = 4.0 * ROUNDING  # relative, of comparisons


def can_be_proved(data: Spectrum, setting: Setting) -> bool:
    """Whether a proof can be tried: for the metrics that are convex, and spectra that are not too large."""
    starts = len(setting.levels) if setting.free_start else 1
    return setting.metric != "w2" and len(data) <= min(MOST_ENTRIES, MOST_OFFSETS // starts)


class StepProblem:
    """A search on one spectrum for any number of steps."""

    def __init__(self, data: Spectrum, setting: Setting, sampler: Sampler, named: object) -> None:
        with GUARD.importing:
            from fastkl._step_grid import TableGrid
            from fastkl._step_losses import StepObjective
            from fastkl._step_refinement import refined_steps
            from fastkl._step_search import StepSearch

        if not setting.free_start:
            checked_sampler(named, np.array([[setting.levels[0], 0.0]]))
        self.data, self.setting, self.sampler = data, setting, sampler
        arguments = setting.metric, setting.prior, sampler.name
        guide = StepObjective(data.compress(COMPRESSION), *arguments)
        self.refine = partial(refined_steps, guide)
        whole = StepObjective(data, *arguments)
        grid = TableGrid(setting.levels, setting.visit, setting.min_spacing, whole.eigenvalues, sampler.name)
        starts = np.flatnonzero(grid.may_start) if setting.free_start else np.zeros(1, dtype=np.int64)
        self.search = StepSearch(grid, whole, starts, guide)

    def solve(self, steps: int, prove: bool, time_limit: float | None) -> SearchResult:
        """Search, evaluate what may be best, and say what is proved."""
        began, setting = time.monotonic(), self.setting
        outcome = self.search.run(steps, began + (time_limit or FOREVER), prove, SLACK)
        values = np.array(outcome.values)
        near = np.flatnonzero(values <= self.search.allowed(float(values.min()), SLACK, steps))
        paths = np.stack([outcome.paths[i] for i in near])
        exact = self.values(setting.sigmas(paths))
        best = int(np.argmin(exact))
        value = float(exact[best])
        bound = outcome.bound - (self.search.allowed(value, SLACK, steps) - value)
        refined = setting.refined(paths[best], value, self.refine, self.values)
        result = setting.result(
            paths[best], value, bound, outcome.complete, refined, outcome.iterations, began
        )
        return replace(
            result,
            sampler=self.sampler.name,
            candidates=self.candidates(steps),
        )

    def values(self, sigmas: Array) -> Array:
        """Return the divergences of schedules on the whole spectrum."""
        found: Array = divergence(self.data, sigmas, self.setting.metric, self.sampler, self.setting.prior)
        return found

    def candidates(self, steps: int) -> int | None:
        """Return how many choices there are; None where levels must be visited."""
        setting = self.setting
        if not setting.free_start or self.search.starts[0] == 0 or len(setting.visit):
            return setting.candidates(steps)
        return math.comb(len(setting.levels) - 1 - (steps - 1) * (setting.min_spacing - 1), steps)
