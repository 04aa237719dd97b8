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

SPACING = 0.08  # of the table of G in log s^2: interpolation of degree seven is then right to rounding


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
        self.levels, self.visit, self.min_spacing = levels, visit, min_spacing
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
        self._logs = np.log(eigenvalues)

    def linearised(self, weights: Array, steps: int, monge: bool = True) -> Linearised:
        """Return the least costs of all paths under weights of the eigenvalues, fast where no weight is negative."""
        pieces = fixed(polynomials(self._tables @ weights))
        at = values_at(self.x, pieces, self.low, 1.0 / self.spacing)
        last = np.where(self.may_end, at - float(self._logs @ weights), math.inf)
        graph = (
            self.x,
            fixed(at),
            float(weights.sum()),
            self.reach,
            pieces,
            self.low,
            1.0 / self.spacing,
        )
        return Linearised(graph, fixed(last), steps, monge and bool(weights.min() >= 0.0))

    def restricted(self, kept: Integers) -> Grid:
        """Return the grid of some of the levels; only where neighbours need no spacing."""
        visit = np.searchsorted(kept, self.visit)
        return Grid(np.ascontiguousarray(self.levels[kept]), visit, 1, np.exp(self._logs))

    def bends(self, stride: int) -> tuple[Array, Array]:
        """Return places x, ascending, and the second derivatives of log(lambda + exp(x)) there, (places, entries)."""
        places = np.arange(0, len(self._tables), stride)
        return self.low + self.spacing * places, self._tables[places, 2] / self.spacing**2


class Linearised:
    """Least costs of paths to 0 under a weighted sum of the losses along the eigenvalues."""

    def __init__(self, graph: tuple[Any, ...], last: Array, steps: int, monge: bool) -> None:
        x, at, total, *rest = graph
        self._graph = graph
        self.costs = np.empty((len(x), steps))
        self._fill = costs_to_go_monge if monge else costs_to_go
        self._fill(x, at, total, last, *rest, self.costs)

    def path(self, start: int, steps: int) -> Integers:
        """Return the best path from a level to 0 in `steps` steps, (steps,)."""
        path = np.empty(steps, dtype=np.int64)
        best_path(*self._graph, fixed(self.costs), start, path)
        return path

    def through(self, start: int, steps: int) -> Array:
        """Return the least cost of a path from a level to 0 in at least 2 steps by way of each level, (T,)."""
        x, at, total, reach, pieces, low, density = self._graph
        if np.isinf(x[start]):
            first = at - total * np.where(np.isinf(x), 0.0, x)
        else:
            middle = np.where(
                np.isinf(x), x[start], 0.5 * (x[start] + x)
            )  # an infinite level is not on the way
            first = at[start] + np.where(np.isinf(x), 0.0, at) - 2.0 * values_at(middle, pieces, low, density)
        index = np.arange(len(x))
        first[(index < reach[start, 0]) | (index >= reach[start, 1])] = math.inf
        earliest = np.maximum(np.searchsorted(reach[:, 1], index, side="right"), start + 1)
        latest = np.searchsorted(reach[:, 0], index, side="right")
        # the way there is the way back through the levels in the opposite order
        back = np.stack([len(x) - latest, len(x) - earliest], axis=1)[::-1]
        there = np.empty((len(x), steps - 1))
        rest = (fixed(back, np.int64), pieces, low, density)
        self._fill(fixed(x[::-1]), fixed(at[::-1]), total, fixed(first[::-1]), *rest, there)
        least = (there[::-1] + self.costs[:, steps - 2 :: -1]).min(axis=1)
        least[start] = self.costs[start, steps - 1]
        return np.asarray(least)

    def below(
        self, start: int, steps: int, threshold: float, most_steps: int, most_paths: int
    ) -> Integers | None:
        """Return all paths from a level with costs up to a threshold, (paths, steps); None if that is too much work."""
        paths = np.empty((most_paths, steps), dtype=np.int64)
        found = paths_below(*self._graph, fixed(self.costs), start, threshold, most_steps, paths)
        return paths[:found] if found >= 0 else None


# from what the cubic of the left end misses at the right one, by value and three derivatives, to the higher powers
REST = np.array(
    [
        [35.0, -15.0, 2.5, -1.0 / 6.0],
        [-84.0, 39.0, -7.0, 0.5],
        [70.0, -34.0, 6.5, -0.5],
        [-20.0, 10.0, -2.0, 1.0 / 6.0],
    ]
)


def polynomials(table: Array) -> Array:
    """Return the coefficients (K, 8) of what has the values and scaled derivatives of `table` (K+1, 4) at both ends."""
    near = table[:-1] / [1.0, 1.0, 2.0, 6.0]
    a, b, c, d = near.T
    missed = table[1:] - np.stack([a + b + c + d, b + 2.0 * c + 3.0 * d, 2.0 * c + 6.0 * d, 6.0 * d], axis=1)
    return np.concatenate([near, missed @ REST.T], axis=1)


def values_at(x: Array, pieces: Array, low: float, density: float) -> Array:
    """Return G at the levels' x, inf at inf, as the kernels interpolate it."""
    finite = np.isfinite(x)
    place = (np.where(finite, x, low) - low) * density
    k = np.minimum(place.astype(np.int64), len(pieces) - 1)
    value = np.zeros(len(x))
    for coefficient in pieces[k].T[::-1]:
        value = coefficient + (place - k) * value
    return np.where(finite, value, math.inf)


def logarithms(places: Array, eigenvalues: Array, spacing: float) -> Array:
    """Return log(eigenvalue + exp(x)) and its first three derivatives by x times powers of the spacing.

    The shape is (places, 4, eigenvalues).
    """
    noise = np.exp(places)[:, None]
    both = eigenvalues + noise
    share = noise / both
    bend = share * (eigenvalues / both)
    out = np.empty((len(places), 4, len(eigenvalues)))
    np.log(both, out=out[:, 0])
    np.multiply(spacing, share, out=out[:, 1])
    np.multiply(spacing**2, bend, out=out[:, 2])
    np.multiply(spacing**3 * bend, 1.0 - 2.0 * share, out=out[:, 3])
    return out
