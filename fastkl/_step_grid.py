"""A grid of noise levels as a graph for samplers of two evaluations: what steps cost under weights of eigenvalues."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl._grid import fixed
from fastkl._step_losses import STEP_KINDS
from fastkl._threads import run_all, thread_count
from fastkl.kernels.step_paths import advance, best_path, fill_edges, interpolate, paths_below, tabulate

__all__ = ["TableGrid"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

SPACING = 0.02  # of the table of G in log s^2: interpolation of degree five is then right to rounding
MARGIN = math.log(4.0)  # of the table beyond all places that are asked for
EDGES = 1 << 21  # costs held at a time
ROWS = 32  # rows of edges of one task
PLACES = 32  # rows of the table of one task
THREADS_PAY = 1 << 16  # edges, or logarithms, from which on threads are worth starting


class TableGrid:
    """Levels in descending order, the first perhaps inf, and the steps between them that a path may take."""

    def __init__(
        self, levels: Array, visit: Integers, min_spacing: int, eigenvalues: Array, sampler: str
    ) -> None:
        self.levels, self.kind = levels, STEP_KINDS.index(sampler)
        with np.errstate(divide="ignore"):
            self.x = fixed(2.0 * np.log(levels))
        size = len(levels)
        index = np.arange(size)
        coming = np.searchsorted(visit, index, side="right")  # the next one to be visited
        must_come = np.append(visit, size)[coming]
        reach = np.minimum(np.stack([index + min_spacing, must_come + 1], axis=1), size)
        self.may_end = must_come == size
        self.may_start = index <= (visit[0] if len(visit) else size)
        if np.isinf(levels[0]) and sampler != "flow_heun":
            self.may_start[0] = False
            reach[0] = 0
        self.reach = fixed(reach, np.int64)
        self._levels = fixed(levels)
        self._logs = fixed(np.log(eigenvalues))
        self.places, self._spacing = places_of(self.x)

    def linearised(self, weights: Array, steps: int, monge: bool = False) -> StepLinearised:
        """Return the least costs of all paths under weights of the eigenvalues; `monge` is ignored: costs are not."""
        weights = fixed(weights)
        table = np.empty((len(self.places), 3))
        work = table.shape[0] * len(weights)

        def task(begin: int, end: int) -> None:
            tabulate(self.places[begin:end], self._logs, weights, self._spacing, table[begin:end])

        run_all(task, pieces(len(table), PLACES), thread_count(None) if work > THREADS_PAY else 1)
        table, at = fixed(table), np.empty(len(self.x))
        low = float(self.places[0])
        interpolate(table, low, self._spacing, self.x, at)
        ends = self.may_end & np.isfinite(self.x)
        last = np.where(ends, at - float(np.sum(weights * self._logs)), math.inf)
        total = float(weights.sum())
        graph = (self.kind, self._levels, self.x, fixed(at), total, table, low, self._spacing, self.reach)
        return StepLinearised(graph, fixed(last), steps)


class StepLinearised:
    """Least costs of paths to 0 under a weighted sum of the losses along the eigenvalues."""

    def __init__(self, graph: tuple[Any, ...], last: Array, steps: int) -> None:
        self._graph, reach = graph, graph[-1]
        size = len(last)
        costs = np.empty((size, steps))
        rows = max(1, min(size, EDGES // size))
        edges = np.empty((rows, size))
        threads = thread_count(None) if rows * size > THREADS_PAY else 1
        for end in range(size, 0, -rows):
            begin = max(0, end - rows)

            def task(i: int, j: int, begin: int = begin) -> None:
                fill_edges(*graph, begin + i, edges[i:j])

            if steps > 1:
                run_all(task, pieces(end - begin, ROWS), threads)
            advance(edges[: end - begin], begin, reach, last, costs)
        self.costs = fixed(costs)

    def path(self, start: int, steps: int) -> Integers:
        """Return the best path from a level to 0 in `steps` steps, (steps,)."""
        path = np.empty(steps, dtype=np.int64)
        best_path(*self._graph, self.costs, start, path)
        return path

    def below(
        self, start: int, steps: int, threshold: float, most_steps: int, most_paths: int
    ) -> Integers | None:
        """Return all paths from a level with costs up to a threshold, (paths, steps); None if that is too much work."""
        paths = np.empty((most_paths, steps), dtype=np.int64)
        found = paths_below(*self._graph, self.costs, start, threshold, most_steps, paths)
        return paths[:found] if found >= 0 else None


def pieces(size: int, length: int) -> list[tuple[int, int]]:
    """Return stretches that cover range(size)."""
    return [(i, min(i + length, size)) for i in range(0, size, length)]


def places_of(x: Array) -> tuple[Array, float]:
    """Return where G is tabulated, and the spacing.

    log p and log q of all steps lie within: q <= A + M + kappa <= 2 s^2, and p = A M/q >= s'^3/(2 s), or, from inf,
    2 s'^3/(3 s' + 1).
    """
    finite = x[np.isfinite(x)]
    high, low = float(finite[0]), float(finite[-1])
    least = min(low, 1.5 * low - 0.5 * high, 1.5 * low - 0.5 * max(0.0, low)) - MARGIN
    intervals = math.ceil((high + MARGIN - least) / SPACING)
    return fixed(least + SPACING * np.arange(intervals + 1)), SPACING
