"""Properties of the divergences and variances that hold for every input: no oracle is needed to see them broken."""

import inspect
import itertools
import math
import threading
import time

import numpy as np
import pytest
from cases import FUNCTIONS, METRICS, PRIORS, SCHEDULES, SMALL_SHAPES, SPECTRA

import fastkl
from fastkl import _cpu, evaluate

INF = math.inf


def random_problem(rng, size=5, candidates=3, steps=6, last=0.0):
    eigenvalues = np.exp(2 * rng.normal(size=size))
    levels = np.sort(10 ** rng.uniform(-3, 3, (candidates, steps + 1)))[:, ::-1].copy()
    if last is not None:
        levels[:, -1] = last
    return eigenvalues, levels


def test_the_case_table_is_complete():
    public = {name for name in evaluate.__all__ if name.islower()}
    assert public == set(FUNCTIONS)
    for name, options in FUNCTIONS.items():
        assert tuple(inspect.signature(getattr(fastkl, name)).parameters)[2:] == options
    assert evaluate.METRICS == METRICS
    assert evaluate.PRIORS == PRIORS


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_divergences_are_finite_and_not_negative(spectrum, schedule):
    for shape in ("few", "above_a_tile"):
        size, candidates, steps = SMALL_SHAPES[shape]
        data = fastkl.Spectrum(**SPECTRA[spectrum](size))
        for metric, prior in itertools.product(METRICS, PRIORS):
            values = fastkl.divergence(data, SCHEDULES[schedule](candidates, steps), metric, prior=prior)
            assert values.shape == (candidates,)
            assert values.dtype == np.float64
            assert (values >= 0).all()
            assert np.isfinite(values).all()


def test_one_candidate_gives_a_float_and_a_batch_of_one_an_array(rng):
    eigenvalues, levels = random_problem(rng)
    assert type(fastkl.divergence(eigenvalues, levels[0])) is float
    assert fastkl.divergence(eigenvalues, levels[:1]).shape == (1,)
    assert fastkl.output_variance(eigenvalues, levels[0]).shape == (5,)
    assert fastkl.output_variance(eigenvalues, levels[:1]).shape == (1, 5)
    assert fastkl.trajectory(eigenvalues, levels[0]).shape == (7, 5)
    assert fastkl.trajectory(eigenvalues, levels).shape == (3, 7, 5)


@pytest.mark.parametrize("size", [2, 60, 1500, 5000])
def test_additive_over_splits_and_invariant_under_permutation(rng, size):
    eigenvalues, levels = random_problem(rng, size, steps=12)
    counts, mean = rng.uniform(0.5, 3, size), rng.normal(size=size)
    order, cut = rng.permutation(size), int(rng.integers(1, size))
    for metric, prior, full in itertools.product(METRICS, PRIORS, (False, True)):

        def spectrum(index, full=full):
            return fastkl.Spectrum(
                eigenvalues[index], counts[index] if full else None, mean[index] if full else None
            )

        whole = fastkl.divergence(spectrum(slice(None)), levels, metric, prior=prior)
        parts = [
            fastkl.divergence(spectrum(index), levels, metric, prior=prior)
            for index in (order[:cut], order[cut:])
        ]
        np.testing.assert_allclose(sum(parts), whole, rtol=1e-12)
        permuted = fastkl.divergence(spectrum(order), levels, metric, prior=prior)
        np.testing.assert_allclose(permuted, whole, rtol=1e-12)


def test_counts_repeat_entries(rng):
    eigenvalues, levels = random_problem(rng, 7)
    mean, counts = rng.normal(size=7), rng.integers(1, 400, 7)
    repeated = fastkl.Spectrum(np.repeat(eigenvalues, counts), mean=np.repeat(mean, counts))
    counted = fastkl.Spectrum(eigenvalues, counts, mean)
    for metric, prior in itertools.product(METRICS, PRIORS):
        expected = fastkl.divergence(repeated, levels, metric, prior=prior)
        got = fastkl.divergence(counted, levels, metric, prior=prior)
        np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize(("size", "candidates"), [(1, 40), (1024, 5), (1500, 7), (40_000, 3), (300_000, 2)])
def test_a_batch_has_the_bits_of_its_candidates_alone(rng, size, candidates):
    """For eigenvalues and levels of the contract (beyond it, a batch's widest range decides where chunks are cut)."""
    eigenvalues = 10 ** rng.uniform(-12, 12, size)
    levels = np.stack(
        [np.geomspace(10 ** rng.uniform(0, 5), 10 ** rng.uniform(-4, -1), 20) for _ in range(candidates)]
    )
    levels[0] = np.geomspace(2, 1.99, 20)
    levels[-1, 0] = INF
    spectrum = fastkl.Spectrum(eigenvalues, mean=rng.normal(size=size))
    for metric, prior in zip(METRICS, PRIORS, strict=True):
        batch = fastkl.divergence(spectrum, levels, metric, prior=prior)
        single = [fastkl.divergence(spectrum, row, metric, prior=prior) for row in levels]
        assert batch.tolist() == single
    if size <= 1500:
        for function in (fastkl.output_variance, fastkl.trajectory):
            np.testing.assert_array_equal(
                function(spectrum, levels), [function(spectrum, row) for row in levels]
            )


def test_an_array_of_eigenvalues_is_a_spectrum(rng):
    eigenvalues, levels = random_problem(rng, 30)
    for name in FUNCTIONS:
        function = getattr(fastkl, name)
        expected = function(fastkl.Spectrum(eigenvalues), levels)
        np.testing.assert_array_equal(function(eigenvalues, levels), expected)
        np.testing.assert_array_equal(function(eigenvalues.tolist(), levels.tolist()), expected)


@pytest.mark.parametrize("scale", [2.0**-9, 64.0, 3.7, 0.011])
def test_scaling_the_data_and_the_levels(rng, scale):
    eigenvalues, levels = random_problem(rng, 1100, last=0.0)
    for prior in ("ve", "exact"):
        for metric in METRICS:
            before = fastkl.divergence(eigenvalues, levels, metric, prior=prior)
            after = fastkl.divergence(scale**2 * eigenvalues, scale * levels, metric, prior=prior)
            factor = scale**2 if metric == "w2" else 1.0
            np.testing.assert_allclose(after, factor * before, rtol=1e-12)


@pytest.mark.parametrize("prior", PRIORS)
def test_a_level_more_never_loses_variance(rng, prior):
    """S never rises when a level is inserted: cos(a + b) < cos(a) cos(b)."""
    eigenvalues, levels = random_problem(rng, 200, candidates=1, steps=9)
    path = levels[0]
    for first in (path[0], INF):
        path[0] = first
        before = fastkl.output_variance(eigenvalues, path, prior=prior)
        for k in range(9):
            upper = path[k] if math.isfinite(path[k]) else 2 * path[k + 1]
            refined = np.insert(path, k + 1, rng.uniform(path[k + 1], upper))
            after = fastkl.output_variance(eigenvalues, refined, prior=prior)
            assert (after >= before * (1 - 1e-13)).all()


def tangent_levels(steps, gamma=1.0):
    """The tangent law from inf to 0."""
    angles = np.arange(steps - 1, -1, -1) * (math.pi / (2 * steps))
    return np.concatenate([[INF], math.sqrt(gamma) * np.tan(angles)])


def test_more_steps_of_the_tangent_law_are_better(rng):
    eigenvalues = np.exp(rng.normal(size=50))
    for metric in METRICS:
        values = [
            fastkl.divergence(eigenvalues, tangent_levels(n), metric, prior="exact") for n in range(2, 80)
        ]
        assert (np.diff(values) < 0).all()


def test_order_of_convergence_in_the_number_of_steps():
    """S = A/N + B/N^3 + O(N^-5), A = pi^2/4 and B = pi^4/96 for the tangent law, gamma = lambda; kl is about S^2/4."""
    steps = np.array([32, 64, 128, 256])
    paths = [tangent_levels(n, 0.3) for n in steps]
    s = np.array([-math.log(fastkl.output_variance([0.3], path, prior="exact")[0] / 0.3) for path in paths])
    a, b = math.pi**2 / 4, math.pi**4 / 96
    rest = (s * steps - a) * steps**2 - b
    assert (np.abs(rest) * steps**2 < 1.0).all()
    np.testing.assert_allclose((s * steps - a)[:2] * steps[:2] ** 2, b, rtol=1e-2)
    for metric, factor in zip(METRICS, (1, 1, 2, 0.3), strict=True):
        values = np.array([fastkl.divergence([0.3], path, metric, prior="exact") for path in paths])
        assert (np.abs(values * steps**2 * 4 / (factor * a**2) - 1) < 3 / steps).all()
        np.testing.assert_allclose(np.log2(values[:-1] / values[1:]), 2, atol=0.05)
    other = np.array([fastkl.divergence([0.3, 7.0, 1e-3], tangent_levels(n)) for n in (2000, 4000)])
    assert math.log2(other[0] / other[1]) == pytest.approx(2, abs=0.02)


def initial_variance(eigenvalues, first, prior):
    return {"vp": 1 + first**2, "ve": first**2, "flow": (1 + first) ** 2, "exact": eigenvalues + first**2}[
        prior
    ]


@pytest.mark.parametrize("prior", PRIORS)
def test_what_a_mean_adds(rng, prior):
    """mu^2/(2 v0) to kl whatever the levels between, and the square of what is left of it to w2."""
    eigenvalues, levels = random_problem(rng, 6, steps=9)
    mean, counts = 300 * rng.normal(size=6), rng.uniform(0.5, 3, 6)
    for path in (levels, levels[:, [0, 4, 9]], levels[:, [0, 9]], tangent_levels(9)[None, 1:]):
        first = path[:, :1]
        v0 = initial_variance(eigenvalues, first, prior)

        def share(metric, path=path):
            with_mean = fastkl.divergence(
                fastkl.Spectrum(eigenvalues, counts, mean), path, metric, prior=prior
            )
            return with_mean - fastkl.divergence(
                fastkl.Spectrum(eigenvalues, counts), path, metric, prior=prior
            )

        # Differences lose digits where the mean's share is the smaller part.
        whole = {
            m: fastkl.divergence(fastkl.Spectrum(eigenvalues, counts, mean), path, m, prior=prior)
            for m in METRICS
        }
        left = mean**2 * fastkl.output_variance(eigenvalues, path, prior=prior) / v0
        target = eigenvalues + path[:, -1:] ** 2
        expected = {
            "kl": (counts * mean**2 / (2 * v0)).sum(axis=1),
            "reverse_kl": (counts * left / (2 * target)).sum(axis=1),
            "w2": (counts * left).sum(axis=1),
        }
        expected["jeffreys"] = expected["kl"] + expected["reverse_kl"]
        for metric in METRICS:
            assert (np.abs(share(metric) - expected[metric]) <= 1e-10 * whole[metric]).all()
    assert np.all(share("kl") > 0)


def test_an_infinite_first_level_forgets_the_mean_and_the_prior(rng):
    eigenvalues, levels = random_problem(rng, 6)
    levels[:, 0] = INF
    for metric in METRICS:
        expected = fastkl.divergence(eigenvalues, levels, metric)
        for prior in PRIORS:
            for mean in (None, np.zeros(6), np.full(6, 1e6)):
                got = fastkl.divergence(fastkl.Spectrum(eigenvalues, mean=mean), levels, metric, prior=prior)
                np.testing.assert_array_equal(got, expected)


@pytest.fixture
def pools(monkeypatch):
    """What was handed to the pool in each call: (number of tasks, threads, names of the threads that ran them)."""
    seen = []
    run_all = _cpu.run_all

    def recorded(function, tasks, threads):
        tasks, idents = list(tasks), set()
        seen.append((len(tasks), threads, idents))

        def named(*task):
            idents.add(threading.get_ident())
            function(*task)
            time.sleep(0)  # let the others have a turn

        run_all(named, tasks, threads)

    monkeypatch.setattr(_cpu, "run_all", recorded)
    return seen


THREADED = {  # each has several tasks and more than 4e6 eigenvalue-steps
    "many eigenvalues": (200_000, 12, 8),
    "many candidates": (30, 30_000, 10),
    "one candidate": (1_100_000, 1, 20),
    "long": (5_000, 40, 200),
}


@pytest.mark.parametrize("shape", THREADED)
def test_same_bits_for_any_number_of_threads(rng, pools, shape):
    size, candidates, steps = THREADED[shape]
    eigenvalues = np.exp(2 * rng.normal(size=size))
    levels = np.linspace(0.5, 2, candidates)[:, None] * np.geomspace(50, 0.1, steps + 1)
    levels[: candidates // 2, -1] = 0.0
    counts, mean = rng.uniform(0.5, 3, size), rng.normal(size=size)
    cases = list(zip(METRICS, PRIORS, (None, counts, None, counts), (None, None, mean, None), strict=True))
    for metric, prior, weights, mu in cases:
        spectrum = fastkl.Spectrum(eigenvalues, weights, mu)
        results = [
            fastkl.divergence(spectrum, levels, metric, prior=prior, num_threads=threads)
            for threads in (1, 2, 5)
        ]
        assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()
    assert {threads for _, threads, _ in pools} == {1, 2, 5}
    assert min(tasks for tasks, threads, _ in pools if threads > 1 and tasks) > 1
    assert any(len(idents) > 1 for _, threads, idents in pools if threads > 1)
    assert all(threading.get_ident() in idents for tasks, threads, idents in pools if threads == 1 and tasks)


@pytest.mark.parametrize("metric", METRICS)
def test_same_bits_for_any_number_of_threads_where_pairs_are_needed(rng, pools, metric):
    eigenvalues = np.exp(rng.normal(size=20_000))
    levels = np.linspace(0.5, 2, 6)[:, None] * np.geomspace(1.01, 1, 41)
    spectrum = fastkl.Spectrum(eigenvalues, rng.uniform(0.5, 3, 20_000) if metric != "kl" else None)
    results = [fastkl.divergence(spectrum, levels, metric, prior="exact", num_threads=n) for n in (1, 2, 5)]
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()
    assert max(tasks for tasks, _, _ in pools) > 5


@pytest.mark.parametrize("name", ["output_variance", "trajectory"])
def test_variances_have_the_same_bits_for_any_number_of_threads(rng, pools, name):
    eigenvalues = np.exp(2 * rng.normal(size=150_000))
    levels = np.linspace(0.5, 2, 4)[:, None] * np.geomspace(50, 0.1, 21)
    results = [getattr(fastkl, name)(eigenvalues, levels, num_threads=threads) for threads in (1, 2, 5)]
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()
    assert {threads for _, threads, _ in pools} == {1, 2, 5}
    assert min(tasks for tasks, _, _ in pools) > 1


def test_threads_from_the_environment(rng, pools, monkeypatch):
    eigenvalues, levels = np.exp(rng.normal(size=300_000)), np.geomspace(50, 0.1, 17)
    for name in FUNCTIONS:
        function = getattr(fastkl, name)
        for setting, expected in (("3", 3), (" 2 ", 2), ("1", 1)):
            monkeypatch.setenv("FASTKL_NUM_THREADS", setting)
            pools.clear()
            function(eigenvalues, levels)
            assert pools[0][1] == expected
            pools.clear()
            function(eigenvalues, levels, num_threads=4)  # the argument wins
            assert pools[0][1] == 4
        for bad in ("0", "-2", "two", "1.5", "1e3", "0x2"):
            monkeypatch.setenv("FASTKL_NUM_THREADS", bad)
            with pytest.raises(ValueError, match=r"FASTKL_NUM_THREADS.*positive integer") as caught:
                function(eigenvalues, levels)
            assert repr(bad) in str(caught.value)


def test_the_default_is_the_cpus_this_process_may_use(rng, pools, monkeypatch):
    for setting in (None, "", "  "):
        if setting is None:
            monkeypatch.delenv("FASTKL_NUM_THREADS", raising=False)
        else:
            monkeypatch.setenv("FASTKL_NUM_THREADS", setting)
        monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
        fastkl.divergence(np.exp(rng.normal(size=300_000)), np.geomspace(50, 0.1, 17))
        assert pools.pop(0)[1] == 3
        pools.clear()


def test_small_problems_start_no_threads(rng, pools):
    eigenvalues, levels = random_problem(rng, 100, 10)
    for name in FUNCTIONS:
        getattr(fastkl, name)(eigenvalues, levels, num_threads=5)
    assert all(threads == 1 for _, threads, _ in pools)
    assert all(idents <= {threading.get_ident()} for _, _, idents in pools)
