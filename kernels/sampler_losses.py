"""Samplers with noise where the fast kernel loses digits: the output's variance from what each step loses.

The tables and the formula are those of fastkl._sampler_losses: the output's variance is that of the true marginal
plus a sum over steps, of terms that are as small as what the steps lose.
"""

from __future__ import annotations

import math

import numpy as np

from fastkl.kernels.compiling import entry_point, kernel
from fastkl.kernels.ddim_horner import TILE, sum_tile
from fastkl.kernels.sampler_deviation import mismatch
from fastkl.kernels.sampler_moments import (
    BETA,
    GAMMA,
    LANES,
    A,
    F,
    G,
    begin_backwards,
    pull_operation,
    push_operation,
)
from fastkl.kernels.sampler_sums import add_mean, ratios, terms_of

__all__ = ["loss_sums"]

POINT, LIVE_STATE, LIVE_VALUE, PLACE = 0, 1, 2, 3  # columns of the partners


@kernel
def defect(x, c, reads, row, out):
    """Write X_ti for one partner; c are the coefficients of all operations."""
    b = reads[0]
    for j in range(x.size):
        out[j] = row[0] * x[j] / (c[b, F] * x[j] + c[b, G])
    for k in range(1, reads.size):
        p = reads[k]
        if p < 0:
            break
        n2, n1, n0 = row[3 * k - 2], row[3 * k - 1], row[3 * k]
        for j in range(x.size):
            top = (n2 * x[j] + n1) * x[j] + n0
            out[j] += top / ((c[p, F] * x[j] + c[p, G]) * (c[b, F] * x[j] + c[b, G]))


@kernel
def add_loss(x, row, c, reads, partners, defects, extras, registers, psi, out, loss):
    """Add one operation's share to the loss; row are its own coefficients, `out` is scratch."""
    for i in range(partners.shape[0]):
        point = partners[i, POINT]
        if point < 0:
            break
        defect(x, c, reads, defects[i], out)
        f, g = c[point, F], c[point, G]
        place, state, value = partners[i, PLACE], partners[i, LIVE_STATE], partners[i, LIVE_VALUE]
        for j in range(x.size):
            share = 0.0
            if i == 0:
                share = psi[j]
                out[j] += extras[0]
                if extras[1] != 0.0:  # the repeated noise is in the state whose value is read second
                    p = reads[1]
                    weight = (row[BETA + 1] * x[j] + row[GAMMA + 1]) / (c[p, F] * x[j] + c[p, G])
                    out[j] += weight * extras[1]
            if place >= 0:
                weight = (row[BETA + place] * x[j] + row[GAMMA + place]) / (f * x[j] + g)
                share += psi[j] * (weight + (row[A] if place == 0 else 0.0))
            if state >= 0:
                share += 2.0 * registers[state, j]
            if value >= 0:
                share += 2.0 * registers[value, j] / (f * x[j] + g)
            loss[j] += psi[j] * share * out[j]


@kernel
def losses(x, levels, prior, operations, c, tables, registers, scratch, gain, noise, r, z):
    """Write gain, noise, r and z = r - 1 of the output."""
    partners, reads, defects, extras = tables
    psi, shared, out, loss = scratch[0], scratch[1], scratch[2], scratch[3]
    until = operations.shape[0] - 1
    begin_backwards(x, operations, until, registers, noise)
    loss[: x.size] = 0.0
    repeats = False
    for i in range(until, 0, -1):
        pull_operation(x, operations[i], c[i], registers, psi)
        add_loss(x, c[i], c, reads[i], partners[i], defects[i], extras[i], registers, psi, out, loss)
        repeats = push_operation(x, operations[i], c[i], registers, psi, shared, repeats, noise)
    pull_operation(x, operations[0], c[0], registers, gain)
    ratios(x, levels, prior, gain, noise, r, z)
    first, last = levels[0], levels[levels.size - 1]
    for j in range(x.size):
        start = 1.0 if math.isinf(first) else x[j] + first * first
        target = x[j] + last * last
        precise = (loss[j] + gain[j] * gain[j] * mismatch(x[j], first, prior) * start) / target
        if abs(precise) < 0.5:
            z[j] = precise
            r[j] = 1.0 + precise


@entry_point
def loss_sums(
    eigenvalues, weights, mean, levels, prior, metric, operations, coefficients, registers, partners, reads,
    defects, extras, candidates, tiles, i0, i1, out,
):  # fmt: skip
    """Write to out[i] the divergence of candidate candidates[i] summed over tile tiles[i], for i0 <= i < i1."""
    bank, scratch = np.empty((registers, LANES)), np.empty((4, LANES))
    gain, noise, r, z = np.empty(LANES), np.empty(LANES), np.empty(LANES), np.empty(LANES)
    terms = np.empty(TILE)
    for i in range(i0, i1):
        m = candidates[i]
        begin = tiles[i] * TILE
        end = min(begin + TILE, eigenvalues.size)
        shift = 0 if weights.size == eigenvalues.size else begin
        tables = partners, reads, defects[m], extras[m]
        for k in range(begin, end, LANES):
            stop = min(k + LANES, end)
            x, w, part = (
                eigenvalues[k:stop],
                weights[k - shift : stop - shift],
                terms[k - begin : stop - begin],
            )
            losses(x, levels[m], prior, operations, coefficients[m], tables, bank, scratch, gain, noise, r, z)
            terms_of(x, w, levels[m], metric, r, z, part)
            if mean.size > 0 and not math.isinf(levels[m, 0]):
                add_mean(x, w, mean[k:stop], levels[m], metric, gain, r, part)
        out[i] = sum_tile(terms, end - begin)
