"""Shrinkage of spectra from few samples, against scikit-learn's estimators; what it cannot be had for."""

import sys

import numpy as np
import pytest
from sklearn.covariance import OAS, LedoitWolf, ShrunkCovariance

import fastkl
from fastkl import Spectrum

ESTIMATORS = {"ledoit_wolf": LedoitWolf, "oas": OAS}


def descending_eigenvalues(matrix):
    return np.linalg.eigvalsh(matrix)[::-1]


def samples(rng, n, d):
    return (
        rng.standard_normal((n, d)) @ np.diag(np.arange(1, d + 1) ** -0.7) @ rng.standard_normal((d, d)) + 3
    )


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(("n", "d"), [(200, 12), (13, 12), (12, 12), (9, 30), (2, 5), (40, 1), (60, 3)])
def test_named_shrinkage_is_that_of_scikit_learn(rng, name, n, d):
    x = samples(rng, n, d)
    expected = descending_eigenvalues(ESTIMATORS[name]().fit(x).covariance_)
    s = Spectrum.from_samples(x, shrinkage=name)
    np.testing.assert_allclose(s.eigenvalues, expected, rtol=1e-9, atol=1e-12 * expected[0])
    assert s.mean.tolist() == pytest.approx(plain(x).mean.tolist(), abs=1e-12)


def plain(x):
    return Spectrum.from_samples(x, shrinkage=0.0)  # not None: no warning is due


@pytest.mark.parametrize("coefficient", [0.0, 0.3, 1.0, np.float32(0.5), 1])
def test_a_number_is_the_coefficient(rng, coefficient):
    x = samples(rng, 8, 10)
    expected = descending_eigenvalues(ShrunkCovariance(shrinkage=float(coefficient)).fit(x).covariance_)
    s = Spectrum.from_samples(x, floor=0.25, shrinkage=coefficient)
    np.testing.assert_allclose(s.eigenvalues, expected + 0.25, rtol=1e-12)
    assert s.total_variance == pytest.approx(x.var(axis=0).sum() + 2.5, rel=1e-12)


def test_shrinkage_makes_few_samples_usable_and_no_warning_is_due(rng):
    truth = np.arange(1, 61) ** -0.5
    x = rng.standard_normal((40, 60)) * np.sqrt(truth)
    sigmas = np.append(np.geomspace(50, 0.1, 9), 0.0)
    expected = fastkl.divergence(truth, sigmas)
    for name in ("ledoit_wolf", "oas"):
        assert fastkl.divergence(Spectrum.from_samples(x, shrinkage=name), sigmas) == pytest.approx(
            expected, rel=0.3
        )
    with pytest.raises(ValueError, match="must be above 0"):
        fastkl.divergence(plain(x), sigmas)


def test_oas_needs_the_covariance_only(rng, tmp_path):
    x = samples(rng, 50, 20)
    expected = Spectrum.from_samples(x, shrinkage="oas")
    np.save(tmp_path / "x.npy", x)
    file = np.load(tmp_path / "x.npy", mmap_mode="r")
    for other in (file, iter([x[:7], x[7:]])):
        assert Spectrum.from_samples(other, shrinkage="oas") == expected
    few = [
        Spectrum.from_samples(x[:9], method=m, shrinkage="oas").eigenvalues for m in ("gram", "covariance")
    ]
    np.testing.assert_allclose(few[0], few[1], rtol=1e-9)


def test_equal_eigenvalues_are_drawn_all_the_way():
    x = np.concatenate([np.eye(3), -np.eye(3)])
    for name, estimator in ESTIMATORS.items():
        expected = descending_eigenvalues(estimator().fit(x).covariance_)
        np.testing.assert_allclose(Spectrum.from_samples(x, shrinkage=name).eigenvalues, expected, rtol=1e-12)
    assert Spectrum.from_samples(np.ones((4, 3)), shrinkage="oas").eigenvalues.tolist() == [0.0] * 3


@pytest.mark.parametrize("n", [30, 300])
@pytest.mark.parametrize("shrinkage", ["ledoit_wolf", 0.2, 1.0])
def test_lanczos_nodes_are_drawn_like_eigenvalues(rng, n, shrinkage):
    x = samples(rng, n, 100)
    exact = Spectrum.from_samples(x, shrinkage=shrinkage)
    s = Spectrum.from_samples(x, shrinkage=shrinkage, method="lanczos", probes=6, steps=30)
    assert s.rtol == 0.0
    assert s.eigenvalues[0] == pytest.approx(exact.eigenvalues[0], rel=1e-9)
    assert s.total_variance == pytest.approx(exact.total_variance, rel=1e-9)
    assert s.eigenvalues[-1] == pytest.approx(exact.eigenvalues[-1], rel=1e-9)


def test_shrinkage_is_part_of_the_lanczos_error(rng):
    x = rng.standard_normal((400, 300)) * np.arange(1, 301) ** -1.5
    none, some, all_ = (
        Spectrum.from_samples(x, shrinkage=a, method="lanczos", probes=4, steps=6).rtol
        for a in (0.0, 0.1, 1.0)
    )
    assert all_ == 0.0 < some < none / 2


class Batches:
    def __iter__(self):
        return iter([np.eye(3)])


BAD = [
    ("lw", np.eye(3), ValueError, r"^shrinkage = 'lw': must be one of 'ledoit_wolf', 'oas'"),
    (-0.1, np.eye(3), ValueError, r"^shrinkage = -0\.1: must be at least 0"),
    (1.5, np.eye(3), ValueError, r"^shrinkage = 1\.5: must be at most 1"),
    (float("nan"), np.eye(3), ValueError, r"^shrinkage = nan"),
    (True, np.eye(3), TypeError, r"^shrinkage: must be a real number"),
    ([0.1], np.eye(3), TypeError, r"^shrinkage: must be a real number"),
    ("ledoit_wolf", Batches(), ValueError, r"^shrinkage = 'ledoit_wolf': .* in memory, and x is an iterable"),
    (
        "ledoit_wolf",
        iter([np.eye(3)]),
        ValueError,
        r"^shrinkage = 'ledoit_wolf': .* x is an iterable .*'oas'",
    ),
    ("ledoit_wolf", np.diag([1.0, np.nan]), ValueError, r"^x\[1, 1\] = nan"),
]


@pytest.mark.parametrize(("shrinkage", "x", "error", "message"), BAD)
def test_bad_shrinkage(shrinkage, x, error, message):
    with pytest.raises(error, match=message):
        Spectrum.from_samples(x, shrinkage=shrinkage)


def test_ledoit_wolf_does_not_load_a_memory_map(tmp_path):
    np.save(tmp_path / "x.npy", np.eye(4))
    file = np.load(tmp_path / "x.npy", mmap_mode="r")
    with pytest.raises(ValueError, match=r"and x is a memory map; take 'oas', .* or load the samples"):
        Spectrum.from_samples(file, shrinkage="ledoit_wolf")


def test_the_extra_is_named_where_scikit_learn_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.covariance", None)
    with pytest.raises(ImportError, match=r"pip install 'fastkl\[shrinkage\]'"):
        Spectrum.from_samples(np.eye(4), shrinkage="ledoit_wolf")
    assert len(Spectrum.from_samples(np.eye(4), shrinkage="oas")) == 4
