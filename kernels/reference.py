"""The divergence of DDIM in plain vectorised NumPy: what one writes first, and what fast kernels are compared with.

Array operations over (candidates, eigenvalues) for each step, in textbook order, on blocks of candidates that fit the
cache. Where the divergence is tiny, the ratio of variances is so near 1 that this order loses digits, as it does for
everyone who writes it so. Arguments as in `fastkl.divergence`, already validated: eigenvalues (d,), levels (M, N+1),
counts and mean (d,) or None.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["divergence", "output_variance", "trajectory"]

Array = NDArray[np.float64]

BLOCK = 1 << 15  # elements of a temporary: few enough to stay in the L2 cache


def initial_variance(eigenvalues: Array, first: Array, prior: str) -> Array:
    """Return v_0 of y for first levels of shape (M, 1), as an array that broadcasts to (M, d)."""
    if prior == "vp":
        return 1.0 + first * first
    if prior == "ve":
        return first * first
    if prior == "flow":
        return (1.0 + first) ** 2
    return eigenvalues + first * first


def step_gain(eigenvalues: Array, levels: Array, k: int) -> Array:
    """Return (lambda + s_k s_{k+1})/(lambda + s_k^2), (M, d); s_k is finite."""
    here, there = levels[:, k : k + 1], levels[:, k + 1 : k + 2]
    return (eigenvalues + here * there) / (eigenvalues + here * here)


def gain(eigenvalues: Array, levels: Array) -> Array:
    """Return what the steps multiply y by, (M, d); 0 where the first level is inf."""
    infinite = np.isinf(levels[:, 0])
    product = np.ones((levels.shape[0], eigenvalues.size))
    finite = np.where(np.isinf(levels), 1.0, levels)
    for k in range(levels.shape[1] - 1):
        product *= step_gain(eigenvalues, finite, k)
    product[infinite] = 0.0
    return product


def trajectory(eigenvalues: Array, levels: Array, prior: str = "vp") -> Array:
    """Return the variance of y at every level, (M, N+1, d): v_{k+1} = v_k gain^2, and v_1 = s_1^2 after s_0 = inf."""
    infinite = np.isinf(levels[:, 0])
    finite = np.where(np.isinf(levels), 1.0, levels)
    out = np.empty((*levels.shape, eigenvalues.size))
    out[:, 0] = initial_variance(eigenvalues, finite[:, :1], prior)
    for k in range(levels.shape[1] - 1):
        out[:, k + 1] = out[:, k] * step_gain(eigenvalues, finite, k) ** 2
        if k == 0:
            out[infinite, 0] = np.inf
            out[infinite, 1] = levels[infinite, 1:2] ** 2
    return out


def output_variance(eigenvalues: Array, levels: Array, prior: str = "vp") -> Array:
    """Return the variance of y at the last level, (M, d)."""
    infinite = np.isinf(levels[:, 0])
    if not infinite.any():
        return initial_variance(eigenvalues, levels[:, :1], prior) * gain(eigenvalues, levels) ** 2
    out = np.empty((levels.shape[0], eigenvalues.size))
    out[infinite] = levels[infinite, 1:2] ** 2 * gain(eigenvalues, levels[infinite, 1:]) ** 2
    out[~infinite] = output_variance(eigenvalues, levels[~infinite], prior)
    return out


def divergence(
    eigenvalues: Array,
    levels: Array,
    metric: str = "kl",
    prior: str = "vp",
    counts: Array | None = None,
    mean: Array | None = None,
) -> Array:
    """Return the divergence of every candidate, (M,), a block of candidates at a time."""
    rows = max(1, BLOCK // eigenvalues.size)
    blocks = [levels[m : m + rows] for m in range(0, levels.shape[0], rows)]
    terms = (divergence_terms(eigenvalues, block, metric, prior, mean) for block in blocks)
    return np.concatenate([t.sum(axis=1) if counts is None else t @ counts for t in terms])


def divergence_terms(eigenvalues: Array, levels: Array, metric: str, prior: str, mean: Array | None) -> Array:
    """Return the divergence along every direction, (M, d), with the mean's share."""
    output = output_variance(eigenvalues, levels, prior)
    target = eigenvalues + levels[:, -1:] ** 2
    error = 0.0 if mean is None else np.square(gain(eigenvalues, levels) * mean)
    if metric == "w2":
        return (np.sqrt(output) - np.sqrt(target)) ** 2 + error
    with np.errstate(divide="ignore", invalid="ignore"):  # one step from inf to 0 leaves no variance
        r = output / target
        if metric == "kl":
            terms = 0.5 * (1.0 / r - 1.0 + np.log(r)) + error / (2.0 * output)
        elif metric == "reverse_kl":
            terms = 0.5 * (r - 1.0 - np.log(r)) + error / (2.0 * target)
        else:
            terms = 0.5 * (r - 2.0 + 1.0 / r) + error / (2.0 * output) + error / (2.0 * target)
    terms[output == 0.0] = np.inf
    return terms
