"""Levels moved to a local optimum of the divergence, by Newton's method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl._objective import Objective

__all__ = ["refined_levels", "slopes_in_levels", "value_of"]

Array = NDArray[np.float64]

MOST_STEPS = 60
SETTLED = 1e-9  # in log s^2
REACH = 0.45  # share of the gap to a neighbour that a level may move at once
FARTHEST = 8.0  # gap to an infinite neighbour


def value_of(objective: Objective, sigmas: Array) -> float:
    """Return the divergence of one schedule."""
    first = sigmas[:1]
    y = objective.losses(sigmas[None])[0] + objective.offsets(first)[0]
    return float(objective.value(y)) + float(objective.constants(first)[0])


def slopes_in_levels(objective: Objective, sigmas: Array) -> tuple[Array, Array]:
    """Return gradient and Hessian of the divergence by x_k = log s_k^2 of the levels between the first and the last.

    S is a sum of second differences of L(x) = log(lambda + exp(x)): with m_k the middle of x_k and x_(k+1),
    dS/dx_k = 2 L'(x_k) - L'(m_(k-1)) - L'(m_k), and L' = exp(x)/(lambda + exp(x)), L'' = L' (1 - L').
    """
    values = objective.eigenvalues
    y = objective.losses(sigmas[None])[0] + objective.offsets(sigmas[:1])[0]
    here = share_of_noise(np.square(sigmas[1:-1, None]), values)
    with np.errstate(invalid="ignore"):
        crossed = np.where(np.isinf(sigmas[:-1]), np.inf, sigmas[:-1] * sigmas[1:])
    between = share_of_noise(crossed[:, None], values)
    by_level = 2.0 * here - between[:-1] - between[1:]
    slope, bend = objective.gradient(y), objective.curvature(y)
    bends = between * (1.0 - between)
    diagonal = (2.0 * here * (1.0 - here) - 0.5 * (bends[:-1] + bends[1:])) @ slope
    beside = -0.5 * bends[1:-1] @ slope
    hessian = (by_level * bend) @ by_level.T + np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    return by_level @ slope, hessian


def share_of_noise(square: Array, eigenvalues: Array) -> Array:
    """Return square/(eigenvalue + square)."""
    return 1.0 / (1.0 + eigenvalues / np.where(square > 0.0, square, 1.0)) * (square > 0.0)


def refined_levels(
    objective: Objective,
    sigmas: Array,
    least: float,
    held: NDArray[np.bool_] | None = None,
    apart: float = 0.0,
    most: float = np.inf,
    most_steps: int = MOST_STEPS,
    slopes: Callable[[Any, Array], tuple[Array, Array]] | None = None,
) -> Array:
    """Return levels at a local minimum of the divergence, the first and the final 0 kept, others in [least, most].

    Newton steps, made to go downhill and cut so that the order is kept, until nothing moves. Levels that are `held`,
    (N-1,), stay where they are; neighbours stay `apart` in log s^2, and where they come so close, the search ends.
    `slopes` returns gradient and Hessian; `slopes_in_levels` where it is left out.
    """
    levels, value = sigmas.copy(), value_of(objective, sigmas)
    if len(levels) < 3:
        return levels
    movable = np.ones(len(levels) - 2, dtype=np.bool_) if held is None else ~held
    for _ in range(most_steps):
        gradient, hessian = (slopes or slopes_in_levels)(objective, levels)
        free = movable.copy()
        if levels[-2] <= least * (1.0 + 1e-12) and gradient[-1] >= 0.0:
            free[-1] = False  # it would go below `least`
        if levels[1] >= most and gradient[0] <= 0.0:
            free[0] = False
        if not free.any() or not np.isfinite(hessian).all():
            break
        move = np.zeros(len(gradient))
        move[free] = -solved(hessian[np.ix_(free, free)], gradient[free])
        found = shortened(objective, levels, value, move, least, apart, most)
        if found is None:
            break
        levels, value, farthest = found
        if farthest < SETTLED:
            break
    return levels


def solved(hessian: Array, gradient: Array) -> Array:
    """Return Newton's direction, uphill; of a Hessian that is not positive the curvatures are made so."""
    from scipy.linalg import LinAlgError, cho_factor, cho_solve, eigh

    try:
        return np.asarray(cho_solve(cho_factor(hessian), gradient))
    except LinAlgError:
        # NumPy's eigh starts threads for matrices as small as these: 40 ms instead of 1 where cores are busy
        curvatures, directions = eigh(hessian, driver="evr")
        curvatures = np.maximum(np.abs(curvatures), max(1e-12 * np.abs(curvatures).max(), 1e-300))
        return np.asarray(directions @ ((directions.T @ gradient) / curvatures))


def shortened(
    objective: Objective,
    levels: Array,
    value: float,
    move: Array,
    least: float,
    apart: float,
    most: float,
) -> tuple[Array, float, float] | None:
    """Return better levels on the way of a move of log s^2, their value, and how far one moved; None if none is."""
    x = 2.0 * np.log(levels[1:-1])
    gaps = x - np.append(x[1:], 2.0 * np.log(least))
    gaps[:-1] -= apart
    first = FARTHEST if np.isinf(levels[0]) else 2.0 * np.log(levels[0]) - x[0] - apart
    above = np.append(first, gaps[:-1])
    room = np.where(move > 0.0, above, gaps)
    room[-1] = above[-1] if move[-1] > 0.0 else gaps[-1] / REACH  # the last may go all the way to `least`
    moving = move != 0.0
    limits = REACH * np.maximum(room[moving], 0.0) / np.abs(move[moving])
    share = min(1.0, float(np.min(limits, initial=1.0)))
    for _ in range(30):
        moved = np.concatenate([levels[:1], np.exp(0.5 * (x + share * move)), [0.0]])
        moved[1:-1][~moving] = levels[1:-1][~moving]  # to the bit
        moved[-2] = max(moved[-2], least) if moving[-1] else moved[-2]
        moved[1] = min(moved[1], most) if moving[0] else moved[1]
        if (np.diff(moved) < 0.0).all() and (moved_value := value_of(objective, moved)) < value:
            return moved, moved_value, float(np.abs(share * move).max())
        share *= 0.5
    return None
