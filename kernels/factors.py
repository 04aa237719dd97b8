"""Quotients of two products of linear factors, factor by factor: for tiles too small to repay expanding polynomials.

Four operations a step and element where Horner's rule has two, but nothing to prepare for a candidate.
"""

from __future__ import annotations

import math

from fastkl.kernels.compiling import kernel

__all__ = ["quotient_of_factors"]

LONGEST = 8  # factors of at most 2e30 each: no product overflows


def _products(count):
    """Return a kernel that multiplies out by `count` factors (x + top), divided by as many (x + bottom), from k on."""

    def products(x, top, bottom, k, out):
        for j in range(x.size):
            u = x[j] + top[k]
            w = x[j] + bottom[k]
            for i in range(1, count):
                u *= x[j] + top[k + i]
                w *= x[j] + bottom[k + i]
            out[j] *= u / w

    # Variants need names of their own, see kernels/quotients.py.
    products.__name__ = products.__qualname__ = f"products_of_{count}"
    return kernel(products)


_products1, _products2, _products4, _products8 = (_products(count) for count in (1, 2, 4, 8))


@kernel
def quotient_of_factors(x, levels, start, inverse, top, bottom, out):
    """Write start * prod (x + s_k s_{k+1})/(x + s_k^2) to out, or its inverse; top and bottom have LONGEST elements.

    An infinite first level leaves s_1 of its factors. Few variants are unrolled: more would take longer to compile.
    """
    begin = 0
    if math.isinf(levels[0]):
        begin = 1
        start *= levels[1]
    for j in range(x.size):
        out[j] = 1.0 / start if inverse else start
    for k0 in range(begin, levels.size - 1, LONGEST):
        count = min(LONGEST, levels.size - 1 - k0)
        for k in range(count):
            crossed = levels[k0 + k] * levels[k0 + k + 1]
            square = levels[k0 + k] * levels[k0 + k]
            top[k] = square if inverse else crossed
            bottom[k] = crossed if inverse else square
        done = 0
        if count == LONGEST:
            _products8(x, top, bottom, 0, out)
            continue
        if count & 4:
            _products4(x, top, bottom, 0, out)
            done = 4
        if count & 2:
            _products2(x, top, bottom, done, out)
            done += 2
        if count & 1:
            _products1(x, top, bottom, done, out)
