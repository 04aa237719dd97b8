"""The least value of a convex divergence over mixtures of paths."""

from __future__ import annotations

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

from fastkl._objective import Objective

__all__ = ["corrected"]

Array = NDArray[np.float64]

SUM_WEIGHT = 1e4  # of the row that makes convex weights add up to 1


def corrected(objective: Objective, vertices: Array, constants: Array, shares: Array) -> Array:
    """Return the convex weights of the vertices that minimise F of their mixture: Newton steps by least squares."""
    value = float(objective.value(shares @ vertices) + shares @ constants)
    for _ in range(20):
        y = shares @ vertices
        root = np.sqrt(np.maximum(objective.curvature(y), 1e-300))
        target = root * y - objective.gradient(y) / root
        rows, aims = vertices * root, target
        scale = float(np.abs(rows).max())
        if constants.any():  # the constants are linear in the shares: a coordinate of next to no curvature
            small = 1e-3 * scale / float(constants.max())
            rows = np.append(rows, small * constants[:, None], axis=1)
            aims = np.append(aims, small * float(shares @ constants) - 1.0 / small)
        rows = np.append(rows, np.full((len(vertices), 1), SUM_WEIGHT * scale), axis=1)
        found, _ = scipy.optimize.nnls(rows.T, np.append(aims, SUM_WEIGHT * scale))
        if not found.sum() > 0.0:
            break
        direction, step = found / found.sum() - shares, 1.0
        for _ in range(30):
            trial = shares + step * direction
            trial_value = float(objective.value(trial @ vertices) + trial @ constants)
            if trial_value < value:
                break
            step *= 0.5
        else:
            break
        fallen, value, shares = value - trial_value, trial_value, trial
        if fallen <= 1e-13 * value:
            break
    return shares
