"""Quotients of two polynomials of one degree by Horner's rule, with the degree unrolled.

Two fused multiply-adds a degree and one division for each element; up to eight degrees in one pass over the tile, up to
sixteen in two.
"""

from __future__ import annotations

from fastkl.kernels.compiling import fma, kernel

__all__ = ["MAX_DEGREE", "quotient_to_degree_8", "quotient_to_degree_16"]

MAX_DEGREE = 16


def _horner(degree, first, final):
    """Return a kernel that takes two polynomials `degree` powers further by Horner's rule and, at last, divides them.

    The arguments are constants of the compiled code: the inner loop is unrolled and the outer one vectorised.
    """

    def horner(x, top, bottom, chunk, k0, a, b):
        for j in range(x.size):
            u = top[chunk, 0] if first else a[j]
            w = bottom[chunk, 0] if first else b[j]
            for k in range(degree):
                u = fma(u, x[j], top[chunk, k0 + k])
                w = fma(w, x[j], bottom[chunk, k0 + k])
            if final:
                a[j] = u / w
            else:
                a[j] = u
                b[j] = w

    # Numba tells functions of one name apart by numbers that differ between processes, and code from disk brings the
    # numbers of the process that wrote it: under one name, one variant could stand in for another (seen).
    horner.__name__ = horner.__qualname__ = (
        f"horner_{degree}_{'first' if first else 'next'}_{'final' if final else ''}"
    )
    return kernel(horner)


_whole1, _whole2, _whole3, _whole4 = (_horner(degree, True, True) for degree in (1, 2, 3, 4))
_whole5, _whole6, _whole7, _whole8 = (_horner(degree, True, True) for degree in (5, 6, 7, 8))
_start8 = _horner(8, True, False)
_last1, _last2, _last3, _last4 = (_horner(degree, False, True) for degree in (1, 2, 3, 4))
_last5, _last6, _last7, _last8 = (_horner(degree, False, True) for degree in (5, 6, 7, 8))


@kernel
def quotient_to_degree_8(x, top, bottom, chunk, a, b):
    """Write top(x)/bottom(x), of the same degree 1 to 8, to a."""
    degree = top.shape[1] - 1
    if degree == 1:
        _whole1(x, top, bottom, chunk, 1, a, b)
    elif degree == 2:
        _whole2(x, top, bottom, chunk, 1, a, b)
    elif degree == 3:
        _whole3(x, top, bottom, chunk, 1, a, b)
    elif degree == 4:
        _whole4(x, top, bottom, chunk, 1, a, b)
    elif degree == 5:
        _whole5(x, top, bottom, chunk, 1, a, b)
    elif degree == 6:
        _whole6(x, top, bottom, chunk, 1, a, b)
    elif degree == 7:
        _whole7(x, top, bottom, chunk, 1, a, b)
    else:
        _whole8(x, top, bottom, chunk, 1, a, b)


@kernel
def quotient_to_degree_16(x, top, bottom, chunk, a, b):
    """Write top(x)/bottom(x), of the same degree 9 to 16, to a."""
    degree = top.shape[1] - 1
    _start8(x, top, bottom, chunk, 1, a, b)
    if degree == 9:
        _last1(x, top, bottom, chunk, 9, a, b)
    elif degree == 10:
        _last2(x, top, bottom, chunk, 9, a, b)
    elif degree == 11:
        _last3(x, top, bottom, chunk, 9, a, b)
    elif degree == 12:
        _last4(x, top, bottom, chunk, 9, a, b)
    elif degree == 13:
        _last5(x, top, bottom, chunk, 9, a, b)
    elif degree == 14:
        _last6(x, top, bottom, chunk, 9, a, b)
    elif degree == 15:
        _last7(x, top, bottom, chunk, 9, a, b)
    else:
        _last8(x, top, bottom, chunk, 9, a, b)
