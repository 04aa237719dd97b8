"""Divergence of DDIM where the fast kernel loses digits, from what each step loses.

Relative to the true marginal, the steps of a chunk multiply the variance by 1/(1 + e),

    1 + e = prod (x + s_k^2)(x + s_{k+1}^2) / (x + s_k s_{k+1})^2,   e = x D(x) / B(x)^2,   B = prod (x + s_k s_{k+1}),

and D has coefficients >= 0 as well: a step turns D into D (x + s^2)(x + s'^2) + (s - s')^2 B^2. So e is right to a few
roundings however small it is, at two polynomials of twice the degree: about a third of the fast kernel's speed.
"""

from __future__ import annotations

import math

from fastkl.kernels.compiling import fma, kernel
from fastkl.kernels.ddim_horner import EXACT, FLOW, VE
from fastkl.kernels.quotients import quotient_to_degree_8, quotient_to_degree_16

__all__ = ["deviation_by_losses", "expand_losses"]

# Where the prior's mismatch cancels what the steps lose to less than this share, pairs are needed.
CANCELLED = 0.02


@kernel
def multiply_by_root(c, constant):
    """Multiply a polynomial, highest power first and the highest one unused, by (x + constant)."""
    last = c.size - 1
    for k in range(last):
        c[k] = c[k + 1] + constant * c[k]
    c[last] *= constant


@kernel
def expand_losses(levels, loss, base):
    """Write the coefficients of D and B^2, chunk by chunk, to loss and base of shape (chunks, 2*steps + 1)."""
    last = loss.shape[1] - 1
    length = last // 2
    for chunk in range(loss.shape[0]):
        d, b = loss[chunk], base[chunk]
        d[:] = 0.0
        b[:] = 0.0
        b[last] = 1.0
        for k in range(chunk * length, min(levels.size - 1, (chunk + 1) * length)):
            here, there = levels[k], levels[k + 1]
            if math.isinf(here):  # both divided by s_0^2: (x + s_1^2) - s_1^2 = x
                d[last] = 1.0
                b[last] = there * there
                continue
            multiply_by_root(d, here * here)
            multiply_by_root(d, there * there)
            gap = (here - there) * (here - there)
            for j in range(last + 1):
                d[j] += gap * b[j]
            multiply_by_root(b, here * there)
            multiply_by_root(b, here * there)


@kernel
def total_loss(x, loss, base, a, b, total):
    """Write prod (1 + e) - 1 over all chunks to total."""
    for j in range(x.size):
        total[j] = 0.0
    for chunk in range(loss.shape[0]):
        if loss.shape[1] <= 9:
            quotient_to_degree_8(x, loss, base, chunk, a, b)
        else:
            quotient_to_degree_16(x, loss, base, chunk, a, b)
        for j in range(x.size):
            e = x[j] * a[j]
            total[j] = fma(total[j], e, total[j] + e)


@kernel
def deviation_by_losses(x, levels, prior, loss, base, a, b, q, z):
    """Write q = 1/r and z = q - 1; return in how many elements the prior cancels the losses too far for float64."""
    total_loss(x, loss, base, a, b, z)
    first = levels[0]
    if prior == EXACT or math.isinf(first):
        for j in range(x.size):
            q[j] = 1.0 + z[j]
        return 0
    square = first * first
    missing = 0.0 if prior == VE else 1.0 + 2.0 * first if prior == FLOW else 1.0  # v0 - s_0^2
    v0 = square + missing
    doubtful = 0
    for j in range(x.size):
        loss_alone = z[j]
        mismatch = (x[j] - missing) / v0
        q[j] = (1.0 + loss_alone) * ((x[j] + square) / v0)
        z[j] = fma(loss_alone, mismatch, loss_alone + mismatch)
        if abs(q[j] - 1.0) > 0.5:  # q has all its digits; far from 1 the difference keeps them
            z[j] = q[j] - 1.0
        else:
            doubtful += abs(z[j]) < CANCELLED * (loss_alone + (x[j] + missing) / v0)
    return doubtful
