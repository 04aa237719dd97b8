"""Where a local search begins: the standard schedules, and families of smooth ones that bend and shift them."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from fastkl import discretize
from fastkl._local_paths import Paths
from fastkl.schedule import NoiseSchedule
from fastkl.spectrum import Spectrum
from fastkl.theory import tangent_gamma

__all__ = ["smooth_starts", "standard_starts", "warped"]

Array = NDArray[np.float64]

RHOS = (1.0, 2.0, 4.0, 7.0, 15.0, math.inf)
DEPTHS = (
    0.0,
    0.12,
    0.25,
    0.4,
    0.6,
)  # of a law's end below the top or above the bottom, as shares of the range
GAMMAS = (1 / 64, 1 / 16, 1 / 4, 1.0, 4.0, 16.0, 64.0)
BENDS = (0.6, 0.8, 1.25, 1.6)
SHIFTS = (-1.5, -0.75, 0.75, 1.5)  # of the last level, in log sigma


def standard_starts(schedule: NoiseSchedule, spectrum: Spectrum, steps: int, paths: Paths) -> list[Array]:
    """Return the standard schedules' levels (N+1,), those of them that exist here and keep to the sampler's ends."""
    top = float(paths.levels[1 if paths.starts_at_inf and len(paths.levels) > 1 else 0])
    low = float(paths.levels[-1])
    ends = {"sigma_min": low, "sigma_max": top}
    recipes = [(discretize.uniform, {"spacing": s}) for s in ("linspace", "leading", "trailing")]
    recipes += [
        (discretize.quadratic, {}),
        (discretize.karras, {"rho": 7.0, **ends}),
        (discretize.exponential, ends),
    ]
    recipes += [(discretize.tangent, {"gamma": 1.0, "sigma_min": end}) for end in (0.0, low)]
    if spectrum.eigenvalues.min() > 0.0:
        recipes += [(discretize.tangent, {"gamma": tangent_gamma(spectrum), "sigma_min": 0.0})]
        recipes += [(discretize.geodesic, {"spectrum": spectrum})]
    found = []
    for function, parameters in recipes:
        try:
            levels = function(schedule, steps, **parameters)
            found.append(discretize.snap(schedule, levels) if schedule.is_discrete else levels)
        except ValueError:  # it does not exist for this schedule, or has more levels than float64 tells apart
            continue
    return found


def smooth_starts(spectrum: Spectrum, length: int, paths: Paths) -> Array:
    """Return log sigma (M, L) of Karras' law and the tangent law, over powers, scales and ends."""
    finite = paths.x[1:] if paths.starts_at_inf and len(paths.x) > 1 else paths.x
    top, low = float(finite[0]), float(finite[-1])
    anywhere = paths.free_start or paths.starts_at_inf
    highs = [top - depth * (top - low) for depth in (DEPTHS if anywhere else (0.0,))]
    lows = [low + depth * (top - low) for depth in ((0.0,) if paths.above_zero else DEPTHS)]
    forced = paths.starts_at_inf and not paths.free_start  # the law holds from the second level on
    law_length = length - 1 if forced else length
    fractions = np.linspace(0.0, 1.0, max(law_length, 2))[:law_length]
    rows = [
        karras(fractions, high, end, rho)
        for high, end, rho in itertools.product(highs, lows, RHOS)
        if end < high
    ]
    if forced:
        rows = [np.append(paths.x[0], row) for row in rows]
    rows += [tangent(length, high, low, gamma, paths) for high in highs for gamma in gammas(spectrum)]
    return np.clip(np.array(rows), low, paths.x[0])


def gammas(spectrum: Spectrum) -> list[float]:
    """Return scales for the tangent law: 1, and multiples of the one that suits the spectrum."""
    values = spectrum.eigenvalues > 0.0
    if not values.any():
        return [1.0]
    counts = np.ones(len(spectrum)) if spectrum.counts is None else spectrum.counts
    part = Spectrum(spectrum.eigenvalues[values], counts[values])
    gamma = tangent_gamma(part)
    return [1.0, *(gamma * factor for factor in GAMMAS)]


def karras(fractions: Array, high: float, low: float, rho: float) -> Array:
    """Return log sigma of levels that are even in sigma^(1/rho); in log sigma for an infinite rho."""
    if math.isinf(rho):
        return high + fractions * (low - high)
    bottom = math.exp((low - high) / rho)  # relative to the top, so that nothing overflows
    return high + rho * np.log((1.0 - fractions) + fractions * bottom)


def tangent(length: int, high: float, low: float, gamma: float, paths: Paths) -> Array:
    """Return log sigma of levels that are even in arctan(sigma/sqrt(gamma)), to 0 or to the lowest level."""
    root = 0.5 * math.log(gamma)
    infinite = paths.starts_at_inf and not paths.free_start
    first = 0.5 * math.pi if infinite else math.atan(math.exp(min(high - root, 300.0)))
    last = math.atan(math.exp(low - root)) if paths.above_zero else 0.0
    angles = np.linspace(first, last, length if paths.above_zero else length + 1)[:length]
    x = root + np.log(np.tan(np.clip(angles, 1e-300, 0.5 * math.pi - 1e-15)))
    if infinite:
        x[0] = paths.x[0]
    return x


def warped(x: Array, low: float) -> Array:
    """Return a path bent and shifted: each of its positions in the range to a power, its last level elsewhere."""
    reach = x[0] - x[-1]
    if not reach > 0.0:
        return x[None]
    place = (x[0] - x) / reach
    rows = [x[0] - reach * place**bend for bend in BENDS]
    rows += [np.maximum(x + shift * place, low) for shift in SHIFTS if reach - shift > 0.0]
    return np.array(rows)
