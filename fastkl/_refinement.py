"""Levels moved to a local optimum of the divergence, by its gradient."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastkl._objective import Objective

__all__ = ["gradient_in_levels", "refined_levels"]

Array = NDArray[np.float64]

ROUNDS = 12
SETTLED = 1e-7  # in log s^2


def gradient_in_levels(objective: Objective, sigmas: Array) -> tuple[float, Array]:
    """Return the divergence of one schedule, and its derivatives by log s^2 of the inner levels.

    S is a sum of second differences of log(lambda + exp(x)), so x_k has a part in those of the two steps beside it.
    """
    first = sigmas[:1]
    y = objective.losses(sigmas[None])[0] + objective.offsets(first)[0]
    value = float(objective.value(y)) + float(objective.constants(first)[0])
    inner = sigmas[1:-1, None]
    share = 2.0 * share_of_noise(np.square(inner), objective.eigenvalues)
    for neighbour in (sigmas[:-2], sigmas[2:]):
        crossed = inner * np.where(np.isinf(neighbour), 1.0, neighbour)[:, None]
        share -= np.where(np.isinf(neighbour)[:, None], 1.0, share_of_noise(crossed, objective.eigenvalues))
    return value, share @ objective.gradient(y)


def share_of_noise(square: Array, eigenvalues: Array) -> Array:
    """Return square/(eigenvalue + square)."""
    return square / (eigenvalues + square)


def refined_levels(objective: Objective, sigmas: Array, least: float) -> Array:
    """Return levels at a local minimum of the divergence, the first and the final 0 kept, none below `least`.

    Each round moves every level between the middles of its gaps, so that the order is kept.
    """
    from scipy.optimize import minimize

    levels = sigmas.copy()
    if len(levels) < 3:
        return levels
    for _ in range(ROUNDS):
        x = 2.0 * np.log(levels[1:-1])
        above = np.append(x[0] + 4.0 if np.isinf(levels[0]) else 2.0 * np.log(levels[0]), x[:-1])
        below = np.append(x[1:], max(x[-1] - 4.0, 2.0 * np.log(least)))
        scale = gradient_in_levels(objective, levels)[0] or 1.0

        def scaled(point: Array, first: Array = levels[:1], scale: float = scale) -> tuple[float, Array]:
            value, slope = gradient_in_levels(objective, np.concatenate([first, np.exp(0.5 * point), [0.0]]))
            return value / scale, slope / scale

        bounds = list(zip(0.49 * below + 0.51 * x, 0.49 * above + 0.51 * x, strict=True))
        bounds[-1] = (below[-1], bounds[-1][1])
        done = minimize(
            scaled, x, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-15, "gtol": 1e-12}
        )
        trial = np.concatenate([levels[:1], np.exp(0.5 * done.x), [0.0]])
        if not (np.diff(trial) < 0.0).all():  # two levels are best as one: rounding has closed their gap
            break
        levels = trial
        if float(np.abs(done.x - x).max()) < SETTLED:
            break
    return levels
