"""Levels moved to a local optimum of the divergence, by Newton's method."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastkl._objective import Objective

__all__ = ["refined_levels", "slopes_in_levels"]

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


def refined_levels(objective: Objective, sigmas: Array, least: float) -> Array:
    """Return levels at a local minimum of the divergence, the first and the final 0 kept, none below `least`.

    Newton steps, made to go downhill and cut so that the order is kept, until nothing moves.
    """
    levels, value = sigmas.copy(), value_of(objective, sigmas)
    if len(levels) < 3:
        return levels
    for _ in range(MOST_STEPS):
        gradient, hessian = slopes_in_levels(objective, levels)
        held = (
            levels[-2] <= least * (1.0 + 1e-12) and gradient[-1] >= 0.0
        )  # the last level would go below `least`
        free = len(gradient) - int(held)
        if free == 0:
            break
        curvatures, directions = np.linalg.eigh(hessian[:free, :free])
        curvatures = np.maximum(np.abs(curvatures), max(1e-12 * np.abs(curvatures).max(), 1e-300))
        move = np.zeros(len(gradient))
        move[:free] = -directions @ ((directions.T @ gradient[:free]) / curvatures)
        x = 2.0 * np.log(levels[1:-1])
        gaps = x - np.append(x[1:], 2.0 * np.log(least))
        above = np.append(FARTHEST if np.isinf(levels[0]) else 2.0 * np.log(levels[0]) - x[0], gaps[:-1])
        room = np.where(move > 0.0, above, gaps)
        room[-1] = above[-1] if move[-1] > 0.0 else gaps[-1] / REACH  # the last may go all the way to `least`
        moving = move != 0.0
        share = min(1.0, float(np.min(REACH * room[moving] / np.abs(move[moving]), initial=1.0)))
        trial, trial_value = levels, value
        for _ in range(30):
            moved = np.concatenate([levels[:1], np.exp(0.5 * (x + share * move)), [0.0]])
            moved[-2] = max(moved[-2], least)
            if (np.diff(moved) < 0.0).all() and (moved_value := value_of(objective, moved)) < value:
                trial, trial_value = moved, moved_value
                break
            share *= 0.5
        if trial is levels:
            break
        settled = float(np.abs(share * move).max()) < SETTLED
        levels, value = trial, trial_value
        if settled:
            break
    return levels
