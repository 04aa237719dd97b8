"""From a tape to what the kernels run: operations on registers, and their coefficients for a block of candidates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fastkl._sampler_base import Sampler, write_tape
from fastkl._sampler_tape import MOST_TERMS, Step, Tape

__all__ = ["Program", "blank", "last_uses"]

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

    def sizes(self) -> Array:
        """Return what the GPU's twin of `roundings` takes beside the coefficients, (M, operations, 4).

        Of each operation the sum of the terms' weights without their signs, f and g of its base, and 1 if it jumps to a
        function value of another point than its base. With noise, the largest size of terms alone, in the first place.
        """
        table = blank(self.tape, 4)
        if self.sampler.stochastic:
            table[:, 0, 0] = self.largest_terms()
            return table
        for i, step in enumerate(self.tape.steps, 1):
            infinite = np.isinf(step.base.level)
            here = np.where(infinite, 1.0, step.base.level)
            weight = sum((np.abs(c) for _, c in step.terms), 0.0 * here)
            table[:, i, 0] = weight if self.tape.kind == "data" else weight * here
            table[:, i, 1] = np.where(infinite, 0.0, 1.0)
            table[:, i, 2] = here * here
            table[:, i, 3] = 0.0 if step.function is step.base else 1.0
        return table

    def largest_terms(self) -> Array:
        """Return the largest sum of a step's weights without their signs, at least 1, (M,)."""
        most = np.ones_like(self.tape.start.level)
        for step in self.tape.steps:
            size = sum((np.abs(weight) for _, weight in step.terms), np.zeros_like(most))
            most = np.maximum(most, size if self.tape.kind == "data" else size / step.point.level)
        return most

    def deviations(self) -> Array:
        """Return what fastkl.kernels.sampler_deviation takes in place of the coefficients, (M, operations, 18)."""
        table = blank(self.tape, 6 + 4 * (MOST_TERMS - 1))
        for i, point in enumerate([self.tape.start, *(step.point for step in self.tape.steps)]):
            table[:, i, 0], table[:, i, 1] = unit_vector(point.level)
        for i, step in enumerate(self.tape.steps, 1):
            fill_deviation(table[:, i], step, self.tape.kind == "noise")
        return table

    def roundings(self, x: Array) -> Array:
        """Return how many roundings of itself the output's error may come to, for eigenvalues x, (M, x.size).

        The result of operation i has one of itself, about m = sqrt(x + s^2), and one of each of its terms, and they
        reach the output with the derivative of it there. With noise, of whose variances none is negative, the terms'
        weights stand for that.
        """
        rows, count = len(self.coefficients), len(self.operations)
        if self.sampler.stochastic:
            most = self.largest_terms()
            return count * most[:, None] * np.ones_like(x)
        total, gain = np.zeros((rows, x.size)), np.ones((rows, x.size))
        points = [self.tape.start, *(step.point for step in self.tape.steps)]
        for i, psi in self.derivatives(x):
            gain = np.abs(psi) * magnitude(points[i].level, x)
            total += gain + (np.abs(psi) * self.term_sizes(i, x) if i > 0 else 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = total / gain
        return np.where(np.isfinite(ratio), np.maximum(ratio, count), count)

    def derivatives(self, x: Array) -> Iterator[tuple[int, Array]]:
        """Yield the operations, the last one first, with the output's derivatives with respect to their states."""
        registers = np.zeros((self.registers, len(self.coefficients), x.size))
        registers[self.operations[-1, 1]] = 1.0
        for i in range(len(self.operations) - 1, -1, -1):
            base, state, value, terms, *read = self.operations[i].tolist()
            row = self.coefficients[:, i]
            psi = registers[state].copy()
            registers[state] = 0.0
            if value >= 0:
                with np.errstate(divide="ignore", invalid="ignore"):
                    psi += registers[value] / (row[:, 1:2] * x + row[:, 2:3])
                registers[value] = 0.0
            yield i, psi
            if i > 0:
                registers[base] += row[:, :1] * psi
                for k in range(terms):
                    registers[read[k]] += (row[:, 5 + k : 6 + k] * x + row[:, 9 + k : 10 + k]) * psi

    def term_sizes(self, i: int, x: Array) -> Array:
        """Return the sum of the terms of operation i without their signs, on the true solution, (M, x.size)."""
        step = self.tape.steps[i - 1]
        m = magnitude(step.base.level, x)
        weight = np.asarray(sum((np.abs(c) for _, c in step.terms), np.zeros(len(self.coefficients))))[
            :, None
        ]
        here = np.where(np.isinf(step.base.level), 1.0, step.base.level)[:, None]
        size = weight * (x if self.tape.kind == "data" else here) / m
        return np.asarray(size + m if step.function is not step.base else size)


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


def blank(tape: Tape, *columns: int) -> Array:
    """Return a table of zeros with rows for all operations: numbers, or objects where the levels are symbols."""
    return np.zeros((tape.levels.shape[0], len(tape.steps) + 1, *columns), dtype=tape.levels.dtype)


def coefficients(tape: Tape) -> Array:
    """Return the coefficients of all operations, (M, operations, 5 + 8)."""
    table = blank(tape, 5 + 2 * MOST_TERMS)
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


def magnitude(level: Array, x: Array) -> Array:
    """Return the true solution sqrt(x + s^2), in units of s where s is inf, (M, x.size)."""
    infinite = np.isinf(level)[:, None]
    return np.where(infinite, 1.0, np.sqrt(x + np.square(np.where(infinite, 0.0, level[:, None]))))


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
