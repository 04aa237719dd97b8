"""The CPU backend: cuts a validated problem into tasks, runs the kernels on them, and checks their accuracy.

The fast kernel's rounding error is bounded per tile; tiles where it could matter are evaluated again in pairs of
float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

UNIT_ROUNDOFF = 2.0**-53
RELATIVE_ERROR = 5e-11  # what rounding in the fast kernel may contribute; the contract is 1e-10
CONTRACT_RANGE = 12.0  # decades to either side of 1; inside, products of eight ratios cannot overflow
LARGEST_EXPONENT = 290.0
TASK_STEPS = 1 << 23  # (eigenvalue, step) pairs of one task: about a millisecond
COEFFICIENT_BYTES = 1 << 18  # of one task's polynomials: they are to stay in the L2 cache
PARTIAL_SUMS = 1 << 18  # tile sums held at a time


def decades(values: Array) -> float:
    """Return the largest |log10| of the finite non-zero elements; all are >= 0."""
    low, high = float(values.min()), float(values.max())
    if low == 0.0 or high == math.inf:
        used = (values > 0.0) & (values < math.inf)
        low = float(np.min(values, initial=math.inf, where=used))
        high = float(np.max(values, initial=0.0, where=used))
    return max(abs(math.log10(low)), abs(math.log10(high))) if high > 0.0 and low < math.inf else 0.0


def chunk_degree(steps: int, span: float) -> int:
    """Return the length of the chunks that a schedule is cut into: nearly equal, and none can overflow."""
    longest = min(MAX_DEGREE, int(LARGEST_EXPONENT // max(span, 1.0)))
    return math.ceil(steps / math.ceil(steps / longest))


def ranges(
    candidates: int, tiles: int, steps: int, degree: int, threads: int
) -> Iterator[tuple[int, int, int, int]]:
    """Cut candidates x tiles into tasks (m0, m1, t0, t1). Results do not depend on the cut."""
    coefficients = 16 * math.ceil(steps / degree) * (degree + 1)
    group = max(
        1, min(COEFFICIENT_BYTES // coefficients, math.ceil(candidates / (threads if tiles < 16 else 1)))
    )
    row = max(8, TASK_STEPS // (group * steps * TILE))
    for m0 in range(0, candidates, group):
        for t0 in range(0, tiles, row):
            yield m0, min(m0 + group, candidates), t0, min(t0 + row, tiles)


def read_only(array: Array) -> Array:
    """Return a read-only view: kernels are compiled for one kind of input array."""
    view = array.view()
    view.flags.writeable = False
    return view


def tile_totals(weights: Array | None, tiles: int, size: int) -> Array:
    """Return the sum of the weights in each tile."""
    if weights is None:
        totals = np.full(tiles, float(TILE))
        totals[-1] = size - (tiles - 1) * TILE
        return totals
    return np.add.reduceat(weights, np.arange(0, size, TILE))


def error_bounds(sums: Array, scale: Array, steps: int, chunks: int, metric: str) -> Array:
    """Bound the rounding error of the fast kernel's tile sums.

    The logarithm x of a ratio carries an error of at most `delta`, in units of 2**-53 the sum of two kinds. Independent
    errors: 0.3 sqrt(8 N) root mean square as measured against 50 digits; taken at more than six times that. Errors that
    could recur in every chunk of a geometric schedule: half a unit each for two coefficients, two last additions, a
    quotient and a product, doubled by the square. With f the divergence as a function of x, |f'(x)| <= sqrt(2 f) + f
    for the entropies, so the error of a tile is at most delta (sqrt(2 C F) + F) + delta^2 C by Cauchy-Schwarz, F the
    tile's sum and C its weights. For w2 the relative error of both standard deviations is delta, and C is the sum of
    weight times target variance.
    """
    delta = UNIT_ROUNDOFF * (2.0 * math.sqrt(8.0 * steps) + 6.0 * chunks + 8.0)
    first = 2.0 if metric == "w2" else math.sqrt(2.0)
    positive = np.maximum(sums, 0.0)
    return delta * (first * np.sqrt(scale * positive) + 2.0 * positive) + delta * delta * scale


class Problem:
    """A validated spectrum, candidates and prior, in the form that the kernels take."""

    def __init__(self, eigenvalues: Array, levels: Array, prior: str, threads: int) -> None:
        self.eigenvalues = read_only(eigenvalues)
        self.levels = read_only(levels)
        self.prior = PRIORS[prior]
        self.candidates, self.steps = levels.shape[0], levels.shape[1] - 1
        self.tiles = math.ceil(eigenvalues.size / TILE)
        self.span = max(decades(eigenvalues), 2.0 * decades(levels))
        self.degree = chunk_degree(self.steps, self.span)
        work = self.candidates * self.steps * eigenvalues.size
        self.threads = threads if work > TASK_STEPS // 4 else 1

    def weights(self, counts: Array | None) -> tuple[Array, bool]:
        """Return the kernels' weights and whether all are 1 (then one tile of ones serves every tile)."""
        if counts is not None:
            return read_only(counts), False
        if self.span > CONTRACT_RANGE:
            return read_only(np.ones(self.eigenvalues.size)), False
        return read_only(np.ones(TILE)), True

    def sums(self, counts: Array | None, metric: str, m0: int, m1: int) -> Array:
        """Return the fast kernel's tile sums (m1 - m0, tiles)."""
        weights, unit = self.weights(counts)
        levels = self.levels[m0:m1]
        out = np.empty((m1 - m0, self.tiles))

        def task(i0: int, i1: int, t0: int, t1: int) -> None:
            tile_sums(self.eigenvalues, weights, unit, levels, self.prior, self.degree, METRICS[metric],
                      i0, i1, t0, t1, out)  # fmt: skip

        run_all(task, ranges(m1 - m0, self.tiles, self.steps, self.degree, self.threads), self.threads)
        return out

    def compensate(self, counts: Array | None, metric: str, m0: int, m1: int, sums: Array) -> Array:
        """Replace tile sums whose rounding error could matter; return each candidate's total."""
        shares = tile_totals(counts, self.tiles, self.eigenvalues.size)
        share = shares / shares.sum()
        scale: Array = shares
        if metric == "w2":
            weighted = self.eigenvalues if counts is None else self.eigenvalues * counts
            scale = (
                tile_totals(weighted, self.tiles, self.eigenvalues.size)
                + np.square(self.levels[m0:m1, -1:]) * shares
            )
        chunks = math.ceil(self.steps / self.degree)
        done = np.zeros(sums.shape, dtype=np.bool_)
        while True:
            total = sums.sum(axis=1)
            allowed = RELATIVE_ERROR * np.maximum(sums, total[:, None] * share)
            redo = (error_bounds(sums, scale, self.steps, chunks, metric) > allowed) & ~done
            if not redo.any():
                return total
            self._compensated(counts, metric, m0, m1, redo, sums)
            done |= redo

    def _compensated(
        self, counts: Array | None, metric: str, m0: int, m1: int, redo: NDArray[np.bool_], sums: Array
    ) -> None:
        weights, unit = self.weights(counts)
        levels = self.levels[m0:m1]
        candidates, tiles = map(
            np.ascontiguousarray, np.nonzero(redo)
        )  # its columns of one array are strided
        out = np.empty(candidates.size)

        def task(i0: int, i1: int) -> None:
            compensated_tile_sums(self.eigenvalues, weights, unit, levels, self.prior, METRICS[metric],
                                  candidates, tiles, i0, i1, out)  # fmt: skip

        length = max(1, TASK_STEPS // (16 * self.steps * min(TILE, self.eigenvalues.size)))
        spans = ((i, min(i + length, out.size)) for i in range(0, out.size, length))
        run_all(task, spans, self.threads)
        sums[candidates, tiles] = out

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Cut the candidates so that a block's tile sums have a bounded size."""
        length = max(1, PARTIAL_SUMS // self.tiles)
        for m0 in range(0, self.candidates, length):
            yield m0, min(m0 + length, self.candidates)


def divergence(
    eigenvalues: Array, counts: Array | None, levels: Array, metric: str, prior: str, threads: int
) -> Array:
    """Return the divergence of every candidate, without the mean's share."""
    problem = Problem(eigenvalues, levels, prior, threads)
    out = np.empty(problem.candidates)
    for m0, m1 in problem.blocks():
        sums = problem.sums(counts, metric, m0, m1)
        out[m0:m1] = problem.compensate(counts, metric, m0, m1, sums)
    return out


def mean_term(
    eigenvalues: Array, weights: Array, levels: Array, metric: str, prior: str, threads: int
) -> Array:
    """Return what a mean adds to kl, reverse_kl or w2; weights are count times squared mean."""
    problem = Problem(eigenvalues, levels, prior, threads)
    out = np.empty(problem.candidates)
    for m0, m1 in problem.blocks():
        out[m0:m1] = problem.sums(weights, f"mean_{metric}", m0, m1).sum(axis=1)
    return out


def output_variance(eigenvalues: Array, levels: Array, prior: str, threads: int) -> Array:
    """Return the variance of y at the last level, (M, d)."""
    problem = Problem(eigenvalues, levels, prior, threads)
    out = np.empty((problem.candidates, eigenvalues.size))

    def task(m0: int, m1: int, t0: int, t1: int) -> None:
        variances(problem.eigenvalues, problem.levels, problem.prior, problem.degree, m0, m1, t0, t1, out)

    spans = ranges(problem.candidates, problem.tiles, problem.steps, problem.degree, problem.threads)
    run_all(task, spans, problem.threads)
    return out


def trajectory(eigenvalues: Array, levels: Array, prior: str, threads: int) -> Array:
    """Return the variance of y at every level, (M, N+1, d)."""
    problem = Problem(eigenvalues, levels, prior, threads)
    out = np.empty((problem.candidates, problem.steps + 1, eigenvalues.size))

    def task(m0: int, m1: int, t0: int, t1: int) -> None:
        for m in range(m0, m1):
            level_variances(problem.eigenvalues, problem.levels[m], problem.prior, t0, t1, out[m])

    spans: Any = ranges(problem.candidates, problem.tiles, problem.steps, problem.degree, problem.threads)
    run_all(task, spans, problem.threads)
    return out
