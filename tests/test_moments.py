"""Moments of spectra in one pass: exact sums, chunks and machines, memory maps, bad input."""

import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastkl
from fastkl import Spectrum, SpectrumMoments
from fastkl._cell_tables import cell_points
from fastkl._gauss import Jacobi, cell_rules
from fastkl.kernels.cells import CELLS, MOMENTS, add_to_cells

SIGMAS = np.stack([50 * np.linspace(1, 0, 9) ** power for power in np.linspace(1, 6, 8)])


def fixed(array):
    array = np.ascontiguousarray(array, dtype=float)
    array.flags.writeable = False
    return array


def same_divergences(small, spectrum, rtol):
    for metric in ("kl", "reverse_kl", "w2"):
        exact = fastkl.divergence(spectrum, SIGMAS, metric)
        np.testing.assert_allclose(fastkl.divergence(small, SIGMAS, metric), exact, rtol=rtol)


# ---- cells


def test_cells_have_the_chebyshev_products_of_their_eigenvalues(rng):
    values, weights = np.exp(rng.uniform(-60, 60, 3000)), rng.random(3000)
    tables, zeros = np.zeros(2 * CELLS * MOMENTS), np.zeros(1)
    assert add_to_cells(fixed(values), fixed(weights), True, 0, 3000, tables, zeros) == -1
    table = tables.reshape(2, CELLS, MOMENTS).sum(axis=0)
    mantissa, exponent = np.frexp(values)  # mantissa in [0.5, 1)
    quarter = np.floor(8 * mantissa - 4).astype(int)
    t = 2 * (8 * mantissa - 4 - quarter) - 1
    cell = 4 * (exponent - 1 + 100) + quarter
    for j in range(3):
        for i in range(4):
            product = weights * np.cos(i * np.arccos(t)) * np.cos(4 * j * np.arccos(t))
            expected = np.bincount(cell, product, CELLS)
            np.testing.assert_allclose(table[:, 4 * j + i], expected, rtol=0, atol=1e-12 * weights.sum())
    assert zeros[0] == 0.0


def test_zeros_and_invalid_values_are_told():
    values = fixed([1.0, 0.0, -0.0, 2.0])
    tables, zeros = np.zeros(2 * CELLS * MOMENTS), np.zeros(1)
    assert add_to_cells(values, fixed([1.0]), False, 0, 4, tables, zeros) == -1
    assert zeros[0] == 2.0
    for bad in (-1.0, math.nan, math.inf, 1e-31, 1e31, 5e-324):
        assert add_to_cells(fixed([1.0, bad, bad]), fixed([1.0]), False, 0, 3, tables, zeros) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 50, 5000])
@pytest.mark.parametrize("width", [1e-12, 1e-6, 0.1, 3.0, 40.0])
def test_points_of_cells_have_the_sums_of_the_eigenvalues(rng, count, width):
    values = np.exp(rng.uniform(-width, width, count) / 2)
    weights = np.exp(rng.normal(0, 3, count))
    moments = SpectrumMoments()
    moments.add(values, counts=weights)
    points, shares = cell_points(moments._counts)
    assert (shares > 0).all()
    assert (np.diff(points) > 0).all()
    beyond = np.log(points / np.clip(points, values.min(), values.max()))  # rounding, with next to no weight
    assert shares @ beyond**2 <= 1e-13 * shares.sum()
    for level in np.exp(np.linspace(-25, 25, 41)):
        for f in (lambda x, s=level: (x * s / (x + s) ** 2) ** 2, lambda x, s=level: np.log1p(s / x) ** 2):
            assert shares @ f(points) == pytest.approx(weights @ f(values), rel=2e-13, abs=0)


@pytest.mark.parametrize("atoms", range(1, 9))
def test_rules_of_few_atoms_find_them(rng, atoms):
    t, w = np.sort(rng.uniform(-1, 1, atoms)), rng.uniform(0.5, 1, atoms)
    moments = np.array([w @ np.cos(k * np.arccos(t)) for k in range(12)])
    nodes, weights = cell_rules(moments[None])
    used = weights[0] > 1e-9
    assert used.sum() <= min(atoms, 6)
    for k in range(12):
        assert weights[0] @ np.cos(k * np.arccos(nodes[0])) == pytest.approx(moments[k], abs=1e-11)
    if atoms <= 3:
        np.testing.assert_allclose(nodes[0][used], t, atol=1e-6)


@pytest.mark.parametrize("order", [1, 5, 20, 40])
def test_gauss_rules_integrate_polynomials(rng, order):
    u, w = np.sort(rng.normal(0, 3, 500)), rng.random(500)
    nodes, weights = Jacobi(u, w).rule(order)
    scale = np.abs(u).max()
    for degree in range(2 * order):
        exact = w @ np.cos(degree * np.arccos(u / scale))
        got = weights @ np.cos(degree * np.arccos(np.clip(nodes / scale, -1, 1)))
        assert got == pytest.approx(exact, abs=1e-11 * w.sum())


def test_gauss_rules_end_where_the_points_do():
    jacobi = Jacobi(np.array([0.0, 1.0, 5.0]), np.array([1.0, 2.0, 3.0]))
    assert jacobi.grow(10) == 3
    nodes, weights = jacobi.rule(10)
    np.testing.assert_allclose(nodes, [0, 1, 5], atol=1e-14)
    np.testing.assert_allclose(weights, [1, 2, 3], rtol=1e-13)


# ---- chunks


def test_chunks_add_up_to_the_whole(rng):
    values = np.exp(rng.normal(0, 3, 50_000))
    whole = SpectrumMoments.from_chunks(values)
    parts = np.split(values, [1, 1, 700, 30_000])
    chunked = SpectrumMoments.from_chunks(iter(parts))
    assert chunked.dim == whole.dim == 50_000
    np.testing.assert_allclose(chunked._counts, whole._counts, rtol=0, atol=1e-10)
    merged = SpectrumMoments.from_chunks(parts[:3]) + SpectrumMoments.from_chunks(parts[3:])
    for moments in (whole, chunked, merged, pickle.loads(pickle.dumps(merged))):
        same_divergences(moments.spectrum(1e-10), Spectrum(values), 1e-10)


def test_adding_leaves_the_summands_alone(rng):
    a, b = (SpectrumMoments.from_chunks(np.exp(rng.normal(size=100))) for _ in range(2))
    before = a._counts.copy(), b._counts.copy()
    total = a + b
    total.add([1.0, 2.0])
    assert np.array_equal(a._counts, before[0])
    assert np.array_equal(b._counts, before[1])
    assert (total.dim, a.dim, (SpectrumMoments() + a).dim) == (202, 100, 100)
    with pytest.raises(TypeError):
        a + 1


def test_counts_and_means_of_chunks(rng):
    values = np.exp(rng.normal(0, 2, 4000))
    spectrum = Spectrum(values, rng.uniform(1, 5, 4000), rng.normal(size=4000))
    halves = [
        Spectrum(values[s], spectrum.counts[s], spectrum.mean[s]) for s in (slice(1500), slice(1500, None))
    ]
    small = SpectrumMoments.from_chunks(halves).spectrum(1e-10)
    assert small.dim == pytest.approx(spectrum.dim, rel=1e-13)
    same_divergences(small, spectrum, 1e-10)
    moments = SpectrumMoments()
    for half in halves:
        moments.add(half.eigenvalues, half.counts, half.mean)
    assert moments.spectrum(1e-10) == small


def test_threads_that_add_at_the_same_time(rng):
    values = np.exp(rng.normal(0, 2, (40, 5000)))
    moments = SpectrumMoments()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(moments.add, values))
    assert moments.dim == 200_000
    same_divergences(moments.spectrum(1e-9), Spectrum(values.ravel()), 1e-9)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, ">f8", np.int32])
@pytest.mark.parametrize("mode", ["r", "c"])
def test_memory_maps_of_any_real_dtype(rng, tmp_path, dtype, mode):
    values = np.ceil(np.exp(rng.normal(3, 1, 300_000))).astype(dtype)
    np.save(tmp_path / "values.npy", values)
    mapped = np.load(tmp_path / "values.npy", mmap_mode=mode)
    whole = SpectrumMoments.from_chunks(np.asarray(values, dtype=float))
    assert np.array_equal(SpectrumMoments.from_chunks(mapped)._counts, whole._counts)
    half = SpectrumMoments.from_chunks([mapped[:100_001], mapped[100_001:]])
    np.testing.assert_allclose(half._counts, whole._counts, rtol=0, atol=1e-9)
    assert np.array_equal(mapped, values)  # letting go of pages loses nothing
    strided = SpectrumMoments.from_chunks(mapped[::3])
    assert np.array_equal(strided._counts, SpectrumMoments.from_chunks(values[::3].astype(float))._counts)


def test_blocks_of_one_array_do_not_change_the_result(rng, monkeypatch):
    from fastkl import _cell_tables

    values = np.exp(rng.normal(0, 2, 400_000))
    whole = SpectrumMoments.from_chunks(values, num_threads=1)
    monkeypatch.setattr(_cell_tables, "BATCH", _cell_tables.PIECE)
    np.testing.assert_allclose(
        SpectrumMoments.from_chunks(values, num_threads=3)._counts, whole._counts, atol=1e-9
    )


def test_progress_is_told(rng):
    values, told = np.exp(rng.normal(size=5_000_000)), []
    SpectrumMoments.from_chunks(values, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (5_000_000, 5_000_000)
    assert len(told) > 1
    told.clear()
    SpectrumMoments.from_chunks(
        [values[:5], values[:7]], progress=lambda done, total: told.append((done, total))
    )
    assert told == [(5, None), (12, None)]
    with pytest.raises(TypeError, match="progress: must be True, False or a callable"):
        SpectrumMoments.from_chunks(values[:5], progress="yes")


# ---- bad input


def test_bad_values_are_named_and_nothing_is_added():
    moments = SpectrumMoments()
    moments.add([1.0])
    values = np.ones(5_000_000)
    values[4_500_000] = -2.0
    for arguments, message in (
        ((values,), r"eigenvalues\[4500000\] = -2.0: a variance must be 0 or within"),
        (([1.0, math.nan],), r"eigenvalues\[1\] = nan"),
        (([1.0, 2.0], [1.0, 0.0]), r"counts\[1\] = 0.0: a count must be within"),
        (([1.0], None, [1e16]), r"mean\[0\] = 1e\+16: must be finite and at most 1e15"),
        (([1.0, 2.0], [1.0]), r"counts: must have shape \(2,\) like eigenvalues"),
        (([[1.0]],), r"eigenvalues: must be 1-D"),
        ((Spectrum([1.0]), [1.0]), r"counts and mean: must be left out"),
    ):
        with pytest.raises(ValueError, match=message):
            moments.add(*arguments)
    for wrong in (["1"], [True], [1j], None):
        with pytest.raises(TypeError, match="eigenvalues"):
            moments.add(wrong)
    assert moments.dim == 1


def test_bad_chunks_are_numbered():
    with pytest.raises(ValueError, match=r"chunks\[1\]: eigenvalues\[0\] = -1.0"):
        SpectrumMoments.from_chunks([[1.0], [-1.0]])
    for wrong in (3, None, "abc"):
        with pytest.raises(TypeError, match="chunks: must be an array or an iterable"):
            SpectrumMoments.from_chunks(wrong)


def test_nothing_added():
    for empty in (
        SpectrumMoments(),
        SpectrumMoments.from_chunks([]),
        SpectrumMoments.from_chunks(np.empty(0)),
    ):
        assert empty.dim == 0
        with pytest.raises(ValueError, match="must hold at least one eigenvalue"):
            empty.spectrum()


def test_only_zeros():
    assert SpectrumMoments.from_chunks([0.0, 0.0]).spectrum() == Spectrum([0.0], [2.0])
