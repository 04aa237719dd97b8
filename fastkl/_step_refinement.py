"""Levels moved to a local optimum of the divergence of a sampler of two evaluations a step, by Newton's method."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastkl._step_losses import StepObjective, step_losses

__all__ = ["refined_steps", "slopes_in_levels"]

Array = NDArray[np.float64]

TINY = 1e-30  # imaginary step: derivatives of analytic functions without cancellation
DIFFERENCE = 1e-5  # of x = log s^2, for second derivatives
MOST_STEPS = 40
SETTLED = 1e-9  # in x
REACH = 0.45  # share of the gap to a neighbour that a level may move at once
FARTHEST = 8.0  # gap to an infinite neighbour
HALVINGS = 30


def value_of(objective: StepObjective, sigmas: Array) -> float:
    """Return the divergence of one schedule."""
    y = objective.losses(sigmas[None])[0] + objective.offsets(sigmas[:1])[0]
    return float(objective.value(y)) + float(objective.constants(sigmas[:1])[0])


def by_level(objective: StepObjective, sigmas: Array) -> Array:
    """Return the derivatives of S by x = log s^2 of the levels between the first and the final 0, (N-1, entries)."""
    values, moved = objective.eigenvalues, sigmas[1:-1, None] * (1.0 + 0.5j * TINY)
    before = step_losses(objective.sampler, values, sigmas[:-2, None], moved)
    after = step_losses(objective.sampler, values, moved[:-1], sigmas[2:-1, None])
    slopes = before.imag / TINY
    slopes[:-1] += after.imag / TINY
    slopes[-1] += 1.0 / (1.0 + values / np.square(sigmas[-2]))
    return np.asarray(slopes)


def slopes_in_levels(objective: StepObjective, sigmas: Array) -> tuple[Array, Array]:
    """Return gradient and Hessian of the divergence by x_k = log s_k^2 of the levels between the first and the last.

    What S itself bends by couples neighbours only: levels three places apart are moved together.
    """
    y = objective.losses(sigmas[None])[0] + objective.offsets(sigmas[:1])[0]
    slope, bend = objective.gradient(y), objective.curvature(y)
    rows = by_level(objective, sigmas)
    hessian = (rows * bend) @ rows.T
    place = np.arange(len(rows))
    for first in range(min(3, len(rows))):
        change = np.zeros(len(sigmas))
        change[1 + first : -1 : 3] = 0.5 * DIFFERENCE
        ends = (by_level(objective, sigmas * np.exp(sign * change)) @ slope for sign in (1.0, -1.0))
        column = (next(ends) - next(ends)) / (2.0 * DIFFERENCE)
        for k in range(first, len(rows), 3):
            near = np.abs(place - k) <= 1
            hessian[near, k] += column[near]
    return rows @ slope, 0.5 * (hessian + hessian.T)


def refined_steps(objective: StepObjective, sigmas: Array, least: float, most: int = MOST_STEPS) -> Array:
    """Return levels at a local minimum of the divergence, the first and the final 0 kept, none below `least`.

    Newton steps, made to go downhill and cut so that the order is kept, until nothing moves, or `most` of them.
    """
    levels, value = sigmas.copy(), value_of(objective, sigmas)
    if len(levels) < 3:
        return levels
    for _ in range(most):
        move = newton_step(objective, levels, least)
        x = 2.0 * np.log(levels[1:-1])
        share = REACH * float(np.min(room(levels, least, move) / np.maximum(np.abs(move), 1e-300)))
        share = min(1.0, share)
        for _ in range(HALVINGS):
            moved = np.concatenate([levels[:1], np.exp(0.5 * (x + share * move)), [0.0]])
            moved[-2] = max(moved[-2], least)
            if (np.diff(moved) < 0.0).all() and (moved_value := value_of(objective, moved)) < value:
                break
            share *= 0.5
        else:
            return levels
        levels, value = moved, moved_value
        if float(np.abs(share * move).max()) < SETTLED:
            return levels
    return levels


def newton_step(objective: StepObjective, levels: Array, least: float) -> Array:
    """Return the change of x that Newton's method proposes; the last level is held where it would go below `least`."""
    gradient, hessian = slopes_in_levels(objective, levels)
    held = levels[-2] <= least * (1.0 + 1e-12) and gradient[-1] >= 0.0
    free = len(gradient) - int(held)
    move = np.zeros(len(gradient))
    if free:
        curvatures, directions = np.linalg.eigh(hessian[:free, :free])
        curvatures = np.maximum(np.abs(curvatures), max(1e-12 * np.abs(curvatures).max(), 1e-300))
        move[:free] = -directions @ ((directions.T @ gradient[:free]) / curvatures)
    return move


def room(levels: Array, least: float, move: Array) -> Array:
    """Return how far in x each level may go the way it is to move: to its neighbour, the last one down to `least`."""
    x = 2.0 * np.log(levels[1:-1])
    gaps = x - np.append(x[1:], 2.0 * np.log(least))
    gaps[-1] /= REACH  # `least` itself may be reached
    first = FARTHEST if np.isinf(levels[0]) else 2.0 * np.log(levels[0]) - x[0]
    above = np.append(first, -np.diff(x))
    return np.where(move > 0.0, above, np.maximum(gaps, 0.0))
