"""Arithmetic of noise schedules: closed-form maps of the continuous ones, tables of the discrete ones.

Nothing here checks its arguments; `fastkl.schedule` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAPS", "cosine_betas", "sigmas_from_betas", "table_sigmas", "table_times"]

Floats = NDArray[np.float64]


def _edm_sigma(t: Floats, sigma_min: float, sigma_max: float, rho: float) -> Floats:
    # (a + t (b - a))**rho with a = sigma_min**(1/rho), written so that a large rho loses no digits
    sigmas = sigma_min * np.exp(rho * np.log1p(t * math.expm1(math.log(sigma_max / sigma_min) / rho)))
    sigmas = np.clip(sigmas, sigma_min, sigma_max)  # rounding only: the map is monotone
    return np.asarray(np.where(t == 1.0, sigma_max, sigmas))


def _edm_time(sigmas: Floats, sigma_min: float, sigma_max: float, rho: float) -> Floats:
    return np.expm1(np.log(sigmas / sigma_min) / rho) / math.expm1(math.log(sigma_max / sigma_min) / rho)


def _flow_sigma(t: Floats, shift: float) -> Floats:
    # t'/(1 - t') with t' = shift t/(1 + (shift - 1) t)
    return shift * t / (1.0 - t)


def _flow_time(sigmas: Floats, shift: float) -> Floats:
    return np.reciprocal(1.0 + shift / sigmas)


def _tangent_sigma(t: Floats, gamma: float) -> Floats:
    # tan(pi/2 - x) = 1/tan(x) keeps the digits of 1 - t when t is near 1
    angles = np.pi / 2 * np.minimum(t, 1.0 - t)
    return math.sqrt(gamma) * np.where(t <= 0.5, np.tan(angles), 1.0 / np.tan(angles))


def _tangent_time(sigmas: Floats, gamma: float) -> Floats:
    return np.arctan(sigmas / math.sqrt(gamma)) / (np.pi / 2)


MAPS: dict[str, tuple[Callable[..., Floats], Callable[..., Floats]]] = {
    "edm": (_edm_sigma, _edm_time),
    "flow": (_flow_sigma, _flow_time),
    "tangent": (_tangent_sigma, _tangent_time),
}


def cosine_betas(steps: int) -> Floats:
    """Betas of abar proportional to cos((t/T + 0.008)/1.008 pi/2)**2, none above 0.999."""
    i = np.arange(steps, dtype=np.float64)
    unit = np.pi / 2 / 1.008
    # 1 - cos(b)**2/cos(a)**2 = sin(b - a) sin(b + a)/cos(a)**2; angles from pi/2 and pi lose no digits near the end
    cos_a = np.sin(unit * (steps - i) / steps)
    betas = math.sin(unit / steps) * np.sin(unit * (2 * (steps - i) - 1) / steps) / cos_a**2
    return np.asarray(np.minimum(betas, 0.999))


def sigmas_from_betas(betas: Floats) -> tuple[Floats, Floats]:
    """Noise levels and abar = prod(1 - beta); 1 - abar is never formed by subtraction."""
    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        logs = np.cumsum(np.log1p(-betas))
        return np.exp(-logs / 2) * np.sqrt(-np.expm1(logs)), np.exp(logs)


def table_sigmas(table: Floats, t: Floats) -> Floats:
    """Levels at fractional timesteps: log sigma is linear between grid points; on the grid, exact."""
    low = np.minimum(t.astype(np.int64), max(table.size - 2, 0))
    high = np.minimum(low + 1, table.size - 1)
    weights = t - low
    with np.errstate(invalid="ignore"):
        between = table[low] * np.exp(weights * np.log(table[high] / table[low]))
    between = np.minimum(between, table[high])  # rounding only
    return np.where(weights == 0.0, table[low], np.where(weights == 1.0, table[high], between))


def table_times(table: Floats, sigmas: Floats) -> Floats:
    """Inverse of `table_sigmas`, exact on the grid; an infinite last level is infinitely far away."""
    low = np.clip(np.searchsorted(table, sigmas, side="right") - 1, 0, max(table.size - 2, 0))
    high = np.minimum(low + 1, table.size - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        weights = np.log(sigmas / table[low]) / np.log(table[high] / table[low])
    weights = np.where(sigmas == table[low], 0.0, np.where(sigmas == table[high], 1.0, weights))
    return low + weights
