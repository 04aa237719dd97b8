"""Divergence of DDIM where the fast kernel loses digits: from the steps' losses, and in pairs where those cancel.

The divergence of an eigenvalue is about x^2/4 for x = -log r, so where r, output over target variance, is near 1 (fine
schedules, or a prior that happens to compensate what the steps lose), r - 1 is needed to many more digits than r. The
losses have them, unless the prior's mismatch cancels the losses: then 1/r is formed as a product of sums of exact
products, each carried as an unevaluated pair of float64 (about 32 digits).

The loops run over eigenvalues inside and over steps outside, so that the pair arithmetic is vectorised.
"""

from __future__ import annotations

import math

import numpy as np

from fastkl.kernels.compiling import entry_point, kernel
from fastkl.kernels.ddim_horner import EXACT, FLOW, JEFFREYS, KL, TILE, VE, W2, excess, sum_tile
from fastkl.kernels.ddim_losses import deviation_by_losses, expand_losses
from fastkl.kernels.pairs import pair_add, pair_divide, pair_multiply, pair_product

__all__ = ["compensated_tile_sums"]

FOLD = 8  # steps between divisions; eight factors of at most 1e31 stay below 1e248


@kernel
def multiply_by_sum(x, high, low, product_high, product_low):
    """Multiply a pair for each eigenvalue by (x + (high + low))."""
    for j in range(x.size):
        a, b = pair_add(x[j], 0.0, high, low)
        product_high[j], product_low[j] = pair_multiply(product_high[j], product_low[j], a, b)


@kernel
def divide_into(size, top, bottom, ratio):
    """Multiply ratio by top/bottom and reset both to 1; each is a (2, TILE) array of pairs."""
    for j in range(size):
        a, b = pair_divide(top[0, j], top[1, j], bottom[0, j], bottom[1, j])
        ratio[0, j], ratio[1, j] = pair_multiply(ratio[0, j], ratio[1, j], a, b)
        top[0, j] = 1.0
        top[1, j] = 0.0
        bottom[0, j] = 1.0
        bottom[1, j] = 0.0


@kernel
def gain_quotient(x, levels, top, bottom, ratio):
    """Write prod_k (x + s_k^2) / prod_k (x + s_k s_{k+1}) = 1/G to ratio; s_0 = inf leaves (x + s_0^2)/s_0 out."""
    for pairs in (top, bottom, ratio):
        pairs[0, : x.size] = 1.0
        pairs[1, : x.size] = 0.0
    for k in range(levels.size - 1):
        here, there = levels[k], levels[k + 1]
        if math.isinf(here):
            for j in range(x.size):
                bottom[0, j] = there
        else:
            high, low = pair_product(here, here)
            multiply_by_sum(x, high, low, top[0], top[1])
            high, low = pair_product(here, there)
            multiply_by_sum(x, high, low, bottom[0], bottom[1])
        if k % FOLD == FOLD - 1:
            divide_into(x.size, top, bottom, ratio)
    divide_into(x.size, top, bottom, ratio)


@kernel
def start_variance(first, prior):
    """Return v0 of the priors that do not depend on the eigenvalue, as a pair; 1 where the first level is inf."""
    if math.isinf(first):
        return 1.0, 0.0
    a, b = pair_add(1.0, 0.0, first, 0.0)
    if prior == FLOW:
        return pair_multiply(a, b, a, b)
    a, b = pair_product(first, first)
    if prior == VE:
        return a, b
    return pair_add(1.0, 0.0, a, b)


@kernel
def deviation(x, levels, prior, ratio, z):
    """Turn 1/G in ratio into q = 1/r, and write q - 1 to z."""
    first, last = levels[0], levels[levels.size - 1]
    first_square, first_low = pair_product(first, first)
    last_square, last_low = pair_product(last, last)
    exact = prior == EXACT and not math.isinf(first)
    v0_high, v0_low = start_variance(first, prior)
    for j in range(x.size):
        a, b = pair_multiply(ratio[0, j], ratio[1, j], ratio[0, j], ratio[1, j])
        c, e = pair_add(x[j], 0.0, last_square, last_low)
        a, b = pair_multiply(a, b, c, e)
        if exact:
            c, e = pair_add(x[j], 0.0, first_square, first_low)
        else:
            c, e = v0_high, v0_low
        a, b = pair_divide(a, b, c, e)
        ratio[0, j] = a
        z[j] = (a - 1.0) + b


@kernel
def divergence_terms(x, weights, last, metric, q, z):
    """Turn z = 1/r - 1 into the weighted terms of a divergence, each to nearly full relative precision."""
    for j in range(x.size):
        if metric == JEFFREYS:
            z[j] = 0.5 * (z[j] * z[j]) / q[j]
        elif metric == W2:
            target = x[j] + last * last
            root = math.sqrt(q[j])
            gap = z[j] / (root * (1.0 + root))
            z[j] = target * (gap * gap) if target > 0.0 else 0.0
        elif metric == KL:
            z[j] = 0.5 * excess(z[j], q[j])
        else:
            z[j] = 0.5 * excess(-z[j] / q[j], 1.0 / q[j])
        z[j] *= weights[j]


@kernel
def deviation_by_pairs(x, levels, prior, top, bottom, ratio, z):
    """Write q = 1/r to ratio[0] and q - 1 to z."""
    gain_quotient(x, levels, top, bottom, ratio)
    deviation(x, levels, prior, ratio, z)


@entry_point
def compensated_tile_sums(
    eigenvalues, weights, levels, prior, degree, metric, candidates, tiles, i0, i1, out
):
    """Write to out[i] the divergence of candidate candidates[i] summed over tile tiles[i], for i0 <= i < i1.

    eigenvalues (d,); weights (d,), or ones (TILE,) that serve every tile; levels (M, N+1); degree, even, of the losses'
    polynomials: two for each step of a chunk.
    """
    top, bottom, ratio = np.empty((2, TILE)), np.empty((2, TILE)), np.empty((2, TILE))
    z = np.empty(TILE)
    steps, length = levels.shape[1] - 1, degree // 2
    loss = np.empty(((steps + length - 1) // length, degree + 1))
    base = np.empty_like(loss)
    expanded = -1
    for i in range(i0, i1):
        m = candidates[i]
        if m != expanded:
            expand_losses(levels[m], loss, base)
            expanded = m
        begin = tiles[i] * TILE
        end = min(begin + TILE, eigenvalues.size)
        x = eigenvalues[begin:end]
        w = weights[begin:end] if weights.size == eigenvalues.size else weights[: end - begin]
        if deviation_by_losses(x, levels[m], prior, loss, base, top[0], top[1], ratio[0], z) > 0:
            deviation_by_pairs(x, levels[m], prior, top, bottom, ratio, z)
        divergence_terms(x, w, levels[m, steps], metric, ratio[0], z)
        out[i] = sum_tile(z, x.size)
