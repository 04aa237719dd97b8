"""What the precise kernel for samplers with noise needs: covariances of reference, and each step's defect against them.

The covariance of two points i and j is taken to be lam + tau_ij, tau a number of the levels alone: y = x_0 + n, where
n has variance s^2 at a level s, follows n' = a n + w z from point to point, and the data x_0 are the same everywhere.
A step from b keeps to this but for

    X_ti = lam (1-a)(tau_bi - s_b^2)/(lam + s_b^2) + sum_j c_j (Cov(f_j, y_i) - Cov(f_b, y_i)),

the defect of its covariance with an earlier point i, or of its variance (i = t, plus the noise's excess), each
difference of covariances a quotient of polynomials in lam whose coefficients, below, have no cancellation but that of
levels. With the derivatives psi of the output, its variance is that of the true marginal plus the sum over steps of

    psi_t^2 (X_tt + sum_j beta_j X_tj) + 2 psi_t sum_i psi_i X_ti.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastkl._sampler_program import Program, blank, last_uses
from fastkl._sampler_tape import Point, Step

__all__ = ["LossTable"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

TERMS = 2  # terms beyond the base that a step with noise has at most


class LossTable:
    """Tables for fastkl.kernels.sampler_losses.

    `partners` (operations, K, 4): for each operation t the points i that X_ti is needed for, t first: the point, its
    state's and its value's register if they are used after t (else -1), and its place among the values that t reads
    (-1: none); a point of -1 ends the list. `reads` (operations, 1 + TERMS): the points whose values t reads.
    `defects` (M, operations, K, 1 + 3 TERMS): of each X_ti the factor of lam/(lam + s_b^2), and of each term the
    coefficients of lam^2, lam and 1. `extras` (M, operations, 2): excess of the noise, covariance that a repeated
    noise has.
    """

    def __init__(self, program: Program) -> None:
        self.tape, self.operations = program.tape, program.operations
        count = self.operations.shape[0]
        states, values = last_uses(self.tape.steps, count)
        lists = [self.partners_of(t, states, values) for t in range(count)]
        width = max(map(len, lists))
        self.partners: Integers = np.full((count, width, 4), -1, dtype=np.int64)
        self.reads: Integers = np.full((count, 1 + TERMS), -1, dtype=np.int64)
        self.defects = blank(self.tape, width, 1 + 3 * TERMS)
        self.extras = blank(self.tape, 2)
        self._tau: dict[tuple[int, int], Array] = {(0, 0): squared(self.tape.start.level)}
        self._points = [self.tape.start, *(step.point for step in self.tape.steps)]
        for t in range(1, count):
            self.partners[t, : len(lists[t])] = lists[t]
            self.fill(self.tape.steps[t - 1], [row[0] for row in lists[t]])

    def partners_of(self, t: int, states: list[int], values: list[int]) -> list[tuple[int, int, int, int]]:
        """Return the rows of `partners` for operation t."""
        if t == 0:
            return [(0, -1, -1, -1)]
        step = self.tape.steps[t - 1]
        read = [step.function.index, *(point.index for point, _ in step.terms)]
        rows = [(t, -1, -1, -1)]
        for p in range(max(0, t - 8), t):  # no sampler reaches further back
            if max(states[p], values[p]) >= t:
                state = int(self.operations[p, 1]) if states[p] > t else -1
                value = int(self.operations[p, 2]) if values[p] > t else -1
                rows.append((p, state, value, read.index(p) if p in read else -1))
        return rows

    def tau(self, i: int, j: int) -> Array:
        """Return the covariance of the noises of two points."""
        return self._tau[max(i, j), min(i, j)]

    def fill(self, step: Step, partners: list[int]) -> None:
        """Extend tau to a new point and write its defects."""
        t, base = step.point.index, step.base
        here = finite(base.level)
        infinite = np.isinf(base.level)
        kept = np.where(infinite, 0.0, step.keep / np.where(infinite, 1.0, here))
        self._tau[t, t] = squared(step.point.level)
        for i in partners[1:]:
            self._tau[t, i] = kept * self.tau(base.index, i)
        if step.shared is not None:
            previous = self.tape.steps[t - 2]
            assert previous.noise is not None
            self.extras[:, t, 1] = step.shared * previous.noise
            self._tau[t, t - 1] = self._tau[t, t - 1] + self.extras[:, t, 1]
        self.reads[t, 0] = step.function.index
        for k, (point, _) in enumerate(step.terms, 1):
            self.reads[t, k] = point.index
        if step.excess is not None:
            self.extras[:, t, 0] = step.excess
        for k, i in enumerate(partners):
            row = self.defects[:, t, k]
            # tau_bt = a s_b^2 makes the first factor -(1-a)^2 s_b^2
            row[:, 0] = -step.rest * step.rest * np.where(infinite, 1.0, here * here)
            if i != t:
                row[:, 0] = step.rest * (self.tau(base.index, i) - here * here)
            for n, (point, weight) in enumerate(step.terms):
                for c, part in enumerate(self.difference(base, point, i)):
                    row[:, 1 + 3 * n + c] = part * finite(weight)

    def difference(self, b: Point, j: Point, i: int) -> tuple[Array, Array, Array]:
        """Return the coefficients of lam^2, lam, 1 of (lam+s_j^2)(lam+s_b^2)(Cov(f_j, y_i) - Cov(f_b, y_i))."""
        near, far = finite(b.level), finite(j.level)
        of_b, of_j = self.tau(b.index, i), self.tau(j.index, i)
        gap = far - near
        if self.tape.kind == "data":
            first = (of_j - of_b) - gap * (far + near)
            return first, of_j * near * near - of_b * far * far, np.zeros_like(gap)
        middle = (far * of_j - near * of_b) - far * near * gap
        return gap, middle, far * near * (of_j * near - of_b * far)


def finite(values: Array) -> Array:
    """Return values with 0 for inf: an infinite level has no share in what follows."""
    return np.where(np.isfinite(values), values, 0.0)


def squared(level: Array) -> Array:
    """Return the square, with 0 for inf."""
    return np.square(finite(level))
