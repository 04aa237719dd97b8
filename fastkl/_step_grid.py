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

__all__ = ["Deposit", "TableGrid"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

SPACING = 0.02  # of the table of G in log s^2: interpolation of degree five is then right to rounding
NODES = 8  # that an eigenvalue's weight is spread over
MARGIN = math.log(4.0)  # of the table beyond all places that are asked for
EDGES = 1 << 21  # costs held at a time
ROWS = 32  # rows of edges of one task
THREADS_PAY = 1 << 16  # edges from which on threads are worth starting


class TableGrid:
    """Levels in descending order, the first perhaps inf, and the steps between them that a path may take."""

    def __init__(
        self, levels: Array, visit: Integers, min_spacing: int, eigenvalues: Array, sampler: str
    ) -> None:
        self.levels, self.kind, self.min_spacing = levels, STEP_KINDS.index(sampler), min_spacing
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
        self.table = Table(self.x, np.log(eigenvalues))

    def linearised(
        self, weights: Array, steps: int, monge: bool = False, box: Integers | None = None
    ) -> StepLinearised:
        """Return the least costs of all paths under weights of the eigenvalues.

        `monge` is ignored: these costs are not. A box (2, steps) holds the first and the last+1 level at each place.
        """
        table, total, shift = self.table.tabulated(weights)
        at = np.empty(len(self.x))
        interpolate(table, self.table.low, SPACING, self.x, at)
        last = np.where(self.may_end & np.isfinite(self.x), at, math.inf)
        reach = self.reach
        if box is None:
            box = np.repeat([[0], [len(self.x)]], steps, axis=1)
        else:
            reach = within(reach, box)
        graph = (
            self.kind,
            self._levels,
            self.x,
            fixed(at),
            total,
            shift,
            table,
            self.table.low,
            SPACING,
            reach,
        )
        return StepLinearised(graph, fixed(last), fixed(box, np.int64))


def within(reach: Integers, box: Integers) -> Integers:
    """Return the steps that a path in the box may take: from each level those of all places that it may be at."""
    index = np.arange(len(reach))[:, None]
    here = (index >= box[0, :-1]) & (index < box[1, :-1])
    first = np.where(here, box[0, 1:], len(reach)).min(axis=1, initial=len(reach))
    end = np.where(here, box[1, 1:], 0).max(axis=1, initial=0)
    return fixed(np.stack([np.maximum(reach[:, 0], first), np.minimum(reach[:, 1], end)], axis=1), np.int64)


class StepLinearised:
    """Least costs of paths to 0 under a weighted sum of the losses along the eigenvalues."""

    def __init__(self, graph: tuple[Any, ...], last: Array, box: Integers) -> None:
        self._graph, reach = graph, graph[-1]
        size, steps = len(last), box.shape[1]
        costs = np.empty((size, steps))
        rows = max(1, min(size, EDGES // size))
        edges = np.empty((rows, size))
        work = int(np.maximum(reach[:, 1] - reach[:, 0], 0).sum()) if steps > 1 else 0
        threads = thread_count(None) if work > THREADS_PAY else 1
        for end in range(size, 0, -rows):
            begin = max(0, end - rows)

            def task(i: int, j: int, begin: int = begin) -> None:
                fill_edges(*graph, begin + i, edges[i:j])

            if work:
                run_all(task, pieces(end - begin, ROWS if threads > 1 else rows), threads)
            advance(edges[: end - begin], begin, reach, box[0], box[1], last, costs)
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


class Table:
    """Where G(x) = sum_j w_j log(1 + exp(x)/lambda_j) is tabulated, and what that takes.

    As a function of log lambda each term is as smooth as it is in x, so the eigenvalues' weights are spread over the
    nodes of a lattice of the same spacing, by interpolation of degree seven, once: a table then costs one product for
    each place and node, whatever the number of eigenvalues, and no logarithm.
    """

    def __init__(self, x: Array, logs: Array) -> None:
        self.low, places = extent(x)
        self.places = places
        first = float(logs.min()) - (NODES // 2) * SPACING
        self._logs = logs
        self._spread = Deposit((logs - first) / SPACING)
        z = self.low - first + SPACING * np.arange(1 - self._spread.nodes, places)
        small = np.exp(-np.abs(z))
        share = np.where(z > 0.0, 1.0, small) / (1.0 + small)
        self._values = fixed(np.maximum(z, 0.0) + np.log1p(small))
        self._slopes = fixed(SPACING * share)
        self._bends = fixed(SPACING**2 * small / np.square(1.0 + small))

    @property
    def largest(self) -> float:
        """The largest value that is tabulated for an eigenvalue."""
        return float(self._values[-1])

    def tabulated(self, weights: Array) -> tuple[Array, float, float]:
        """Return G with its derivatives, (places, 3), the sum of the weights, and that of weights * log lambda."""
        table = np.empty((self.places, 3))
        shares = self._spread.shares(weights)
        indices = np.flatnonzero(shares)
        tabulate(
            fixed(indices, np.int64), fixed(shares[indices]), self._values, self._slopes, self._bends, table
        )
        return fixed(table), float(weights.sum()), float(np.sum(weights * self._logs))


class Deposit:
    """Points t, about 4 or more, whose weights are spread over the integers: sums of smooth functions stay the same."""

    def __init__(self, t: Array) -> None:
        base = np.floor(t)
        offsets = np.arange(NODES) - (NODES // 2 - 1)
        away = (t - base)[:, None] - offsets
        self._factors = np.ones((len(t), NODES))
        for i in range(NODES):
            for j in range(NODES):
                if i != j:
                    self._factors[:, i] *= away[:, j] / float(offsets[i] - offsets[j])
        self._places = base.astype(np.int64)[:, None] + offsets
        self.nodes = int(self._places.max()) + 1

    def shares(self, weights: Array) -> Array:
        """Return the weights of the integers from 0 on, (nodes,)."""
        spread = self._factors * weights[:, None]
        return np.bincount(self._places.ravel(), spread.ravel(), self.nodes)


def extent(x: Array) -> tuple[float, int]:
    """Return the lowest place of the table, and their number.

    log p and log q of all steps lie within: q <= A + M + kappa <= 3 s^2, and p = A M/q >= s'^3/(2 s) or s'^2/3, or,
    from inf, 2 s'^3/(3 s' + 1).
    """
    finite = x[np.isfinite(x)]
    high, low = float(finite[0]), float(finite[-1])
    least = min(low, 1.5 * low - 0.5 * high, 1.5 * low - 0.5 * max(0.0, low)) - MARGIN
    return least, math.ceil((high + MARGIN - least) / SPACING) + 1
