"""Compressed spectra: divergences within what is stated, on spectra and candidates made to break it."""

import math

import numpy as np
import pytest
from cases import METRICS, PRIORS
from spectra import SPECTRA

import fastkl
from fastkl import Spectrum, _compression, _stand_in
from fastkl._worst_case import CountFamily, MeanFamily

INF = math.inf
EVALUATION = 1e-11  # what two evaluations may differ by for rounding
RTOLS = (1e-3, 1e-6, 1e-10)


def levels_of(rng, low, high, steps, candidates):
    """Schedules of every kind for eigenvalues within exp(low) to exp(high): absurd ones, and evenly spaced ones."""
    logs = rng.uniform(low - 8, high + 12, (candidates, steps + 1)) / 2
    narrow = rng.uniform(low, high, (candidates, 1)) / 2 + 10.0 ** rng.uniform(-3, 0, (candidates, 1)) * (
        np.arange(steps + 1) / steps + 0.1 * rng.random((candidates, steps + 1))
    )
    even = np.linspace((low - 6) / 2, (high + 10) / 2, steps + 1) + rng.normal(0, 0.3, (candidates, 1))
    sigmas = np.exp(np.sort(np.concatenate([logs, narrow, even]), axis=1)[:, ::-1])
    sigmas = sigmas[
        (np.diff(sigmas, axis=1) < 0).all(axis=1) & (sigmas[:, -1] > 1e-15) & (sigmas[:, 0] < 1e15)
    ]
    sigmas[::2, -1] = 0.0
    sigmas[::7, 0] = INF
    return sigmas


def errors(spectrum, small, sigmas, metric, prior):
    """Relative errors of the compressed spectrum, without candidates whose divergence is next to nothing."""
    exact = fastkl.divergence(spectrum, sigmas, metric, prior=prior)
    value = fastkl.divergence(small, sigmas, metric, prior=prior)
    used = np.isfinite(exact) & (exact > 1e-20 * spectrum.dim)
    used &= ~_stand_in.doubtful(small, sigmas, value, metric, prior)
    return np.abs(value[used] / exact[used] - 1.0), sigmas[used]


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("name", SPECTRA)
def test_every_divergence_is_within_what_is_stated(rng, name, prior):
    spectrum = SPECTRA[name]()
    low, high = np.log(spectrum.eigenvalues.min()), np.log(spectrum.eigenvalues.max())
    compared = 0
    for rtol in RTOLS:
        small = spectrum.compress(rtol)
        assert small.rtol <= rtol
        for steps, candidates in ((1, 30), (2, 30), (4, 30), (10, 20), (100, 3), (1000, 1)):
            sigmas = levels_of(rng, low, high, steps, candidates if len(spectrum) < 10_000 else 4)
            for metric in METRICS:
                found, used = errors(spectrum, small, sigmas, metric, prior)
                compared += found.size
                if found.size:
                    worst = int(found.argmax())
                    case = (rtol, metric, steps, found[worst], used[worst, :5])
                    assert found[worst] <= small.rtol + EVALUATION, case
    assert compared > 500


@pytest.mark.parametrize("name", SPECTRA)
def test_compression_keeps_the_counts_and_is_positive(name):
    spectrum = SPECTRA[name]()
    small = spectrum.compress(1e-8)
    assert len(small) <= len(spectrum)
    assert small.dim == pytest.approx(spectrum.dim, rel=1e-12)
    assert small.total_variance == pytest.approx(spectrum.total_variance, rel=1e-8)
    counts = np.ones(len(small)) if small.counts is None else small.counts
    assert (counts > 0).all()
    assert small.eigenvalues.min() >= spectrum.eigenvalues.min() * (1 - 1e-12)
    assert small.eigenvalues.max() <= spectrum.eigenvalues.max() * (1 + 1e-12)


def hunted(rng, spectrum, small, metric, prior, steps, population=60, generations=30):
    """Return the largest error that differential evolution of the levels finds, and the levels."""
    low, high = np.log(small.eigenvalues.min()), np.log(small.eigenvalues.max())

    def levels(genes):
        gaps = np.exp(np.clip(genes[:, 1 : steps + 1], -9, 3.2))
        logs = np.clip(genes[:, :1], low - 8, high + 10) - np.pad(np.cumsum(gaps, axis=1), ((0, 0), (1, 0)))
        sigmas = np.exp(np.clip(logs, -68, 68) / 2)
        sigmas[genes[:, -1] > 0, -1] = 0.0
        return sigmas

    def score(genes):
        sigmas, out = levels(genes), np.full(len(genes), -1.0)
        valid = np.flatnonzero((np.diff(sigmas, axis=1) < 0).all(axis=1))
        exact = fastkl.divergence(spectrum, sigmas[valid], metric, prior=prior)
        value = fastkl.divergence(small, sigmas[valid], metric, prior=prior)
        used = (exact > 1e-20 * spectrum.dim) & np.isfinite(exact)
        used &= ~_stand_in.doubtful(small, sigmas[valid], value, metric, prior)
        out[valid[used]] = np.abs(value[used] / exact[used] - 1.0)
        return out

    genes = np.concatenate(
        [
            rng.uniform(low - 4, high + 8, (population, 1)),
            rng.normal(0, 2.5, (population, steps)),
            rng.normal(0, 1, (population, 1)),
        ],
        axis=1,
    )
    found = score(genes)
    for _ in range(generations):
        a, b, c = (genes[rng.integers(0, population, population)] for _ in range(3))
        toward = genes + 0.5 * (genes[found.argmax()] - genes)
        trial = np.where(rng.random((population, 1)) < 0.5, a, toward)
        trial += rng.uniform(0.3, 0.9, (population, 1)) * (b - c)
        trial = np.where(rng.random(genes.shape) < 0.8, trial, genes)
        new = score(trial)
        better = new > found
        genes[better], found[better] = trial[better], new[better]
    return found.max(), levels(genes[[found.argmax()]])[0]


@pytest.mark.parametrize(
    "name", ["log_normal", "marchenko_pastur", "photographs", "cluster_and_outliers", "near_one"]
)
def test_a_search_for_counter_examples_finds_none(rng, name):
    spectrum = SPECTRA[name]()
    spectrum = spectrum.compress(1e-12) if len(spectrum) > 5000 else spectrum  # itself tested above
    for rtol in (1e-2, 1e-6):
        small = spectrum.compress(rtol)
        for prior in PRIORS:
            for metric, steps in zip(METRICS, (1, 2, 4, 7), strict=True):
                worst, sigmas = hunted(rng, spectrum, small, metric, prior, steps)
                assert worst <= small.rtol + EVALUATION, (rtol, metric, prior, worst, sigmas)


def test_the_error_stated_is_not_far_above_the_worst(rng):
    """The single narrow step found to be the worst case loses a share of what is stated that is not tiny."""
    spectrum = SPECTRA["log_normal"]()
    small = spectrum.compress(1e-6)
    centres = np.exp(np.linspace(-3, 3, 200) / 2)
    found, _ = errors(spectrum, small, centres[:, None] * [1.001, 1.0], "kl", "exact")
    assert found.max() > small.rtol / 300


def test_nodes_for_a_million_log_normal_eigenvalues():
    eigenvalues = np.exp(np.random.default_rng(1).normal(0, 2, 10**6))
    small = Spectrum(eigenvalues).compress(1e-10)
    assert len(small) <= 64
    assert small.rtol <= 1e-10
    sigmas = np.stack([80 * np.linspace(1, 0, 11) ** power for power in np.linspace(1, 5, 8)])
    for metric in METRICS:
        exact = fastkl.divergence(eigenvalues, sigmas, metric)
        np.testing.assert_allclose(fastkl.divergence(small, sigmas, metric), exact, rtol=1e-10)


@pytest.mark.parametrize(
    ("eigenvalues", "distinct"),
    [([2.0], 1), (np.full(100_000, 3.0), 1), (np.repeat([1e-6, 1e6], 500), 2), (np.tile([5.0, 1.0, 1e-3], 333_333), 3)],
)  # fmt: skip
def test_few_distinct_values_are_merged_exactly(eigenvalues, distinct):
    spectrum = Spectrum(eigenvalues)
    small = spectrum.compress(1e-10)
    assert len(small) == distinct
    assert small.rtol == 0.0
    assert small == spectrum.merged()


def test_zero_eigenvalues_are_kept_apart(rng):
    values = np.concatenate([np.zeros(300), np.exp(rng.normal(size=5000)), np.zeros(7)])
    small = Spectrum(values, mean=np.where(values > 0, 0.0, 0.5)).compress(1e-10)
    assert small.eigenvalues[0] == 0.0
    assert small.eigenvalues[1] > 0.0
    assert small.counts[0] == 307
    assert small.mean[0] == pytest.approx(0.5, rel=1e-15)
    sigmas = [3.0, 1.0, 0.3, 0.0]
    exact = fastkl.divergence(Spectrum(values), sigmas, "w2")
    assert fastkl.divergence(Spectrum(small.eigenvalues, small.counts), sigmas, "w2") == pytest.approx(
        exact, rel=1e-10
    )
    assert Spectrum([0.0, 0.0]).compress().counts.tolist() == [2.0]


@pytest.mark.parametrize("prior", PRIORS)
def test_mean_and_counts(rng, prior):
    values = np.exp(rng.normal(0, 2, 3000))
    spectrum = Spectrum(
        values, counts=np.exp(rng.normal(0, 2, 3000)), mean=rng.normal(0, 30, 3000) * (values > 1)
    )
    for rtol in (1e-4, 1e-10):
        small = spectrum.compress(rtol)
        assert len(small) < 150
        assert small.dim == pytest.approx(spectrum.dim, rel=1e-12)
        for steps in (1, 3, 10):
            sigmas = levels_of(rng, -6.0, 6.0, steps, 20)
            for metric in METRICS:
                found, _ = errors(spectrum, small, sigmas, metric, prior)
                assert found.max(initial=0.0) <= small.rtol + EVALUATION


@pytest.mark.parametrize("family", [CountFamily, MeanFamily])
@pytest.mark.parametrize("cut", ["gap", "middle"])
def test_parts_of_a_spectrum_when_one_rule_does_not_do(rng, monkeypatch, family, cut):
    monkeypatch.setattr(_compression, "MOST_NODES", 20)
    u = np.sort(np.concatenate([rng.uniform(-9, -4, 500), rng.uniform(4 if cut == "gap" else -4, 9, 500)]))
    nodes, weights, reached = _compression.gauss_nodes(np.exp(u), np.ones(1000), 1e-9, family)
    assert reached <= 1e-9
    assert len(nodes) > 20
    assert weights.sum() == pytest.approx(1000, rel=1e-13)
    for power in (-2, -1, 1, 2):
        assert weights @ nodes**power == pytest.approx(np.exp(power * u).sum(), rel=1e-9)


def test_weights_of_widely_different_sizes():
    """A weight of 1e-25 of the others counts where the others' terms vanish."""
    u = np.linspace(-20, 20, 400)
    spectrum = Spectrum(np.exp(u), counts=np.exp(-3 * np.abs(u)))
    small = spectrum.compress(1e-9)
    for sigmas in ([1e8, 1e4, 3e3], [1e-3, 1e-4], [1e-4, 3e-5, 0.0], [1e9, 1e3, 1.0, 1e-3, 0.0]):
        exact = fastkl.divergence(spectrum, sigmas, prior="exact")
        assert fastkl.divergence(small, sigmas, prior="exact") == pytest.approx(exact, rel=1.1e-9)


def test_a_mean_of_zeros_stays_one(rng):
    values = np.exp(rng.normal(size=5000))
    plain, zeros = Spectrum(values).compress(), Spectrum(values, mean=np.zeros(5000)).compress()
    assert plain.mean is None
    assert len(zeros) < 100
    assert not zeros.mean.any()
    assert zeros == plain


def test_compression_is_kept_and_survives_copies():
    import pickle

    spectrum = Spectrum.power_law(5000, 1.3)
    small = spectrum.compress(1e-8)
    assert spectrum.compress(1e-8) is small
    again = pickle.loads(pickle.dumps(small))
    assert again == small
    assert again.rtol == small.rtol > 0
    assert small.floored(0.1).rtol == small.rtol
    assert "rtol=" in repr(small)
    for k in range(20):
        spectrum.compress(10.0 ** -(2 + k / 10))
    assert len(spectrum._compressed) <= 8
    assert small.compress(1e-6).rtol >= small.rtol


def test_same_bits_for_any_number_of_threads(rng, monkeypatch):
    values = np.exp(rng.normal(0, 2, 200_000))
    results = []
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("FASTKL_NUM_THREADS", threads)
        results.append(Spectrum(values).compress(1e-9))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("rtol", [0.0, -1.0, 1.0, 1e-13, INF, math.nan])
def test_rtol_out_of_range(rtol):
    with pytest.raises(ValueError, match=r"rtol = .*must be"):
        Spectrum([1.0]).compress(rtol)


def test_rtol_of_a_wrong_kind():
    with pytest.raises(TypeError, match="rtol: must be a real number"):
        Spectrum([1.0]).compress("1e-3")
