r"""Levels to begin a search with: the geodesic's, which are best to leading order in 1/N.

In x = log s^2 a step of length delta loses S_j = (delta^2/4) K(x - log lambda_j), K the logistic density, to leading
order. With the slopes p_j of the divergence in the losses, the best density of levels is sqrt(sum_j p_j K_j), and the
losses, so the slopes, follow from the levels: a fixed point.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastkl._grid import Grid
from fastkl._objective import Objective

__all__ = ["first_levels"]

Array = NDArray[np.float64]

ROUNDS = 6  # of the fixed point
STRIDE = 2  # of the places in the grid's table: 0.16 in log s^2
LEAST = 1e-140  # density of levels, relative to the largest


def first_levels(grid: Grid, objective: Objective, offset: Array, start: int, steps: int) -> Array:
    """Return N+1 levels from a level of the grid to 0 for losses on top of `offset`, within the grid's range."""
    top = float(grid.x[start])
    x, bends = grid.bends(STRIDE)
    inside = x < (top if np.isfinite(top) else np.inf)
    if steps == 1 or inside.sum() < 2:
        return evenly(grid, start, steps)
    x, bends = x[inside], bends[inside]
    slopes = objective.weights.copy()
    for _ in range(ROUNDS):
        slopes[objective.directions :] = 0.0
        inner = best_spread(x, bends @ slopes, steps, np.isinf(top))
        levels = np.concatenate([grid.levels[start : start + 1], np.exp(0.5 * inner), [0.0]])
        if not (np.diff(levels) < 0.0).all():
            return evenly(grid, start, steps)
        slopes = np.maximum(objective.gradient(objective.losses(levels[None])[0] + offset), 0.0)
        if not 0.0 < slopes[: objective.directions].sum() < np.inf:
            slopes = objective.weights.copy()
    return levels


def best_spread(x: Array, square: Array, steps: int, infinite: bool) -> Array:
    """Return N-1 places that cut a path from x[-1] (or inf) to 0 into N pieces of one length, descending."""
    density = np.sqrt(square / square.max())
    density = np.maximum(density, LEAST)
    covered = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(x))])
    below, above = 2.0 * density[0], 2.0 * density[-1] if infinite else 0.0  # tails fall exponentially
    wanted = (below + covered[-1] + above) * np.arange(steps - 1, 0, -1) / steps - below
    if wanted[-1] < 0.0 or wanted[0] > covered[-1]:  # the grid ends before the path does
        wanted = np.linspace(min(covered[-1], wanted[0]), max(0.0, wanted[-1]), steps - 1)
    return np.asarray(np.interp(wanted, covered, x))


def evenly(grid: Grid, start: int, steps: int) -> Array:
    """Return levels that are spread evenly over the grid from a start on, and 0."""
    places = np.linspace(start, len(grid.levels) - 1, steps + 1)[:-1]
    known = np.arange(len(grid.levels))
    x = np.where(np.isfinite(grid.x), grid.x, grid.x[min(1, len(known) - 1)] + 1.0)
    inner = np.exp(0.5 * np.interp(places[1:], known, x))
    return np.concatenate([grid.levels[start : start + 1], inner, [0.0]])
