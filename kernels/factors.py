"""Quotients of two products of linear factors, factor by factor: for tiles too small to repay expanding polynomials.

Four operations a step and element where Horner's rule has two, but nothing to prepare for a candidate.
"""

from __future__ import annotations

import math

from fastkl.kernels.compiling import kernel

__all__ = ["quotient_of_factors"]

LONGEST = 8  # factors of at most 2e30 each: no product overflows


def _products(count, first):
    """Return a kernel that multiplies out by `count` factors (x + top) and divides it by as many (x + bottom)."""

    def products(x, top, bottom, out):
        for j in range(x.size):
            u = x[j] + top[0]
            w = x[j] + bottom[0]
            for k in range(1, count):
                u *= x[j] + top[k]
                w *= x[j] + bottom[k]
            out[j] = u / w if first else out[j] * (u / w)

    # Variants need names of their own, see kernels/quotients.py.
    products.__name__ = products.__qualname__ = f"products_of_{count}_{'first' if first else 'next'}"
    return kernel(products)


_first1, _first2, _first3, _first4 = (_products(count, True) for count in (1, 2, 3, 4))
_first5, _first6, _first7, _first8 = (_products(count, True) for count in (5, 6, 7, 8))
_next1, _next2, _next3, _next4 = (_products(count, False) for count in (1, 2, 3, 4))
_next5, _next6, _next7, _next8 = (_products(count, False) for count in (5, 6, 7, 8))


@kernel
def first_products(count, x, top, bottom, out):
    """Write the quotient of `count` factors, 1 to 8, to out."""
    if count == 1:
        _first1(x, top, bottom, out)
    elif count == 2:
        _first2(x, top, bottom, out)
    elif count == 3:
        _first3(x, top, bottom, out)
    elif count == 4:
        _first4(x, top, bottom, out)
    elif count == 5:
        _first5(x, top, bottom, out)
    elif count == 6:
        _first6(x, top, bottom, out)
    elif count == 7:
        _first7(x, top, bottom, out)
    else:
        _first8(x, top, bottom, out)


@kernel
def next_products(count, x, top, bottom, out):
    """Multiply out by the quotient of `count` factors, 1 to 8."""
    if count == 1:
        _next1(x, top, bottom, out)
    elif count == 2:
        _next2(x, top, bottom, out)
    elif count == 3:
        _next3(x, top, bottom, out)
    elif count == 4:
        _next4(x, top, bottom, out)
    elif count == 5:
        _next5(x, top, bottom, out)
    elif count == 6:
        _next6(x, top, bottom, out)
    elif count == 7:
        _next7(x, top, bottom, out)
    else:
        _next8(x, top, bottom, out)


@kernel
def quotient_of_factors(x, levels, start, inverse, top, bottom, out):
    """Write start * prod (x + s_k s_{k+1})/(x + s_k^2) to out, or its inverse; top and bottom have LONGEST elements.

    An infinite first level leaves s_1 of its factors.
    """
    begin = 0
    if math.isinf(levels[0]):
        begin = 1
        start *= levels[1]
    steps = levels.size - 1 - begin
    if inverse:
        start = 1.0 / start
    if steps == 0:
        for j in range(x.size):
            out[j] = start
        return
    chunks = (steps + LONGEST - 1) // LONGEST
    length = (steps + chunks - 1) // chunks
    for chunk in range(chunks):
        k0 = begin + chunk * length
        count = min(length, levels.size - 1 - k0)
        for k in range(count):
            crossed = levels[k0 + k] * levels[k0 + k + 1]
            square = levels[k0 + k] * levels[k0 + k]
            top[k] = square if inverse else crossed
            bottom[k] = crossed if inverse else square
        if chunk == 0:
            first_products(count, x, top, bottom, out)
        else:
            next_products(count, x, top, bottom, out)
    if start != 1.0:
        for j in range(x.size):
            out[j] *= start
