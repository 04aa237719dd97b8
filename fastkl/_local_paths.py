"""Choices of levels that a search allows: which they are, the one nearest to given levels, and those beside one."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["Paths"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

BEYOND = 2.0  # in log sigma: where an infinite first level stands, above the first finite one
ROUNDED = 9  # levels of which both neighbouring places are tried
PAIRED = 16  # places that two neighbours move at once at most
EVERYWHERE = 4096  # (level, place) pairs up to which every level is tried at every place


class Paths:
    """Paths, ascending indices of a grid's levels (noisiest first), that keep to a search's constraints.

    A path of N steps has N indices and ends in 0 after them. Where the sampler needs a last level above 0, it has
    N+1, of which the last is the grid's lowest level.
    """

    def __init__(
        self,
        levels: Array,
        visit: Integers,
        min_spacing: int,
        free_start: bool,
        finite_start: bool,
        above_zero: bool,
    ) -> None:
        self.levels, self.visit, self.spacing = levels, visit, min_spacing
        self.above_zero = above_zero
        self.starts_at_inf = bool(np.isinf(levels[0]))
        self.may_start = np.full(len(levels), free_start)
        self.may_start[0] = not (finite_start and self.starts_at_inf)
        self.free_start = bool(np.count_nonzero(self.may_start) > 1)
        self.x = np.log(np.where(np.isinf(levels), 1.0, levels))
        if self.starts_at_inf:
            self.x[0] = self.x[min(1, len(levels) - 1)] + BEYOND
        self._moves: dict[tuple[int, bool], Integers] = {}

    def count(self, steps: int) -> int | None:
        """Return how many paths of N steps there are; None where levels must be visited."""
        if len(self.visit):
            return None
        length = steps + int(self.above_zero)
        places = int(np.count_nonzero(self.may_start)) if self.free_start else len(self.levels)
        size = places - (length - 1) * (self.spacing - 1)
        held = int(not self.free_start) + int(self.above_zero)
        return math.comb(max(size - held, 0), length - held)

    def roundings(self, x: Array) -> Integers:
        """Return the allowed paths (P, L) that take a place above or below each of the levels x in log sigma.

        Where divergences cancel, the nearest places can be far from the best of these. Beyond `ROUNDED` levels, those
        that are farthest from a place are taken to both sides, and the others to the nearest place.
        """
        below = np.clip(np.searchsorted(-self.x, -x), 1, max(1, len(self.x) - 1))
        above = below - 1
        below = np.minimum(below, len(self.x) - 1)
        width = np.maximum(self.x[above] - self.x[below], 1e-300)
        part = np.clip((self.x[above] - x) / width, 0.0, 1.0)
        open_levels = np.argsort(np.abs(part - 0.5), kind="stable")[:ROUNDED]
        sides = np.tile(part > 0.5, (1 << len(open_levels), 1))
        bits = np.arange(len(sides))[:, None] >> np.arange(len(open_levels))
        sides[:, open_levels] = bits & 1
        for exact in np.flatnonzero((part == 0.0) | (part == 1.0)):
            sides[:, exact] = part[exact] == 1.0
        paths = np.unique(np.where(sides, below, above), axis=0)
        return np.ascontiguousarray(paths[self.allowed(paths)])

    def every(self, steps: int, most: int) -> Integers | None:
        """Return all paths of N steps (P, L); None if there may be more than `most`."""
        length, size = steps + int(self.above_zero), len(self.levels)
        if math.comb(size, length) > most:
            return None
        rows = itertools.combinations(range(size), length)
        paths = np.array(list(rows), dtype=np.int64).reshape(-1, length)
        return paths[self.allowed(paths)]

    def sigmas(self, paths: Integers) -> Array:
        """Return the N+1 levels of every path."""
        levels = self.levels[paths]
        return levels if self.above_zero else np.concatenate([levels, np.zeros((len(paths), 1))], axis=1)

    def allowed(self, paths: Integers) -> NDArray[np.bool_]:
        """Return which rows are paths that keep to the constraints."""
        size = len(self.levels)
        good = (
            (paths[:, 0] >= 0) & (paths[:, -1] < size) & (np.diff(paths, axis=1) >= self.spacing).all(axis=1)
        )
        good &= self.may_start[np.clip(paths[:, 0], 0, size - 1)]
        if self.above_zero:
            good &= paths[:, -1] == size - 1
        for place in self.visit:
            good &= (paths == place).any(axis=1)
        return good

    def held(self, path: Integers) -> NDArray[np.bool_]:
        """Return which levels of a path cannot move by themselves, even off the grid."""
        held = np.isin(path, self.visit)
        held[0] |= not self.free_start or (self.starts_at_inf and path[0] == 0)
        held[-1] |= self.above_zero
        return held

    def nearest(self, wanted: Array) -> Integers | None:
        """Return the path with the least sum of distances in log sigma from the levels `wanted`; None if there is none.

        Dynamic programming over (level, place): level k may come to place j from any place at least `min_spacing`
        before, if no place that must be visited lies between the two.
        """
        size = len(self.levels)
        first = self.visit[0] if len(self.visit) else size - 1
        open_start = self.may_start & (np.arange(size) <= first)
        cost = np.where(open_start, np.abs(self.x - wanted[0]), np.inf)
        cuts = np.unique(np.concatenate([[0], self.visit, [size - 1]]))
        back = np.zeros((len(wanted), size), dtype=np.int64)
        for k in range(1, len(wanted)):
            best = np.full(size, np.inf)
            for begin, end in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
                reached = end - begin - self.spacing + 1  # places within (begin, end] that can be come to
                if reached <= 0:
                    continue
                come = cost[begin : begin + reached]
                least = np.minimum.accumulate(come)
                new = np.append(True, come[1:] < least[:-1])
                there = slice(begin + self.spacing, end + 1)
                best[there] = least
                back[k, there] = begin + np.maximum.accumulate(np.where(new, np.arange(reached), 0))
            cost = best + np.abs(self.x - wanted[k])
        if len(self.visit):
            cost[: self.visit[-1]] = np.inf
        if self.above_zero:
            cost[:-1] = np.inf
        return traced(back, int(np.argmin(cost))) if np.isfinite(cost).any() else None

    def is_coarse(self, steps: int) -> bool:
        """Whether the grid is so small that every level can be tried at every place."""
        return len(self.levels) * steps <= EVERYWHERE

    def scattered(self, length: int, count: int) -> Integers:
        """Return allowed paths (P, L) spread over all there are, at most `count`: by a sequence of low discrepancy.

        Point i has the coordinates frac(i/g), frac(i/g^2), ..., with g^(L+1) = g + 1 (the golden ratio for L = 1).
        """
        ratio = 2.0
        for _ in range(64):
            ratio = (1.0 + ratio) ** (1.0 / (length + 1))
        points = np.outer(np.arange(1, count + 1), ratio ** -np.arange(1.0, length + 1)) % 1.0
        top = self.x[np.argmax(self.may_start)]
        wanted = top + np.sort(points, axis=1) * (self.x[-1] - top)
        if not self.free_start:
            wanted[:, 0] = top
        if self.above_zero:
            wanted[:, -1] = self.x[-1]
        paths = len(self.x) - 1 - np.searchsorted(self.x[::-1], wanted)
        paths = np.clip(paths, 0, len(self.x) - 1)
        return np.ascontiguousarray(paths[self.allowed(paths)])

    def beside(self, path: Integers, wide: bool) -> Integers:
        """Return the allowed paths of the small or the wide neighbourhood of a path."""
        key = (len(path), wide)
        if key not in self._moves:
            self._moves[key] = displacements(len(path), len(self.levels), wide)
        found = path + self._moves[key]
        if wide:
            found = np.concatenate([found, self._relocated(path)])
        found = found[self.allowed(found)]
        return np.ascontiguousarray(found)

    def _relocated(self, path: Integers) -> Integers:
        """Return the path with one level taken out and put elsewhere: everywhere on a small grid, else between two."""
        size = len(self.levels)
        if self.is_coarse(len(path)):
            places = np.setdiff1d(np.arange(size), path)
        else:
            ends = np.append(path, size - 1)
            places = np.setdiff1d((ends[:-1] + ends[1:]) // 2, path)
        moved = np.repeat(path[None], len(path) * len(places), axis=0)
        moved[np.arange(len(moved)), np.repeat(np.arange(len(path)), len(places))] = np.tile(
            places, len(path)
        )
        return np.sort(moved, axis=1)


def traced(back: Integers, end: int) -> Integers:
    """Return the path that ends at a place, from the places that every level was come to from."""
    path = [end]
    for row in back[:0:-1]:
        path.append(int(row[path[-1]]))
    return np.array(path[::-1], dtype=np.int64)


def displacements(length: int, size: int, wide: bool) -> Integers:
    """Return by how many places the levels move in each neighbour: one level, two neighbours, or all from one on.

    One level moves by every power of 2, in the small neighbourhood too, where two move by one place only.
    """
    far = [1 << i for i in range(max(1, (size - 1).bit_length()))]
    one = np.eye(length, dtype=np.int64)
    two, apart = one[:-1] + one[1:], one[:-1] - one[1:]
    moves = [one * step for step in far]
    for step in [step for step in far if step <= PAIRED] if wide else (1,):
        moves += [two * step, apart * step]
        if wide:
            tails = np.triu(np.ones((length, length), dtype=np.int64))[:-1]
            moves += [tails * step, (two + one[:-1]) * step, (two + one[1:]) * step]
    found = np.concatenate(moves)
    return np.concatenate([found, -found])
