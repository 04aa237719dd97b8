"""How far rounding can move the fast kernel's sums: what decides which tiles are evaluated again."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fastkl.kernels.ddim_horner import TILE

__all__ = ["BLOCK", "RELATIVE_ERROR", "error_bounds", "tile_totals"]

Array = NDArray[np.float64]

UNIT_ROUNDOFF = 2.0**-53
RELATIVE_ERROR = 5e-11  # what rounding in the fast kernel may contribute; the contract is 1e-10
BLOCK = TILE << 10  # eigenvalues whose weights are formed at a time


def error_bounds(sums: Array, scale: Array, roundings: float, metric: str) -> Array:
    """Bound the rounding error of the fast kernel's tile sums.

    The logarithm x of a ratio carries an error of at most `delta`, in units of 2**-53 the number of `roundings`: one
    for each of the N multiply-adds of both polynomials (three for a factor: product, sum, product) and four for each
    chunk (two coefficients, a quotient, a product), doubled by the square, and a few more. With f the divergence as a
    function of x, |f'(x)| <= sqrt(2 f) + f for the entropies, so the error of a tile is at most
    delta (sqrt(2 C F) + F) + delta^2 C by Cauchy-Schwarz, F the tile's sum and C its weights. For w2 the relative error
    of both standard deviations is delta, and C is the sum of weight times target variance.
    """
    delta = UNIT_ROUNDOFF * roundings
    first = 2.0 if metric == "w2" else math.sqrt(2.0)
    positive = np.maximum(sums, 0.0)
    return delta * (first * np.sqrt(scale * positive) + 2.0 * positive) + delta * delta * scale


def tile_totals(values: Array | None, weights: Array | None, size: int) -> Array:
    """Return the sum of values * weights in each tile; None stands for ones."""
    if values is None:
        return np.diff(np.append(np.arange(0, size, TILE), size)).astype(np.float64)
    totals = []
    for begin in range(0, size, BLOCK):
        part = values[begin : begin + BLOCK]
        if weights is not None:
            part = part * weights[begin : begin + BLOCK]
        totals.append(np.add.reduceat(part, np.arange(0, part.size, TILE)))
    return np.concatenate(totals)
