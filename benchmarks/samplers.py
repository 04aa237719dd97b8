"""Rates of every kind of sampler against vectorised NumPy, and against the division rate of the machine.

What one evaluation of the network costs a kernel, for one eigenvalue (an eigenvalue-evaluation), at the least:

- without noise, y' = a y + sum_k (beta_k x + gamma_k) h_k over n values and h' = y'/(x + s^2): 1 division, 2 n + 2
  multiply-adds;
- with noise, backwards, psi = state + h/(x + s^2), psi^2, a psi and n times (beta_k x + gamma_k) psi: 1 division,
  2 n + 5 multiply-adds;

and once for each eigenvalue the terms of `kl`: r, 1/r and a logarithm, 4 divisions and about 25 multiply-adds. A
division costs as much as 4 to 10 multiply-adds, and n is 1 to 4, so the floor written down is that of the divisions:
one for each evaluation and four for each output. The machine's rate of divisions is measured in the same rounds by a
loop that does nothing else. NumPy runs the same program over arrays (fastkl.kernels.sampler_reference); all are timed
one after the other.

Run as `python benchmarks/samplers.py`; writes benchmarks/results/samplers.json.
"""

from __future__ import annotations

import json
import statistics
import threading
import time

import machine
import numpy as np
from numba import njit
from side_by_side import RESULTS, candidates, seconds, spectrum

import fastkl
from fastkl import samplers
from fastkl._sampler_program import Program
from fastkl.kernels import sampler_reference

EIGENVALUES, CANDIDATES, STEPS, ROUNDS = 10**6, 8, 10, 7
OUTPUT_DIVISIONS = 4
# One of each kind of recursion.
KINDS = ("heun", "dpmpp_2m", "dpmpp_3m", "dpm_2m", "deis_3", "unipc_3", "singlestep_3", "prk", "euler_ancestral",
         "dpmpp_sde", "sde_dpmpp_2m", "sde_singlestep_3")  # fmt: skip


@njit(nogil=True, error_model="numpy")
def divide(x, a, repeats):
    """A division for every element, `repeats` times over."""
    for k in range(repeats):
        for j in range(x.size):
            a[j] = 1.5 / (x[j] + k)


def division_rate(threads: int, repeats: int = 60_000, size: int = 512, rounds: int = 2) -> float:
    """Divisions a second on `threads` threads at once, the best of some rounds."""
    best = 0.0
    divide(np.ones(8), np.ones(8), 1)
    for _ in range(rounds):
        arrays = [(np.linspace(0.1, 0.6, size), np.empty(size)) for _ in range(threads)]
        workers = [threading.Thread(target=divide, args=(*array, repeats)) for array in arrays]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, threads * repeats * size / (time.perf_counter() - start))
    return best


def numpy_seconds(name: str, values: np.ndarray, levels: np.ndarray) -> float:
    """Seconds that NumPy takes for the variances and `kl` of one candidate, coefficients apart."""
    sampler = samplers.get(name)
    program = Program(sampler, levels[:1])
    target = values + levels[0, -1] ** 2

    def run() -> float:
        variance = sampler_reference.output_variance(
            values, program.operations, program.coefficients, sampler.stochastic, levels[:1], "vp"
        )
        r = variance / target
        return float(0.5 * (1.0 / r - 1.0 + np.log(r)).sum())

    return seconds(run)


def row(name: str, threads: int) -> dict[str, object]:
    """Medians over rounds for one sampler."""
    values, levels = spectrum(EIGENVALUES), candidates(CANDIDATES, STEPS)
    data, nfe = fastkl.Spectrum(values), samplers.nfe(name, STEPS)
    fastkl.divergence(data, levels[:1], sampler=name, num_threads=threads)
    evaluations = EIGENVALUES * CANDIDATES * nfe
    divisions = EIGENVALUES * CANDIDATES * (nfe + OUTPUT_DIVISIONS)
    rounds = []
    for _ in range(ROUNDS):
        peak = division_rate(threads)
        ours = seconds(lambda: fastkl.divergence(data, levels, sampler=name, num_threads=threads))
        rival = numpy_seconds(name, values, levels) * CANDIDATES
        rounds.append((evaluations / ours, divisions / ours / peak, rival / ours, peak))
    rate, share, times, peak = (statistics.median(column) for column in zip(*rounds, strict=True))
    return {
        "sampler": name, "nfe": nfe, "threads": threads, "eigenvalue_evaluations_per_s": rate,
        "share_of_division_rate": share, "times_numpy": times, "divisions_per_s": peak,
    }  # fmt: skip


def precise_rate(name: str) -> float:
    """Eigenvalue-evaluations a second on nearly exact steps, where the slower kernels are asked, one thread."""
    values = fastkl.Spectrum(spectrum(10**5))
    levels = np.linspace(2.0, 1.99, STEPS + 1) * np.ones((4, 1))
    times = [
        seconds(lambda: fastkl.divergence(values, levels, sampler=name, prior="exact", num_threads=1))
        for _ in range(ROUNDS)
    ]
    return 10**5 * 4 * samplers.nfe(name, STEPS) / statistics.median(times)


def main() -> None:
    """Measure everything and write it down."""
    fastkl.warmup()
    result = {
        **machine.description(),
        "d": EIGENVALUES,
        "M": CANDIDATES,
        "N": STEPS,
        "rates": [row(name, threads) for name in KINDS for threads in (1, 2)],
        "precise_eigenvalue_evaluations_per_s": {
            name: precise_rate(name) for name in ("dpmpp_2m", "sde_dpmpp_2m")
        },
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "samplers.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
