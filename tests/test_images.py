"""The stationary model of images: exact where it holds, whatever the size, the channels and the batches."""

import numpy as np
import pytest

import fastkl
from fastkl import RankDeficientWarning, Spectrum, _batches


def all_shifts(images):
    """Every circular shift of images (n, H, W, ...): samples whose covariance is exactly stationary."""
    height, width = images.shape[1:3]
    return np.concatenate([np.roll(images, (i, j), axis=(1, 2)) for i in range(height) for j in range(width)])


def expanded(spectrum):
    """Eigenvalues, largest first, each as often as it counts."""
    assert np.array_equal(spectrum.counts, spectrum.counts.astype(int))
    return np.repeat(spectrum.eigenvalues, spectrum.counts.astype(int))


SIZES = [(4, 4), (5, 6), (6, 5), (1, 7), (7, 1), (1, 1), (2, 2), (3, 3), (1, 2), (8, 3)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [None, 1, 2, 3])
def test_a_stationary_covariance_has_its_exact_spectrum(rng, size, channels):
    shape = size if channels is None else (*size, channels)
    images = rng.standard_normal((5, *shape)) + 2.0
    if channels == 3:
        images = images @ rng.standard_normal((3, 3))  # correlated channels
    x = all_shifts(images)
    x = np.concatenate([x, x])  # more samples than features
    s, exact = Spectrum.from_images(x), Spectrum.from_samples(x)
    assert s.dim == np.prod(shape)
    assert len(s) == size[0] * (size[1] // 2 + 1) * (channels or 1)
    np.testing.assert_allclose(expanded(s), exact.eigenvalues, rtol=0, atol=1e-11 * exact.eigenvalues[0])
    level = x.reshape(len(x), size[0] * size[1], -1).mean(axis=(0, 1))
    assert (s.mean**2 * s.counts).sum() == pytest.approx(np.prod(size) * (level**2).sum(), rel=1e-12)
    sigmas = np.append(np.geomspace(50, 0.3, 8), 0.0)
    for metric in ("w2", "kl") if exact.eigenvalues[-1] > 1e-9 else ("w2",):
        expected = fastkl.divergence(exact, sigmas, metric)
        assert fastkl.divergence(s, sigmas, metric) == pytest.approx(expected, rel=1e-6)


def test_known_power_is_recovered(rng):
    height, width, n = 6, 8, 4000
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij"))
    power = 1.0 / (0.1 + frequency) ** 2
    white = np.fft.fft2(rng.standard_normal((n, height, width)))
    x = np.fft.ifft2(white * np.sqrt(power)).real
    s = Spectrum.from_images(x)
    expected = np.sort(power.ravel())[::-1]
    assert np.abs(expanded(s) / expected - 1).max() < 6 / np.sqrt(n) * 2


@pytest.mark.parametrize("shape", [(9, 6, 5), (9, 6, 5, 3)])
def test_total_variance_is_that_of_the_pixels(rng, shape):
    x = rng.standard_normal(shape) + np.linspace(0, 3, 5)[:, *[None] * (len(shape) - 3)]
    centred = x - x.mean(axis=(0, 1, 2))
    s = Spectrum.from_images(x, floor=0.25)
    expected = (centred**2).sum() / 9 + 0.25 * np.prod(shape[1:])
    assert s.total_variance == pytest.approx(expected, rel=1e-13)
    assert np.all(np.diff(s.eigenvalues) <= 0)


def test_the_mean_is_at_frequency_zero_along_its_eigenvectors(rng):
    x = rng.standard_normal((40, 3, 4, 2)) @ np.array([[1.0, 0.9], [0.0, 0.5]]) + [3.0, -1.0]
    x += rng.standard_normal((40, 1, 1, 2)) * [2.0, 1.0]
    level = x.mean(axis=(1, 2)) * np.sqrt(12)
    values, vectors = np.linalg.eigh(np.cov(level.T, bias=True))
    s = Spectrum.from_images(x)
    for value, vector in zip(values, vectors.T, strict=True):
        entry = np.argmin(np.abs(s.eigenvalues - value))
        assert s.eigenvalues[entry] == pytest.approx(value, rel=1e-12)
        assert s.mean[entry] == pytest.approx(abs(level.mean(axis=0) @ vector), rel=1e-12)
        assert s.counts[entry] == 1
    assert np.count_nonzero(s.mean) == 2


def test_one_channel_is_no_channel_and_independent_channels_are_apart(rng):
    x = rng.standard_normal((50, 4, 6))
    grey = Spectrum.from_images(x)
    assert Spectrum.from_images(x[..., None]) == grey
    # The same images, negated and halved, in a second channel of other samples: no correlation at all.
    two = np.zeros((100, 4, 6, 2))
    two[:50, ..., 0], two[50:, ..., 1] = x - x.mean(), (x - x.mean()) / 2
    s = Spectrum.from_images(two)
    expected = np.sort(np.concatenate([expanded(grey) / 2, expanded(grey) / 8]))[::-1]
    np.testing.assert_allclose(expanded(s), expected, rtol=1e-10)


def test_equal_channels_leave_exact_zeros(rng):
    x = rng.uniform(0, 1, (30, 5, 4))
    s = Spectrum.from_images(np.repeat(x[..., None], 3, axis=3))
    grey = Spectrum.from_images(x)
    assert np.count_nonzero(s.eigenvalues) == len(grey)
    np.testing.assert_allclose(s.eigenvalues[: len(grey)], 3 * grey.eigenvalues, rtol=1e-12)


def test_constant_images_and_a_large_level(rng):
    s = Spectrum.from_images(np.full((5, 3, 7), 0.1))
    assert not s.eigenvalues.any()
    assert s.mean.max() == pytest.approx(0.1 * np.sqrt(21))
    x = rng.integers(-1000, 1000, (50, 4, 6)) / 512.0
    near, far = Spectrum.from_images(x), Spectrum.from_images(x + 2.0**20)
    np.testing.assert_allclose(far.eigenvalues, near.eigenvalues, rtol=1e-9)


def test_batches_maps_and_types_agree(rng, tmp_path, monkeypatch):
    x = rng.integers(0, 256, (60, 4, 5, 3)).astype(np.uint8)
    monkeypatch.setattr(_batches, "_BLOCK", 60 * 7)
    expected = Spectrum.from_images(x)
    np.save(tmp_path / "x.npy", x)
    for other in (
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        iter([x[:1], x[1:1], x[1:30], x[30:]]),
        x.tolist(),
        x.astype(np.float32),
        np.asfortranarray(x),
    ):
        assert Spectrum.from_images(other) == expected
    monkeypatch.undo()
    np.testing.assert_allclose(Spectrum.from_images(x).eigenvalues, expected.eigenvalues, rtol=1e-12)


def test_progress_counts_images(rng, monkeypatch):
    monkeypatch.setattr(_batches, "_BLOCK", 40)
    calls = []
    Spectrum.from_images(rng.standard_normal((5, 4, 5)), progress=lambda *call: calls.append(call))
    assert calls == [(2, 5), (4, 5), (5, 5)]


def test_too_few_images_for_the_channels(rng):
    x = rng.standard_normal((3, 4, 5, 3))
    with pytest.warns(
        RankDeficientWarning, match=r"^n = 3 images of 3 channels: 1 eigenvalue is 0"
    ) as record:
        s = Spectrum.from_images(x)
    assert record[0].filename == __file__
    assert s.counts[s.eigenvalues == 0].sum() == 1
    with pytest.warns(
        RankDeficientWarning, match=r"n = 2 images of 3 channels: 21 .* the floor of 0.1 alone"
    ):
        s = Spectrum.from_images(x[:2], floor=0.1)
    assert s.counts[s.eigenvalues == 0.1].sum() == 21
    assert Spectrum.from_images(x[:2, ..., 0]).eigenvalues.min() > 0


BAD_IMAGES = [
    (np.ones((5, 4)), ValueError, r"^x: must hold images of shape \(H, W\) or .* shape \(4,\)"),
    (np.ones((5, 4, 3, 2, 1)), ValueError, r"^x: must hold images"),
    (iter([np.ones((5, 4))]), ValueError, r"^x: must hold images"),
    (np.ones((1, 4, 4)), ValueError, r"^x: must hold at least 2 samples"),
    (np.ones((5, 3, 32, 32)), ValueError, r"^x: must have its channels last.* transpose\(0, 2, 3, 1\)"),
    (np.full((5, 2, 2), np.nan), ValueError, r"^x\[0, 0, 0\] = nan"),
    (np.ones((5, 2, 2), dtype=bool), TypeError, r"^x: .*bool"),
    (None, TypeError, r"^x: .*NoneType"),
]


@pytest.mark.parametrize(("x", "error", "message"), BAD_IMAGES)
def test_bad_images(x, error, message):
    with pytest.raises(error, match=message):
        Spectrum.from_images(x)
    with pytest.raises((ValueError, TypeError), match=r"^floor"):
        Spectrum.from_images(x, floor=-1.0)
    with pytest.raises(TypeError, match=r"^progress"):
        Spectrum.from_images(x, progress="yes")
