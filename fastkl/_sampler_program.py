"""From a tape to what the kernels run: operations on registers, and their coefficients for a block of candidates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastkl._sampler_base import Sampler, write_tape
from fastkl._sampler_tape import MOST_TERMS, Step, Tape

__all__ = ["Program", "last_uses"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]


class Program:
    """A sampler on candidates `levels` (M, N+1) that all end at 0 or all above.

    A register holds the state y of a point or its h = y/(lam + s^2), of which D = lam h and e = s h. Operation i
    makes point i: y_i = a y_base + sum_k (beta_k lam + gamma_k) h_k + noise, then h_i if it is used; operation 0 is
    the start.
    """

    def __init__(self, sampler: Sampler, levels: Array) -> None:
        self.sampler = sampler
        self.tape, points = write_tape(sampler, levels)
        self.grid: Integers = np.array([point.index for point in points], dtype=np.int64)
        # (operations, 8): base's register, the new state's, the new h's or -1, number of h's, their registers
        self.operations, self.registers = allocate(self.tape)
        # (M, operations, 13): a; f, g of h = y/(f lam + g); weights of noise; 4 beta; 4 gamma
        self.coefficients = coefficients(self.tape)

    def deviations(self) -> Array:
        """Return what fastkl.kernels.sampler_deviation takes in place of the coefficients, (M, operations, 18)."""
        table = np.zeros((self.tape.levels.shape[0], len(self.tape.steps) + 1, 6 + 4 * (MOST_TERMS - 1)))
        for i, point in enumerate([self.tape.start, *(step.point for step in self.tape.steps)]):
            table[:, i, 0], table[:, i, 1] = unit_vector(point.level)
        for i, step in enumerate(self.tape.steps, 1):
            fill_deviation(table[:, i], step, self.tape.kind == "noise")
        return table

    def amplification(self) -> tuple[Array, Array]:
        """Return how far rounding errors may exceed those of a product: at most, (M,), and, times lambda, (M,).

        In the noise form the differences of e add up to terms of size c s/(lam + s s') times the result: on a last step
        to level 0 that is c s/lam, the second array. And the recursion itself may let errors grow.
        """
        noise_form = self.tape.kind == "noise"
        most = np.ones(self.tape.levels.shape[0])
        last = np.zeros_like(most)
        for step in self.tape.steps:
            size = np.asarray(sum((np.abs(weight) for _, weight in step.terms), np.zeros_like(most)))
            if step.function is not step.base:
                size = size + (step.base.level if noise_form else 1.0)
            if not noise_form:
                most = np.maximum(most, size)
            elif step.point.level[0] > 0.0:
                most = np.maximum(most, size / step.point.level)
            else:
                last = np.maximum(last, size * step.base.level)
        return (np.maximum(most, self.growth()) if noise_form else most), last

    def growth(self) -> Array:
        """Return how far a relative error of a state may grow until the last level above 0, for lambda = 0, (M,).

        There the true solution is y = s, whatever the step, and the derivatives of a state are numbers.
        """
        target = int(self.grid[-2 if self.tape.to_zero else -1])
        derivatives = np.zeros((self.registers, self.tape.levels.shape[0]))
        derivatives[self.operations[target, 1]] = 1.0
        levels = [self.tape.start.level, *(step.point.level for step in self.tape.steps)]
        largest = np.zeros_like(levels[0])
        for i in range(target, 0, -1):
            base, state, value, terms, *read = self.operations[i].tolist()
            row = self.coefficients[:, i]
            psi = derivatives[state].copy()
            derivatives[state] = 0.0
            if value >= 0:
                psi += derivatives[value] / row[:, 2]
                derivatives[value] = 0.0
            largest = np.maximum(largest, np.abs(psi) * levels[i])
            derivatives[base] += row[:, 0] * psi
            for k in range(terms):
                derivatives[read[k]] += row[:, 9 + k] * psi
        return largest / levels[target]


def last_uses(steps: Sequence[Step], count: int) -> tuple[list[int], list[int]]:
    """Return, for each point, the last operation that reads its state and the last that reads its h (-1: none)."""
    states, values = [-1] * count, [-1] * count
    for step in steps:
        states[step.base.index] = step.point.index
        for point in (step.function, *(point for point, _ in step.terms)):
            values[point.index] = step.point.index
    return states, values


def allocate(tape: Tape) -> tuple[Integers, int]:
    """Assign registers; a result never shares one with what it is made from, so that loops can be vectorised."""
    count = len(tape.steps) + 1
    last_state, last_value = last_uses(tape.steps, count)
    operations = np.full((count, 4 + MOST_TERMS), -1, dtype=np.int64)
    free: list[int] = []
    busy: dict[int, int] = {}  # register: the operation after which it is free
    used = 0
    for i in range(count):
        until = [max(last_state[i], i)] + ([last_value[i]] if last_value[i] >= 0 else [])
        for k, last in enumerate(until):
            if not free:
                free.append(used)
                used += 1
            operations[i, 1 + k] = free.pop()
            busy[int(operations[i, 1 + k])] = last
        operations[i, 3] = 0
        if i > 0:
            step = tape.steps[i - 1]
            read = [step.function.index, *(point.index for point, _ in step.terms)]
            operations[i, 0] = operations[step.base.index, 1]
            operations[i, 3] = len(read)
            operations[i, 4 : 4 + len(read)] = operations[read, 2]
        done = [register for register, last in busy.items() if last == i]
        free += done
        for register in done:
            del busy[register]
    return operations, used


def coefficients(tape: Tape) -> Array:
    """Return the coefficients of all operations, (M, operations, 5 + 8)."""
    table = np.zeros((tape.levels.shape[0], len(tape.steps) + 1, 5 + 2 * MOST_TERMS))
    for i, point in enumerate([tape.start, *(step.point for step in tape.steps)]):
        infinite = np.isinf(point.level)
        table[:, i, 1] = np.where(infinite, 0.0, 1.0)
        table[:, i, 2] = np.where(infinite, 1.0, point.level * point.level)
    for i, step in enumerate(tape.steps, 1):
        fill(table[:, i], step, tape.kind == "noise")
    return table


def fill(row: Array, step: Step, noise_form: bool) -> None:
    """Write the coefficients of one step to row (M, 13); at an infinite level h stands for e and D is 0."""
    infinite = np.isinf(step.base.level)
    here = np.where(infinite, 1.0, step.base.level)
    kept = step.keep / here
    row[:, 0] = kept
    beta, gamma = row[:, 5 : 5 + MOST_TERMS], row[:, 5 + MOST_TERMS :]
    beta[:, 0] = np.where(infinite, 0.0, step.rest)
    if step.function is not step.base and noise_form:
        row[:, 0] = 1.0
        beta[:, 0] += kept - 1.0
        gamma[:, 0] += (kept - 1.0) * here * here
    for k, (point, weight) in enumerate(step.terms, 1):
        if noise_form:
            gamma[:, 0] -= weight * here
            gamma[:, k] = weight * np.where(np.isinf(point.level), 1.0, point.level)
        else:
            beta[:, 0] -= np.where(infinite, 0.0, weight)
            beta[:, k] = np.where(np.isinf(point.level), 0.0, weight)
    if step.noise is not None:
        row[:, 3] = step.noise
    if step.shared is not None:
        row[:, 4] = step.shared


def unit_vector(level: Array) -> tuple[Array, Array]:
    """Return alpha and sigma with alpha^2 + sigma^2 = 1 and sigma/alpha = level."""
    infinite = np.isinf(level)
    alpha = np.where(infinite, 0.0, 1.0 / np.hypot(1.0, level))
    return alpha, np.where(infinite, 1.0, np.where(infinite, 0.0, level) * alpha)


def area(high: Array, low: Array) -> Array:
    """Return alpha_low sigma_high - alpha_high sigma_low for two levels, without cancellation."""
    first, second = unit_vector(high)[0], unit_vector(low)[0]
    gap = np.where(np.isinf(high), 0.0, high) - np.where(np.isinf(low), 0.0, low)
    return np.where(np.isinf(high), second, np.where(np.isinf(low), -first, first * second * gap))


def fill_deviation(row: Array, step: Step, noise_form: bool) -> None:
    """Write the coefficients of one step to row (M, 18)."""
    here, there = step.function.level, step.point.level
    alpha, sigma = unit_vector(there)
    alpha_b, sigma_b = unit_vector(here)
    row[:, 2], row[:, 3] = alpha_b, sigma_b
    row[:, 4] = area(here, there)
    if step.function is not step.base:
        row[:, 5] = alpha / alpha_b if noise_form else sigma / sigma_b
    for k, (point, weight) in enumerate(step.terms):
        alpha_j, sigma_j = unit_vector(point.level)
        row[:, 6 + k] = weight * alpha
        row[:, 9 + k], row[:, 12 + k] = alpha_j, sigma_j
        row[:, 15 + k] = area(point.level, here) * (alpha_b * sigma_j + alpha_j * sigma_b)
