"""Moments of a spectrum, cell by cell: what one pass over the eigenvalues leaves behind.

A cell holds the eigenvalues of one binary exponent and two leading bits, so four cells make an octave. Within it
lambda is linear in t of [-1, 1), and t is the rest of the mantissa: no logarithm and no division. The moments of

    T_i(t) T_4j(t),   i = 0..3,  j = 0..2

give those of all Chebyshev polynomials up to degree 11 (2 T_i T_4j = T_(4j+i) + T_(4j-i)) and form in groups of four.
"""

from __future__ import annotations

from fastkl.kernels.compiling import add_four, as_bits, entry_point, from_bits

__all__ = ["CELLS", "FIRST_EXPONENT", "MOMENTS", "PER_OCTAVE", "add_to_cells"]

MOMENTS = 12
PER_OCTAVE = 4
FIRST_EXPONENT = -100  # 2**-100 is below 1e-30, 2**100 above 1e30
CELLS = 200 * PER_OCTAVE

LEAST, LARGEST = 1e-30, 1e30
POSITION_BITS = 50  # of a mantissa, behind the two that number the cell
POSITION = (1 << POSITION_BITS) - 1
FIRST_CELL = (1023 + FIRST_EXPONENT) << 2
ONE = 1023 << 52


@entry_point
def add_to_cells(eigenvalues, weights, weighted, begin, end, tables, zeros):
    """Add eigenvalues begin to end to tables, a flat (2, CELLS, MOMENTS), and the weight of zero ones to zeros[0].

    Neighbours go to different tables, so that runs in one cell need not wait for each other's sums. Return the index of
    an eigenvalue that is neither 0 nor within [1e-30, 1e30], or -1.
    """
    invalid = -1
    for i in range(begin, end):
        x = eigenvalues[i]
        w = weights[i] if weighted else 1.0
        if not (x >= LEAST and x <= LARGEST):
            if x == 0.0:
                zeros[0] += w
            elif invalid < 0:
                invalid = i
            continue
        bits = as_bits(x)
        at = ((i & 1) * CELLS + (bits >> POSITION_BITS) - FIRST_CELL) * MOMENTS
        t = 2.0 * from_bits(ONE | ((bits & POSITION) << 2)) - 3.0
        square = t * t
        second = 2.0 * square - 1.0
        fourth = 2.0 * second * second - 1.0
        eighth = 2.0 * fourth * fourth - 1.0
        p1 = w * t
        p2 = w * second
        p3 = p1 * (4.0 * square - 3.0)
        add_four(tables, at, 1.0, w, p1, p2, p3)
        add_four(tables, at + 4, fourth, w, p1, p2, p3)
        add_four(tables, at + 8, eighth, w, p1, p2, p3)
    return invalid
