"""One table of cases for tests and benchmarks: functions, metrics, priors, spectra, schedules, shapes.

A builder is deterministic: the same arguments give the same arrays. Spectra come as keyword arguments of
`fastkl.Spectrum`, schedules as (M, N+1) levels.
"""

import math

import numpy as np

METRICS = ("kl", "reverse_kl", "jeffreys", "w2")
PRIORS = ("vp", "ve", "flow", "exact")
# Public functions of fastkl.evaluate and the options that each takes.
FUNCTIONS = {
    "divergence": ("metric", "sampler", "prior", "backend", "rtol", "num_threads", "precision"),
    "output_variance": ("sampler", "prior", "num_threads", "backend"),
    "trajectory": ("sampler", "prior", "num_threads", "backend"),
}


def log_normal(size):
    return {"eigenvalues": np.exp(np.random.default_rng(size).normal(size=size))}


def power_law(size):
    return {"eigenvalues": np.arange(1, size + 1) ** -1.5}


def wide(size):
    """The whole range of the contract, in no order."""
    return {"eigenvalues": 10.0 ** np.random.default_rng(size).uniform(-12, 12, size)}


def counted(size):
    rng = np.random.default_rng(size)
    return {"eigenvalues": np.exp(rng.normal(size=size)), "counts": np.exp(3 * rng.normal(size=size))}


def with_mean(size):
    rng = np.random.default_rng(size)
    return {"eigenvalues": np.exp(rng.normal(size=size)), "mean": rng.normal(size=size)}


SPECTRA = {function.__name__: function for function in (log_normal, power_law, wide, counted, with_mean)}


def power_uniform(candidates, steps):
    """From 80 to 0 by powers from 1 to 5."""
    powers = np.linspace(1, 5, candidates)[:, None]
    return 80 * np.linspace(1, 0, steps + 1) ** powers


def karras(candidates, steps):
    """From 80 to 0.002, then 0; rho from 1 to 9."""
    if steps == 1:
        return np.stack([np.linspace(80, 40, candidates), np.zeros(candidates)], axis=1)
    rho = np.linspace(1, 9, candidates)[:, None]
    levels = (80 ** (1 / rho) + np.linspace(0, 1, steps) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    return np.concatenate([levels, np.zeros((candidates, 1))], axis=1)


def tangent(candidates, steps):
    """From inf to 0 with sqrt(gamma) from 0.3 to 3; tan(pi/2) is inf and not 1.6e16."""
    angles = np.arange(steps - 1, -1, -1) * (math.pi / 2 / steps)
    levels = np.linspace(0.3, 3, candidates)[:, None] * np.tan(angles)
    return np.concatenate([np.full((candidates, 1), math.inf), levels], axis=1)


def above_zero(candidates, steps):
    """Geometric from the contract's largest level to levels above its least."""
    return np.stack([np.geomspace(1e5, last, steps + 1) for last in np.geomspace(1e-4, 1, candidates)])


def fine(candidates, steps):
    """So short a path that the prior `exact` leaves a divergence of 1e-8 or less: the digits are in pairs."""
    return np.stack(
        [np.geomspace(first, first * 0.99, steps + 1) for first in np.linspace(0.5, 2, candidates)]
    )


SCHEDULES = {function.__name__: function for function in (power_uniform, karras, tangent, above_zero, fine)}

# (eigenvalues d, candidates M, steps N). A tile of the kernels is 1,024 eigenvalues, a chunk at most 16 steps.
SMALL_SHAPES = {
    "one_step": (1, 1, 1),
    "few": (5, 7, 4),
    "below_a_tile": (1023, 2, 8),
    "a_tile": (1024, 3, 9),
    "above_a_tile": (1025, 3, 16),
    "ragged_tiles": (2051, 2, 17),
    "long": (3, 2, 1000),
}
LARGE_SHAPES = {
    "many_candidates": (1_000, 1_000, 10),
    "one_candidate": (1_000_000, 1, 10),
    "short": (1_000_000, 32, 4),
    "contract": (1_000_000, 32, 16),
    "thousand_steps": (10_000, 4, 1000),
    "hundred_steps": (100_000, 8, 100),
}


def variance_difference(got, expected, eigenvalues, levels):
    """The largest difference of a sampler's variances (..., N+1, d), relative to them or to the true ones.

    Where a sampler's gain all but cancels, before its last level, its coefficients' last bits decide the variance.
    """
    true = eigenvalues + np.square(levels)[..., None]
    with np.errstate(all="ignore"):
        error = np.where(got == expected, 0.0, np.abs(got - expected) / np.maximum(expected, true))
    return float(np.where(np.isnan(error), np.inf, error).max())
