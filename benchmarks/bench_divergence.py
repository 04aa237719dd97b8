"""The exact kernel over d, N, M and threads; vectorised NumPy and the machine's multiply-adds in the same run.

`extra_info` holds the number of eigenvalue-steps (two multiply-adds each) of a call, so that rates can be formed.
"""

import machine
import pytest
from side_by_side import candidates, spectrum

import fastkl
from fastkl.kernels import reference

LARGEST_NUMPY = 2 * 10**7  # eigenvalue-steps of one NumPy round: about 0.1 s
SIZES = (10**3, 10**4, 10**5, 10**6)
STEPS = (4, 10, 16, 100)
COUNTS = (1, 32, 1000)
LARGEST = 4 * 10**9  # eigenvalue-steps of one round: below a second
GRID = [(d, n, m) for d in SIZES for n in STEPS for m in COUNTS if d * n * m <= LARGEST]


@pytest.mark.parametrize("threads", [1, 2])
def test_multiply_adds(benchmark, threads):
    benchmark.extra_info["eigenvalue_steps"] = machine.multiply_adds(threads) / 2
    benchmark(machine.multiply_adds, threads)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("d", "n", "m"), GRID)
def test_exact(benchmark, d, n, m, threads):
    values, levels = fastkl.Spectrum(spectrum(d)), candidates(m, n)
    benchmark.extra_info["eigenvalue_steps"] = d * n * m
    result = benchmark(fastkl.divergence, values, levels, num_threads=threads)
    assert result.shape == (m,)


@pytest.mark.parametrize(
    ("d", "n", "m"), [case for case in GRID if case[0] * case[1] * case[2] <= LARGEST_NUMPY]
)
def test_vectorised_numpy(benchmark, d, n, m):
    values, levels = spectrum(d), candidates(m, n)
    benchmark.extra_info["eigenvalue_steps"] = d * n * m
    result = benchmark(reference.divergence, values, levels)
    assert result.shape == (m,)


@pytest.mark.parametrize("metric", ["kl", "reverse_kl", "jeffreys", "w2"])
@pytest.mark.parametrize("prior", ["vp", "exact"])
def test_metrics(benchmark, metric, prior):
    values, levels = fastkl.Spectrum(spectrum(10**5)), candidates(32, 16)
    benchmark.extra_info["eigenvalue_steps"] = 32 * 16 * 10**5
    benchmark(fastkl.divergence, values, levels, metric, prior=prior, num_threads=1)
