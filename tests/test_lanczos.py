"""Lanczos quadrature on samples, against their exact spectra: within its stated error, and exact where it says so."""

import numpy as np
import pytest
from sampled import spectrum_of

import fastkl
from fastkl import Spectrum, _batches, _samples

ENDS = (0.02, 0.1, 0.4, 1.0)
SCHEDULES = [
    np.array([np.append(np.geomspace(80, end, steps), 0.0) for end in ENDS]) for steps in (3, 5, 10, 20, 40)
]
METRICS = ("kl", "reverse_kl", "jeffreys", "w2")


class Loader:
    """Batches that can be gone through again; `change` may alter what a later pass gives."""

    def __init__(self, x, change=None):
        self._x, self._change, self._passes = x, change, 0

    def __iter__(self):
        x = self._x
        if self._change is not None and self._passes > 1:  # the first pass is opened twice
            x = self._change(x)
        self._passes += 1
        return iter([x[:40], x[40:]])


def samples_of(rng, n, values, mean=0.0):
    """Normal samples whose true covariance has these eigenvalues, in a random basis."""
    basis, _ = np.linalg.qr(rng.standard_normal((len(values), len(values))))
    return (rng.standard_normal((n, len(values))) * np.sqrt(values)) @ basis.T + mean


def divergences(spectrum, metrics=METRICS):
    """Of the 20 schedules, shape (metrics, 20)."""
    return np.array(
        [np.concatenate([fastkl.divergence(spectrum, s, metric) for s in SCHEDULES]) for metric in metrics]
    )


def power(d, exponent):
    return np.arange(1, d + 1) ** -float(exponent)


CASES = {
    "n > d, steep": (900, power(300, 2), 1e-3, 8, 10, 0.3),
    "n > d, flat": (900, power(300, 1), 0.0, 8, 12, 0.5),
    "n <= d": (200, power(450, 1), 1e-3, 8, 10, 0.95),
    "two plateaus": (900, np.repeat([1.0, 0.01], 150), 0.0, 12, 10, 0.95),
}


@pytest.mark.parametrize("case", CASES)
def test_divergences_are_within_the_stated_error(rng, case):
    n, values, floor, probes, steps, useful = CASES[case]
    x = samples_of(rng, n, values, rng.standard_normal(len(values)) / 4)
    exact = divergences(spectrum_of(x, floor))
    assert exact.shape == (4, 20)
    for seed in range(5):
        s = spectrum_of(x, floor, method="lanczos", probes=probes, steps=steps, seed=seed)
        assert len(s) <= (probes + 1) * steps + 2
        assert len(s) < len(values) / 2
        assert 0 < s.rtol < useful
        assert np.abs(divergences(s) / exact - 1).max() <= s.rtol


def test_the_error_is_not_hidden_where_the_smallest_eigenvalues_are_not_resolved(rng):
    x = samples_of(rng, 900, 10.0 ** -np.linspace(0, 9, 300))
    exact = Spectrum.from_samples(x)
    s = Spectrum.from_samples(x, method="lanczos", probes=8, steps=8)
    kl, w2 = (divergences(s, [metric]) / divergences(exact, [metric]) - 1 for metric in ("kl", "w2"))
    assert np.abs(kl).max() > 0.5
    assert s.rtol > 0.9
    assert np.abs(w2).max() < 0.25  # the largest eigenvalues decide it
    assert Spectrum.from_samples(x, 0.01, method="lanczos", probes=8, steps=8).rtol < s.rtol / 2


def test_more_steps_and_probes_lower_the_error(rng):
    x = samples_of(rng, 900, power(300, 1.5))
    few, more = (
        Spectrum.from_samples(x, 1e-4, method="lanczos", probes=p, steps=k) for p, k in ((4, 6), (12, 14))
    )
    assert more.rtol < few.rtol / 4


@pytest.mark.parametrize(("n", "d"), [(90, 40), (30, 70), (40, 40), (41, 40), (5, 1), (2, 3), (3, 2), (2, 1)])
def test_with_enough_steps_all_eigenvalues_are_found(rng, n, d):
    x = samples_of(rng, n, power(d, 1), 0.5)
    exact = spectrum_of(x)
    s = spectrum_of(x, method="lanczos", probes=5, steps=20)
    assert s.rtol == 0.0
    assert s.dim == d
    rank = np.count_nonzero(exact.eigenvalues)
    assert s.counts[:rank].tolist() == [1.0] * rank
    np.testing.assert_allclose(s.eigenvalues[:rank], exact.eigenvalues[:rank], rtol=1e-7)
    np.testing.assert_allclose(s.mean[:rank], exact.mean[:rank], rtol=0, atol=1e-9)
    if rank < d:
        assert s.eigenvalues[rank:].tolist() == [0.0] * (1 + (d - rank > 1))
        assert s.counts[rank:].sum() == d - rank
        np.testing.assert_allclose(s.mean[rank], exact.mean[rank], rtol=0, atol=1e-9)
        assert not s.mean[rank + 1 :].any()


@pytest.mark.parametrize("n", [150, 900])
def test_counts_sum_to_d_and_zeros_are_exact(rng, n):
    x = np.full((n, 260), 0.7)
    x[:, 30:230] = samples_of(rng, n, power(200, 2), 0.5)
    s = spectrum_of(x, method="lanczos", probes=6, steps=10)
    zeros = s.counts[s.eigenvalues == 0].sum()
    assert zeros == max(260 - 200, 260 - n + 1)
    assert s.counts.sum() == s.dim == 260
    assert np.all(np.diff(s.eigenvalues) <= 0)
    assert (s.counts == 1.0).sum() > 5  # the largest eigenvalues, one by one
    exact = spectrum_of(x)
    largest = (s.counts == 1.0)[:3]
    assert largest.all()
    np.testing.assert_allclose(s.eigenvalues[:3], exact.eigenvalues[:3], rtol=1e-3)
    assert (s.mean**2 * s.counts).sum() == pytest.approx((x.mean(axis=0) ** 2).sum(), rel=1e-9)
    assert s.total_variance == pytest.approx(exact.total_variance, rel=s.rtol)


def test_constant_samples():
    s = Spectrum.from_samples(np.full((9, 4), 2.0), method="lanczos")
    assert (s.eigenvalues.tolist(), s.counts.tolist(), s.mean.tolist(), s.rtol) == ([0, 0], [1, 3], [4, 0], 0)


@pytest.mark.parametrize("varying", [1, 2, 5, 16, 17, 18])
def test_few_features_that_vary_among_many_that_do_not(rng, varying):
    x = np.full((70, 60), 0.3)
    x[:, 60 - varying :] = samples_of(rng, 70, power(varying, 1), 0.5)
    s, exact = Spectrum.from_samples(x, method="lanczos"), Spectrum.from_samples(x[:, 60 - varying :])
    assert s.rtol == 0.0
    np.testing.assert_allclose(s.eigenvalues[:varying], exact.eigenvalues, rtol=1e-9)
    np.testing.assert_allclose(s.mean[:varying], exact.mean, rtol=0, atol=1e-9)
    assert s.counts[varying:].tolist() == [1.0, 59.0 - varying]
    assert s.mean[varying:] == pytest.approx([0.3 * np.sqrt(60 - varying), 0.0], rel=1e-9)


def with_eigenvalues(rng, n, values):
    """Samples whose covariance with factor 1/n has these eigenvalues to rounding."""
    white = rng.standard_normal((n, len(values)))
    q, _ = np.linalg.qr(white - white.mean(axis=0))
    basis, _ = np.linalg.qr(rng.standard_normal((len(values), len(values))))
    return (q * np.sqrt(n * np.asarray(values))) @ basis.T


def test_equal_eigenvalues_are_counted_as_often_as_there_are(rng):
    values = np.repeat([8.0, 4.0, 2.0, 1.0], [2, 3, 55, 140])
    x = with_eigenvalues(rng, 500, values)
    s = Spectrum.from_samples(x, method="lanczos", probes=8, steps=8)
    sums = [s.counts[np.abs(s.eigenvalues / value - 1) < 1e-9].sum() for value in (8, 4, 2, 1)]
    assert sum(sums) == pytest.approx(200, abs=1e-9)
    assert sums[:2] == [2.0, 3.0]  # fewer than probes: exact
    assert abs(sums[2] - 55) < 20  # more: what the probes say
    assert np.abs(divergences(s) / divergences(Spectrum(values)) - 1).max() <= s.rtol
    white = Spectrum.from_samples(with_eigenvalues(rng, 500, np.full(200, 3.0)), method="lanczos")
    np.testing.assert_allclose(white.eigenvalues[white.counts > 1e-9], 3.0, rtol=1e-12)
    assert white.dim == 200
    assert white.rtol < 1e-9


def test_the_mean_is_on_the_directions_it_lies_along(rng):
    values = power(300, 1.5)
    x = with_eigenvalues(rng, 600, values)
    vectors = np.linalg.eigh(x.T @ x)[1][:, ::-1]
    mean = 3.0 * vectors[:, 2] + 0.5 * vectors[:, 120:].sum(axis=1)
    s = Spectrum.from_samples(x + mean, method="lanczos", probes=8, steps=15)
    exact = Spectrum.from_samples(x + mean)
    assert s.mean[2] == pytest.approx(3.0, rel=1e-6)
    for split in (values[60], values[100], values[119]):
        below = s.eigenvalues < split
        expected = (exact.mean[exact.eigenvalues < split] ** 2).sum()
        assert (s.mean[below] ** 2 * s.counts[below]).sum() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("n", [60, 400])
def test_the_seed_decides(rng, n):
    x = samples_of(rng, n, power(150, 1))
    first, again, other = (
        spectrum_of(x, method="lanczos", probes=3, steps=4, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first.rtol == again.rtol
    assert first != other


# ---- sources


def test_arrays_maps_and_loaders_agree(rng, tmp_path):
    x = samples_of(rng, 400, power(50, 1)).astype(np.float32).reshape(400, 5, 10)
    options = {"method": "lanczos", "probes": 3, "steps": 5}
    expected = Spectrum.from_samples(x, **options)
    np.save(tmp_path / "x.npy", x)
    for other in (np.load(tmp_path / "x.npy", mmap_mode="r"), x.tolist(), Loader(x)):
        assert Spectrum.from_samples(other, **options) == expected
    shuffled = Spectrum.from_samples(Loader(x, rng.permutation), **options)
    np.testing.assert_allclose(shuffled.eigenvalues, expected.eigenvalues, rtol=1e-6)


def test_blocks_change_nothing_but_rounding(rng, monkeypatch):
    for n in (30, 400):
        x = samples_of(rng, n, power(50, 1))
        expected = spectrum_of(x, method="lanczos", probes=3, steps=5)
        with monkeypatch.context() as patch:
            patch.setattr(_batches, "_BLOCK", 1)
            patch.setattr("fastkl._products._ROWS", 7)
            got = spectrum_of(x, method="lanczos", probes=3, steps=5)
        np.testing.assert_allclose(got.eigenvalues, expected.eigenvalues, rtol=1e-9)
        np.testing.assert_allclose(got.counts, expected.counts, rtol=1e-6)


def test_auto_takes_it_for_what_is_too_large_for_a_matrix(rng, monkeypatch):
    monkeypatch.setattr(_samples, "LARGEST_DENSE", 20)
    x = samples_of(rng, 100, power(30, 1))
    assert Spectrum.from_samples(x).counts is not None
    assert Spectrum.from_samples(Loader(x)).counts is not None
    assert Spectrum.from_samples(x[:, :20]).counts is None
    assert spectrum_of(x[:25]).counts is not None  # n <= d, but both too large
    assert spectrum_of(x[:20]).counts is None  # the Gram matrix is small enough
    with pytest.raises(ValueError, match=r"^x: samples of d = 30 .* an array, a memory map .* GB of memory"):
        Spectrum.from_samples(iter([x]))
    assert Spectrum.from_samples(iter([x]), method="covariance").counts is None


def test_samples_that_change_are_noticed(rng):
    x = samples_of(rng, 100, power(30, 1))
    options = {"method": "lanczos", "probes": 2, "steps": 2}
    with pytest.raises(
        ValueError, match=r"^x: must give the same samples each time, but their total variance"
    ):
        Spectrum.from_samples(Loader(x, lambda x: x * 1.001), **options)
    with pytest.raises(ValueError, match=r"^x: must give the same samples each time, got 100 and then 99"):
        Spectrum.from_samples(Loader(x, lambda x: x[1:]), **options)


BAD_OPTIONS = [
    ({"probes": 1}, ValueError, r"^probes = 1: must be at least 2"),
    ({"steps": 1}, ValueError, r"^steps = 1: must be at least 2"),
    ({"seed": -1}, ValueError, r"^seed = -1: must be at least 0"),
    ({"probes": 2.0}, TypeError, r"^probes: must be an integer"),
    ({"seed": None}, TypeError, r"^seed: must be an integer"),
    ({"shrinkage": "oas"}, ValueError, r"^shrinkage = 'oas': needs all eigenvalues"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        Spectrum.from_samples(np.eye(5)[:, :2], method="lanczos", **options)


def test_what_lanczos_cannot_read(rng):
    x = samples_of(rng, 60, power(70, 1))
    with pytest.raises(ValueError, match=r"^x: samples of d = 70 .* an iterator gives them only once"):
        Spectrum.from_samples(iter([x]), method="lanczos")
    with pytest.raises(ValueError, match=r"^x: 60 samples, .* no more than the 70 features, .* same order"):
        Spectrum.from_samples(Loader(x), method="lanczos")
    x[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"^x\[3, 1\] = nan"):
        Spectrum.from_samples(x, method="lanczos")


def test_progress_counts_samples_of_all_passes(rng):
    for n, passes in ((100, 4), (20, 9)):
        calls = []
        spectrum_of(
            samples_of(rng, n, power(70, 0.1)),
            method="lanczos",
            probes=2,
            steps=4,
            progress=lambda done, total, calls=calls: calls.append((done, total)),
        )
        assert calls == [(n, n), *((n * k, n * passes) for k in range(1, passes + 1))]
