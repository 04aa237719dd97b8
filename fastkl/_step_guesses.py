"""Good paths to begin a search with: local optima off the grid, snapped to it, and moved level by level."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastkl._convex_search import ConvexSearch
from fastkl._step_refinement import refined_steps

__all__ = ["descended", "guesses"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

LAST = (0.02, 0.06, 0.15, 0.3)  # the last level of a first guess, as a share of the grid from its least level
FIRST = (0.0, 0.1, 0.3)  # the first level where it is free, as a share of those that are allowed
COARSE = 6  # steps up to which the first guess is geometric; for more, it has the shape of the optimum for half as many
NEWTON_STEPS = 40
BESIDE_INFINITY = 4.0  # in log s^2 above the highest finite level: stands for an infinite first level
MOVES = np.array([1, 3, 10, 30, 100])  # of a level, in places on the grid
MOST_MOVES = 200
DESCENTS = 2


def guesses(search: ConvexSearch, steps: int) -> list[Integers]:
    """Return some good paths that are allowed; there may be none where levels must be visited."""
    size, found = len(search.starts), []
    starts = sorted({int(search.starts[int(share * (size - 1))]) for share in FIRST})
    for start in starts:
        for share in LAST:
            path = guessed(search, start, share, steps)
            if path is not None:
                found.append(path)
    if not found:
        return []
    paths = np.unique(np.stack(found), axis=0)
    points, constants = search.points(paths)
    order = np.argsort(search.objective.value(points) + constants, kind="stable")[:DESCENTS]
    return [descended(search, paths[i]) for i in order]


def guessed(search: ConvexSearch, start: int, share: float, steps: int) -> Integers | None:
    """Return the path beside a local optimum off the grid, or None if that is not allowed."""
    levels = search.grid.levels
    end = int((1.0 - share) * (len(levels) - 1))
    if end <= start + steps or steps < 2:
        return None
    sigmas = optimum(search, float(levels[start]), float(levels[end]), steps)
    x, wanted = -search.grid.x, -2.0 * np.log(sigmas[1:-1])
    right = np.clip(np.searchsorted(x, wanted), 1, len(x) - 1)
    path = np.append(start, right - (wanted - x[right - 1] < x[right] - wanted))
    for k in range(1, steps):  # levels that snap to the same place move apart
        path[k] = max(path[k], search.grid.reach[path[k - 1], 0]) if path[k - 1] < len(x) else len(x)
    return path if search._allowed(path[None])[0] else None


def optimum(search: ConvexSearch, first: float, last: float, steps: int) -> Array:
    """Return levels of a local optimum off the grid, from a first guess that ends at `last` and then 0."""
    finite = search.grid.x[np.isfinite(search.grid.x)]
    high = float(finite[0]) + BESIDE_INFINITY if np.isinf(first) else 2.0 * np.log(first)
    shape = np.linspace(high, 2.0 * np.log(last), steps)
    if steps > COARSE:
        coarse = optimum(search, first, last, steps // 2)
        known = np.append(high, 2.0 * np.log(coarse[1:-1]))
        shape = np.interp(np.linspace(0.0, 1.0, steps), np.linspace(0.0, 1.0, len(known)), known)
    sigmas = np.append(np.exp(0.5 * shape), 0.0)
    sigmas[0] = first
    return refined_steps(search.objective, sigmas, float(search.grid.levels[-1]), NEWTON_STEPS)


def descended(search: ConvexSearch, path: Integers) -> Integers:
    """Return the path that moves of single levels lead to, each the best of all."""
    points, constants = search.points(path[None])
    value = float((search.objective.value(points) + constants)[0])
    moves, steps = np.concatenate([MOVES, -MOVES]), len(path)
    for _ in range(MOST_MOVES):
        changed = np.repeat(path[None], len(moves) * steps, axis=0)
        rows = np.arange(len(changed))
        changed[rows, rows % steps] += np.repeat(moves, steps)
        changed = np.ascontiguousarray(changed[search._allowed(changed)])
        if len(changed) == 0:
            break
        points, constants = search.points(changed)
        values = search.objective.value(points) + constants
        best = int(np.argmin(values))
        if not values[best] < value:
            break
        path, value = changed[best], float(values[best])
    return path
