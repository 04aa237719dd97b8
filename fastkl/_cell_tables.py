"""Tables of a spectrum's moments, one row a cell: filled by threads, and turned into a rule of few points a cell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastkl._gauss import cell_rules
from fastkl._spectrum_arrays import check_range
from fastkl._threads import run_all
from fastkl.kernels.cells import CELLS, FIRST_EXPONENT, MOMENTS, PER_OCTAVE, add_to_cells

__all__ = ["BATCH", "add_eigenvalues", "cell_noise", "cell_points", "empty_table"]

Array = NDArray[np.float64]

PIECE = (
    1 << 16
)  # eigenvalues that one table sums up: keeps rounding errors small, and cuts the work for threads
BATCH = 32 * PIECE  # eigenvalues taken from an array, or from disk, at a time
MOMENT_NOISE = 1e-15  # in a cell's variance of log lambda, generously
ATOM = 1e-14  # variance of a cell, in units of its half width, that rounding makes of one value
LIGHT = 1e-12  # share of a cell's weight below which a node is rounding


def empty_table() -> Array:
    """Return the table of no eigenvalues; its rows hold sums over T_i(t) T_4j(t), see kernels/cells.py."""
    return np.zeros((CELLS, MOMENTS))


def add_eigenvalues(table: Array, eigenvalues: Array, weights: Array | None, threads: int) -> float:
    """Add float64 eigenvalues, at most BATCH of them, to a table; return the weight of those that are 0.

    Pieces have fixed places and are added in their order, so the result does not depend on the number of threads.
    Raises ValueError, and adds nothing, if an eigenvalue is neither 0 nor within [1e-30, 1e30].
    """
    pieces = range(0, eigenvalues.size, PIECE)
    partial = np.zeros((len(pieces), 2 * CELLS * MOMENTS))
    zeros = np.zeros((len(pieces), 1))
    invalid = np.full(len(pieces), -1)
    values = fixed(eigenvalues)
    shares = fixed(np.ones(1) if weights is None else weights)

    def task(number: int) -> None:
        begin = number * PIECE
        end = min(begin + PIECE, values.size)
        invalid[number] = add_to_cells(
            values, shares, weights is not None, begin, end, partial[number], zeros[number]
        )

    run_all(task, ((number,) for number in range(len(pieces))), threads)
    if invalid.max() >= 0:
        check_range("eigenvalues", eigenvalues)
    table += partial.reshape(-1, CELLS, MOMENTS).sum(axis=0)
    return float(zeros.sum())


def fixed(array: Array) -> Array:
    """Return a read-only view: kernels are compiled for one kind of input array."""
    view = array.view()
    view.flags.writeable = False
    return view


def cell_points(table: Array) -> tuple[Array, Array]:
    """Return eigenvalues and weights of a rule that has the table's moments: at most 6 points a cell, ascending.

    Every divergence changes by less than about 1e-14 of itself: the functions are analytic well beyond a cell.
    """
    used = np.flatnonzero(table[:, 0] > 0.0)
    if used.size == 0:
        return np.empty(0), np.empty(0)
    sums = table[used]
    moments = sums.copy()
    for degree in (5, 6, 7, 9, 10, 11):  # T_(4j+i) = 2 T_i T_4j - T_(4j-i)
        moments[:, degree] = 2.0 * sums[:, degree] - moments[:, degree // 4 * 8 - degree]
    nodes, weights = cell_rules(moments)
    total = weights.sum(axis=1, keepdims=True)
    weights[weights < LIGHT * total] = 0.0
    weights *= moments[:, :1] / weights.sum(axis=1, keepdims=True)
    exponents, quarters = np.divmod(used[:, None], PER_OCTAVE)
    mantissas = 1.0 + (quarters + 0.5 + 0.5 * nodes) / PER_OCTAVE
    points = np.ldexp(mantissas, exponents + FIRST_EXPONENT)
    kept = weights > 0.0
    return points[kept], weights[kept]


def cell_noise(table: Array) -> float:
    """Return how far rounding in the moments can move, relative to itself, a sum of squares with a zero in any cell.

    The variance of a cluster inside a cell is known to about 1e-15 of the cell's width squared. That matters for
    functions that vanish within a narrow cluster which outweighs everything else.
    """
    sums = table[table[:, 0] > 0.0]
    mean = sums[:, 1] / sums[:, 0]
    variance = 0.5 * (sums[:, 2] / sums[:, 0] + 1.0) - mean * mean
    points, weights = cell_points(table)
    used = np.flatnonzero(table[:, 0] > 0.0)
    exponents, quarters = np.divmod(used, PER_OCTAVE)
    centres = np.ldexp(1.0 + (quarters + 0.5 + 0.5 * mean) / PER_OCTAVE, exponents + FIRST_EXPONENT)
    distance = 2.0 * np.tanh(0.5 * np.log(points / centres[:, None]))
    spread = np.square(distance) @ weights
    noise = MOMENT_NOISE * sums[:, 0] / np.maximum(spread, 1e-300)
    return float(np.max(noise, initial=0.0, where=variance > ATOM))
