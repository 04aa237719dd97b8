"""A grid of noise levels as a graph: which steps are allowed, and what they cost under given weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl.kernels.paths import best_path, costs_to_go, costs_to_go_monge, paths_below

__all__ = ["Grid", "Linearised"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

SPACING = 0.02  # of the table of G in log s^2: interpolation of degree five is then right to rounding
BLOCK = 1 << 19  # logarithms formed at a time


def fixed(array: Any, dtype: Any = np.float64) -> Any:
    """Return a read-only C-contiguous view or copy: kernels are compiled for one kind of input array."""
    view = np.ascontiguousarray(array, dtype=dtype).view()
    view.flags.writeable = False
    return view


class Grid:
    """Levels in descending order, the first perhaps inf, and the steps between them that a path may take."""

    def __init__(self, levels: Array, visit: Integers, min_spacing: int) -> None:
        self.levels = levels
        with np.errstate(divide="ignore"):
            self.x = fixed(2.0 * np.log(levels))
        size = len(levels)
        index = np.arange(size)
        following = np.append(visit, size)[
            np.searchsorted(visit, index, side="right")
        ]  # the next level to be visited
        self.reach = fixed(
            np.stack([np.minimum(index + min_spacing, size), np.minimum(following + 1, size)], axis=1),
            np.int64,
        )
        self.may_end = following == size
        self.may_start = index <= (visit[0] if len(visit) else size)


class Linearised:
    """Costs of steps, weighted sums of the losses along the eigenvalues, and the least costs of paths."""

    def __init__(self, grid: Grid, eigenvalues: Array, weights: Array, steps: int, monge: bool) -> None:
        finite = grid.x[np.isfinite(grid.x)]
        intervals = max(2, math.ceil((finite[0] - finite[-1]) / SPACING))
        spacing = (finite[0] - finite[-1]) / intervals or 1.0
        places = finite[-1] + spacing * np.arange(intervals + 1)
        table = weighted_logarithms(places, eigenvalues, weights)
        at = np.full(len(grid.x), math.inf)
        at[np.isfinite(grid.x)] = weighted_logarithms(finite, eigenvalues, weights)[:, 0]
        last = np.where(grid.may_end, at - weights @ np.log(eigenvalues), math.inf)
        self.costs = np.empty((len(grid.x), steps))
        self._graph = (
            grid.x,
            fixed(at),
            float(weights.sum()),
            grid.reach,
            fixed(table * spacing ** np.arange(3)),
            float(places[0]),
            float(spacing),
        )
        x, at, total, reach, *rest = self._graph
        fill = costs_to_go_monge if monge else costs_to_go
        fill(x, at, total, fixed(last), reach, *rest, self.costs)

    def path(self, start: int, steps: int) -> Integers:
        """Return the best path from a level to 0 in `steps` steps, (steps,)."""
        path = np.empty(steps, dtype=np.int64)
        best_path(*self._graph, fixed(self.costs), start, path)
        return path

    def below(
        self, start: int, steps: int, threshold: float, most_steps: int, most_paths: int
    ) -> Integers | None:
        """Return all paths from a level with costs up to a threshold, (paths, steps); None if that is too much work."""
        paths = np.empty((most_paths, steps), dtype=np.int64)
        found = paths_below(*self._graph, fixed(self.costs), start, threshold, most_steps, paths)
        return paths[:found] if found >= 0 else None


def weighted_logarithms(places: Array, eigenvalues: Array, weights: Array) -> Array:
    """Return G(x) = sum of weights log(eigenvalue + exp(x)) with its first two derivatives, (places, 3)."""
    u = np.log(eigenvalues)
    out = np.empty((len(places), 3))
    length = max(1, BLOCK // len(u))
    for begin in range(0, len(places), length):
        x = places[begin : begin + length, None]
        small = np.exp(-np.abs(x - u))
        share = np.where(x > u, 1.0, small) / (1.0 + small)  # exp(x)/(lambda + exp(x))
        out[begin : begin + length, 0] = (np.maximum(x, u) + np.log1p(small)) @ weights
        out[begin : begin + length, 1] = share @ weights
        out[begin : begin + length, 2] = (small / np.square(1.0 + small)) @ weights
    return out
