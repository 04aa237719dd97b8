"""A validated search for samplers of two evaluations a step, and how results are made of what it finds."""

from __future__ import annotations

import math
import time
from dataclasses import replace

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

__all__ = ["StepProblem"]

Array = NDArray[np.float64]

MOST_ENTRIES = 100_000  # of a spectrum on which a proof is tried: a path takes some milliseconds there
MOST_OFFSETS = 1 << 22  # (start, entry) pairs, of which a table is kept


class StepProblem:
    """A search on one spectrum for any number of steps."""

    def __init__(self, data: Spectrum, setting: Setting, sampler: Sampler, named: object) -> None:
        with GUARD.importing:
            from fastkl._step_grid import TableGrid
            from fastkl._step_losses import StepObjective
            from fastkl._step_search import StepSearch

        if not setting.free_start:
            checked_sampler(named, np.array([[setting.levels[0], 0.0]]))
        self.data, self.setting, self.sampler = data, setting, sampler
        arguments = setting.metric, setting.prior, sampler.name
        compressed = data.compress(COMPRESSION)
        small = StepObjective(compressed, *arguments)
        whole = StepObjective(data, *arguments)
        starts = self.starts()
        entries = len(whole.eigenvalues)
        self.whole = entries <= MOST_ENTRIES and entries * len(starts) <= MOST_OFFSETS
        searched = whole if self.whole else small
        grid = TableGrid(
            setting.levels, setting.visit, setting.min_spacing, searched.eigenvalues, sampler.name
        )
        self.guide = small
        self.slack = 4.0 * (ROUNDING if self.whole else compressed.rtol + ROUNDING)
        self.search = StepSearch(grid, searched, starts, small)

    def starts(self) -> NDArray[np.int64]:
        """Return the levels that a path may start from."""
        if not self.setting.free_start:
            return np.zeros(1, dtype=np.int64)
        first = int(self.sampler.finite_start and math.isinf(self.setting.levels[0]))
        visit = self.setting.visit
        return np.arange(first, visit[0] + 1 if len(visit) else len(self.setting.levels))

    def solve(self, steps: int, prove: bool, time_limit: float | None) -> SearchResult:
        """Search, evaluate what may be best, and say what is proved."""
        began, setting = time.monotonic(), self.setting
        valid = self.whole and setting.metric != "w2"
        outcome = self.search.run(steps, began + (time_limit or FOREVER), prove and valid, self.slack)
        values = np.array(outcome.values)
        near = np.flatnonzero(values <= self.search.allowed(float(values.min()), self.slack, steps))
        paths = np.stack([outcome.paths[i] for i in near])
        exact = self.values(setting.sigmas(paths))
        best = int(np.argmin(exact))
        value = float(exact[best])
        bound = outcome.bound - (self.search.allowed(value, self.slack, steps) - value)
        refined = self.refined(setting.sigmas(paths[best : best + 1])[0], value)
        result = setting.result(
            paths[best], value, bound, outcome.complete, refined, outcome.iterations, began
        )
        return replace(
            result,
            sampler=self.sampler.name,
            lower_bound=result.lower_bound if valid else None,
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

    def refined(self, sigmas: Array, value: float) -> tuple[Array | None, float | None]:
        """Return the local optimum beside a choice of levels and its value, for continuous schedules."""
        if self.setting.schedule.is_discrete:
            return None, None
        from fastkl._step_refinement import refined_steps

        moved = refined_steps(self.guide, sigmas, float(self.setting.levels[-1]))
        moved_value = float(self.values(moved[None])[0])
        return (moved, moved_value) if moved_value <= value else (sigmas, value)
