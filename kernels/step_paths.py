r"""Paths with a fixed number of edges under a linearised divergence, for deterministic samplers of two evaluations.

A step from level s to s' multiplies y by ((lambda + A)(lambda + M) + kappa lambda)/((lambda + s^2)(lambda + M)), with A
= s s', M = u^2, u the level of the second evaluation, kappa = c u (s - u) > 0. The numerator is (lambda + p)(lambda +
q) with p q = A M, p + q = A + M + kappa, and its discriminant (A - M)^2 + kappa (2 (A + M) + kappa) is positive: p and
q are real and above 0. With weights w_j a step therefore costs

    c(s, s') = G(log s^2) + G(log s'^2) + 2 G(log M) - 2 G(log p) - 2 G(log q),
    G(x) = sum_j w_j log(1 + exp(x)/lambda_j),

values of one function of one variable, whatever the number of eigenvalues. kappa = 0 is DDIM. G is tabulated with its
first two derivatives and interpolated by polynomials of degree five.

The arrays that describe a problem: kind, the sampler's number; s (T,) falling, the first may be inf (flow_heun); x log
s^2; at (T,) G there; total and shift, the sums of w_j and of w_j log lambda_j; table (K, 3), low, spacing: G, spacing
G', spacing^2 G'' at low + k spacing; reach (T, 2), the first and the last+1 index that a step from a level may go to.
"""

from __future__ import annotations

import math

import numpy as np

from fastkl.kernels.compiling import entry_point, kernel

__all__ = ["advance", "best_path", "fill_edges", "interpolate", "paths_below", "tabulate"]

HEUN, FLOW_HEUN, DPM_2, DPMPP_2S = 0, 1, 2, 3


@entry_point
def tabulate(indices, shares, values, slopes, bends, table):
    """Write G and its derivatives to table (K, 3): sums over nodes of shares[i] * values[k - indices[i] + M - 1].

    The shares (I,) are of nodes whose logarithms are on the table's lattice, numbered by indices (I,) from 0 to M - 1;
    values, slopes and bends (K + M - 1,) are log(1 + exp(z)) and its derivatives. The terms of G are added with
    compensation, so that its rounding error does not grow with their number.
    """
    size = table.shape[0]
    nodes = values.size - size + 1
    total, lost = np.zeros(size), np.zeros(size)
    slope, bend = np.zeros(size), np.zeros(size)
    for i in range(indices.size):
        share, begin = shares[i], nodes - 1 - indices[i]
        for k in range(size):
            term = share * values[begin + k]
            new = total[k] + term
            part = new - total[k]
            lost[k] += (total[k] - (new - part)) + (term - part)
            total[k] = new
        for k in range(size):
            slope[k] += share * slopes[begin + k]
            bend[k] += share * bends[begin + k]
    for k in range(size):
        table[k, 0], table[k, 1], table[k, 2] = total[k] + lost[k], slope[k], bend[k]


@kernel
def interpolated(table, low, spacing, x):
    """Return G(x) from values and two derivatives at the two neighbours."""
    place = (x - low) / spacing
    k = min(max(int(place), 0), table.shape[0] - 2)
    t = place - k
    f0, d0, c0 = table[k, 0], table[k, 1], table[k, 2]
    f1, d1, c1 = table[k + 1, 0], table[k + 1, 1], table[k + 1, 2]
    rise = f1 - f0
    slope = rise - d0 - 0.5 * c0
    turn = d1 - d0 - c0
    bend = c1 - c0
    a3 = 10.0 * slope - 4.0 * turn + 0.5 * bend
    a4 = -15.0 * slope + 7.0 * turn - bend
    a5 = 6.0 * slope - 3.0 * turn + 0.5 * bend
    return f0 + t * (d0 + t * (0.5 * c0 + t * (a3 + t * (a4 + t * a5))))


@entry_point
def interpolate(table, low, spacing, x, values):
    """Write G(x) to values; 0 where x is inf."""
    for i in range(x.size):
        values[i] = 0.0 if math.isinf(x[i]) else interpolated(table, low, spacing, x[i])


@kernel
def excess(kind, here, there):
    """Return kappa of a step between finite levels above 0."""
    gap = here - there
    if kind == HEUN:
        return 0.5 * gap * gap
    if kind == FLOW_HEUN:
        return 0.5 * gap * gap * (1.0 + there) / (1.0 + here)
    root, other = math.sqrt(here), math.sqrt(there)
    return gap * gap * (root if kind == DPM_2 else other) / (root + other)


@kernel
def from_infinity(there, x, at, total, shift, table, low, spacing):
    """Return the cost of flow_heun's step from inf: the limit of the others, less what grows with the first level."""
    factor = 3.0 * there + 1.0
    p = 3.0 * (0.5 * x) + math.log(2.0 / factor)
    loss = 3.0 * at - 2.0 * interpolated(table, low, spacing, p)
    return (loss - 2.0 * total * math.log(0.5 * factor)) + shift


@kernel
def edge(kind, s, x, at, total, shift, table, low, spacing, a, b):
    """Return the cost of the step from level a to level b."""
    here, there = s[a], s[b]
    if math.isinf(here):
        return from_infinity(there, x[b], at[b], total, shift, table, low, spacing)
    across = here * there
    cross = 0.5 * (x[a] + x[b])
    if kind <= FLOW_HEUN:
        square, place, second = there * there, x[b], at[b]
    else:
        square, place = across, cross
        second = interpolated(table, low, spacing, cross)
    kappa = excess(kind, here, there)
    gap = across - square
    root = math.sqrt(gap * gap + kappa * (2.0 * (across + square) + kappa))
    q = math.log(0.5 * (across + square + kappa + root))
    p = (cross + place) - q
    factors = interpolated(table, low, spacing, p) + interpolated(table, low, spacing, q)
    return ((at[a] + at[b]) + 2.0 * second) - 2.0 * factors


@entry_point
def fill_edges(kind, s, x, at, total, shift, table, low, spacing, reach, first, edges):
    """Write the costs of the steps from levels first + i to edges[i], (rows, T)."""
    for i in range(edges.shape[0]):
        a = first + i
        for b in range(reach[a, 0], reach[a, 1]):
            edges[i, b] = edge(kind, s, x, at, total, shift, table, low, spacing, a, b)


@entry_point
def advance(edges, first, reach, low, high, last, costs):
    """Write the least cost from level a to 0 in k + 1 steps to costs[a, k], (T, N); inf where there is no path.

    For the rows from `first` on that `edges` holds; those below them are there already. The level at place p of a path
    must be at least low[p] and below high[p].
    """
    steps = costs.shape[1]
    for i in range(edges.shape[0] - 1, -1, -1):
        a = first + i
        mine = costs[a]
        mine[:] = np.inf
        mine[0] = last[a]
        for b in range(reach[a, 0], reach[a, 1]):
            cost = edges[i, b]
            theirs = costs[b]
            for k in range(1, steps):
                trial = cost + theirs[k - 1]
                mine[k] = trial if trial < mine[k] else mine[k]
        for k in range(steps):
            if a < low[steps - 1 - k] or a >= high[steps - 1 - k]:
                mine[k] = np.inf


@entry_point
def best_path(kind, s, x, at, total, shift, table, low, spacing, reach, costs, start, path):
    """Write the levels of the best path from `start` in path.size steps to path."""
    path[0] = start
    for k in range(1, path.size):
        a, left = path[k - 1], path.size - 1 - k
        best = np.inf
        for b in range(reach[a, 0], reach[a, 1]):
            cost = edge(kind, s, x, at, total, shift, table, low, spacing, a, b) + costs[b, left]
            if cost < best:
                best = cost
                path[k] = b


@entry_point
def paths_below(
    kind, s, x, at, total, shift, table, low, spacing, reach, costs, start, threshold, most, paths
):
    """Write every path from `start` whose cost is at most `threshold` to paths (P, N).

    Return how many there are, -1 if there are more than P, -2 if more than `most` steps had to be looked at. The costs
    to go leave out a step as soon as no continuation of it stays below the threshold.
    """
    steps = paths.shape[1]
    path = np.empty(steps, dtype=np.int64)
    spent = np.empty(steps)
    path[0], spent[0] = start, 0.0
    found, looked = 0, 0
    if not costs[start, steps - 1] <= threshold:
        return 0
    if steps == 1:
        paths[0, 0] = start
        return 1
    depth = 1
    path[1] = reach[start, 0] - 1
    while depth > 0:
        path[depth] += 1
        a, b = path[depth - 1], path[depth]
        if b >= reach[a, 1]:
            depth -= 1
            continue
        looked += 1
        if looked > most:
            return -2
        spent[depth] = spent[depth - 1] + edge(kind, s, x, at, total, shift, table, low, spacing, a, b)
        if not spent[depth] + costs[b, steps - 1 - depth] <= threshold:
            continue
        if depth == steps - 1:
            if found == paths.shape[0]:
                return -1
            paths[found] = path
            found += 1
        else:
            depth += 1
            path[depth] = reach[b, 0] - 1
    return found
