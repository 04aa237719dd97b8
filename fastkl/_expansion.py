"""Numerics of `fastkl.theory.expansion`: the loss of variance as a series in 1/N, the divergence from it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastkl.spectrum import Spectrum

if TYPE_CHECKING:
    from fastkl.schedule import NoiseSchedule

__all__ = ["compose", "excess", "odd_coefficients", "prior_terms"]

_BASES = 12.0 * 1.5 ** np.arange(15)  # about the smallest N of each attempt of odd_coefficients

_Array = NDArray[np.float64]


def excess(x: _Array) -> _Array:
    """exp(x) - 1 - x, by its series where the difference would cancel."""
    series = np.ones_like(x)
    for k in range(14, 2, -1):
        series = 1 + series * x / k
    value: _Array = np.where(np.abs(x) < 0.3, series * x * x / 2, np.expm1(x) - x)
    return value


def _path_losses(eigenvalues: _Array, sigmas: _Array) -> _Array:
    """S of each eigenvalue along the levels, in blocks of about a million squared sines."""
    before, after = sigmas[:-1], sigmas[1:]
    losses = np.empty(len(eigenvalues))
    rows = max(1, (1 << 20) // len(before))
    for start in range(0, len(eigenvalues), rows):
        values = eigenvalues[start : start + rows, None]
        # inf / inf at an infinite first level is replaced; a square that rounds to 1 is an infinite loss
        with np.errstate(invalid="ignore", divide="ignore"):
            square = values * (before - after) ** 2 / ((values + before**2) * (values + after**2))
            if before[0] == math.inf:
                square[:, 0] = values[:, 0] / (values[:, 0] + after[0] ** 2)
            losses[start : start + rows] = -np.log1p(-square).sum(axis=1)
    return losses


def odd_coefficients(eigenvalues: _Array, schedule: NoiseSchedule) -> _Array:
    """Coefficients of 1/N, 1/N^3, 1/N^5 and 1/N^7 in S, shape (4, d).

    A polynomial in 1/N^2 through N S(N) at eight N, whose base/N are near the Chebyshev nodes of (0, 1]: that
    keeps the noise of the higher coefficients low. The base grows until two polynomials agree above it.
    """
    nodes = np.cos(np.pi * (2 * np.arange(8) + 1) / 32)
    powers = 2 * np.arange(4)[:, None]
    result = np.empty((4, len(eigenvalues)))
    active = np.arange(len(eigenvalues))
    previous = np.full(result.shape, np.nan)
    for base in _BASES:
        sizes = np.rint(base / nodes)
        paths = [schedule.sigmas(np.arange(n, -1, -1) / n) for n in sizes]
        losses = [n * _path_losses(eigenvalues[active], path) for n, path in zip(sizes, paths, strict=True)]
        with np.errstate(invalid="ignore"):  # a far too coarse grid can make S infinite: not converged
            scaled = np.linalg.solve((base / sizes[:, None]) ** (2 * np.arange(8)), np.array(losses))[:4]
            current = scaled * base**powers
            done = np.all(np.abs(current - previous) <= 1e-10 * scaled[0] * base**powers, axis=0)
        result[:, active[done]] = current[:, done]
        active, previous = active[~done], current[:, ~done]
        if not len(active):
            return result
    raise RuntimeError(
        f"expansion: not converged for the eigenvalue {eigenvalues[active[0]].item()!r} with "
        f"{int(sizes[-1])} steps; arctan(sigma(t) / sqrt(eigenvalue)) is too steep in t for a series in 1/N"
    )


def prior_terms(spectrum: Spectrum, first: float, prior: str) -> tuple[_Array, _Array]:
    """P = log(prior variance / true variance) at the first level and the cost of the mean, (d,) each."""
    values = spectrum.eigenvalues
    zeros = np.zeros(len(values))
    if first == math.inf:
        return zeros, zeros
    mean = zeros if spectrum.mean is None else spectrum.mean
    true = values + first * first
    if prior == "exact":
        return zeros, mean**2 / (2 * true)
    constant = {"vp": 1.0, "ve": 0.0, "flow": 1.0 + 2.0 * first}[prior]  # the prior variance less first^2
    initial = constant + first * first
    surplus = (constant - values) / true
    offset = np.where(surplus > -0.5, np.log1p(np.maximum(surplus, -0.5)), np.log(initial / true))
    return offset, mean**2 / (2 * initial)


def compose(odd: _Array, offset: _Array, order: int) -> _Array:
    """Power series of (exp(S - P) - 1 - (S - P)) / 2 from the odd coefficients of S, shape (order + 1, d).

    F = exp(S) - 1 - S satisfies F' = S' (F + S), so that no coefficient is a difference.
    """
    loss = np.zeros((order + 1, odd.shape[1]))
    loss[1::2] = odd[: (order + 1) // 2]
    higher = np.zeros_like(loss)
    for n in range(2, order + 1):
        for k in range(1, n):
            higher[n] += (k / n) * loss[k] * (higher[n - k] + loss[n - k])
    series = (np.exp(-offset) * higher + np.expm1(-offset) * loss) / 2
    series[0] = excess(-offset) / 2
    return series
