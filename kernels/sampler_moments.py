"""What any sampler does to a Gaussian along one direction: the gain of the first state and the variance of the noises.

A sampler comes as a program (fastkl._sampler_program): operation i makes y_i = a y_base + sum_k (beta_k x + gamma_k)
h_k + w z for an eigenvalue x and then, where it is used, h_i = y_i/(f x + g). Without noise the operations run
forwards. With noise they run backwards, on the derivative of the output with respect to every register: the noise of
operation i reaches the output with w times the derivative at y_i, so one pass gives gain and variance however the
noises mix.

One division for each evaluation of the network is what the arithmetic is bound by. Loops run over LANES eigenvalues
inside and over operations outside, so that the registers stay in the L1 cache.
"""

from __future__ import annotations

from fastkl.kernels.compiling import fma, kernel

__all__ = [
    "BASE",
    "BETA",
    "GAMMA",
    "LANES",
    "READ",
    "STATE",
    "TERMS",
    "VALUE",
    "A",
    "F",
    "G",
    "begin_backwards",
    "forwards",
    "moments",
    "pull_operation",
    "push_operation",
]

LANES = 512
A, F, G, NOISE, SHARED, BETA, GAMMA = 0, 1, 2, 3, 4, 5, 9  # columns of the coefficients
BASE, STATE, VALUE, TERMS, READ = 0, 1, 2, 3, 4  # columns of the operations


@kernel
def combine_1(x, c, y, h0, out):
    """Write the state made from one value; c is the operation's row of coefficients."""
    a, b0, g0 = c[A], c[BETA], c[GAMMA]
    for j in range(x.size):
        out[j] = fma(a, y[j], fma(b0, x[j], g0) * h0[j])


@kernel
def combine_2(x, c, y, h0, h1, out):
    """Write the state made from two values."""
    a, b0, g0, b1, g1 = c[A], c[BETA], c[GAMMA], c[BETA + 1], c[GAMMA + 1]
    for j in range(x.size):
        rest = fma(fma(b0, x[j], g0), h0[j], fma(b1, x[j], g1) * h1[j])
        out[j] = fma(a, y[j], rest)


@kernel
def combine_3(x, c, y, h0, h1, h2, out):
    """Write the state made from three values."""
    a, b0, g0, b1, g1, b2, g2 = c[A], c[BETA], c[GAMMA], c[BETA + 1], c[GAMMA + 1], c[BETA + 2], c[GAMMA + 2]
    for j in range(x.size):
        rest = fma(fma(b1, x[j], g1), h1[j], fma(b2, x[j], g2) * h2[j])
        rest = fma(fma(b0, x[j], g0), h0[j], rest)
        out[j] = fma(a, y[j], rest)


@kernel
def add_value(x, c, k, h, out):
    """Add the share of value number k."""
    b, g = c[BETA + k], c[GAMMA + k]
    for j in range(x.size):
        out[j] = fma(fma(b, x[j], g), h[j], out[j])


@kernel
def evaluate(x, f, g, y, h):
    """Write h = y/(f x + g)."""
    for j in range(x.size):
        h[j] = y[j] / fma(f, x[j], g)


@kernel
def run_operation(x, operation, c, registers):
    """Run one operation but the first."""
    y, out = registers[operation[BASE]], registers[operation[STATE]]
    h0 = registers[operation[READ]]
    if operation[TERMS] == 1:
        combine_1(x, c, y, h0, out)
    elif operation[TERMS] == 2:
        combine_2(x, c, y, h0, registers[operation[READ + 1]], out)
    else:
        combine_3(x, c, y, h0, registers[operation[READ + 1]], registers[operation[READ + 2]], out)
        if operation[TERMS] == 4:
            add_value(x, c, 3, registers[operation[READ + 3]], out)


@kernel
def forwards(x, operations, c, i, registers):
    """Run operation i, with y_0 = 1; the register of its state then holds the gain so far."""
    operation = operations[i]
    if i == 0:
        registers[operation[STATE], : x.size] = 1.0
    else:
        run_operation(x, operation, c[i], registers)
    if operation[VALUE] >= 0:
        evaluate(x, c[i, F], c[i, G], registers[operation[STATE]], registers[operation[VALUE]])


@kernel
def pull(x, f, g, value, state, psi):
    """Move the derivatives with respect to a point's h and y to psi."""
    for j in range(x.size):
        psi[j] = state[j] + value[j] / fma(f, x[j], g)
    value[: x.size] = 0.0
    state[: x.size] = 0.0


@kernel
def push(x, beta, gamma, psi, derivative):
    """Add (beta x + gamma) psi to the derivative with respect to a register."""
    for j in range(x.size):
        derivative[j] = fma(fma(beta, x[j], gamma), psi[j], derivative[j])


@kernel
def add_noise(weight, psi, shared, repeats, noise):
    """Add the variance of one noise, part of which may repeat in the operation after."""
    for j in range(noise.size):
        part = weight * psi[j] + (shared[j] if repeats else 0.0)
        noise[j] = fma(part, part, noise[j])


@kernel
def pull_operation(x, operation, row, registers, psi):
    """Move the derivatives with respect to the operation's point to psi."""
    state = registers[operation[STATE]]
    if operation[VALUE] >= 0:
        pull(x, row[F], row[G], registers[operation[VALUE]], state, psi)
    else:
        psi[: x.size] = state[: x.size]
        state[: x.size] = 0.0


@kernel
def push_operation(x, operation, row, registers, psi, shared, repeats, noise):
    """Pass psi on to what the point was made from; return whether part of its noise is the operation's before."""
    if row[NOISE] != 0.0 or repeats:
        add_noise(row[NOISE], psi, shared, repeats, noise[: x.size])
    if row[SHARED] != 0.0:
        for j in range(x.size):
            shared[j] = row[SHARED] * psi[j]
    push(x, 0.0, row[A], psi, registers[operation[BASE]])
    for k in range(operation[TERMS]):
        push(x, row[BETA + k], row[GAMMA + k], psi, registers[operation[READ + k]])
    return row[SHARED] != 0.0


@kernel
def begin_backwards(x, operations, until, registers, noise):
    """Set all derivatives of the state of operation `until`."""
    registers[:, : x.size] = 0.0
    noise[: x.size] = 0.0
    registers[operations[until, STATE], : x.size] = 1.0


@kernel
def backwards(x, operations, c, until, registers, psi, shared, gain, noise):
    """Write the gain from y_0 to the state of operation `until`, and the variance that the noises give it."""
    begin_backwards(x, operations, until, registers, noise)
    repeats = False
    for i in range(until, 0, -1):
        pull_operation(x, operations[i], c[i], registers, psi)
        repeats = push_operation(x, operations[i], c[i], registers, psi, shared, repeats, noise)
    pull_operation(x, operations[0], c[0], registers, gain)


@kernel
def moments(x, operations, c, stochastic, until, registers, scratch, gain, noise):
    """Write gain and noise variance of the state of operation `until` for at most LANES eigenvalues x.

    operations (operations, 8); c (operations, 13) of one candidate; registers (any, LANES); scratch (2, LANES).
    """
    if stochastic:
        backwards(x, operations, c, until, registers, scratch[0], scratch[1], gain, noise)
        return
    for i in range(until + 1):
        forwards(x, operations, c, i, registers)
    result = registers[operations[until, STATE]]
    for j in range(x.size):
        gain[j] = result[j]
        noise[j] = 0.0
