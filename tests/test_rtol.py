"""divergence with rtol > 0: never further from the exact value than asked for, and faster where it is used."""

import numpy as np
import pytest
from cases import METRICS, PRIORS
from spectra import SPECTRA
from test_compression import levels_of

import fastkl
from fastkl import Spectrum, _stand_in

EVALUATION = 1e-11
NAMES = ("log_normal", "marchenko_pastur", "near_one", "photographs", "mnist", "cluster_and_outliers")


@pytest.fixture
def always(monkeypatch):
    """Use the compression for small problems too."""
    monkeypatch.setattr(_stand_in, "COMPRESSION", 0.0)
    monkeypatch.setattr(_stand_in, "PASS", 0.0)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize(
    "name", ["log_normal", "marchenko_pastur", "near_one", "photographs", "mnist", "cluster_and_outliers"]
)
@pytest.mark.usefixtures("always")
def test_never_worse_than_asked_for(rng, name, prior):
    spectrum = SPECTRA[name]()
    spectrum = spectrum.compress(1e-12) if len(spectrum) > 5000 else spectrum
    counts = np.ones(len(spectrum)) if spectrum.counts is None else spectrum.counts
    spectrum = Spectrum(np.repeat(spectrum.eigenvalues, 6), np.repeat(counts, 6))
    low, high = np.log(spectrum.eigenvalues.min()), np.log(spectrum.eigenvalues.max())
    for rtol in (1e-2, 1e-5, 1e-9):
        for steps, candidates in ((1, 100), (3, 100), (10, 30), (300, 3)):
            sigmas = levels_of(rng, low, high, steps, candidates)
            for metric in METRICS:
                exact = fastkl.divergence(spectrum, sigmas, metric, prior=prior)
                value = fastkl.divergence(spectrum, sigmas, metric, prior=prior, rtol=rtol)
                used = np.isfinite(exact)
                assert np.array_equal(value[~used], exact[~used])
                np.testing.assert_allclose(value[used], exact[used], rtol=rtol + EVALUATION)
    assert spectrum._compressed  # it was used


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("prior", ["vp", "flow"])
@pytest.mark.usefixtures("always")
def test_cancellation_between_prior_and_steps_is_evaluated_exactly(metric, prior):
    """One step whose loss makes up for the prior's mismatch at the middle of a narrow spectrum."""
    spectrum = Spectrum(np.linspace(0.6999, 0.7001, 500))
    first = 2.0
    seconds = np.linspace(0.3, 1.999, 20_001)
    sigmas = np.stack([np.full(seconds.size, first), seconds], axis=1)
    best = int(fastkl.divergence(spectrum, sigmas, metric, prior=prior).argmin())
    sigmas = np.stack([np.full(999, first), np.linspace(seconds[best - 1], seconds[best + 1], 999)], axis=1)
    exact = fastkl.divergence(spectrum, sigmas, metric, prior=prior)
    value = fastkl.divergence(spectrum, sigmas, metric, prior=prior, rtol=1e-3)
    np.testing.assert_allclose(value, exact, rtol=1e-3)
    small = spectrum.compress(1e-3 / _stand_in.SHARE)
    again = _stand_in.doubtful(small, sigmas, exact, metric, prior)
    assert again.any()
    assert np.array_equal(value[again], exact[again])


def test_it_is_used_only_where_it_pays(monkeypatch):
    used = []
    monkeypatch.setattr(Spectrum, "compress", lambda self, rtol: used.append(rtol) or self)
    many, few = np.linspace(1, 2, 50_000)[:, None] * np.linspace(5, 0, 5), np.linspace(5, 0, 5)
    large = np.geomspace(1e-2, 1e2, 100_000)
    for spectrum, sigmas, rtol, expected in (
        (large, many, 1e-6, [1e-6 / _stand_in.SHARE]),
        (large, few, 1e-6, []),
        (large[:100], many, 1e-6, []),
        (large[:1000], few, 1e-6, []),
        (large[::1000], many, 0.0, []),
        (large[::1000], many, 1e-12, []),
    ):
        used.clear()
        fastkl.divergence(spectrum, sigmas[..., :2], rtol=rtol)
        assert used == expected, (len(spectrum), sigmas.shape, rtol)


def test_one_candidate_uses_a_compression_that_is_there():
    spectrum = Spectrum.power_law(20_000, 1.1)
    sigmas = 80 * np.linspace(1, 0, 6) ** 3
    exact = fastkl.divergence(spectrum, sigmas)
    assert fastkl.divergence(spectrum, sigmas, rtol=1e-4) == exact
    spectrum.compress(1e-4 / _stand_in.SHARE)
    value = fastkl.divergence(spectrum, sigmas, rtol=1e-4)
    assert value != exact
    assert value == pytest.approx(exact, rel=1e-4)


@pytest.mark.usefixtures("always")
def test_means_zeros_and_infinities(rng):
    values = np.exp(rng.normal(0, 2, 2000))
    spectrum = Spectrum(np.append(values, 0.0), mean=rng.normal(0, 3, 2001))
    sigmas = np.array([[np.inf, 3.0, 1.0, 0.0], [9.0, 3.0, 1.0, 0.0]])
    for prior in PRIORS:
        exact = fastkl.divergence(spectrum, sigmas, "w2", prior=prior)
        np.testing.assert_allclose(
            fastkl.divergence(spectrum, sigmas, "w2", prior=prior, rtol=1e-8), exact, rtol=1e-8
        )
    with pytest.raises(ValueError, match=r"spectrum.eigenvalues\[2000\] = 0.0: must be above 0"):
        fastkl.divergence(spectrum, sigmas, "kl", rtol=1e-8)
    assert np.isinf(fastkl.divergence(Spectrum(values), [np.inf, 0.0], rtol=1e-3))
