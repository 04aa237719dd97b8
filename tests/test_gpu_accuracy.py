"""Accuracy of the GPU backend, whose arithmetic is its own: what tests/test_accuracy.py sweeps for the CPU."""

import numpy as np
import pytest
from cases import METRICS, PRIORS, SCHEDULES
from device_cases import AGREEMENT, largest_difference
from test_accuracy import (
    SYSTEMATIC,
    assert_accurate,
    crossing,
    exact_divergences,
    geometric,
    random_levels,
    relative_error,
)

import fastkl
from fastkl import _gpu
from fastkl._rounding import error_bounds


def assert_accurate_on_gpu(monkeypatch, *problem, **options):
    """test_accuracy.assert_accurate with every divergence taken from the GPU backend."""
    divergence = fastkl.divergence
    with monkeypatch.context() as patch:
        patch.setattr(fastkl, "divergence", lambda *a, **k: divergence(*a, backend="gpu", **k))
        assert_accurate(*problem, **options)


@pytest.mark.parametrize("prior", PRIORS)
def test_random_cases_of_the_whole_contract(device, monkeypatch, rng, prior):
    for case in range(24):
        steps = [1, 2, 3, 1000][case] if case < 4 else round(10 ** rng.uniform(0, 2.5))
        size = 1 if steps == 1000 else int(rng.integers(1, 6))
        levels = random_levels(rng, steps, last=0.0 if case % 2 else None)
        if case % 3 == 0:
            levels[0] = np.inf
        counts = 10 ** rng.uniform(-3, 6, size) if case % 3 == 1 else None
        mean = rng.normal(size=size) * 10 ** rng.uniform(-6, 4) if case % 4 == 2 else None
        assert_accurate_on_gpu(monkeypatch, 10 ** rng.uniform(-12, 12, size), levels, prior, counts, mean)


@pytest.mark.parametrize("steps", [1, 2, 16, 17, 100, 1000])
def test_divergences_made_tiny_by_fine_schedules(device, monkeypatch, rng, steps):
    for target in 10 ** rng.uniform(-24, -1, 8 if steps < 1000 else 2):
        width, centre = np.sqrt(4 * steps * 2 * np.sqrt(target)), 10 ** rng.uniform(-3, 4)
        levels = centre * np.exp(np.linspace(min(width, 2.0), 0, steps + 1))
        eigenvalues = centre**2 * 10 ** rng.uniform(-2, 2, 2)
        assert_accurate_on_gpu(monkeypatch, eigenvalues, levels, "exact")


@pytest.mark.parametrize("prior", ["vp", "flow"])
def test_divergences_made_tiny_by_cancellation_between_prior_and_steps(device, monkeypatch, rng, prior):
    found = 0
    for _ in range(100):
        levels = random_levels(rng, round(10 ** rng.uniform(0, 1.7)), -3.0, 2.0, 0.0 if found % 2 else None)
        eigenvalue = crossing(levels, prior)
        if eigenvalue is None:
            continue
        found += 1
        for change in (0.0, 1e-12, -1e-8, 1e-6, 1e-4, -3e-3, 1e-1):
            assert_accurate_on_gpu(monkeypatch, [eigenvalue * (1 + change)], levels, prior)
        near = eigenvalue * (1 + np.array([1e-5, -1e-9, 1e-3]))
        assert_accurate_on_gpu(monkeypatch, near, levels, prior, counts=[1.0, 1e6, 1e-3])
        if found == 4:
            break
    assert found >= 3


@pytest.mark.parametrize(("first", "per_octave", "eigenvalue"), SYSTEMATIC[::3])
def test_rounding_errors_that_recur_in_every_octave(device, monkeypatch, first, per_octave, eigenvalue):
    assert_accurate_on_gpu(monkeypatch, [eigenvalue], geometric(first, per_octave), "exact")


@pytest.mark.parametrize("spread", [0.0, 1e-9, 1e-4, 3e-2])
def test_full_tiles_of_nearly_vanishing_terms(device, monkeypatch, rng, spread):
    levels = np.geomspace(30.0, 0.05, 5)
    eigenvalues = crossing(levels, "vp") * (1 + spread * rng.normal(size=1100)).clip(0.1)
    assert_accurate_on_gpu(monkeypatch, eigenvalues, levels, "vp", metrics=("kl", "w2"))


def test_few_huge_terms_among_tiny_ones(device, monkeypatch, rng):
    levels = np.geomspace(30.0, 0.05, 9)
    eigenvalues = crossing(levels, "vp") * (1 + 1e-8 * rng.normal(size=1500))
    eigenvalues[1024] = 1e-9
    assert_accurate_on_gpu(monkeypatch, eigenvalues, levels, metrics=("kl",))
    counts = np.full(1500, 1e9)
    counts[1024] = 1e-9
    assert_accurate_on_gpu(monkeypatch, eigenvalues, levels, counts=counts, metrics=("kl",))


@pytest.mark.parametrize("prior", PRIORS)
def test_the_bound_of_the_fast_kernel_holds(device, monkeypatch, rng, prior):
    """Without a second evaluation the error is below what the counted roundings allow, and mostly far below."""
    monkeypatch.setattr(_gpu, "RELATIVE_ERROR", np.inf)
    shares = []
    for steps in (1, 3, 8, 9, 16, 17, 60):
        for width in (0.3, 2.0, 30.0):
            levels = np.append(
                np.geomspace(10.0 * (1.0 + width), 10.0, steps + 1)[:-1], rng.choice([0.0, 3.0])
            )
            eigenvalues = 10.0 ** rng.uniform(-3, 3, 16)
            exact = exact_divergences(eigenvalues, levels, prior)
            for metric in ("kl", "reverse_kl", "jeffreys"):
                got = fastkl.divergence(eigenvalues, levels, metric, prior=prior, backend="gpu")
                bound = error_bounds(
                    np.array([float(exact[metric])]), 16.0, _gpu.rounding_count(steps, prior), metric
                )[0]
                shares.append(abs(float(got - exact[metric])) / bound)
    assert max(shares) <= 1.0
    assert np.median(shares) < 0.1


def test_values_beyond_the_contract_that_validation_lets_in(device):
    for eigenvalue in (1e-30, 1.0, 1e30):
        for levels in ([1e15, 1e-15], [1e15, 0.0], [np.inf, 1e15, 1e-15, 0.0], np.geomspace(1e15, 1e-15, 60)):
            for metric in METRICS:
                cpu, gpu = (
                    fastkl.divergence([eigenvalue], levels, metric, backend=b) for b in ("cpu", "gpu")
                )
                assert largest_difference(gpu, cpu) <= 1e-9, (eigenvalue, metric, levels)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("prior", PRIORS)
def test_full_batches_of_the_most_extreme_ratios(device, prior, metric):
    """Four of them are multiplied before a power of two is taken out."""
    for eigenvalues in ([1e-30], [1.0], [1e30], [1e-30, 1e30, 1.0, 1e-10]):
        full = np.resize(eigenvalues, 24)
        for levels in (
            [1e15, 1e-15],
            [1e15, 0.0],
            [1e-15, 0.0],
            [np.inf, 1e15, 1e-15, 0.0],
            np.geomspace(1e15, 1e-15, 60),
            np.append(np.geomspace(1e15, 1e-15, 16), 0.0),
        ):
            cpu, gpu = (
                fastkl.divergence(full, levels, metric, prior=prior, backend=b) for b in ("cpu", "gpu")
            )
            assert np.isfinite(cpu)
            assert largest_difference(gpu, cpu) <= 1e-9, (eigenvalues, levels)


@pytest.mark.parametrize("prior", PRIORS)
def test_one_chunk_of_sixteen_steps_up_to_the_edges_of_what_is_tame(device, monkeypatch, prior):
    """Products of 16 of the largest and of the smallest numbers that are let into one chunk, and just beyond."""
    for steps in (9, 12, 16):
        for low, high in (
            (2.0**-30, 2.0**30),
            (2.0**-30 * 0.999, 1.0),
            (1.0, 2.0**30 * 1.001),
            (2.0**29.9, 2.0**30),
        ):
            levels = np.geomspace(high, low, steps + 1)
            levels[0], levels[-1] = high, low  # exactly
            for values in (
                [2.0**60, 2.0**-60],
                [2.0**60],
                [2.0**-60],
                [2.0**60 * 1.001, 1.0],
                [2.0**-60 * 0.999, 1.0],
            ):
                for some in (levels, np.append(levels[:-1], 0.0), np.append(np.inf, levels[1:])):
                    for metric in METRICS:
                        cpu, gpu = (
                            fastkl.divergence(values, some, metric, prior=prior, backend=b)
                            for b in ("cpu", "gpu")
                        )
                        assert np.isfinite(cpu)
                        assert largest_difference(gpu, cpu) <= 1e-9, (values, some)
    for eigenvalue in (1e-12, 1.0, 1e12):
        assert_accurate_on_gpu(monkeypatch, [eigenvalue], np.geomspace(1e5, 1e-4, 17), prior)


def test_wild_eigenvalues_and_levels_beside_tame_ones(device):
    """A tile with one eigenvalue that is not tame, and one candidate, take the narrow chunks; the others do not."""
    eigenvalues = np.geomspace(1e-3, 1e3, 2500)
    eigenvalues[[5, 2000]] = 1e-25, 1e25
    levels = np.stack(
        [np.geomspace(80.0, 0.01, 17), np.geomspace(1e12, 1e-12, 17), np.geomspace(3.0, 0.1, 17)]
    )
    for metric in METRICS:
        cpu, gpu = (fastkl.divergence(eigenvalues, levels, metric, backend=b) for b in ("cpu", "gpu"))
        assert largest_difference(gpu, cpu) <= AGREEMENT, metric


@pytest.mark.parametrize("metric", METRICS)
def test_batches_with_one_ratio_near_1_or_none(device, metric):
    """One eigenvalue of a batch is where the prior and the steps cancel, or none is, or all are near there."""
    levels = np.geomspace(30.0, 0.05, 5)
    values, near = np.geomspace(1e-3, 1e3, 200), crossing(levels, "vp")
    distance = np.abs((values + levels[-1] ** 2) / fastkl.output_variance(values, levels) - 1.0)
    far = values[distance >= 0.0625][::5][:16]
    assert far.size == 16
    for place in range(17):
        eigenvalues = far.copy()
        eigenvalues[place : place + 1] = near * (1 + 1e-3)
        for some in (eigenvalues, np.full(16, near * (1 + 1e-3))):
            cpu, gpu = (fastkl.divergence(some, levels, metric, backend=b) for b in ("cpu", "gpu"))
            assert largest_difference(gpu, cpu) <= AGREEMENT


def test_the_reference_agrees_too(device, rng):
    """Not only through the CPU backend: 50 digits."""
    eigenvalues, levels = 10 ** rng.uniform(-6, 6, 12), SCHEDULES["karras"](1, 12)[0]
    exact = exact_divergences(eigenvalues, levels)
    for metric in METRICS:
        assert (
            relative_error(fastkl.divergence(eigenvalues, levels, metric, backend="gpu"), exact[metric])
            <= AGREEMENT
        )


@pytest.mark.parametrize("steps", [1, 4, 16, 100, 1000])
def test_float32_over_the_whole_contract(device, rng, steps):
    """Within 1e-5 where kl is at least 1e-3, also at thousands of roundings."""
    checked = 0
    for case in range(60 if steps <= 100 else 12):
        levels = random_levels(rng, steps, last=0.0 if case % 2 else None)
        if case % 3 == 0:
            levels[0] = np.inf
        for prior in PRIORS:
            eigenvalues = 10.0 ** rng.uniform(-12, 12, 1)
            kl = fastkl.divergence(eigenvalues, levels, prior=prior, backend="cpu")
            for metric in METRICS if 1e-3 <= kl < np.inf else ():
                checked += 1
                expected = fastkl.divergence(eigenvalues, levels, metric, prior=prior, backend="cpu")
                got = fastkl.divergence(
                    eigenvalues, levels, metric, prior=prior, backend="gpu", precision="float32"
                )
                assert abs(got - expected) <= 1e-5 * expected, (metric, prior, kl)
    assert checked > 20


@pytest.mark.parametrize("prior", ["vp", "flow"])
def test_float32_where_the_prior_takes_back_a_large_loss(device, prior):
    """Losses up to 1e6 that a first level below 1 cancels: nothing that float32 could form 1/r - 1 from."""
    checked = 0
    for levels in ([1e-3, 0.0], [1e-2, 0.0], [1e-2, 1e-3, 0.0], [0.5, 0.02, 0.0], [1e-2, 3e-4]):
        values = np.geomspace(1e-12, 0.1 * levels[0] ** 2, 400)
        ratio = (values + levels[-1] ** 2) / fastkl.output_variance(values, levels, prior=prior)
        for eigenvalue in values[(ratio > 0.5) & (ratio < 1.5)][::5]:
            for metric in METRICS if fastkl.divergence([eigenvalue], levels, prior=prior) >= 1e-3 else ():
                cpu = fastkl.divergence([eigenvalue], levels, metric, prior=prior, backend="cpu")
                gpu = fastkl.divergence(
                    [eigenvalue], levels, metric, prior=prior, backend="gpu", precision="float32"
                )
                assert abs(gpu - cpu) <= 1e-5 * cpu, (metric, eigenvalue, levels)
                checked += 1
    assert checked > 20
