"""Changes of single levels of a path, for the better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastkl._grid import Grid
from fastkl._objective import Objective
from fastkl._refinement import refined_levels

if TYPE_CHECKING:
    from fastkl._search_bounds import Outcome

__all__ = ["PathMoves"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

MOVES = np.array([1, 3])  # of a level, in places on the grid
MOST_MOVES = 20


class PathMoves:
    """What a search knows of paths next to another: on the grid, off it, and which are allowed."""

    grid: Grid
    objective: Objective
    starts: Integers
    offsets: Array
    constants: Array
    points: Any
    place_of: Any
    take_in: Any

    def improve(self, outcome: Outcome, path: Integers) -> None:
        """Move a path's levels to a local optimum off the grid, back to the nearest levels, then one by one."""
        sigmas = np.append(self.grid.levels[path], 0.0)
        moved = refined_levels(self.objective, sigmas, float(self.grid.levels[-1]))
        nearest = self.nearest(int(path[0]), moved)
        candidates = path[None] if nearest is None else np.stack([path, nearest])
        points, constants = self.take_in(outcome, candidates)
        values = self.objective.value(points) + constants
        path, value = candidates[int(np.argmin(values))], float(values.min())
        for _ in range(MOST_MOVES):
            changed, places = self.neighbours(path)
            if len(changed) == 0:
                return
            values = self.moved_values(path, changed, places)
            best = int(np.argmin(values))
            if not values[best] < value:
                return
            path, value = changed[best], float(values[best])
            self.take_in(outcome, path[None])

    def moved_values(self, path: Integers, moved: Integers, places: Integers) -> Array:
        """Return the values of paths that differ from a path in one level each, at `places`: two steps are others."""
        levels = np.append(self.grid.levels, 0.0)
        last = len(levels) - 1

        def around(paths: Integers, places: Integers) -> Array:
            """Return what the steps to and from a place of each path lose."""
            rows = np.arange(len(paths))
            ended = np.append(paths, np.full((len(paths), 1), last), axis=1)
            here, after = levels[ended[rows, places]], levels[ended[rows, places + 1]]
            before = levels[ended[rows, np.maximum(places, 1) - 1]]
            leaving = self.objective.step_losses(here, after)
            return leaving + np.where(places[:, None] > 0, self.objective.step_losses(before, here), 0.0)

        known, _ = self.points(path[None])
        own = around(np.repeat(path[None], len(path), axis=0), np.arange(len(path)))
        start, first = self.place_of(path), np.searchsorted(self.starts, moved[:, 0])
        points = (
            known[0] + (around(moved, places) - own[places]) + (self.offsets[first] - self.offsets[start])
        )
        return np.asarray(self.objective.value(points) + self.constants[first])

    def nearest(self, start: int, levels: Array) -> Integers | None:
        """Return the path from a start over the levels of the grid that are nearest to others, if it is allowed."""
        x = -self.grid.x
        wanted = -2.0 * np.log(levels[1:-1])
        right = np.clip(np.searchsorted(x, wanted), 1, len(x) - 1)
        path = np.append(start, right - (wanted - x[right - 1] < x[right] - wanted))
        return path if self.allowed(path[None])[0] else None

    def allowed(self, paths: Integers) -> NDArray[np.bool_]:
        """Return which paths keep to the grid's steps, starts and ends."""
        reach = self.grid.reach
        inside = ((paths >= 0) & (paths < len(self.grid.levels))).all(axis=1)
        paths = np.where(inside[:, None], paths, 0)
        here, there = paths[:, :-1], paths[:, 1:]
        steps = (there >= reach[here, 0]) & (there < reach[here, 1])
        return np.asarray(
            inside & steps.all(axis=1) & self.grid.may_end[paths[:, -1]] & np.isin(paths[:, 0], self.starts)
        )

    def neighbours(self, path: Integers) -> tuple[Integers, Integers]:
        """Return the allowed paths that differ from a path in one level, by a few places, and which level it is."""
        changed = np.repeat(path[None], 2 * len(MOVES) * len(path), axis=0)
        rows = np.arange(len(changed))
        changed[rows, rows % len(path)] += np.repeat(np.concatenate([MOVES, -MOVES]), len(path))
        kept = self.allowed(changed)
        return np.ascontiguousarray(changed[kept]), (rows % len(path))[kept]
