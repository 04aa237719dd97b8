"""Arithmetic on pairs: unevaluated sums of two float64 that carry about 32 digits.

Sums and products of pairs are right to a few units of 2**-104 relative where no cancellation occurs, and only such are
needed here: all numbers are positive.
"""

from __future__ import annotations

from fastkl.kernels.compiling import fma, kernel

__all__ = ["pair_add", "pair_divide", "pair_multiply", "pair_product"]


@kernel
def pair_product(a, b):
    """Return a * b as a pair, exactly."""
    high = a * b
    return high, fma(a, b, -high)


@kernel
def pair_add(a, b, c, e):
    """Return (a + b) + (c + e) for two pairs."""
    s = a + c
    t = s - a
    low = ((a - (s - t)) + (c - t)) + (b + e)
    high = s + low
    return high, low - (high - s)


@kernel
def pair_multiply(a, b, c, e):
    """Return (a + b) * (c + e) for two pairs."""
    s = a * c
    low = fma(a, c, -s) + (a * e + b * c)
    high = s + low
    return high, low - (high - s)


@kernel
def pair_divide(a, b, c, e):
    """Return (a + b) / (c + e) for two pairs."""
    s = a / c
    rest = fma(-s, c, a) + (b - s * e)
    low = rest / c
    high = s + low
    return high, low - (high - s)
