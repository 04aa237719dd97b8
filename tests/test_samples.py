"""Spectra from batches and memory maps: the same as from arrays, whatever the cuts; progress; what is refused."""

import sys

import numpy as np
import pytest
from sampled import expect_warning, spectrum_of

from fastkl import RankDeficientWarning, Spectrum, _batches
from fastkl._batches import open_samples


class Tensor:
    """An array of another library, as NumPy sees it."""

    def __init__(self, values, error=None):
        self._values, self._error = values, error

    def __array__(self, dtype=None, copy=None):
        if self._error is not None:
            raise self._error
        return np.asarray(self._values, dtype=dtype)


class Loader:
    """An iterable of batches that can be gone through again, without a length."""

    def __init__(self, x, size):
        self._x, self._size = x, size

    def __iter__(self):
        for start in range(0, len(self._x), self._size):
            yield Tensor(self._x[start : start + self._size])


def cut(rng, x):
    """Cut x into batches of random lengths, some of them 0 and 1."""
    ends = np.sort(rng.integers(0, len(x) + 1, 12))
    return [x[:0], x[:1], *np.split(x[1:], np.minimum(ends, len(x) - 1)), x[:0]]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_batches_of_any_lengths_have_the_bits_of_the_array(rng, monkeypatch, dtype):
    monkeypatch.setattr(_batches, "_BLOCK", 12 * 11)  # 11 rows
    x = rng.uniform(0, 200, (100, 3, 4)).astype(dtype)
    expected = Spectrum.from_samples(x)
    for _ in range(5):
        batches = cut(rng, x)
        assert {0, 1} <= {len(batch) for batch in batches}
        assert Spectrum.from_samples(iter(batches)) == expected
    assert Spectrum.from_samples(Loader(x, 9)) == expected
    assert Spectrum.from_samples(row[None].tolist() for row in x.astype(np.float64)) == expected
    assert Spectrum.from_samples(Tensor(x)) == expected


def test_the_streamed_spectrum_is_that_of_numpy(rng, monkeypatch):
    monkeypatch.setattr(_batches, "_BLOCK", 50 * 37)
    x = (
        rng.standard_normal((3000, 50)) @ np.diag(np.arange(1, 51) ** -1.0) @ rng.standard_normal((50, 50))
        + 5
    )
    s = Spectrum.from_samples(x[k : k + 7] for k in range(0, 3000, 7))
    expected = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    np.testing.assert_allclose(s.eigenvalues, expected, rtol=0, atol=1e-13 * expected[0])
    assert np.linalg.norm(s.mean) == pytest.approx(np.linalg.norm(x.mean(axis=0)), rel=1e-13)


def test_a_mean_of_a_million_deviations_costs_no_digits(rng, monkeypatch):
    monkeypatch.setattr(_batches, "_BLOCK", 4 * 30)
    x = rng.integers(-1000, 1000, (5000, 4)) / 512.0  # sums with 2^20 are exact
    near = Spectrum.from_samples(x)
    far = Spectrum.from_samples(x[k : k + 17] + 2.0**20 for k in range(0, 5000, 17))
    np.testing.assert_allclose(far.eigenvalues, near.eigenvalues, rtol=1e-12)
    expected = np.linalg.norm(x.mean(axis=0) + 2.0**20)
    assert np.linalg.norm(far.mean) == pytest.approx(expected, rel=1e-15)


def test_few_samples_in_batches_have_exact_zeros(rng):
    x = rng.standard_normal((6, 20)) + 1
    expected = spectrum_of(x)
    with expect_warning(6, 20):
        s = Spectrum.from_samples(iter([x[:2], x[2:]]))
    assert np.count_nonzero(s.eigenvalues) == 5
    np.testing.assert_allclose(s.eigenvalues, expected.eigenvalues, rtol=0, atol=1e-13)
    np.testing.assert_allclose(s.mean, expected.mean, rtol=0, atol=1e-12)


# ---- memory maps


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
@pytest.mark.parametrize("shape", [(400, 2, 5), (8, 5, 5)])
def test_memory_maps_of_every_mode(rng, tmp_path, monkeypatch, mode, shape):
    monkeypatch.setattr(_batches, "_BLOCK", 40)
    x = rng.standard_normal(shape)
    np.save(tmp_path / "x.npy", x)
    file = np.load(tmp_path / "x.npy", mmap_mode=mode)
    if mode != "r":
        file[3] += 1.0  # in mode "c" only this process has it: it must not be lost
        x[3] += 1.0
    assert spectrum_of(file) == spectrum_of(x)
    assert np.array_equal(file, x)
    assert spectrum_of(np.asarray(file)[::2]) == spectrum_of(x[::2])


def test_which_maps_let_their_pages_go(rng, tmp_path):
    np.save(tmp_path / "x.npy", rng.standard_normal((10, 4)))
    for mode, lets_go in (("r", True), ("r+", False), ("c", False)):
        file = np.load(tmp_path / "x.npy", mmap_mode=mode)
        for array in (file, file[2:], np.asarray(file), file.reshape(10, 2, 2)):
            samples = open_samples("x", array)
            assert (samples._map is not None) == lets_go
            assert not samples.in_memory
    assert open_samples("x", np.ones((3, 2))).in_memory


@pytest.mark.parametrize("shape", [(5, 4, 6, 3), (5, 72), (5, 1, 72), (5, 9, 8, 1)])
@pytest.mark.parametrize("block", [5, 35, 60, 200, 5000])
def test_columns_are_cut_without_a_gap(rng, monkeypatch, shape, block):
    monkeypatch.setattr(_batches, "_BLOCK", block)
    x = rng.standard_normal(shape)
    for array in (x, np.asfortranarray(x)):
        seen = np.full((5, 72), np.nan)
        for columns, part in open_samples("x", array).column_blocks():
            assert part.size <= max(block, 5)
            assert np.isnan(seen[:, columns]).all()
            seen[:, columns] = part
        assert np.array_equal(seen, x.reshape(5, 72))


def test_bad_values_are_named_where_they_are(monkeypatch):
    monkeypatch.setattr(_batches, "_BLOCK", 12)
    x = np.zeros((30, 2, 3))
    x[25, 1, 2] = np.nan
    with pytest.raises(ValueError, match=r"^x\[25, 1, 2\] = nan: must be finite"):
        Spectrum.from_samples(x)
    with pytest.raises(ValueError, match=r"^batch 3 of x\[4, 1, 2\] = nan: must be finite"):
        Spectrum.from_samples(x[k : k + 7] for k in range(0, 30, 7))
    x = np.zeros((3, 2, 20), dtype=np.float32)
    x[1, 1, 9] = np.inf
    with pytest.raises(ValueError, match=r"^x\[:, 1:2, 8:12\]\[1, 0, 1\] = inf: must be finite"):
        Spectrum.from_samples(x)


# ---- the warning


def test_the_warning_says_what_follows_and_what_helps(rng):
    x = rng.standard_normal((5, 8))
    with pytest.warns(RankDeficientWarning) as record:
        Spectrum.from_samples(x)
    text = str(record[0].message)
    assert "n = 5 samples of d = 8 dimensions: 4 eigenvalues are 0" in text
    for word in ("not finite", "Marchenko-Pastur", "more samples", "floor=", "shrinkage="):
        assert word in text
    assert record[0].filename == __file__
    with pytest.warns(RankDeficientWarning, match="1 eigenvalue is 0 .* the floor of 0.5 alone stands"):
        Spectrum.from_samples(x[:, :5], floor=0.5)


# ---- progress


def test_progress_counts_samples_or_features(rng, monkeypatch):
    monkeypatch.setattr(_batches, "_BLOCK", 40)
    calls = []
    x = rng.standard_normal((25, 4))
    Spectrum.from_samples(x, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(10, 25), (20, 25), (25, 25)]
    calls.clear()
    Spectrum.from_samples(iter([x[:12], x[12:]]), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(10, None), (20, None), (25, None)]
    calls.clear()
    spectrum_of(x.T, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(10, 50), (20, 50), (25, 50), (35, 50), (45, 50), (50, 50)]


def test_a_bar_appears_in_a_terminal_only(rng, monkeypatch, capsys):
    x = rng.standard_normal((25, 4))
    expected = Spectrum.from_samples(x)
    assert Spectrum.from_samples(x, progress=True) == expected
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the stream for a terminal then
    assert Spectrum.from_samples(x, progress=True) == expected
    out, err = capsys.readouterr()
    assert out == ""
    assert "samples" in err
    assert "25/25" in err


def test_progress_that_cannot_be_shown_is_refused_first(monkeypatch):
    for value in ("yes", 1, None, np.True_):
        with pytest.raises(TypeError, match=r"^progress: must be True, False or a callable"):
            Spectrum.from_samples(None, progress=value)
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(ImportError, match=r"pip install 'fastkl\[cli\]'"):
        Spectrum.from_samples(None, progress=True)


# ---- what is refused

ONES = np.ones((3, 2))
BAD_BATCHES = [
    ([], ValueError, r"^x: must hold at least 2 samples, got no batch"),
    ([ONES[:0]], ValueError, r"^x: must hold at least 2 samples, got 0 in all"),
    ([ONES[:1], ONES[:0]], ValueError, r"^x: must hold at least 2 samples, got 1 in all"),
    ([ONES[0]], ValueError, r"^batch 0 of x: must have shape \(n, \.\.\.\)"),
    ([ONES, ONES[0]], ValueError, r"^batch 1 of x: must have shape \(n, \.\.\.\)"),
    ([ONES, ONES.T], ValueError, r"^batch 1 of x: must hold samples of shape \(2,\) .* \(2, 3\)"),
    ([ONES, ONES[..., None]], ValueError, r"^batch 1 of x: must hold samples of shape \(2,\)"),
    ([np.ones((3, 0))], ValueError, r"^batch 0 of x: must have at least one feature"),
    ([ONES, ONES > 0], TypeError, r"^batch 1 of x: .*bool"),
    ([ONES, ONES * 1j], TypeError, r"^batch 1 of x: .*complex"),
    ([ONES, "text"], TypeError, r"^batch 1 of x: .*<U4"),
    ([ONES, None], TypeError, r"^batch 1 of x: .*NoneType"),
    ([ONES, np.ma.masked_equal(ONES, 0)], TypeError, r"^batch 1 of x: .*masked"),
    ([[Tensor(ONES), Tensor(ONES)]], TypeError, r"^batch 0 of x: .*list of 2; where .* labels"),
    ([(Tensor(ONES), [0, 1, 2])], TypeError, r"^batch 0 of x: .*tuple of 2; where .* labels"),
    ([ONES, Tensor(ONES, TypeError("on a device"))], TypeError, r"^batch 1 of x: .*Tensor \(on a device\)"),
    ([Tensor(ONES, RuntimeError("grad"))], TypeError, r"^batch 0 of x: .*Tensor \(grad\)"),
]


@pytest.mark.parametrize(("batches", "error", "message"), BAD_BATCHES)
def test_bad_batches(batches, error, message):
    with pytest.raises(error, match=message):
        Spectrum.from_samples(iter(batches))


@pytest.mark.parametrize("x", ["text", b"bytes", {"x": ONES}, {1, 2}, 5, object(), memoryview(b"ab")])
def test_what_is_neither_an_array_nor_batches(x):
    with pytest.raises((TypeError, ValueError), match=r"^x: must "):
        Spectrum.from_samples(x)


def test_an_error_in_the_iterator_comes_through():
    def broken():
        yield ONES
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        Spectrum.from_samples(broken())


BAD_METHODS = [
    (ONES, "svd", ValueError, r"^method = 'svd': must be one of 'auto', 'covariance', 'gram', 'lanczos'"),
    (ONES, None, TypeError, r"^method: must be one of"),
    (ONES, "gram", ValueError, r"^method = 'gram': .* n = 3 and d = 2"),
    (iter([ONES.T]), "gram", ValueError, r"^method = 'gram': needs all samples at hand"),
]


@pytest.mark.parametrize(("x", "method", "error", "message"), BAD_METHODS)
def test_bad_methods(x, method, error, message):
    with pytest.raises(error, match=message):
        Spectrum.from_samples(x, method=method)
