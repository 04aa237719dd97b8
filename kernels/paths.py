"""Paths with a fixed number of edges through a grid of noise levels, under a linearised divergence.

With weights p_j the loss of a step from level a to level b is, summed over the eigenvalues,

    c(a, b) = sum_j p_j S_j(a, b) = G(x_a) + G(x_b) - 2 G((x_a + x_b)/2),   G(x) = sum_j p_j log(lambda_j + exp(x)),

x = log s^2: the second difference of one function of one variable, which is interpolated by polynomials of degree
seven. A path starts at a grid level and ends at 0.

The arrays that describe a problem: x (T,) falling, the first may be inf; at (T,) G there, for an infinite level what
the step from it to each b costs is G(x_b) - total x_b; last (T,) the cost of the step to 0; reach (T, 2) the first and
the last+1 index that a step from a level may go to; pieces (K, 8), low, density: the coefficients of G between
low + k/density and low + (k+1)/density, as a polynomial of the place within the interval, from 0 to 1.
"""

from __future__ import annotations

import math

import numpy as np

from fastkl.kernels.compiling import entry_point, kernel

__all__ = ["best_path", "costs_to_go", "costs_to_go_monge", "paths_below"]


@kernel
def interpolated(pieces, low, density, x):
    """Return G(x)."""
    place = (x - low) * density
    k = min(max(int(place), 0), pieces.shape[0] - 1)
    t = place - k
    c = pieces[k]
    return c[0] + t * (c[1] + t * (c[2] + t * (c[3] + t * (c[4] + t * (c[5] + t * (c[6] + t * c[7]))))))


@kernel
def edge(x, at, total, pieces, low, density, a, b):
    """Return the cost of the step from level a to level b."""
    if math.isinf(x[a]):
        return at[b] - total * x[b]
    return (at[a] + at[b]) - 2.0 * interpolated(pieces, low, density, 0.5 * (x[a] + x[b]))


@entry_point
def costs_to_go(x, at, total, last, reach, pieces, low, density, costs):
    """Write the least cost from level a to 0 in k + 1 steps to costs[a, k], (T, N); inf where there is no path."""
    steps = costs.shape[1]
    for a in range(x.size - 1, -1, -1):
        mine = costs[a]
        mine[:] = np.inf
        mine[0] = last[a]
        for b in range(reach[a, 0], reach[a, 1]):
            cost = edge(x, at, total, pieces, low, density, a, b)
            theirs = costs[b]
            for k in range(1, steps):
                mine[k] = min(mine[k], cost + theirs[k - 1])


@entry_point
def costs_to_go_monge(x, at, total, last, reach, pieces, low, density, costs):
    """Do the same in O(N T log T) steps where no weight is negative: then the best next level moves with the level.

    Rows are halved: the best next level of the middle row bounds those of the rows on either side.
    """
    levels, steps = x.size, costs.shape[1]
    before, here = np.empty(levels), np.empty(levels)
    stack = np.empty((128, 4), dtype=np.int64)
    for a in range(levels):
        before[a] = last[a]
        costs[a, 0] = last[a]
    for k in range(1, steps):
        here[:] = np.inf
        stack[0] = 0, levels, 0, levels
        top = 1
        while top > 0:
            top -= 1
            a0, a1, b0, b1 = stack[top]
            if a0 >= a1:
                continue
            middle = (a0 + a1) // 2
            best, place = np.inf, -1
            for b in range(max(b0, reach[middle, 0]), min(b1, reach[middle, 1])):
                cost = edge(x, at, total, pieces, low, density, middle, b) + before[b]
                if cost < best:
                    best, place = cost, b
            here[middle] = best
            split = place if place >= 0 else b0
            limit = place + 1 if place >= 0 else b1
            stack[top] = a0, middle, b0, limit
            stack[top + 1] = middle + 1, a1, split, b1
            top += 2
        for a in range(levels):
            costs[a, k] = here[a]
            before[a] = here[a]


@entry_point
def best_path(x, at, total, reach, pieces, low, density, costs, start, path):
    """Write the levels of the best path from `start` in path.size steps to path."""
    path[0] = start
    for k in range(1, path.size):
        left = path.size - 1 - k
        best = np.inf
        for b in range(reach[path[k - 1], 0], reach[path[k - 1], 1]):
            cost = edge(x, at, total, pieces, low, density, path[k - 1], b) + costs[b, left]
            if cost < best:
                best = cost
                path[k] = b


@entry_point
def paths_below(x, at, total, reach, pieces, low, density, costs, start, threshold, most, paths):
    """Write every path from `start` whose cost is at most `threshold` to paths (P, N).

    Return how many there are, -1 if there are more than P, -2 if more than `most` steps had to be looked at. The costs
    to go leave out a step as soon as no continuation of it stays below the threshold.
    """
    steps = paths.shape[1]
    path = np.empty(steps, dtype=np.int64)
    spent = np.empty(steps)
    path[0], spent[0] = start, 0.0
    found, looked = 0, 0
    if costs[start, steps - 1] > threshold:
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
        spent[depth] = spent[depth - 1] + edge(x, at, total, pieces, low, density, a, b)
        if spent[depth] + costs[b, steps - 1 - depth] > threshold:
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
