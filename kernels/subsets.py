"""Every choice of N levels out of T in lexicographic order, evaluated with shared prefixes.

Relative to the true marginal a step from s to s' multiplies the variance along an eigenvalue x by 1/(1 + e),

    e = x ((s - s')/(x + s s'))^2,   and the last step, to 0, by 1/(1 + s^2/x).

The losses prod (1 + e) - 1 of a prefix are kept for each of its lengths, so that a choice that differs from the one
before it in its last level alone costs two factors an eigenvalue. Such choices are neighbours: a block of them is
evaluated at once, eigenvalue by eigenvalue, so that the sums have one order whatever the block.
"""

from __future__ import annotations

import math

import numpy as np

from fastkl.kernels.compiling import entry_point, fma, kernel
from fastkl.kernels.ddim_horner import EXACT, FLOW, JEFFREYS, KL, VE, W2, excess

__all__ = ["best_subsets"]

BLOCK = 128  # choices evaluated together: their arrays stay in the L1 cache


@kernel
def start_terms(first, eigenvalues, weights, energies, prior, metric, start):
    """Write what the first level decides to the rows of start, and return the mean's share that no step changes.

    Rows: 1/r before the first step, that less 1, the weights of r in the mean's share.
    """
    infinite = math.isinf(first)
    square = 1.0 if infinite else first * first
    constant = 0.0
    for j in range(eigenvalues.size):
        x = eigenvalues[j]
        missing = x if prior == EXACT else 0.0 if prior == VE else 1.0 + 2.0 * first if prior == FLOW else 1.0
        if infinite:
            start[0, j], start[1, j], start[2, j] = 1.0, 0.0, 0.0
            continue
        v0 = square + missing
        start[0, j] = (x + square) / v0
        start[1, j] = (x - missing) / v0
        start[2, j] = 0.0
        if metric == W2:
            start[2, j] = energies[j] * x / v0
        elif metric != KL:
            start[2, j] = 0.5 * energies[j] / v0
        if metric in (KL, JEFFREYS):
            constant += 0.5 * energies[j] / v0
    return constant


@kernel
def extended_losses(here, there, eigenvalues, before, after):
    """Write the losses of a prefix with one step more, from `here` to `there`, to after."""
    if math.isinf(here):
        for j in range(eigenvalues.size):
            after[j] = eigenvalues[j] / (there * there)
        return
    for j in range(eigenvalues.size):
        g = (here - there) / (eigenvalues[j] + here * there)
        e = eigenvalues[j] * (g * g)
        after[j] = fma(before[j], e, before[j] + e)


@kernel
def inverse_ratios(here, last_levels, gaps, x, loss, ratio, mismatch, q, z):
    """Write 1/r to q and 1/r - 1 to z for the choices that go from `here` through each of last_levels to 0.

    gaps: here - last_levels, or 1 where `here` is inf.
    """
    infinite = math.isinf(here)
    slope, base = (1.0, 0.0) if infinite else (here, x)
    inverse = 1.0 / x
    for i in range(last_levels.size):
        g = gaps[i] / fma(slope, last_levels[i], base)
        e = x * (g * g)
        t = fma(loss, e, loss + e)
        f = (last_levels[i] * last_levels[i]) * inverse
        t = fma(t, f, t + f)
        above = (1.0 + t) * ratio
        near = fma(t, mismatch, t + mismatch)
        q[i] = above
        z[i] = near if abs(above - 1.0) <= 0.5 else above - 1.0  # far from 1 the difference keeps more digits


@kernel
def add_terms(metric, x, weight, energy, q, z, totals):
    """Add one eigenvalue's terms of a divergence to the totals of all choices."""
    if metric == KL:
        for i in range(totals.size):
            totals[i] += 0.5 * weight * excess(z[i], q[i])
    elif metric == JEFFREYS:
        for i in range(totals.size):
            totals[i] += 0.5 * weight * ((z[i] * z[i]) / q[i])
    elif metric == W2:
        for i in range(totals.size):
            root = math.sqrt(q[i])
            gap = z[i] / (root * (1.0 + root))
            totals[i] += weight * x * (gap * gap)
    else:
        for i in range(totals.size):
            inverse = 1.0 / q[i]
            totals[i] += 0.5 * weight * excess(-z[i] * inverse, inverse)
    if energy > 0.0:
        for i in range(totals.size):
            totals[i] += energy / q[i]


@kernel
def keep_best(totals, constant, rank, values, ranks):
    """Insert the values of consecutive ranks from `rank` on into the ascending list of the best."""
    worst = values.size - 1
    for i in range(totals.size):
        value = totals[i] + constant
        if not value < values[worst]:  # of equal values the one of least rank is there already
            continue
        place = worst
        while place > 0 and value < values[place - 1]:
            values[place], ranks[place] = values[place - 1], ranks[place - 1]
            place -= 1
        values[place], ranks[place] = value, rank + i


@kernel
def advance(path, levels):
    """Make path the next choice of indices below `levels` whose last index is not just one more; return its first
    new place, -1 after the last choice."""
    steps = path.size
    k = steps - 2
    while k >= 0 and path[k] == levels - (steps - k):
        k -= 1
    if k >= 0:
        path[k] += 1
        for i in range(k + 1, steps):
            path[i] = path[i - 1] + 1
    return k


@entry_point
def best_subsets(levels, eigenvalues, weights, energies, prior, metric, first, count, values, ranks):
    """Write the least divergences of `count` choices from `first` on to values, ascending, and their places to ranks.

    levels (T,) falling, the first may be inf; eigenvalues (d,) above 0; weights (d,); energies (d,): weights times the
    squared mean; first (N,): indices of levels, N >= 2, to which 0 is added; values (K,), ranks (K,): places count from
    0 for `first`. Of equal values the first is kept; where fewer than K are finite, inf and -1 fill up.
    """
    steps, size = first.size, eigenvalues.size
    path = first.copy()
    losses, start = np.zeros((steps - 1, size)), np.empty((3, size))
    gaps, q, z, totals = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)
    values[:] = np.inf
    ranks[:] = -1
    constant = 0.0
    done, changed = 0, 0
    while done < count and changed >= 0:
        if changed == 0:
            constant = start_terms(levels[path[0]], eigenvalues, weights, energies, prior, metric, start)
        for k in range(max(changed, 1), steps - 1):
            extended_losses(levels[path[k - 1]], levels[path[k]], eigenvalues, losses[k - 1], losses[k])
        begin, here = path[steps - 1], levels[path[steps - 2]]
        number = min(BLOCK, levels.size - begin, count - done)
        last_levels = levels[begin : begin + number]
        for i in range(number):
            gaps[i] = 1.0 if math.isinf(here) else here - last_levels[i]
            totals[i] = 0.0
        for j in range(size):
            inverse_ratios(
                here, last_levels, gaps, eigenvalues[j], losses[steps - 2, j], start[0, j], start[1, j], q, z
            )
            add_terms(
                metric, eigenvalues[j], weights[j], start[2, j], q[:number], z[:number], totals[:number]
            )
        keep_best(totals[:number], constant, done, values, ranks)
        done += number
        if begin + number < levels.size:
            path[steps - 1] = begin + number
            changed = steps - 1
        else:
            changed = advance(path, levels.size)
