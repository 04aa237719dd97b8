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


def fixed(array: Any, dtype: Any = np.float64) -> Any:
    """Return a read-only C-contiguous view or copy: kernels are compiled for one kind of input array."""
    view = np.ascontiguousarray(array, dtype=dtype).view()
    view.flags.writeable = False
    return view


class Grid:
    """Levels in descending order, the first perhaps inf, and the steps between them that a path may take.

    For every eigenvalue log(lambda + exp(x)) is tabulated once: weighted sums of the tables are what a path is priced
    by.
    """

    def __init__(self, levels: Array, visit: Integers, min_spacing: int, eigenvalues: Array) -> None:
        self.levels = levels
        with np.errstate(divide="ignore"):
            self.x = fixed(2.0 * np.log(levels))
        size = len(levels)
        index = np.arange(size)
        must_come = np.append(visit, size)[
            np.searchsorted(visit, index, side="right")
        ]  # the next one to be visited
        reach = np.minimum(np.stack([index + min_spacing, must_come + 1], axis=1), size)
        self.reach = fixed(reach, np.int64)
        self.may_end = must_come == size
        self.may_start = index <= (visit[0] if len(visit) else size)
        finite = self.x[np.isfinite(self.x)]
        intervals = max(2, math.ceil((finite[0] - finite[-1]) / SPACING))
        self.low, self.spacing = float(finite[-1]), float((finite[0] - finite[-1]) / intervals) or 1.0
        places = self.low + self.spacing * np.arange(intervals + 1)
        self._tables = logarithms(places, eigenvalues, self.spacing)
        self._at = logarithms(finite, eigenvalues, None)
        self._logs = np.log(eigenvalues)

    def linearised(self, weights: Array, steps: int, monge: bool = True) -> Linearised:
        """Return the least costs of all paths under weights of the eigenvalues, fast where no weight is negative."""
        at = np.full(len(self.x), math.inf)
        at[np.isfinite(self.x)] = self._at @ weights
        last = np.where(self.may_end, at - float(self._logs @ weights), math.inf)
        graph = (
            self.x,
            fixed(at),
            float(weights.sum()),
            self.reach,
            fixed(self._tables @ weights),
            self.low,
            self.spacing,
        )
        return Linearised(graph, fixed(last), steps, monge and bool(weights.min() >= 0.0))


class Linearised:
    """Least costs of paths to 0 under a weighted sum of the losses along the eigenvalues."""

    def __init__(self, graph: tuple[Any, ...], last: Array, steps: int, monge: bool) -> None:
        x, at, total, *rest = graph
        self._graph = graph
        self.costs = np.empty((len(x), steps))
        fill = costs_to_go_monge if monge else costs_to_go
        fill(x, at, total, last, *rest, self.costs)

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


def logarithms(places: Array, eigenvalues: Array, spacing: float | None) -> Array:
    """Return log(eigenvalue + exp(x)), (places, eigenvalues), or with a spacing and its derivatives, (places, 3,
    eigenvalues).

    The derivatives by x are multiplied by the spacing and its square.
    """
    x, u = places[:, None], np.log(eigenvalues)
    small = np.exp(-np.abs(x - u))
    values = np.maximum(x, u) + np.log1p(small)
    if spacing is None:
        return np.asarray(values)
    share = np.where(x > u, 1.0, small) / (1.0 + small)  # exp(x)/(lambda + exp(x))
    return np.stack([values, spacing * share, spacing**2 * small / np.square(1.0 + small)], axis=1)
