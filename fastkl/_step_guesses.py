"""Good paths to begin a search with: local optima off the grid, snapped to it, and moved level by level."""

from __future__ import annotations

import itertools
import time

import numpy as np
from numpy.typing import NDArray

from fastkl._convex_search import ConvexSearch
from fastkl._step_losses import StepObjective, step_losses
from fastkl._step_refinement import refined_steps

__all__ = ["descended", "guesses"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

LAST = (0.0, 0.03)  # the last level of a first guess, as a share of the grid from its least level
FIRST = (0.0, 0.1, 0.3)  # the first level where it is free, as a share of those that are allowed
COARSE = 6  # steps from which on a guess has the shape of the optimum for half as many
NEWTON_STEPS = 30
BESIDE_INFINITY = 4.0  # in log s^2 above the highest finite level: stands for an infinite first level
MOVES = np.array([1, 3, 10, 30, 100])  # of a level, in places on the grid
LEAST_GAIN = 1e-12  # of a move, relative: less may be rounding
MOST_MOVES = 80  # they zigzag, the more the longer a path is
DESCENTS = 3


def guesses(search: ConvexSearch, steps: int, deadline: float) -> list[Integers]:
    """Return some good paths that are allowed; there may be none where levels must be visited, or time is up."""
    size, found = len(search.starts), []
    starts = sorted({int(search.starts[int(share * (size - 1))]) for share in FIRST})
    for start, share, shape in itertools.product(starts, LAST, (evenly, geometrically, as_for_half)):
        end = int((1.0 - share) * (len(search.grid.levels) - 1))
        if end < start + steps - 1 or steps < 2 or (found and time.monotonic() > deadline):
            continue
        path = snapped(search, start, refined(search, shape(search, start, end, steps)))
        if search.allowed(path[None])[0]:
            found.append(path)
    if not found:
        return []
    paths = np.unique(np.stack(found), axis=0)
    points, constants = search.points(paths)
    order = np.argsort(search.objective.value(points) + constants, kind="stable")[:DESCENTS]
    return [descended(search, paths[i], deadline) for i in order]


def evenly(search: ConvexSearch, start: int, end: int, steps: int) -> Array:
    """Return levels at even distances on the grid, (steps,)."""
    places = np.linspace(start, end, steps)
    return np.exp(0.5 * np.interp(places, np.arange(len(search.grid.x)), finite_places(search)))


def geometrically(search: ConvexSearch, start: int, end: int, steps: int) -> Array:
    """Return levels at even distances in log s."""
    x = finite_places(search)
    return np.exp(0.5 * np.linspace(x[start], x[end], steps))


def as_for_half(search: ConvexSearch, start: int, end: int, steps: int) -> Array:
    """Return levels of the shape of the optimum for half as many steps."""
    if steps <= COARSE:
        return geometrically(search, start, end, steps)
    coarse = refined(search, as_for_half(search, start, end, steps // 2))[:-1]
    known = np.append(finite_places(search)[start], 2.0 * np.log(coarse[1:]))
    even = np.linspace(0.0, 1.0, steps)
    return np.exp(0.5 * np.interp(even, np.linspace(0.0, 1.0, len(known)), known))


def finite_places(search: ConvexSearch) -> Array:
    """Return log s^2 of the grid's levels, with something finite for an infinite one."""
    x = search.grid.x
    return np.where(np.isinf(x), x[1] + BESIDE_INFINITY, x)


def refined(search: ConvexSearch, levels: Array) -> Array:
    """Return levels of a local optimum off the grid, and 0; an infinite first level takes its place again."""
    sigmas = np.append(levels, 0.0)
    if np.isinf(search.grid.levels[0]) and levels[0] > search.grid.levels[1] * (1.0 + 1e-12):
        sigmas[0] = np.inf
    return refined_steps(search.objective, sigmas, float(search.grid.levels[-1]), most_steps=NEWTON_STEPS)


def snapped(search: ConvexSearch, start: int, sigmas: Array) -> Integers:
    """Return the path of the levels nearest to sigmas; those that come to the same place move apart."""
    x, wanted = -search.grid.x, -2.0 * np.log(sigmas[1:-1])
    right = np.clip(np.searchsorted(x, wanted), 1, len(x) - 1)
    path = np.append(start, right - (wanted - x[right - 1] < x[right] - wanted))
    away = search.grid.min_spacing * np.arange(len(path))
    path = np.maximum.accumulate(path - away) + away
    top = len(x) - search.grid.min_spacing * np.arange(len(path))[::-1] - 1
    return np.minimum(path, top)


def descended(search: ConvexSearch, path: Integers, deadline: float) -> Integers:
    """Return the path that moves of single levels lead to, each the best of all."""
    objective, levels = search.objective, search.grid.levels
    for _ in range(MOST_MOVES):
        changed, place = neighbours(search, path)
        if len(changed) == 0 or time.monotonic() > deadline:
            break
        first = np.searchsorted(search.starts, np.append(path[0], changed[:, 0]))
        steps = losses_of_steps(objective, np.append(levels[path], 0.0))
        y = np.concatenate([steps.sum(axis=0)[None], moved_losses(objective, levels, steps, changed, place)])
        values = objective.value(y + search.offsets[first]) + search.constants[first]
        best = int(np.argmin(values))
        if not values[best] < values[0] * (1.0 - LEAST_GAIN):
            break
        path = changed[best - 1]
    return path


def neighbours(search: ConvexSearch, path: Integers) -> tuple[Integers, Integers]:
    """Return the allowed paths that differ from a path in one level, and the places of these levels."""
    moves, steps = np.concatenate([MOVES, -MOVES]), len(path)
    changed = np.repeat(path[None], len(moves) * steps, axis=0)
    place = np.tile(np.arange(steps), len(moves))
    changed[np.arange(len(changed)), place] += np.repeat(moves, steps)
    allowed = search.allowed(changed)
    return np.ascontiguousarray(changed[allowed]), place[allowed]


def losses_of_steps(objective: StepObjective, sigmas: Array) -> Array:
    """Return S of each step of a schedule, (N, entries)."""
    values = objective.eigenvalues
    last = np.log1p(np.square(sigmas[-2]) / values)[None]
    return np.concatenate(
        [step_losses(objective.sampler, values, sigmas[:-2, None], sigmas[1:-1, None]), last]
    )


def moved_losses(
    objective: StepObjective, levels: Array, steps: Array, changed: Integers, place: Integers
) -> Array:
    """Return S of the paths that differ in one level from that whose steps' losses are given: two steps are others."""
    values, rows = objective.eigenvalues, np.arange(len(changed))
    sigmas = np.concatenate([levels[changed], np.zeros((len(changed), 1))], axis=1)
    y = steps.sum(axis=0) - steps[place]
    inner = place > 0
    y[inner] -= steps[place[inner] - 1]
    before, here = sigmas[rows[inner], place[inner] - 1, None], sigmas[rows[inner], place[inner], None]
    y[inner] += step_losses(objective.sampler, values, before, here)
    ends = place == len(steps) - 1
    with np.errstate(over="ignore", divide="ignore"):
        y[ends] += np.log1p(np.square(sigmas[rows[ends], place[ends], None]) / values)
    here, there = sigmas[rows[~ends], place[~ends], None], sigmas[rows[~ends], place[~ends] + 1, None]
    y[~ends] += step_losses(objective.sampler, values, here, there)
    return y
