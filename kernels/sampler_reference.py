"""The moments of any sampler in plain vectorised NumPy: the twin of the compiled kernels.

Array operations over (candidates, eigenvalues) for each operation of the program, on blocks of candidates that fit the
cache. Arguments as in fastkl.kernels.sampler_moments, for all candidates: eigenvalues (d,), operations (operations, 8),
coefficients (M, operations, 13), levels (M, N+1).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastkl.kernels.reference import initial_variance

__all__ = ["moments", "output_variance"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

BLOCK = 1 << 15  # elements of a temporary: few enough to stay in the L2 cache


def value_scale(x: Array, row: Array) -> Array:
    """Return 1/(f x + g), (M, d)."""
    return 1.0 / (row[:, 1:2] * x + row[:, 2:3])


def weight(x: Array, row: Array, k: int) -> Array:
    """Return beta_k x + gamma_k, (M, d)."""
    return row[:, 5 + k : 6 + k] * x + row[:, 9 + k : 10 + k]


def gain_forwards(x: Array, operations: Integers, coefficients: Array, until: int) -> Array:
    """Return the gain from y_0 to the state of operation `until`, (M, d)."""
    registers: dict[int, Array] = {}
    for i in range(until + 1):
        _, state, value, terms, *read = operations[i].tolist()
        row = coefficients[:, i]
        y = np.ones((row.shape[0], x.size))
        if i > 0:
            y = row[:, :1] * registers[operations[i, 0]]
            for k in range(terms):
                y += weight(x, row, k) * registers[read[k]]
        registers[state] = y
        if value >= 0:
            registers[value] = y * value_scale(x, row)
    return registers[operations[until, 1]]


def moments(
    x: Array, operations: Integers, coefficients: Array, stochastic: bool, until: int
) -> tuple[Array, Array]:
    """Return the gain from y_0 to the state of operation `until` and the variance of the noises there, (M, d) both."""
    if not stochastic:
        gain = gain_forwards(x, operations, coefficients, until)
        return gain, np.zeros_like(gain)
    shape = (coefficients.shape[0], x.size)
    derivative = {register: np.zeros(shape) for register in range(int(operations[:, 1:3].max()) + 1)}
    noise, shared = np.zeros(shape), np.zeros(shape)
    derivative[operations[until, 1]] = np.ones(shape)
    psi = derivative[operations[until, 1]]
    for i in range(until, -1, -1):
        base, state, value, terms, *read = operations[i].tolist()
        row = coefficients[:, i]
        psi, derivative[state] = derivative[state], np.zeros(shape)
        if value >= 0:
            psi = psi + derivative[value] * value_scale(x, row)
            derivative[value] = np.zeros(shape)
        if i > 0:
            noise += (row[:, 3:4] * psi + shared) ** 2
            shared = row[:, 4:5] * psi
            derivative[base] = derivative[base] + row[:, :1] * psi
            for k in range(terms):
                derivative[read[k]] = derivative[read[k]] + weight(x, row, k) * psi
    return psi, noise


def output_variance(
    x: Array, operations: Integers, coefficients: Array, stochastic: bool, levels: Array, prior: str
) -> Array:
    """Return the variance of y at the last level, (M, d)."""
    out = np.empty((levels.shape[0], x.size))
    rows = max(1, BLOCK // x.size)
    last = operations.shape[0] - 1
    for m in range(0, levels.shape[0], rows):
        part = slice(m, m + rows)
        first = levels[part, :1]
        finite = np.where(np.isinf(first), 0.0, first)
        start = np.where(np.isinf(first), 1.0, initial_variance(x, finite, prior))
        gain, noise = moments(x, operations, coefficients[part], stochastic, last)
        out[part] = gain * gain * start + noise
    return out
