"""Functions of levels that the samplers' coefficients are made of, right to a few roundings for steps of any length."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["gamma_integral", "log_ratio", "one_minus_power", "phi", "vandermonde_weights"]

Array = NDArray[np.float64]
SERIES = 24  # terms of the power series; |z| <= 1, so that the last is below 1e-23


def log_ratio(high: Array, low: Array) -> Array:
    """Return log(high/low), where high > low >= 0; inf for low = 0 or high = inf."""
    near = high < 2.0 * low
    return np.where(near, np.log1p((high - low) / low), np.log(high) - np.log(low))


def one_minus_power(high: Array, low: Array, power: float) -> Array:
    """Return 1 - (low/high)**power."""
    if power == 1.0:
        return np.where(np.isinf(high), 1.0, (high - low) / high)
    return -np.expm1(-power * log_ratio(high, low))


def phi(k: int, z: Array) -> Array:
    """Return sum_j z^j/(j + k)!: phi_0 = exp, phi_{k+1}(z) = (phi_k(z) - 1/k!)/z."""
    small = np.abs(z) <= 1.0
    inside = np.where(small, z, 0.0)
    series = np.zeros_like(inside)
    for j in reversed(range(SERIES)):
        series = 1.0 + series * inside / (j + k + 1)
    outside = np.where(small, 1.0, z)
    value = np.exp(outside)
    for j in range(k):
        value = (value - 1.0 / math.factorial(j)) / outside
    return np.where(small, series / math.factorial(k), value)


def gamma_integral(k: int, h: Array) -> Array:
    """Return the integral of u^k exp(-u) from 0 to h, which may be inf."""
    small = h <= 1.0
    inside, outside = np.where(small, h, 0.0), np.where(small, 1.0, np.minimum(h, 700.0))
    below = np.exp(-inside) * inside ** (k + 1) * phi(k + 1, inside)
    head = sum(outside**j / math.factorial(j) for j in range(k + 1))
    return math.factorial(k) * np.where(small, below, 1.0 - np.exp(-outside) * head)


def vandermonde_weights(nodes: list[Array], moments: list[Array]) -> list[Array]:
    """Solve sum_j rho_j nodes_j^(i-1) = moments_i, by the coefficients of Lagrange's polynomials."""
    weights = []
    for j, node in enumerate(nodes):
        basis = [np.ones_like(node)]  # lowest power first
        for i, other in enumerate(nodes):
            if i != j:
                scale = 1.0 / (node - other)
                lower = [-other * scale * c for c in basis] + [np.zeros_like(node)]
                upper = [np.zeros_like(node)] + [scale * c for c in basis]
                basis = [a + b for a, b in zip(lower, upper, strict=True)]
        weights.append(np.asarray(sum(c * m for c, m in zip(basis, moments, strict=True))))
    return weights
