"""The evaluation of one chunk: a function of the plan and the chunk's number, wherever it runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastkl._search import search
from fastkl._stand_in import SHARE
from fastkl.evaluate import divergence
from fastkl.sweeps.best import Best
from fastkl.sweeps.config import Geodesic, Search
from fastkl.sweeps.generation import levels_of
from fastkl.sweeps.numerics import numerics
from fastkl.sweeps.plan import Cell, Part, Plan
from fastkl.sweeps.tables import Rows, chunk_schema, serialised

__all__ = ["Groups", "block_of", "cell_levels", "chunk_bytes", "cut_to_cells", "evaluated", "problem_of"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

BLOCK, BLOCK_LEVELS = 1 << 13, 1 << 20  # candidates evaluated together at most, and their levels
CACHED = 1 << 25  # bytes of levels that are kept for neighbouring cells
SLACK = 4.0  # errors of size rtol that the least values of two evaluations may differ by, with some room


def block_of(steps: int) -> int:
    """Return how many candidates of so many steps are evaluated together."""
    return max(1, min(BLOCK, BLOCK_LEVELS // (steps + 1)))


class Groups:
    """The best candidates of each group of a sweep."""

    def __init__(self, plan: Plan) -> None:
        config = plan.config
        self._plan = plan
        copies = 1 if config.distinct else config.top
        self._options = (config.top, copies, 1.0 + SLACK * config.rtol)
        self.best: dict[tuple[int, ...], Best] = {}

    def of(self, part: Part, cell: Cell) -> Best:
        """Return the best of a cell's group."""
        key = self._plan.group(part, cell)
        if key not in self.best:
            self.best[key] = Best(*self._options)
        return self.best[key]


def problem_of(plan: Plan, part: Part, cell: Cell) -> tuple[int | str, ...]:
    """Return what candidates must share, besides their levels, to be the same one."""
    return cell.schedule, plan.sampler_place(part, cell), cell.spectrum, cell.metric, plan.prior(cell)


def chunk_bytes(plan: Plan, number: int) -> bytes:
    """Return the Parquet file of a chunk."""
    return serialised(chunk_table(plan, number))


def chunk_table(plan: Plan, number: int) -> pa.Table:
    """Evaluate a chunk: all rows if full results are wanted, else those that may be among the best."""
    part, begin, end = plan.chunk_range(number)
    rows = Rows(plan, chunk_schema(plan))
    fill = slow_rows if isinstance(part.generators[0], Search | Geodesic) else fast_rows
    left_out = fill(plan, part, begin, end, rows)
    return rows.table(chunk=number, first=begin, last=end - 1, left_out=left_out,
                      numerics=numerics(plan.config.backend))  # fmt: skip


def slow_rows(plan: Plan, part: Part, begin: int, end: int, rows: Rows) -> int:
    """Evaluate searches or geodesics one by one; their levels are kept with them. Return how many have no value."""
    left_out = 0
    first, cache = part.first_index, LevelCache(plan, part)
    for cell, index, low, _ in part.product.segments(begin - first, end - first):
        row = searched(plan, part, cell) if isinstance(plan.generator(part, cell), Search) else None
        if row is None:
            levels, valid = cache.levels(cell, np.array([low]))
            values = values_of(plan, part, cell, levels, valid)
            row = {"value": values, "sigmas": [None if np.isnan(values[0]) else levels[0]]}
        values = row.pop("value")
        left_out += int(np.isnan(values[0]))
        rows.add(part, cell, np.array([low]), np.array([first + index]), values, **row)
    return left_out


def searched(plan: Plan, part: Part, cell: Cell) -> dict[str, Any]:
    """Search, and return the row."""
    options: Any = plan.generator(part, cell)
    found = search(
        plan.spectra[cell.spectrum],
        plan.schedules[cell.schedule],
        plan.steps(part, cell),
        metric=plan.metrics[cell.metric],
        prior=plan.prior(cell),
        prove=options.prove,
        free_start=options.free_start,
        grid=options.grid,
        min_spacing=options.min_spacing,
    )
    refined = options.refine and found.refined_sigmas is not None
    return {
        "value": finite(np.array([found.refined_value if refined else found.value])),
        "sigmas": [found.refined_sigmas if refined else found.sigmas],
        "lower_bound": [found.lower_bound],
        "proved_optimal": [found.proved_optimal],
    }


def fast_rows(plan: Plan, part: Part, begin: int, end: int, rows: Rows) -> int:
    """Evaluate candidates of grids block by block; return how many have no value."""
    groups, cache = Groups(plan), LevelCache(plan, part)
    left_out, first = 0, part.first_index
    for cell, index, low, high in part.product.segments(begin - first, end - first):
        block = block_of(plan.steps(part, cell))
        for at in range(low, high, block):
            places = np.arange(at, min(at + block, high))
            indices = first + index + places - low
            levels, valid = cache.levels(cell, places)
            values = values_of(plan, part, cell, levels, valid)
            left_out += int(np.isnan(values).sum())
            if plan.config.full:
                rows.add(part, cell, places, indices, values)
            else:
                groups.of(part, cell).add(values, indices, problem_of(plan, part, cell), levels)
    if plan.config.full:
        return left_out
    kept = sorted((record.index, record.value) for best in groups.best.values() for record in best.records())
    numbers, found = np.array([index for index, _ in kept], dtype=np.int64), np.array([v for _, v in kept])
    for cell, places, indices, which in cut_to_cells(plan, numbers):
        rows.add(part, cell, places, indices, found[which.start : which.stop])
    return left_out


class LevelCache:
    """The levels of the last few blocks: neighbouring cells, which differ in spectrum or metric, share theirs."""

    def __init__(self, plan: Plan, part: Part) -> None:
        self._plan, self._part = plan, part
        self._kept: dict[Any, tuple[Array, NDArray[np.bool_]]] = {}

    def levels(self, cell: Cell, places: Integers) -> tuple[Array, NDArray[np.bool_]]:
        """Return levels of a run of places, and which can be evaluated."""
        steps = self._plan.steps(self._part, cell)
        own = cell.spectrum if isinstance(self._plan.generator(self._part, cell), Geodesic) else -1
        key = (cell.schedule, steps, cell.generator, own, int(places[0]), len(places))
        if key not in self._kept:
            found = cell_levels(self._plan, self._part, cell, places)
            while self._kept and len(self._kept) >= self._most(found[0].nbytes):
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = found
        return self._kept[key]

    @staticmethod
    def _most(size: int) -> int:
        """Return how many blocks of so many bytes are kept, one of which is the newest."""
        return min(4, max(1, CACHED // max(size, 1)))


def cell_levels(plan: Plan, part: Part, cell: Cell, places: Integers) -> tuple[Array, NDArray[np.bool_]]:
    """Return the levels at places of a cell's grid, and which can be evaluated."""
    family: Any = plan.generator(part, cell)
    schedule, spectrum = plan.schedules[cell.schedule], plan.spectra[cell.spectrum]
    return levels_of(family, schedule, plan.steps(part, cell), spectrum, places)


def values_of(plan: Plan, part: Part, cell: Cell, levels: Array, valid: NDArray[np.bool_]) -> Array:
    """Return the divergences of candidates to rtol, nan where they cannot be evaluated.

    A run of equal candidates, as timesteps make of a fine grid, is evaluated once.
    """
    values = np.full(len(levels), np.nan)
    rows = np.flatnonzero(valid)
    if not rows.size:
        return values
    used = levels if rows.size == len(levels) else levels[rows]
    changes = np.ones(len(used), dtype=np.bool_)
    if len(used) > 1:
        changes[1:] = (used[1:] != used[:-1]).any(axis=1)
    several = int(changes.sum())
    found = evaluated(plan, part, cell, used if several == len(used) else used[changes], plan.config.rtol)
    values[rows] = found if several == len(used) else found[np.cumsum(changes) - 1]
    return values


def evaluated(plan: Plan, part: Part, cell: Cell, levels: Array, rtol: float) -> Array:
    """Return the divergences of candidates of a cell's problem on one thread."""
    spectrum = plan.spectra[cell.spectrum]
    sampler = plan.sampler_of(part, cell)[1]
    if rtol and sampler.is_ddim and plan.compresses[cell.spectrum]:
        # at hand before `divergence` asks, which then uses it whatever the block's size and the order of blocks
        spectrum.compress(rtol / SHARE)
    else:
        rtol = 0.0
    values: Array = divergence(spectrum, levels, plan.metrics[cell.metric], sampler, plan.prior(cell),
                               plan.config.backend, rtol, num_threads=1)  # fmt: skip
    return finite(values)


def finite(values: Array) -> Array:
    """Return values with nan, which stands for none, in place of what is not finite."""
    return np.where(np.isfinite(values), values, np.nan)


def cut_to_cells(plan: Plan, indices: Integers) -> Any:
    """Yield cell, places, indices and rows of ascending indices of one part, cell by cell."""
    row = 0
    while row < len(indices):
        part = plan.part_of(int(indices[row]))
        cell, place = part.product.locate(int(indices[row]) - part.first_index)
        end = int(indices[row]) - place + part.product.sizes[cell.generator]
        last = int(np.searchsorted(indices, end))
        places = indices[row:last] - int(indices[row]) + place
        yield cell, places, indices[row:last], range(row, last)
        row = last
