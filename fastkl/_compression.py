"""Compression: the few nodes and weights that have a whole spectrum's sums to a stated relative error."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fastkl._cell_tables import cell_noise, cell_points
from fastkl._gauss import Jacobi
from fastkl._validation import read_only
from fastkl._worst_case import CountFamily, MeanFamily, Reference
from fastkl.spectrum import Spectrum

__all__ = ["LEAST_RTOL", "compressed", "gauss_nodes", "spectrum_arrays"]

Array = NDArray[np.float64]

LEAST_RTOL = 1e-12
SAFETY = 10.0  # between the worst error over the family of functions and what is promised
ROUNDING = 3e-14  # in that error
MOST_NODES = 80  # of one Gauss rule; where they do not do, there is one for each part of the spectrum
FEW = 12  # points that are not worth replacing
SAMPLE = 4096  # eigenvalues looked at to see whether only few are distinct
WIDE_GAP = 2.0  # in log lambda
CARRIER = 1e-20  # share of all counts that a node of the mean has
LARGEST_SQUARE, LEAST_COUNT = 1e30, 1e-30  # what Spectrum allows of means and counts


def compressed(spectrum: Spectrum, rtol: float) -> Spectrum:
    """Return the spectrum of few nodes that `Spectrum.compress` promises."""
    from fastkl.moments import SpectrumMoments

    moments = SpectrumMoments()
    moments.add(spectrum)
    small = moments.spectrum(rtol)
    some = spectrum.eigenvalues[:: max(1, len(spectrum) // SAMPLE)]
    if np.unique(some).size <= len(small):  # else there are more distinct values than nodes
        merged = spectrum.merged()
        if len(merged) <= len(small):
            return merged
    if small.rtol > max(rtol, 2.0 * LEAST_RTOL):  # a narrow cluster, or a mean that outweighs the counts
        return spectrum
    small._rtol += spectrum.rtol
    if small.mean is None and spectrum.mean is not None:  # zeros say that the mean is 0
        small._mean = read_only(np.zeros(len(small)))
    return small


def gauss_nodes(
    points: Array, weights: Array, rtol: float, family: type[CountFamily]
) -> tuple[Array, Array, float]:
    """Return nodes, weights and the relative error reached, for eigenvalues in ascending order.

    The nodes are those of the least Gauss rule in log lambda that keeps every function of the family to rtol / SAFETY.
    Where no rule of MOST_NODES does, the spectrum is cut in its widest gap, if that is wide, or else in the middle.
    """
    if len(points) <= FEW:
        return points, weights, LEAST_RTOL
    u = np.log(points)
    jacobi = Jacobi(u, weights)
    reference = Reference(family(u[0], u[-1]), u, weights)
    order, error = least_order(jacobi, reference, (rtol - LEAST_RTOL) / SAFETY + ROUNDING)
    if order:
        nodes, shares = jacobi.rule(order)
        return np.exp(nodes), shares, LEAST_RTOL + SAFETY * max(0.0, error - ROUNDING)
    cut = place_to_cut(u)
    parts = [
        gauss_nodes(points[part], weights[part], rtol, family) for part in (slice(cut), slice(cut, None))
    ]
    nodes, shares = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    return nodes, shares, max(part[2] for part in parts)


def least_order(jacobi: Jacobi, reference: Reference, allowed: float) -> tuple[int, float]:
    """Return the number of nodes from which on the error is allowed, and the error; (0, inf) if too many."""
    high = jacobi.grow(MOST_NODES)
    error = reference.error(*jacobi.rule(high))
    if not error <= allowed:
        return 0, math.inf
    low, low_log, high_log = 1, 0.0, math.log(max(error, ROUNDING))
    while high - low > 1 + high // 32:  # errors fall about geometrically: regula falsi on their logarithms
        share = (math.log(allowed) - low_log) / (high_log - low_log) if high_log < low_log else 0.5
        middle = min(max(low + round(share * (high - low)), low + 1), high - 1)
        trial = reference.error(*jacobi.rule(middle))
        if trial <= allowed:
            high, error, high_log = middle, trial, math.log(max(trial, ROUNDING))
        else:
            low, low_log = middle, math.log(trial)
    return high, error


def place_to_cut(u: Array) -> int:
    """Return the index in the middle of u's range, or behind its widest gap if that is wide."""
    gaps = np.diff(u)
    widest = int(gaps.argmax())
    if gaps[widest] >= WIDE_GAP:
        return widest + 1
    return int(np.clip(np.searchsorted(u, 0.5 * (u[0] + u[-1])), 1, len(u) - 1))


def spectrum_arrays(
    counts: Array, mean: Array | None, zero: tuple[float, float], rtol: float
) -> tuple[Array, Array, Array | None, float]:
    """Return eigenvalues, counts, mean and error reached of the compressed spectrum of two tables of moments.

    `counts` holds the moments of the counts, `mean` those of counts * mean^2, `zero` the sums of both over eigenvalues
    of 0. The mean has nodes of its own, which carry next to no count.
    """
    some = zero[0] > 0.0
    nodes, shares, reached = compressed_table(counts, rtol, CountFamily)
    reached = max(reached, cell_noise(counts))
    eigenvalues, numbers = np.append(np.zeros(int(some)), nodes), np.append(zero[:1] * some, shares)
    if mean is None and zero[1] == 0.0:
        return eigenvalues, numbers, None, reached
    means = np.zeros(len(numbers))
    if some:
        means[0] = math.sqrt(zero[1] / zero[0])
    if mean is None:
        return eigenvalues, numbers, means, reached
    counts_nodes = nodes
    nodes, energies, reached_mean = compressed_table(mean, rtol, MeanFamily)
    carriers = np.maximum(CARRIER * float(numbers.sum()), np.maximum(energies / LARGEST_SQUARE, LEAST_COUNT))
    if len(shares):  # what the carriers themselves add
        x = np.log(np.append(counts_nodes, nodes))
        family = CountFamily(x.min(), x.max())
        reference = Reference(family, np.log(counts_nodes), shares)
        reached = max(reached, SAFETY * reference.error(x, np.append(shares, carriers)))
    return (
        np.append(eigenvalues, nodes),
        np.append(numbers, carriers),
        np.append(means, np.sqrt(energies / carriers)),
        max(reached, reached_mean),
    )


def compressed_table(table: Array, rtol: float, family: type[CountFamily]) -> tuple[Array, Array, float]:
    """Return nodes, weights and error reached for one table of moments."""
    points, weights = cell_points(table)
    if len(points) == 0:
        return points, weights, LEAST_RTOL
    return gauss_nodes(points, weights, rtol, family)
