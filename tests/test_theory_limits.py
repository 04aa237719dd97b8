"""Tangent law and geodesic levels at the limits of their arguments: counts, eigenvalues, levels, numbers of steps."""

import math

import mpmath
import numpy as np
import pytest

from fastkl import Spectrum
from fastkl.theory import best_gamma, geodesic_levels, tangent_gamma

INF = math.inf
METRICS = ["kl", "reverse_kl", "jeffreys", "w2"]


@pytest.mark.parametrize("eigenvalues", [[1e-30, 1e30], [1e-3, 1.0]])
@pytest.mark.parametrize("counts", [[1e30, 1e30], [1e-30, 1e-30], [1e-30, 1e30], [1e30, 1e-30]])
def test_extreme_counts(eigenvalues, counts):
    context = mpmath.MPContext()
    context.dps = 150
    values, weights = map(context.mpf, eigenvalues), map(context.mpf, counts)
    pairs = list(zip(values, weights, strict=True))
    exact = context.sqrt(sum(c * v for v, c in pairs) / sum(c / v for v, c in pairs))
    spectrum = Spectrum(eigenvalues, counts)
    assert tangent_gamma(spectrum) == pytest.approx(float(exact), rel=1e-14)
    for metric in METRICS:
        assert eigenvalues[0] <= best_gamma(spectrum, 5, metric=metric) <= eigenvalues[1] * (1 + 1e-9)
    levels = geodesic_levels(spectrum, 9, INF)
    assert levels[-1] == 0.0
    assert np.all(np.diff(levels) < 0)


def test_equal_counts_do_not_move_the_geodesic(rng):
    eigenvalues = 10.0 ** rng.uniform(-3, 3, size=5)
    plain = geodesic_levels(eigenvalues, 9, INF)
    for count in (1e-30, 1e30):
        np.testing.assert_allclose(
            geodesic_levels(Spectrum(eigenvalues, np.full(5, count)), 9, INF), plain, rtol=1e-9
        )


def test_tangent_gamma_sums_in_blocks(rng, monkeypatch):
    spectrum = Spectrum(rng.uniform(0.1, 5.0, 1000), rng.uniform(0.1, 5.0, 1000))
    values, counts = spectrum.eigenvalues, spectrum.counts
    exact = math.sqrt(math.fsum(counts * values) / math.fsum(counts / values))
    for block in (1, 7, 999, 1000, 10**6):
        monkeypatch.setattr("fastkl.theory._BLOCK", block)
        assert tangent_gamma(spectrum) == pytest.approx(exact, rel=1e-13)
        assert tangent_gamma(values) == tangent_gamma(Spectrum(values, np.ones(1000)))


def test_most_steps():
    assert best_gamma([4.0, 1.0], 10**6) == pytest.approx(2.0, rel=1e-6)
    assert np.all(np.diff(geodesic_levels([4.0, 1.0], 10**6, 10.0)) < 0)


@pytest.mark.parametrize("exponent", [0, 2, 6, 12, 30])
def test_geodesic_of_wide_spectra(exponent):
    levels = geodesic_levels([10.0**exponent, 10.0**-exponent], 51, INF)
    assert levels[0] == INF
    assert levels[-1] == 0.0
    assert np.all(np.diff(levels) < 0)
    np.testing.assert_allclose(levels[1:-1] * levels[-2:0:-1], 1.0, rtol=1e-6)  # symmetric in log sigma


def test_adjacent_ends_leave_room_for_one_step_only():
    above = math.nextafter(1.0, 2.0)
    assert geodesic_levels([1.0], 1, above, 1.0).tolist() == [above, 1.0]
    with pytest.raises(ValueError, match="steps = 2"):
        geodesic_levels([1.0], 2, above, 1.0)
