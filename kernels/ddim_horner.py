"""Divergence and output variance of DDIM by Horner's rule: two fused multiply-adds per (eigenvalue, step).

For one eigenvalue x and levels s_0 > ... > s_N the output variance of y = x_t/alpha is

    v = (Q(x) / P(x))^2,   Q = sqrt(v0) prod_{k<N} (x + s_k s_{k+1}),   P = prod_{k<N} (x + s_k^2),

polynomials in x with coefficients >= 0, so Horner's rule adds no cancellation. At s_0 = inf the first factor of Q is
s_1 and that of P is 1, whatever the prior. The prior `exact`, v0 = x + s_0^2, is no polynomial's square: Q leaves
sqrt(v0) out and the loops multiply by it. Long schedules are cut into chunks of `degree` steps so that nothing
overflows.

Work is cut into tiles of TILE eigenvalues that stay in the L1 cache while the candidates of a group pass over
them. Every tile writes its own partial sum, so the bits of the result do not depend on who computed what.
"""

from __future__ import annotations

import math

import numpy as np

from fastkl.kernels.compiling import as_bits, entry_point, fma, from_bits, kernel
from fastkl.kernels.factors import quotient_of_factors
from fastkl.kernels.pairs import pair_add, pair_multiply, pair_product
from fastkl.kernels.quotients import MAX_DEGREE, quotient_to_degree_8, quotient_to_degree_16

__all__ = ["MAX_DEGREE", "METRICS", "PRIORS", "TILE", "level_variances", "tile_sums", "variances"]

TILE = 1024
LANES = 128  # a tile is 8 rows of LANES: one partial sum or product a lane
# A metric is an integer for the kernels; the last three are the terms that a non-zero mean adds.
METRICS = {"kl": 0, "reverse_kl": 1, "jeffreys": 2, "w2": 3, "mean_kl": 4, "mean_reverse_kl": 5, "mean_w2": 6}
KL, REVERSE_KL, JEFFREYS, W2, MEAN_KL, MEAN_REVERSE_KL, MEAN_W2 = METRICS.values()
PRIORS = {"vp": 0, "ve": 1, "flow": 2, "exact": 3}
VP, VE, FLOW, EXACT = PRIORS.values()
# Below this mean of q - 1 - log q, logarithms of products lose digits that the elementwise form keeps.
SMALL_EXCESS = 1e-4

LOG_2 = math.log(2.0)
SQRT_HALF_BITS = 0x3FE6A09E667F3BCD
MANTISSA = (1 << 52) - 1
ONE_BITS = 0x3FF << 52


@kernel
def multiply_by_factor(coefficients, used, slope, here, there):
    """Multiply a polynomial of degree `used` at most by (slope*x + here*there), slope 0 or 1.

    The coefficients are pairs, (2, degree + 1), highest power first, and those of powers above `used` are 0.
    """
    high, low = pair_product(here, there)
    last = coefficients.shape[1] - 1
    for k in range(last - used - 1, last):
        a, b = pair_multiply(coefficients[0, k], coefficients[1, k], high, low)
        coefficients[0, k], coefficients[1, k] = pair_add(
            slope * coefficients[0, k + 1], slope * coefficients[1, k + 1], a, b
        )
    coefficients[0, last], coefficients[1, last] = pair_multiply(
        coefficients[0, last], coefficients[1, last], high, low
    )


@kernel
def start_deviation(first, prior):
    """Return the factor sqrt(v0) of Q."""
    if math.isinf(first) or prior == EXACT:
        return 1.0
    if prior == VP:
        return math.hypot(1.0, first)
    return first if prior == VE else 1.0 + first


@kernel
def expand(levels, prior, degree, q, p):
    """Write the coefficients of Q and P, chunk by chunk, into q and p of shape (chunks, degree + 1).

    They are formed in pairs and rounded once. In float64 the rounding errors of s_k s_{k+1} and s_k^2 would recur in
    every octave of a geometric schedule and add up.
    """
    steps = levels.size - 1
    upper, lower = np.empty((2, degree + 1)), np.empty((2, degree + 1))
    for chunk in range(q.shape[0]):
        upper[:] = 0.0
        lower[:] = 0.0
        upper[0, degree] = start_deviation(levels[0], prior) if chunk == 0 else 1.0
        lower[0, degree] = 1.0
        for used in range(min(steps - chunk * degree, degree)):
            here, there = levels[chunk * degree + used], levels[chunk * degree + used + 1]
            if math.isinf(here):
                multiply_by_factor(upper, used, 0.0, 1.0, there)
            else:
                multiply_by_factor(upper, used, 1.0, here, there)
                multiply_by_factor(lower, used, 1.0, here, here)
        q[chunk] = upper[0]
        p[chunk] = lower[0]


@kernel
def quotient(x, levels, prior, q, p, inverse, a, b, product):
    """Write Q/P, or P/Q if inverse, to the first x.size elements of product.

    Where q and p have no chunks the factors of the levels are multiplied one by one.
    """
    if q.shape[0] == 0:
        quotient_of_factors(x, levels, start_deviation(levels[0], prior), inverse, a, b, product)
    elif inverse:
        quotient_of_polynomials(x, p, q, a, b, product)
    else:
        quotient_of_polynomials(x, q, p, a, b, product)


@kernel
def quotient_of_polynomials(x, top, bottom, a, b, product):
    """Write the product over chunks of top(x)/bottom(x) to the first x.size elements of product."""
    for chunk in range(top.shape[0]):
        out = product if chunk == 0 else a
        if top.shape[1] <= 9:
            quotient_to_degree_8(x, top, bottom, chunk, out, b)
        else:
            quotient_to_degree_16(x, top, bottom, chunk, out, b)
        if chunk > 0:
            for j in range(x.size):
                product[j] *= a[j]


@kernel
def excess(z, q):
    """Return z - log(q) for q = 1 + z, to a relative error of a few roundings also where z is small.

    log(q) = k log 2 + 2 atanh(s), s = f/(2 + f), q = 2^k (1 + f); for k = 0 the first term of the series cancels
    against z exactly: z - 2 s = z s. No branch, so that loops over it are vectorised.
    """
    near = abs(z) < 0.25
    bits = as_bits(q)
    k = (bits - SQRT_HALF_BITS) >> 52
    f = z if near else from_bits(bits - (k << 52)) - 1.0
    s = f / (2.0 + f)
    y = s * s
    r = 2.0 / 23.0
    r = fma(r, y, 2.0 / 21.0)
    r = fma(r, y, 2.0 / 19.0)
    r = fma(r, y, 2.0 / 17.0)
    r = fma(r, y, 2.0 / 15.0)
    r = fma(r, y, 2.0 / 13.0)
    r = fma(r, y, 2.0 / 11.0)
    r = fma(r, y, 2.0 / 9.0)
    r = fma(r, y, 2.0 / 7.0)
    r = fma(r, y, 2.0 / 5.0)
    r = fma(r, y, 2.0 / 3.0)
    head = z * s if near else fma(-LOG_2, float(k), z) - 2.0 * s
    return fma(-(s * y), r, head)


@kernel
def sum_lanes(t):
    """Return the sum of LANES elements in a fixed order; overwrites the first eight."""
    for j in range(LANES // 2):
        t[j] += t[j + LANES // 2]
    for j in range(8):
        t[j] = ((t[j] + t[j + 8]) + (t[j + 16] + t[j + 24])) + (
            (t[j + 32] + t[j + 40]) + (t[j + 48] + t[j + 56])
        )
    return ((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7]))


@kernel
def sum_tile(t, size):
    """Return the sum of the first `size` elements of a tile in a fixed order; overwrites the tile."""
    rows = (size + LANES - 1) // LANES
    t[size : rows * LANES] = 0.0
    if rows == 8:
        for j in range(LANES):
            t[j] = ((t[j] + t[j + 1 * LANES]) + (t[j + 2 * LANES] + t[j + 3 * LANES])) + (
                (t[j + 4 * LANES] + t[j + 5 * LANES]) + (t[j + 6 * LANES] + t[j + 7 * LANES])
            )
    else:
        for row in range(1, rows):
            for j in range(LANES):
                t[j] += t[j + row * LANES]
    return sum_lanes(t)


@kernel
def log_product_lanes(t):
    """Return the logarithm of the product of LANES positive elements; overwrites them."""
    exponents = 0
    for j in range(LANES):
        bits = as_bits(t[j])
        exponents += (bits >> 52) - 1023
        t[j] = from_bits((bits & MANTISSA) | ONE_BITS)
    for j in range(LANES // 2):
        t[j] *= t[j + LANES // 2]
    for j in range(8):
        t[j] = ((t[j] * t[j + 8]) * (t[j + 16] * t[j + 24])) * (
            (t[j + 32] * t[j + 40]) * (t[j + 48] * t[j + 56])
        )
    return exponents * LOG_2 + math.log(((t[0] * t[1]) * (t[2] * t[3])) * ((t[4] * t[5]) * (t[6] * t[7])))


@kernel
def excess_by_products(q, products, sums):
    """Return the sum of q - 1 - log q over a full tile with one logarithm: the sum of logs is the log of the product.

    Eight ratios, each at most 1e22, multiply to less than 1e177; after that the exponents are split off.
    """
    for j in range(LANES):
        q0, q1, q2, q3 = q[j], q[j + LANES], q[j + 2 * LANES], q[j + 3 * LANES]
        q4, q5, q6, q7 = q[j + 4 * LANES], q[j + 5 * LANES], q[j + 6 * LANES], q[j + 7 * LANES]
        products[j] = ((q0 * q1) * (q2 * q3)) * ((q4 * q5) * (q6 * q7))
        sums[j] = (((q0 - 1.0) + (q1 - 1.0)) + ((q2 - 1.0) + (q3 - 1.0))) + (
            ((q4 - 1.0) + (q5 - 1.0)) + ((q6 - 1.0) + (q7 - 1.0))
        )
    return sum_lanes(sums) - log_product_lanes(products)


@kernel
def relative_entropy(q, weights, size, by_products, products, sums):
    """Return the weighted sum of (q - 1 - log q)/2 over a tile; overwrites q."""
    if by_products and size > LANES:
        q[size:] = 1.0  # a ratio of 1 adds nothing
        total = excess_by_products(q, products, sums)
        if total > SMALL_EXCESS * size:
            return 0.5 * total
    for j in range(size):
        q[j] = weights[j] * excess(q[j] - 1.0, q[j])
    return 0.5 * sum_tile(q, size)


@kernel
def inverse_ratio(x, levels, exact, q):
    """Turn P/Q in q into 1/r = target variance / output variance."""
    last_square = levels[levels.size - 1] * levels[levels.size - 1]
    for j in range(x.size):
        q[j] = (q[j] * q[j]) * (x[j] + last_square)
    if exact:
        for j in range(x.size):
            q[j] /= x[j] + levels[0] * levels[0]


@kernel
def distance_terms(x, weights, levels, prior, exact, metric, terms):
    """Turn Q/P in terms into the terms of w2, or of the mean's share of w2 or reverse_kl."""
    first, last_square = levels[0], levels[levels.size - 1] * levels[levels.size - 1]
    if metric != W2:
        deviation = start_deviation(first, prior)
        for j in range(x.size):
            gain = terms[j] / deviation
            terms[j] = weights[j] * (gain * gain)
            if metric == MEAN_REVERSE_KL:
                terms[j] *= 0.5 / (x[j] + last_square)
        return
    if exact:
        for j in range(x.size):
            terms[j] *= math.sqrt(x[j] + first * first)
    for j in range(x.size):
        gap = terms[j] - math.sqrt(x[j] + last_square)
        terms[j] = weights[j] * (gap * gap)


@kernel
def mean_kl_terms(x, weights, first, terms):
    """Write the terms of the mean's share of kl, weight/(2 v0), for the prior `exact`; the others need no loop."""
    for j in range(x.size):
        terms[j] = 0.5 * weights[j] / (x[j] + first * first)


@kernel
def tile_sum(x, weights, by_products, levels, q, p, prior, metric, a, b, terms):
    """Return one candidate's divergence summed over one tile of eigenvalues."""
    exact = prior == EXACT and not math.isinf(levels[0])
    if metric == MEAN_KL:
        mean_kl_terms(x, weights, levels[0], terms)
        return sum_tile(terms, x.size)
    if metric >= W2:
        quotient(x, levels, prior, q, p, False, a, b, terms)
        distance_terms(x, weights, levels, prior, exact, metric, terms)
        return sum_tile(terms, x.size)
    quotient(x, levels, prior, q, p, True, a, b, terms)
    inverse_ratio(x, levels, exact, terms)
    if metric == JEFFREYS:
        for j in range(x.size):
            z = terms[j] - 1.0
            terms[j] = weights[j] * 0.5 * (z * z) / terms[j]
        return sum_tile(terms, x.size)
    if metric == REVERSE_KL:
        for j in range(x.size):
            terms[j] = 1.0 / terms[j]
    return relative_entropy(terms, weights, x.size, by_products, a, b)


@entry_point
def tile_sums(eigenvalues, weights, by_products, levels, prior, degree, metric, m0, m1, t0, t1, out):
    """Write to out[m, t] the divergence of candidate m summed over tile t, for m0 <= m < m1 and t0 <= t < t1.

    eigenvalues (d,); weights (d,), or ones (TILE,) that serve every tile; by_products: all weights are 1 and products
    of eight ratios cannot overflow; levels (M, N+1); degree of the polynomials, 0 to multiply factors; out (M, tiles).
    """
    chunks = (levels.shape[1] + degree - 2) // degree if degree else 0
    q = np.empty((m1 - m0, chunks, degree + 1))
    p = np.empty((m1 - m0, chunks, degree + 1))
    for m in range(m0, m1 if degree else m0):
        expand(levels[m], prior, degree, q[m - m0], p[m - m0])
    a, b, terms = np.empty(TILE), np.empty(TILE), np.empty(TILE)
    for tile in range(t0, t1):
        begin = tile * TILE
        end = min(begin + TILE, eigenvalues.size)
        x = eigenvalues[begin:end]
        w = weights[begin:end] if weights.size == eigenvalues.size else weights[: end - begin]
        for m in range(m0, m1):
            k = m - m0
            out[m, tile] = tile_sum(x, w, by_products, levels[m], q[k], p[k], prior, metric, a, b, terms)


@entry_point
def variances(eigenvalues, levels, prior, degree, m0, m1, t0, t1, out):
    """Write the output variance of y at the last level to out of shape (M, d), for the same ranges."""
    chunks = (levels.shape[1] + degree - 2) // degree
    q = np.empty((chunks, degree + 1))
    p = np.empty((chunks, degree + 1))
    a, b, gain = np.empty(TILE), np.empty(TILE), np.empty(TILE)
    for m in range(m0, m1):
        expand(levels[m], prior, degree, q, p)
        first = levels[m, 0]
        for begin in range(t0 * TILE, min(t1 * TILE, eigenvalues.size), TILE):
            x = eigenvalues[begin : begin + TILE]
            quotient(x, levels[m], prior, q, p, False, a, b, gain)
            for j in range(x.size):
                out[m, begin + j] = gain[j] * gain[j]
            if prior == EXACT and not math.isinf(first):
                for j in range(x.size):
                    out[m, begin + j] *= x[j] + first * first


@entry_point
def level_variances(eigenvalues, levels, prior, t0, t1, out):
    """Write the variance of y at every level of one candidate to out of shape (N+1, d), tiles t0 to t1.

    v_{k+1} = v_k ((x + s_k s_{k+1})/(x + s_k^2))^2; an infinite first level has v_0 = inf and v_1 = s_1^2.
    """
    begin, end = t0 * TILE, min(t1 * TILE, eigenvalues.size)
    first = levels[0]
    deviation = start_deviation(first, prior)
    for j in range(begin, end):
        if prior == EXACT or math.isinf(first):
            out[0, j] = eigenvalues[j] + first * first
        else:
            out[0, j] = deviation * deviation
    for k in range(levels.size - 1):
        here, there = levels[k], levels[k + 1]
        for j in range(begin, end):
            if math.isinf(here):
                out[k + 1, j] = there * there
            else:
                x = eigenvalues[j]
                shrink = (x + here * there) / (x + here * here)
                out[k + 1, j] = out[k, j] * (shrink * shrink)
