"""The CPU backend: cuts a validated problem into tasks, runs the kernels on them, and checks their accuracy.

The fast kernel's rounding error is bounded per tile; tiles where it could matter are evaluated again by slower kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from fastkl._rounding import BLOCK, RELATIVE_ERROR, error_bounds, tile_totals
from fastkl._threads import run_all
from fastkl.kernels.ddim_compensated import compensated_tile_sums
from fastkl.kernels.ddim_horner import (
    MAX_DEGREE,
    METRICS,
    PRIORS,
    TILE,
    level_variances,
    tile_sums,
    variances,
)

__all__ = ["divergence", "mean_term", "output_variance", "trajectory"]

Array = NDArray[np.float64]
Integers = NDArray[np.intp]

CONTRACT_RANGE = 12.0  # decades to either side of 1; inside, products of eight ratios cannot overflow
LARGEST_EXPONENT = 290.0
TASK_STEPS = 1 << 26  # most (eigenvalue, step) pairs of one task: some milliseconds
TASKS_PER_THREAD = 8
FEWEST_TILES = 32  # of a task, where there are as many
THREADS_PAY = 1 << 21  # (eigenvalue, step) pairs from which on threads are worth starting
COEFFICIENT_BYTES = 1 << 18  # of one task's polynomials: they are to stay in the L2 cache
FEW_EIGENVALUES, FEW_STEPS = 512, 32  # up to which expanding polynomials costs more than it saves
PARTIAL_SUMS = 1 << 18  # tile sums held at a time


def decades(values: Array) -> float:
    """Return the largest |log10| of the finite non-zero elements; all are >= 0."""
    low, high = float(values.min()), float(values.max())
    if low == 0.0 or high == math.inf:
        used = (values > 0.0) & (values < math.inf)
        low = float(np.min(values, initial=math.inf, where=used))
        high = float(np.max(values, initial=0.0, where=used))
    return max(abs(math.log10(low)), abs(math.log10(high))) if high > 0.0 and low < math.inf else 0.0


def chunk_degree(steps: int, span: float, powers: int = 1) -> int:
    """Return the length of nearly equal chunks of a schedule, `powers` of a polynomial to a step; none overflows."""
    longest = min(MAX_DEGREE, int(LARGEST_EXPONENT // max(span, 1.0))) // powers
    return math.ceil(steps / math.ceil(steps / longest))


def read_only(array: Array) -> Array:
    """Return a read-only view: kernels are compiled for one kind of input array."""
    view = array.view()
    view.flags.writeable = False
    return view


class Problem:
    """A validated spectrum, candidates and prior, in the form that the kernels take, and its cut into tasks."""

    def __init__(
        self, eigenvalues: Array, counts: Array | None, levels: Array, prior: str, threads: int
    ) -> None:
        self.eigenvalues = read_only(eigenvalues)
        self.weights = read_only(np.ones(TILE) if counts is None else counts)
        self.levels = read_only(levels)
        self.prior = PRIORS[prior]
        self.candidates, self.steps = levels.shape[0], levels.shape[1] - 1
        self.tiles = math.ceil(eigenvalues.size / TILE)
        span = max(decades(eigenvalues), 2.0 * decades(levels))
        self.by_products = counts is None and span <= CONTRACT_RANGE
        self.degree = chunk_degree(self.steps, span)
        self.chunks = math.ceil(self.steps / self.degree)
        self.by_factors = eigenvalues.size <= FEW_EIGENVALUES and self.steps <= FEW_STEPS
        self.roundings = (12.0 if self.by_factors else 4.0) * self.steps + 8.0 * self.chunks + 8.0
        self.loss_degree = 2 * chunk_degree(self.steps, span, powers=2)
        work = self.candidates * self.steps * eigenvalues.size
        self.threads = threads if work > THREADS_PAY else 1

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Cut the candidates so that a block's tile sums have a bounded size."""
        length = max(1, PARTIAL_SUMS // self.tiles)
        for m0 in range(0, self.candidates, length):
            yield m0, min(m0 + length, self.candidates)

    def run(self, function: Callable[[int, int, int, int], None], m0: int, m1: int) -> None:
        """Call function(i0, i1, t0, t1) for tasks that cover candidates m0 to m1 and all tiles.

        A task expands the polynomials of its candidates, which costs about as much as a tile: so a task has many
        tiles where there are many. Results do not depend on the cut.
        """
        wanted = TASKS_PER_THREAD * self.threads
        coefficients = 16 * self.chunks * (self.degree + 1)
        groups = math.ceil((m1 - m0) * coefficients / COEFFICIENT_BYTES)
        pieces = max(1, min(math.ceil(wanted / groups), self.tiles // FEWEST_TILES))
        group = math.ceil((m1 - m0) / max(groups, math.ceil(wanted / pieces) if self.threads > 1 else 1))
        longest = max(FEWEST_TILES, TASK_STEPS // (group * self.steps * TILE))
        row = min(math.ceil(self.tiles / pieces), longest)
        tasks = (
            (i0, min(i0 + group, m1), t0, min(t0 + row, self.tiles))
            for i0 in range(m0, m1, group)
            for t0 in range(0, self.tiles, row)
        )
        run_all(function, tasks, self.threads)

    def sums(self, metric: str, m0: int, m1: int) -> Array:
        """Return the fast kernel's tile sums of candidates m0 to m1, (m1 - m0, tiles)."""
        levels, out = self.levels[m0:m1], np.empty((m1 - m0, self.tiles))
        degree = 0 if self.by_factors else self.degree

        def task(i0: int, i1: int, t0: int, t1: int) -> None:
            tile_sums(self.eigenvalues, self.weights, self.by_products, levels, self.prior, degree,
                      METRICS[metric], i0, i1, t0, t1, out)  # fmt: skip

        self.run(task, 0, m1 - m0)
        return out

    def compensated_sums(self, metric: str, candidates: Integers, tiles: Integers) -> Array:
        """Return the sums of tiles[i] for candidates[i] from the kernels that keep more digits."""
        out = np.empty(candidates.size)

        def task(i0: int, i1: int) -> None:
            compensated_tile_sums(self.eigenvalues, self.weights, self.levels, self.prior, self.loss_degree,
                                  METRICS[metric], candidates, tiles, i0, i1, out)  # fmt: skip

        length = max(1, THREADS_PAY // (8 * self.steps * min(TILE, self.eigenvalues.size)))
        run_all(task, ((i, min(i + length, out.size)) for i in range(0, out.size, length)), self.threads)
        return out


def divergence(
    eigenvalues: Array, counts: Array | None, levels: Array, metric: str, prior: str, threads: int
) -> Array:
    """Return the divergence of every candidate, without the mean's share."""
    problem = Problem(eigenvalues, counts, levels, prior, threads)
    weight = tile_totals(counts, None, eigenvalues.size)
    variance = tile_totals(eigenvalues, counts, eigenvalues.size) if metric == "w2" else weight
    share = weight / weight.sum()
    out = np.empty(problem.candidates)
    for m0, m1 in problem.blocks():
        sums = problem.sums(metric, m0, m1)
        scale = variance + np.square(levels[m0:m1, -1:]) * weight if metric == "w2" else weight
        done = np.zeros(sums.shape, dtype=np.bool_)
        while True:
            out[m0:m1] = sums.sum(axis=1)
            allowed = RELATIVE_ERROR * np.maximum(sums, out[m0:m1, None] * share)
            redo = (error_bounds(sums, scale, problem.roundings, metric) > allowed) & ~done
            if not redo.any():
                break
            rows, tiles = (np.ascontiguousarray(index) for index in np.nonzero(redo))
            sums[rows, tiles] = problem.compensated_sums(metric, rows + m0, tiles)
            done |= redo
    return out


def mean_term(
    eigenvalues: Array,
    counts: Array | None,
    mean: Array,
    levels: Array,
    metric: str,
    prior: str,
    threads: int,
) -> Array:
    """Return what a mean adds to reverse_kl, w2, or `exact` kl; undefined where the first level is inf."""
    out = np.zeros(levels.shape[0])
    for begin in range(0, eigenvalues.size, BLOCK):
        part = slice(begin, begin + BLOCK)
        weights = np.square(mean[part]) if counts is None else counts[part] * np.square(mean[part])
        problem = Problem(eigenvalues[part], weights, levels, prior, threads)
        for m0, m1 in problem.blocks():
            out[m0:m1] += problem.sums(f"mean_{metric}", m0, m1).sum(axis=1)
    return out


def output_variance(eigenvalues: Array, levels: Array, prior: str, threads: int) -> Array:
    """Return the variance of y at the last level, (M, d)."""
    problem = Problem(eigenvalues, None, levels, prior, threads)
    out = np.empty((problem.candidates, eigenvalues.size))

    def task(m0: int, m1: int, t0: int, t1: int) -> None:
        variances(problem.eigenvalues, problem.levels, problem.prior, problem.degree, m0, m1, t0, t1, out)

    problem.run(task, 0, problem.candidates)
    return out


def trajectory(eigenvalues: Array, levels: Array, prior: str, threads: int) -> Array:
    """Return the variance of y at every level, (M, N+1, d)."""
    problem = Problem(eigenvalues, None, levels, prior, threads)
    out = np.empty((problem.candidates, problem.steps + 1, eigenvalues.size))

    def task(m0: int, m1: int, t0: int, t1: int) -> None:
        for m in range(m0, m1):
            level_variances(problem.eigenvalues, problem.levels[m], problem.prior, t0, t1, out[m])

    problem.run(task, 0, problem.candidates)
    return out
