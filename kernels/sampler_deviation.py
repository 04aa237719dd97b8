"""Samplers without noise where the fast kernel loses digits: the state relative to the true solution.

The true solution of the probability-flow ODE is y = m(s) = sqrt(x + s^2) for an eigenvalue x. With levels as unit
vectors (alpha, sigma) and mu = sqrt(x alpha^2 + sigma^2) = alpha m, a state is m g, D = x alpha/mu g and e = sigma/mu
g. DDIM from b to t multiplies g by

    cos = (x alpha_b alpha_t + sigma_b sigma_t)/(mu_b mu_t) = 1 - loss,
    loss = x A^2/(mu_b mu_t (mu_b mu_t + mu_b mu_t cos)),

A = alpha_t sigma_b - alpha_b sigma_t, and every further term is c (f_j - f_b), whose value on the true solution has a
closed form without cancellation too. g is carried as an unevaluated sum, so that g - 1 keeps its digits where steps
lose little, and g itself where they lose nearly all.
"""

from __future__ import annotations

import math

import numpy as np

from fastkl.kernels.compiling import entry_point, kernel
from fastkl.kernels.ddim_horner import EXACT, FLOW, TILE, VE, sum_tile
from fastkl.kernels.sampler_moments import BASE, LANES, READ, STATE, TERMS, VALUE
from fastkl.kernels.sampler_sums import add_mean, terms_of

__all__ = ["mismatch", "precise_sums", "precise_variances"]

ALPHA, SIGMA, ALPHA_B, SIGMA_B, AREA, CARRY = 0, 1, 2, 3, 4, 5  # columns of the coefficients
WEIGHT = 6  # from here on c alpha_t of each term; then alpha_j; sigma_j; A_j B_j, three columns each
HIGH, LOW, MU = 0, 1, 2  # rows of a register
SHARP = 0.5  # loss of a step from which on g is formed anew


@kernel
def leg(x, c, mu_b, mu, loss, cosine):
    """Write mu at the target, and loss and cosine of DDIM's step."""
    for j in range(x.size):
        mu[j] = math.sqrt(x[j] * c[ALPHA] * c[ALPHA] + c[SIGMA] * c[SIGMA])
    for j in range(x.size):
        product = mu_b[j] * mu[j]
        dot = x[j] * c[ALPHA_B] * c[ALPHA] + c[SIGMA_B] * c[SIGMA]
        loss[j] = x[j] * (c[AREA] * c[AREA]) / (product * (product + dot))
    for j in range(x.size):
        dot = x[j] * c[ALPHA_B] * c[ALPHA] + c[SIGMA_B] * c[SIGMA]
        cosine[j] = dot / (mu_b[j] * mu[j])


@kernel
def carry_over(factor, y, b, mu, rest):
    """Start the sum of terms with the difference of the state from the point where the base's value was taken."""
    for j in range(mu.size):
        gap = (y[HIGH, j] - b[HIGH, j]) + (y[LOW, j] - b[LOW, j])
        rest[j] = factor * gap * b[MU, j] / mu[j]


@kernel
def add_data_term(x, c, k, b, p, mu, rest):
    """Add c_k (D_k - D_b)/m."""
    weight, alpha, product = c[WEIGHT + k], c[WEIGHT + 3 + k], c[WEIGHT + 9 + k]
    alpha_b = c[ALPHA_B]
    for j in range(x.size):
        gap = (p[HIGH, j] - b[HIGH, j]) + (p[LOW, j] - b[LOW, j])
        slope = -product / (b[MU, j] * (alpha * b[MU, j] + alpha_b * p[MU, j]))
        rest[j] += weight * x[j] * (slope * b[HIGH, j] + alpha * gap) / (p[MU, j] * mu[j])


@kernel
def add_noise_term(x, c, k, b, p, mu, rest):
    """Add c_k (e_k - e_b)/m."""
    weight, sigma, product = c[WEIGHT + k], c[WEIGHT + 6 + k], c[WEIGHT + 9 + k]
    sigma_b = c[SIGMA_B]
    for j in range(x.size):
        gap = (p[HIGH, j] - b[HIGH, j]) + (p[LOW, j] - b[LOW, j])
        slope = x[j] * product / (b[MU, j] * (sigma * b[MU, j] + sigma_b * p[MU, j]))
        rest[j] += weight * (slope * b[HIGH, j] + sigma * gap) / (p[MU, j] * mu[j])


@kernel
def advance(b, loss, cosine, rest, out):
    """Write the new g as an unevaluated sum."""
    for j in range(loss.size):
        gain = b[HIGH, j]
        low = b[LOW, j]
        change = rest[j] - loss[j] * gain
        total = gain + change
        part = total - gain
        error = (gain - (total - part)) + (change - part)
        sharp = loss[j] > SHARP
        out[HIGH, j] = cosine[j] * (gain + low) + rest[j] if sharp else total
        out[LOW, j] = 0.0 if sharp else error + low * (1.0 - loss[j])


@kernel
def run_precise(x, operation, c, noise_form, bank, scratch):
    """Run one operation."""
    size = x.size
    out = bank[operation[STATE]]
    mu, loss, cosine, rest = scratch[0, :size], scratch[1, :size], scratch[2, :size], scratch[3, :size]
    if operation[BASE] < 0:
        for j in range(size):
            out[MU, j] = math.sqrt(x[j] * c[ALPHA] * c[ALPHA] + c[SIGMA] * c[SIGMA])
        out[HIGH, :size] = 1.0
        out[LOW, :size] = 0.0
    else:
        b = bank[operation[READ]]
        leg(x, c, b[MU], mu, loss, cosine)
        rest[:] = 0.0
        if c[CARRY] != 0.0:
            carry_over(c[CARRY], bank[operation[BASE]], b, mu, rest)
        for k in range(operation[TERMS] - 1):
            p = bank[operation[READ + 1 + k]]
            if noise_form:
                add_noise_term(x, c, k, b, p, mu, rest)
            else:
                add_data_term(x, c, k, b, p, mu, rest)
        advance(b, loss, cosine, rest, out)
        out[MU, :size] = mu
    if operation[VALUE] >= 0:
        bank[operation[VALUE], :, :size] = out[:, :size]


@kernel
def mismatch(x, first, prior):
    """Return v0/(x + s_0^2) - 1."""
    if math.isinf(first) or prior == EXACT:
        return 0.0
    missing = 0.0 if prior == VE else 1.0 + 2.0 * first if prior == FLOW else 1.0  # v0 - s_0^2
    return (missing - x) / (x + first * first)


@kernel
def start_ratio(x, first, prior):
    """Return v0/(x + s_0^2), where 1 plus the mismatch would cancel if v0 is much less."""
    if math.isinf(first) or prior == EXACT:
        return 1.0
    missing = 0.0 if prior == VE else 1.0 + 2.0 * first if prior == FLOW else 1.0
    return (missing + first * first) / (x + first * first)


@kernel
def deviation(x, levels, prior, operations, c, noise_form, until, bank, scratch, gain, r, z):
    """Write the gain, r and z = r - 1 of the state of operation `until`; where the true variance is 0: 0, 1, 0."""
    for i in range(until + 1):
        run_precise(x, operations[i], c[i], noise_form, bank, scratch)
    out = bank[operations[until, STATE]]
    first = levels[0]
    alpha, alpha_0, sigma_0 = c[until, ALPHA], c[0, ALPHA], c[0, SIGMA]
    for j in range(x.size):
        if out[MU, j] == 0.0:
            gain[j], r[j], z[j] = 0.0, 1.0, 0.0
            continue
        g = out[HIGH, j] + out[LOW, j]
        u = (out[HIGH, j] - 1.0) + out[LOW, j]
        start = mismatch(x[j], first, prior)
        square = u * (2.0 + u)
        r[j] = start_ratio(x[j], first, prior) * (g * g)
        z[j] = start + (square + start * square)
        if abs(z[j]) > 0.5:
            z[j] = r[j] - 1.0
        mu_0 = math.sqrt(x[j] * alpha_0 * alpha_0 + sigma_0 * sigma_0)
        gain[j] = g * (out[MU, j] / mu_0) * (alpha_0 / alpha)


@entry_point
def precise_sums(
    eigenvalues, weights, mean, levels, prior, metric, operations, coefficients, registers, noise_form,
    candidates, tiles, i0, i1, out,
):  # fmt: skip
    """Write to out[i] the divergence of candidate candidates[i] summed over tile tiles[i], for i0 <= i < i1."""
    bank, scratch = np.empty((registers, 3, LANES)), np.empty((4, LANES))
    gain, r, z, terms = np.empty(LANES), np.empty(LANES), np.empty(LANES), np.empty(TILE)
    last = operations.shape[0] - 1
    for i in range(i0, i1):
        m = candidates[i]
        begin = tiles[i] * TILE
        end = min(begin + TILE, eigenvalues.size)
        shift = 0 if weights.size == eigenvalues.size else begin
        for k in range(begin, end, LANES):
            stop = min(k + LANES, end)
            x, w, part = (
                eigenvalues[k:stop],
                weights[k - shift : stop - shift],
                terms[k - begin : stop - begin],
            )
            deviation(
                x, levels[m], prior, operations, coefficients[m], noise_form, last, bank, scratch, gain, r, z
            )
            terms_of(x, w, levels[m], metric, r, z, part)
            if mean.size > 0 and not math.isinf(levels[m, 0]):
                add_mean(x, w, mean[k:stop], levels[m], metric, gain, r, part)
        out[i] = sum_tile(terms, end - begin)


@entry_point
def precise_variances(
    eigenvalues, levels, prior, operations, coefficients, registers, noise_form, t0, t1, out
):
    """Write one candidate's output variance of y at the last level to out (d,), tiles t0 to t1."""
    bank, scratch = np.empty((registers, 3, LANES)), np.empty((4, LANES))
    gain, r, z = np.empty(LANES), np.empty(LANES), np.empty(LANES)
    until, last = operations.shape[0] - 1, levels[levels.size - 1]
    for begin in range(t0 * TILE, min(t1 * TILE, eigenvalues.size), LANES):
        x = eigenvalues[begin : begin + LANES]
        deviation(x, levels, prior, operations, coefficients, noise_form, until, bank, scratch, gain, r, z)
        for j in range(x.size):
            out[begin + j] = r[j] * (x[j] + last * last)
