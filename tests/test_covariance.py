"""Spectra estimated from covariance matrices and from samples, against known spectra and NumPy; bad input."""

import numpy as np
import pytest
from sampled import spectrum_of

from fastkl import _batches
from fastkl.spectrum import Spectrum


def random_basis(rng, d):
    q, r = np.linalg.qr(rng.standard_normal((d, d)))
    return q * np.sign(np.diag(r))


def samples_with_covariance(rng, n, eigenvalues):
    """Samples whose centred covariance with factor 1/n has exactly (up to rounding) these eigenvalues."""
    d = len(eigenvalues)
    white = rng.standard_normal((n, d))
    white -= white.mean(axis=0)
    q, _ = np.linalg.qr(white)
    basis = random_basis(rng, d)
    return (q * np.sqrt(n * np.asarray(eigenvalues))) @ basis.T, basis


# ---- from_covariance


@pytest.mark.parametrize("d", [1, 2, 17, 60])
def test_covariance_recovers_a_known_spectrum(rng, d):
    values = np.sort(10.0 ** rng.uniform(-3, 3, d))[::-1]
    basis = random_basis(rng, d)
    s = Spectrum.from_covariance((basis * values) @ basis.T, floor=0.5)
    np.testing.assert_allclose(s.eigenvalues, values + 0.5, rtol=0, atol=1e-12 * values[0])
    assert s.mean is None
    assert s.counts is None


def test_covariance_leaves_its_argument_alone(rng):
    c = np.cov(rng.standard_normal((5, 50)))
    before = c.copy()
    Spectrum.from_covariance(c)
    assert np.array_equal(c, before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_of_a_low_rank_covariance_is_exactly_zero(rng, dtype):
    a = rng.standard_normal((40, 7)).astype(dtype)
    s = Spectrum.from_covariance(a @ a.T)
    expected = np.linalg.eigvalsh(a.T.astype(float) @ a)[::-1]
    assert np.count_nonzero(s.eigenvalues) == 7
    np.testing.assert_allclose(s.eigenvalues[:7], expected, rtol=1e-13 if dtype == np.float64 else 1e-5)


def test_zero_and_tiny_covariances():
    assert Spectrum.from_covariance(np.zeros((3, 3))).eigenvalues.tolist() == [0, 0, 0]
    assert Spectrum.from_covariance([[1e-20, 0], [0, 1e-19]]).eigenvalues.tolist() == [1e-19, 1e-20]
    assert Spectrum.from_covariance([[2, 1], [1, 2]]).eigenvalues.round(12).tolist() == [3.0, 1.0]


def asymmetric():
    c = np.eye(4)
    c[1, 3], c[3, 1] = 0.25, 0.26
    return c


BAD_COVARIANCES = [
    (np.ones(3), ValueError, r"^c: must be 2-D"),
    (np.ones((2, 3)), ValueError, r"^c: must be square, got shape \(2, 3\)"),
    (np.ones((0, 0)), ValueError, r"^c: must have at least 1"),
    ([[1.0, np.nan], [np.nan, 1.0]], ValueError, r"^c\[0, 1\] = nan: must be finite"),
    ([[1.0, 0.0], [0.0, np.inf]], ValueError, r"^c\[1, 1\] = inf: must be finite"),
    ([[1e31]], ValueError, r"^c\[0, 0\] = 1e\+31: must be finite and at most 1e30"),
    (asymmetric(), ValueError, r"^c\[1, 3\] = 0\.25: must equal c\[3, 1\] = 0\.26 .*symmetric"),
    (asymmetric().T, ValueError, r"^c\[1, 3\] = 0\.26: must equal c\[3, 1\] = 0\.25 .*symmetric"),
    ([[1.0, 2.0], [2.0, 1.0]], ValueError, r"^c: must be positive semi-definite.* -1 "),
    ([[-1.0]], ValueError, r"^c: must be positive semi-definite"),
    ([[1e-31]], ValueError, r"^eigenvalues of c\[0\] = 1e-31: "),
    (np.eye(2) * 1j, TypeError, r"^c: .*complex"),
    (np.eye(2, dtype=bool), TypeError, r"^c: .*bool"),
    (np.ma.masked_less(np.eye(2), 0.5), TypeError, r"^c: .*masked"),
    ([[1.0], [1.0, 2.0]], ValueError, r"^c: must be a rectangular"),
]


@pytest.mark.parametrize(("c", "error", "message"), BAD_COVARIANCES)
def test_bad_covariance(c, error, message):
    with pytest.raises(error, match=message):
        Spectrum.from_covariance(c)


def test_asymmetry_of_rounding_is_allowed(rng):
    a = rng.standard_normal((30, 30))
    c = a @ np.diag(rng.uniform(1, 2, 30)) @ a.T
    c[3, 5] *= 1 + 1e-12
    assert len(Spectrum.from_covariance(c)) == 30


# ---- from_samples


@pytest.mark.parametrize(("n", "d"), [(2, 1), (30, 5), (7, 7), (8, 7), (6, 40), (2, 9)])
def test_samples_recover_a_known_spectrum_and_mean(rng, n, d):
    rank = min(n - 1, d)
    values = np.sort(10.0 ** rng.uniform(-2, 2, rank))[::-1]
    white = rng.standard_normal((n, rank))
    white -= white.mean(axis=0)
    q, _ = np.linalg.qr(white)
    basis = random_basis(rng, d)
    mean = rng.standard_normal(d)
    x = (q * np.sqrt(n * values)) @ basis[:, :rank].T + mean
    s = spectrum_of(x)
    np.testing.assert_allclose(s.eigenvalues[:rank], values, rtol=1e-9)
    assert np.all(s.eigenvalues[rank:] == 0.0)
    along = np.abs(basis.T @ mean)
    np.testing.assert_allclose(s.mean[:rank], along[:rank], rtol=0, atol=1e-9)
    np.testing.assert_allclose(s.mean[rank : rank + 1], np.linalg.norm(along[rank:]), rtol=0, atol=1e-9)
    assert np.all(s.mean[rank + 1 :] == 0.0)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("shape", [(50, 3, 4), (9, 5, 5), (40, 6)])
def test_samples_equal_numpy(rng, dtype, shape):
    x = (rng.uniform(0, 255, shape)).astype(dtype)
    flat = x.reshape(shape[0], -1).astype(np.float64)
    expected = np.linalg.eigvalsh(np.cov(flat.T, bias=True))[::-1]
    s = spectrum_of(x)
    np.testing.assert_allclose(s.eigenvalues, expected, rtol=0, atol=1e-12 * expected[0])
    assert np.count_nonzero(s.eigenvalues) == min(shape[0] - 1, flat.shape[1])
    assert s.total_variance == pytest.approx(flat.var(axis=0).sum(), rel=1e-13)
    assert (s.mean**2).sum() == pytest.approx((flat.mean(axis=0) ** 2).sum(), rel=1e-12)


@pytest.mark.parametrize("shape", [(300, 6), (12, 200)])
def test_blocks_change_nothing(rng, monkeypatch, shape):
    x = rng.standard_normal(shape) + 3
    whole = spectrum_of(x)
    monkeypatch.setattr(_batches, "_BLOCK", 70)
    blocks = spectrum_of(x)
    np.testing.assert_allclose(blocks.eigenvalues, whole.eigenvalues, rtol=1e-11)
    np.testing.assert_allclose(blocks.mean, whole.mean, rtol=0, atol=1e-11)


def test_both_routes_agree(rng):
    x = rng.standard_normal((20, 20)) + 1
    for data in (x, np.repeat(x[:, :6], 4, axis=1)):
        gram, covariance = spectrum_of(data, method="gram"), spectrum_of(data, method="covariance")
        np.testing.assert_allclose(gram.eigenvalues, covariance.eigenvalues, rtol=0, atol=1e-12)
        np.testing.assert_allclose(gram.mean, covariance.mean, rtol=0, atol=1e-7)
        assert np.array_equal(gram.eigenvalues == 0, covariance.eigenvalues == 0)


def test_samples_far_from_the_origin_keep_their_digits(rng):
    x, _ = samples_with_covariance(rng, 100, [4.0, 1.0, 0.25])
    near, far = spectrum_of(x), spectrum_of(x + 2.0**20)
    np.testing.assert_allclose(far.eigenvalues, near.eigenvalues, rtol=1e-9)


@pytest.mark.parametrize("n", [5, 40])
def test_constant_features_give_exact_zeros(rng, n):
    x = np.full((n, 12), 0.1)
    x[:, :3] = rng.standard_normal((n, 3))
    s = spectrum_of(x)
    assert np.count_nonzero(s.eigenvalues) == 3
    assert s.mean[3] == pytest.approx(0.1 * 3, rel=1e-12)
    same = spectrum_of(np.full((n, 12), 0.1))
    assert same.eigenvalues.tolist() == [0.0] * 12
    assert same.mean[0] == pytest.approx(0.1 * np.sqrt(12))
    assert np.all(same.mean[1:] == 0)


def test_samples_from_a_memmap_a_list_and_a_transposed_array(rng, tmp_path):
    x = rng.integers(0, 256, (30, 4)).astype(np.uint8)
    expected = spectrum_of(x)
    file = np.memmap(tmp_path / "x.bin", dtype=np.uint8, mode="w+", shape=x.shape)
    file[:] = x
    for other in (file, x.tolist(), np.asfortranarray(x), x.reshape(30, 2, 2)):
        assert spectrum_of(other) == expected


def test_samples_with_a_floor(rng):
    x = rng.standard_normal((4, 9))
    raw, floored = spectrum_of(x), spectrum_of(x, floor=0.125)
    assert floored == raw.floored(0.125)
    assert floored.eigenvalues.min() == 0.125


def with_bad(value):
    x = np.zeros((6, 4))
    x[3, 2] = value
    return x


BAD_SAMPLES = [
    (np.ones(5), ValueError, r"^x: must have shape \(n, \.\.\.\)"),
    (np.float64(1.0), ValueError, r"^x: must have shape"),
    (np.ones((1, 5)), ValueError, r"^x: must hold at least 2 samples"),
    (np.ones((0, 5)), ValueError, r"^x: must hold at least 2 samples"),
    (np.ones((5, 0)), ValueError, r"^x: must have at least one feature"),
    (with_bad(np.nan), ValueError, r"^x\[3, 2\] = nan: must be finite"),
    (with_bad(-np.inf), ValueError, r"^x\[3, 2\] = -inf: must be finite"),
    (with_bad(np.nan)[:4], ValueError, r"^x\[3, 2\] = nan: must be finite"),
    (with_bad(np.nan).reshape(6, 2, 2), ValueError, r"^x\[3, 1, 0\] = nan: must be finite"),
    (with_bad(np.inf).astype(np.float16), ValueError, r"^x\[3, 2\] = inf: must be finite"),
    (with_bad(2e15), ValueError, r"^x\[3, 2\] = 2000000000000000\.0: .*1e15"),
    (with_bad(1e-20), ValueError, r"^eigenvalues of x\[0\] = .*1e-30"),
    (np.ones((3, 2), dtype=bool), TypeError, r"^x: .*bool"),
    (np.ones((3, 2), dtype=complex), TypeError, r"^x: .*complex"),
    (np.ones((3, 2), dtype=object), TypeError, r"^x: .*object"),
    (np.array([["a"], ["b"]]), TypeError, r"^x: .*<U1"),
    (np.ma.masked_equal(np.eye(3), 0), TypeError, r"^x: .*masked"),
    ([[1.0], [1.0, 2.0]], ValueError, r"^x: must be a rectangular"),
    (None, TypeError, r"^x: .*NoneType"),
]


@pytest.mark.parametrize(("x", "error", "message"), BAD_SAMPLES)
def test_bad_samples(x, error, message):
    with pytest.raises(error, match=message):
        Spectrum.from_samples(x)
