"""Numerics of `fastkl.theory.geodesic_levels`: quadrature in log sigma, fixed point, inversion."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["log_levels", "panel_edges"]

_TAIL = 25.0  # e-folds beyond the spectrum: what is left out there is exp(-25) of the path
_PANEL = 0.025  # width in log sigma of an integration panel

_Array = NDArray[np.float64]


def panel_edges(eigenvalues: _Array, sigma_max: float, sigma_min: float) -> _Array:
    """Edges of the panels in log sigma; _TAIL e-folds beyond the spectrum the path has no length left."""
    roots = np.log(eigenvalues) / 2
    high = math.log(sigma_max)
    low = math.log(sigma_min) if sigma_min > 0 else -math.inf
    start = max(low, min(roots.min(), high) - _TAIL)
    end = min(high, max(roots.max(), low) + _TAIL)
    return np.linspace(start, end, 1 + max(64, math.ceil((end - start) / _PANEL)))


def log_levels(eigenvalues: _Array, counts: _Array, edges: _Array, fractions: _Array) -> _Array:
    """Log sigma where the geodesic path from the lowest edge has covered each fraction of its length."""
    from scipy.interpolate import CubicHermiteSpline

    if edges[0] == edges[-1]:  # two levels that differ by rounding have nothing between them
        return np.full(len(fractions), edges[0])
    nodes, node_weights = np.polynomial.legendre.leggauss(3)
    half = np.diff(edges) / 2
    points = (edges[:-1] + half)[:, None] + half[:, None] * nodes
    weights = half[:, None] * node_weights
    roots = np.log(eigenvalues)[:, None] / 2
    rates = 0.25 / np.cosh(points.ravel() - roots) ** 2  # (d theta_i / d log sigma)^2
    pull = counts * _geodesic_losses(rates, counts, weights.ravel())
    lengths = (np.sqrt(pull @ rates).reshape(weights.shape) * weights).sum(axis=1)
    covered = np.concatenate(([0.0], np.cumsum(lengths)))
    density = np.sqrt(pull @ (0.25 / np.cosh(edges - roots) ** 2))
    distinct = np.diff(covered, prepend=-1.0) > 0  # a wide gap in the spectrum adds less than rounding keeps
    covered, total, knots = covered[distinct], covered[-1], edges[distinct]
    found = CubicHermiteSpline(covered, knots, 1 / density[distinct])(fractions * total)
    panel = np.clip(np.searchsorted(covered, fractions * total) - 1, 0, len(knots) - 2)
    inside: _Array = np.clip(
        found, knots[panel], knots[panel + 1]
    )  # a cubic across such a gap could leave it
    return inside


def _geodesic_losses(rates: _Array, counts: _Array, weights: _Array) -> _Array:
    """The A_i at the fixed point of A_i = int rates_i / density, density ~ sqrt(sum_i c_i A_i rates_i).

    1/density to A is a positive linear map, which expands no distance in Hilbert's projective metric, and the
    square root halves distances there: the iteration contracts by at least one half, from anywhere.
    """
    losses = np.ones(len(counts))
    for _ in range(200):
        density = np.sqrt((counts * losses) @ rates)
        density /= density @ weights
        previous, losses = losses, rates @ (weights / density)
        if np.abs(losses / previous - 1).max() <= 1e-12:
            return losses
    raise RuntimeError("geodesic_levels: the fixed point did not converge in 200 iterations")
