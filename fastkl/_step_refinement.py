"""Levels moved to a local optimum of the divergence of a sampler of two evaluations a step, by Newton's method."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl._refinement import refined_levels
from fastkl._step_losses import StepObjective, step_losses

__all__ = ["refined_steps", "slopes_in_levels"]

Array = NDArray[np.float64]

TINY = 1e-30  # imaginary step: derivatives of analytic functions without cancellation
DIFFERENCE = 1e-5  # of x = log s^2, for second derivatives


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


def refined_steps(objective: StepObjective, sigmas: Array, least: float, **options: Any) -> Array:
    """Return levels at a local minimum of the divergence, as `fastkl._refinement.refined_levels` does for DDIM."""
    return refined_levels(objective, sigmas, least, slopes=slopes_in_levels, **options)
