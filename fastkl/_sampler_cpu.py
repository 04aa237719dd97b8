"""Any sampler on the CPU: blocks of candidates become programs, and programs tasks for the kernels.

The fast kernel's rounding error is bounded per tile; tiles where it could matter are evaluated again by the kernels
that follow what is lost against the true solution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl._cpu import read_only
from fastkl._rounding import RELATIVE_ERROR, error_bounds, tile_totals
from fastkl._sampler_base import Sampler
from fastkl._sampler_losses import LossTable
from fastkl._sampler_program import Program
from fastkl._threads import run_all
from fastkl.kernels.ddim_horner import METRICS, PRIORS, TILE
from fastkl.kernels.sampler_deviation import precise_sums, precise_variances
from fastkl.kernels.sampler_losses import loss_sums
from fastkl.kernels.sampler_sums import sampler_levels, sampler_sums, sampler_variances
from fastkl.spectrum import Spectrum

__all__ = ["divergence", "output_variance", "trajectory"]

Array = NDArray[np.float64]
Integers = NDArray[np.intp]

TASK_STEPS = 1 << 21  # (eigenvalue, operation) pairs of one task: some milliseconds
THREADS_PAY = 1 << 18  # pairs from which on threads are worth starting
TABLE_BYTES = 1 << 22  # coefficients of one block of candidates
PARTIAL_SUMS = 1 << 17  # tile sums held at a time
ROUNDINGS = 2.0  # of one operation, in the units of error_bounds (4 roundings, doubled by the square)
LOST_DIGITS = 100.0  # roundings for each operation from which on variances come from the precise kernel


class Block:
    """Candidates that all end at 0 or all above, as a program, on the spectrum `data`."""

    def __init__(self, data: Spectrum, levels: Array, sampler: Sampler, prior: str, threads: int) -> None:
        self.data = data
        self.eigenvalues = read_only(data.eigenvalues)
        self.weights = read_only(np.ones(TILE) if data.counts is None else data.counts)
        self.mean = read_only(np.empty(0) if data.mean is None else data.mean)
        self.levels = read_only(np.ascontiguousarray(levels))
        self.prior, self.stochastic = PRIORS[prior], sampler.stochastic
        self.program = Program(sampler, self.levels)
        self.noise_form = self.program.tape.kind == "noise"
        self.operations = self.program.operations
        self.operations.flags.writeable = False
        self.table = read_only(self.program.coefficients)
        self.candidates, self.length = levels.shape[0], self.operations.shape[0]
        self.tiles = math.ceil(self.eigenvalues.size / TILE)
        work = self.candidates * self.length * self.eigenvalues.size
        self.threads = threads if work > THREADS_PAY else 1

    def run(self, function: Callable[[int, int, int, int], None]) -> None:
        """Call function(m0, m1, t0, t1) for tasks that cover all candidates and tiles; the cut changes no result."""
        rows = max(1, TASK_STEPS // (self.length * min(TILE, self.eigenvalues.size)))
        group = min(self.candidates, rows)
        if self.threads > 1:
            group = min(group, max(1, math.ceil(self.candidates * self.tiles / (4 * self.threads))))
        row = max(1, rows // group)
        tasks = (
            (m0, min(m0 + group, self.candidates), t0, min(t0 + row, self.tiles))
            for m0 in range(0, self.candidates, group)
            for t0 in range(0, self.tiles, row)
        )
        run_all(function, tasks, self.threads)

    def sums(self, metric: str) -> Array:
        """Return the fast kernel's tile sums, (M, tiles)."""
        out = np.empty((self.candidates, self.tiles))

        def task(m0: int, m1: int, t0: int, t1: int) -> None:
            sampler_sums(self.eigenvalues, self.weights, self.mean, self.levels, self.prior, METRICS[metric],
                         self.operations, self.table, self.program.registers, self.stochastic,
                         m0, m1, t0, t1, out)  # fmt: skip

        self.run(task)
        return out

    def precise_tables(self) -> tuple[NDArray[Any], ...]:
        """Return what the kernel that keeps more digits takes beside the operations."""
        if not self.stochastic:
            return (read_only(self.program.deviations()),)
        table = LossTable(self.program)
        for array in (table.partners, table.reads):
            array.flags.writeable = False
        return table.partners, table.reads, read_only(table.defects), read_only(table.extras)

    def precise(
        self, metric: str, candidates: Integers, tiles: Integers, tables: tuple[NDArray[Any], ...]
    ) -> Array:
        """Return the sums of tiles[i] for candidates[i] from the kernel that keeps more digits."""
        out = np.empty(candidates.size)
        problem = (
            self.eigenvalues,
            self.weights,
            self.mean,
            self.levels,
            self.prior,
            METRICS[metric],
            self.operations,
        )

        def task(i0: int, i1: int) -> None:
            if self.stochastic:
                loss_sums(
                    *problem, self.table, self.program.registers, *tables, candidates, tiles, i0, i1, out
                )
            else:
                precise_sums(
                    *problem, *tables, self.program.registers, self.noise_form, candidates, tiles, i0, i1, out
                )

        length = max(1, TASK_STEPS // (8 * self.length * min(TILE, self.eigenvalues.size)))
        run_all(task, ((i, min(i + length, out.size)) for i in range(0, out.size, length)), self.threads)
        return out

    def roundings(self) -> Array:
        """Return how many roundings the output's error may come to, at each tile's least eigenvalue, (M, tiles)."""
        least = np.minimum.reduceat(self.eigenvalues, np.arange(0, self.eigenvalues.size, TILE))
        return self.program.roundings(least)

    def divergence(self, metric: str) -> Array:
        """Return the divergence of every candidate."""
        sums = self.sums(metric)
        weight = tile_totals(self.data.counts, None, self.eigenvalues.size)
        scale = weight
        if metric == "w2":
            variance = tile_totals(self.eigenvalues, self.data.counts, self.eigenvalues.size)
            scale = variance + np.square(self.levels[:, -1:]) * weight
        effective = ROUNDINGS * self.roundings()
        done = np.zeros(sums.shape, dtype=np.bool_)
        tables = None
        while True:
            total = np.asarray(sums.sum(axis=1))
            allowed = RELATIVE_ERROR * np.maximum(sums, total[:, None] * (weight / weight.sum()))
            safe = error_bounds(sums, scale, 4.0 * effective + 8.0, metric) <= allowed
            redo = ~(safe | done)
            if not redo.any():
                return total
            if tables is None:
                tables = self.precise_tables()
            rows, tiles = (np.ascontiguousarray(index) for index in np.nonzero(redo))
            sums[rows, tiles] = self.precise(metric, rows, tiles, tables)
            done |= redo

    def variances_need_digits(self) -> bool:
        """Return whether the output's variance is to come from the precise kernel."""
        return not self.stochastic and bool((self.roundings() > LOST_DIGITS * self.length).any())

    def output_variance(self, out: Array, rows: Integers) -> None:
        """Write the variance of y at the last level to out[rows], (M, d)."""
        precise = self.variances_need_digits()
        table = read_only(self.program.deviations()) if precise else self.table
        kernel = precise_variances if precise else sampler_variances
        kind = self.noise_form if precise else self.stochastic

        def task(m0: int, m1: int, t0: int, t1: int) -> None:
            for m in range(m0, m1):
                kernel(self.eigenvalues, self.levels[m], self.prior, self.operations, table[m],
                       self.program.registers, kind, t0, t1, out[rows[m]])  # fmt: skip

        self.run(task)

    def level_variances(self, out: Array, rows: Integers) -> None:
        """Write the variance of y at every level to out[rows], (M, N+1, d), by the fast kernel."""
        grid = self.program.grid
        grid.flags.writeable = False

        def task(m0: int, m1: int, t0: int, t1: int) -> None:
            for m in range(m0, m1):
                sampler_levels(self.eigenvalues, self.levels[m], self.prior, self.operations, self.table[m], grid,
                               self.program.registers, self.stochastic, t0, t1, out[rows[m]])  # fmt: skip

        self.run(task)

    def trajectory(self, out: Array, rows: Integers) -> None:
        """Write the variance of y at every level to out[rows], (M, N+1, d)."""
        self.level_variances(out, rows)
        if not self.stochastic:  # the last step to level 0 is where digits can be lost
            self.output_variance(out[:, -1], rows)


def row_groups(
    levels: Array, size: int, table_bytes: int = TABLE_BYTES, partial_sums: int = PARTIAL_SUMS
) -> Iterator[Integers]:
    """Cut the candidates into groups of bounded size that end alike, for `size` eigenvalues; yield their rows."""
    to_zero = levels[:, -1] == 0.0
    tiles = math.ceil(size / TILE)
    bytes_each = 8 * 18 * 2 * (2 * levels.shape[1] + 9)  # no sampler has more than 2 N + 9 operations
    length = max(1, min(table_bytes // bytes_each, partial_sums // tiles))
    for group in (np.flatnonzero(to_zero), np.flatnonzero(~to_zero)):
        for begin in range(0, group.size, length):
            yield group[begin : begin + length]


def blocks(
    data: Spectrum, levels: Array, sampler: Sampler, prior: str, threads: int
) -> Iterator[tuple[Integers, Block]]:
    """Yield the rows of groups of candidates, and their blocks."""
    for rows in row_groups(levels, len(data)):
        yield rows, Block(data, levels[rows], sampler, prior, threads)


def divergence(
    data: Spectrum, levels: Array, metric: str, sampler: Sampler, prior: str, threads: int
) -> Array:
    """Return the divergence of every candidate, with the mean's share."""
    out = np.empty(levels.shape[0])
    for rows, block in blocks(data, levels, sampler, prior, threads):
        out[rows] = block.divergence(metric)
    return out


def output_variance(data: Spectrum, levels: Array, sampler: Sampler, prior: str, threads: int) -> Array:
    """Return the variance of y at the last level, (M, d)."""
    out = np.empty((levels.shape[0], len(data)))
    for rows, block in blocks(data, levels, sampler, prior, threads):
        block.output_variance(out, rows)
    return out


def trajectory(data: Spectrum, levels: Array, sampler: Sampler, prior: str, threads: int) -> Array:
    """Return the variance of y at every level, (M, N+1, d)."""
    out = np.empty((*levels.shape, len(data)))
    for rows, block in blocks(data, levels, sampler, prior, threads):
        block.trajectory(out, rows)
    return out
