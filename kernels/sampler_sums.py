"""Divergence, output variance and trajectory of any sampler from its moments."""

from __future__ import annotations

import math

import numpy as np

from fastkl.kernels.compiling import entry_point, kernel
from fastkl.kernels.ddim_horner import FLOW, JEFFREYS, KL, REVERSE_KL, TILE, VE, VP, W2, excess, sum_tile
from fastkl.kernels.sampler_moments import LANES, STATE, forwards, moments

__all__ = ["sampler_levels", "sampler_sums", "sampler_variances"]


@kernel
def first_variance(x, first, prior):
    """Return v0 of y, or of y/s where the first level is inf."""
    if math.isinf(first):
        return 1.0
    if prior == VP:
        return 1.0 + first * first
    if prior == VE:
        return first * first
    if prior == FLOW:
        return (1.0 + first) * (1.0 + first)
    return x + first * first


@kernel
def ratios(x, levels, prior, gain, noise, r, z):
    """Write r, output over target variance, and z = r - 1 as float64 has it."""
    first, last = levels[0], levels[levels.size - 1]
    for j in range(x.size):
        variance = gain[j] * gain[j] * first_variance(x[j], first, prior) + noise[j]
        r[j] = variance / (x[j] + last * last)
        z[j] = r[j] - 1.0


@kernel
def terms_of(x, weights, levels, metric, r, z, terms):
    """Write the weighted terms of a divergence from r and z = r - 1, to the precision that these have."""
    last = levels[levels.size - 1]
    for j in range(x.size):
        if metric == W2:
            target = x[j] + last * last
            gap = z[j] / (1.0 + math.sqrt(r[j]))
            term = target * (gap * gap) if target > 0.0 else 0.0
        elif metric == JEFFREYS:
            term = 0.5 * (z[j] * z[j]) / r[j]
        elif metric == REVERSE_KL:
            term = 0.5 * excess(z[j], r[j])
        else:
            term = 0.5 * excess(-z[j] / r[j], 1.0 / r[j])
        terms[j] = weights[j] * term


@kernel
def add_mean(x, weights, mean, levels, metric, gain, r, terms):
    """Add what the mean of the data adds: its error is the gain times it, because every prior has mean 0."""
    last = levels[levels.size - 1]
    for j in range(x.size):
        error = gain[j] * mean[j]
        term = error * error
        if metric != W2:
            target = x[j] + last * last
            share = 0.0
            if metric != REVERSE_KL:
                share += 0.5 / (r[j] * target)
            if metric != KL:
                share += 0.5 / target
            term *= share
        terms[j] += weights[j] * term


@entry_point
def sampler_sums(
    eigenvalues, weights, mean, levels, prior, metric, operations, coefficients, registers, stochastic,
    m0, m1, t0, t1, out,
):  # fmt: skip
    """Write to out[m, t] the divergence of candidate m summed over tile t, for m0 <= m < m1 and t0 <= t < t1.

    eigenvalues (d,); weights (d,), or ones (TILE,) that serve every tile; mean (d,) or empty; levels (M, N+1);
    operations and coefficients of the program, the latter (M, operations, 13); out (M, tiles).
    """
    bank, scratch = np.empty((registers, LANES)), np.empty((2, LANES))
    gain, noise, r, z = np.empty(LANES), np.empty(LANES), np.empty(LANES), np.empty(LANES)
    terms = np.empty(TILE)
    for tile in range(t0, t1):
        begin, end = tile * TILE, min((tile + 1) * TILE, eigenvalues.size)
        shift = 0 if weights.size == eigenvalues.size else begin
        for m in range(m0, m1):
            for i in range(begin, end, LANES):
                stop = min(i + LANES, end)
                x, w = eigenvalues[i:stop], weights[i - shift : stop - shift]
                part = terms[i - begin : stop - begin]
                moments(
                    x,
                    operations,
                    coefficients[m],
                    stochastic,
                    operations.shape[0] - 1,
                    bank,
                    scratch,
                    gain,
                    noise,
                )
                ratios(x, levels[m], prior, gain, noise, r, z)
                terms_of(x, w, levels[m], metric, r, z, part)
                if mean.size > 0 and not math.isinf(levels[m, 0]):
                    add_mean(x, w, mean[i:stop], levels[m], metric, gain, r, part)
            out[m, tile] = sum_tile(terms, end - begin)


@entry_point
def sampler_variances(
    eigenvalues, levels, prior, operations, coefficients, registers, stochastic, t0, t1, out
):
    """Write one candidate's output variance of y at the last level to out (d,), tiles t0 to t1."""
    bank, scratch = np.empty((registers, LANES)), np.empty((2, LANES))
    gain, noise = np.empty(LANES), np.empty(LANES)
    last = operations.shape[0] - 1
    for begin in range(t0 * TILE, min(t1 * TILE, eigenvalues.size), LANES):
        x = eigenvalues[begin : begin + LANES]
        moments(x, operations, coefficients, stochastic, last, bank, scratch, gain, noise)
        for j in range(x.size):
            out[begin + j] = gain[j] * gain[j] * first_variance(x[j], levels[0], prior) + noise[j]


@entry_point
def sampler_levels(
    eigenvalues, levels, prior, operations, coefficients, grid, registers, stochastic, t0, t1, out
):
    """Write the variance of y at every level of one candidate to out (N+1, d), tiles t0 to t1.

    grid (N+1,): the operations that make the levels' states. With noise, one pass backwards for each level.
    """
    bank, scratch = np.empty((registers, LANES)), np.empty((2, LANES))
    gain, noise = np.empty(LANES), np.zeros(LANES)
    first = levels[0]
    for begin in range(t0 * TILE, min(t1 * TILE, eigenvalues.size), LANES):
        x = eigenvalues[begin : begin + LANES]
        done = 0
        for k in range(grid.size):
            if stochastic:
                moments(x, operations, coefficients, stochastic, grid[k], bank, scratch, gain, noise)
            else:
                for i in range(done, grid[k] + 1):
                    forwards(x, operations, coefficients, i, bank)
                done = grid[k] + 1
                gain[: x.size] = bank[operations[grid[k], STATE], : x.size]
            for j in range(x.size):
                out[k, begin + j] = gain[j] * gain[j] * first_variance(x[j], first, prior) + noise[j]
        if math.isinf(first):
            out[0, begin : begin + x.size] = first
