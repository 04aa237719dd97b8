"""Spectrum: construction, value semantics, merging, floors, power laws, bad input."""

import copy
import os
import pickle
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from fastkl.spectrum import Spectrum, as_spectrum

# ---- value semantics


def test_attributes_of_a_plain_spectrum():
    s = Spectrum([3, 0, 2])
    assert s.eigenvalues.dtype == np.float64
    assert s.eigenvalues.tolist() == [3.0, 0.0, 2.0]
    assert s.counts is None
    assert s.mean is None
    assert (len(s), s.dim, s.total_variance) == (3, 3, 5.0)
    assert isinstance(s.dim, int)


def test_counts_and_mean():
    s = Spectrum([3.0, 1.0], counts=[2, 1e9], mean=[0.5, -2.0])
    assert s.counts.tolist() == [2.0, 1e9]
    assert s.mean.tolist() == [0.5, -2.0]
    assert s.dim == 1_000_000_002
    assert isinstance(s.dim, int)
    assert s.total_variance == 6.0 + 1e9
    assert Spectrum([1.0, 1.0], counts=[0.25, 1.5]).dim == 1.75


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", "f8", ">f8", "i2", "u8", np.longdouble])
def test_any_real_dtype_and_layout(dtype):
    values = np.arange(12).astype(dtype)[::-2]
    s = Spectrum(values, counts=values + 1, mean=values)
    assert s.eigenvalues.tolist() == [11, 9, 7, 5, 3, 1]
    assert s.eigenvalues.dtype == np.float64
    assert s.eigenvalues.flags.c_contiguous
    assert s.counts.tolist() == [12, 10, 8, 6, 4, 2]


def test_the_ends_of_the_range_are_allowed():
    assert Spectrum([0.0, 1e-30, 1e30], mean=[-1e15, 0, 1e15]).eigenvalues.tolist() == [0.0, 1e-30, 1e30]
    assert Spectrum([1.0, 1.0], counts=[1e-30, 1e30]).counts.tolist() == [1e-30, 1e30]


def test_negative_zero_becomes_zero():
    assert not np.signbit(Spectrum([-0.0]).eigenvalues[0])


def test_later_writes_to_the_arguments_change_nothing():
    arrays = [np.array([1.0, 2.0]) for _ in range(3)]
    s = Spectrum(*arrays)
    for array in arrays:
        array[:] = 99.0
    for kept in (s.eigenvalues, s.counts, s.mean):
        assert kept.tolist() == [1.0, 2.0]


def test_an_array_passed_to_a_function_is_viewed_and_stays_writeable():
    array = np.array([1.0, 2.0])
    viewed = as_spectrum("spectrum", array)
    assert np.shares_memory(viewed.eigenvalues, array)
    assert not viewed.eigenvalues.flags.writeable
    array[0] = 3.0
    assert array.tolist() == [3.0, 2.0]


def derived(s):
    yield s
    yield s.floored(0.5)
    yield Spectrum([1.0, 1.0], [1, 1], [0, 0]).merged()
    yield pickle.loads(pickle.dumps(s))
    yield copy.deepcopy(s)
    yield Spectrum.from_samples([[0.0, 1.0], [1.0, 0.0], [1.0, 3.0]])
    yield Spectrum.from_covariance(np.eye(2))
    yield Spectrum.power_law(2, 1.0)
    yield Spectrum.preset("digits")


def test_writing_raises():
    for s in derived(Spectrum([1.0, 2.0], [1, 1], [0, 1])):
        for array in (s.eigenvalues, s.counts, s.mean):
            if array is not None:
                with pytest.raises(ValueError, match="read-only"):
                    array[0] = 5.0
                with pytest.raises(ValueError, match="WRITEABLE"):
                    array.flags.writeable = True
        for attribute in ("eigenvalues", "counts", "mean", "dim", "total_variance", "anything"):
            with pytest.raises(AttributeError):
                setattr(s, attribute, 1.0)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(protocol):
    for s in (Spectrum([1.0, 0.0]), Spectrum([1.0, 0.0], [2, 3]), Spectrum([1.0, 0.0], [2, 3], [-1, 1])):
        again = pickle.loads(pickle.dumps(s, protocol))
        assert again == s
        assert hash(again) == hash(s)


def test_equality():
    s = Spectrum([1.0, 2.0], [1, 2], [0, 1])
    assert s == Spectrum([1.0, 2.0], [1, 2], [0, 1])
    for other in (
        Spectrum([2.0, 1.0], [1, 2], [0, 1]),
        Spectrum([1.0, 2.0], [1, 3], [0, 1]),
        Spectrum([1.0, 2.0], [1, 2], [0, 2]),
        Spectrum([1.0, 2.0], [1, 2]),
        Spectrum([1.0, 2.0], mean=[0, 1]),
        Spectrum([1.0]),
    ):
        assert s != other
    assert s != "spectrum"
    plain, filled = Spectrum([1.0, 2.0]), Spectrum([1.0, 2.0], [1, 1], [0, 0])
    assert plain == filled
    assert filled == plain
    assert hash(plain) == hash(filled)
    assert plain == Spectrum([1.0, 2.0], mean=[0, 0])
    assert plain != Spectrum([1.0, 2.0], [1, 2])
    assert plain != Spectrum([1.0, 2.0], mean=[0, 1])
    assert len({s, Spectrum([1.0, 2.0], [1, 2], [0, 1])}) == 1


def test_repr_tells_what_matters():
    text = repr(Spectrum([4.0, 0.0, 1.0], counts=[1, 5, 2], mean=[0, 1, 2]))
    for part in ("3 entries", "dim=8", "total_variance=6", "largest=4", "smallest=0", "1 zero", "with mean"):
        assert part in text
    assert "zero" not in repr(Spectrum([4.0]))


# ---- merged, floored, as_spectrum


def test_merged_adds_counts_and_keeps_the_order_of_first_appearance():
    s = Spectrum([5.0, 1.0, 5.0, 0.0, 1.0], counts=[1, 2, 0.5, 1, 4]).merged()
    assert s.eigenvalues.tolist() == [5.0, 1.0, 0.0]
    assert s.counts.tolist() == [1.5, 6.0, 1.0]
    assert s.mean is None


def test_merged_keeps_apart_what_differs_in_the_mean():
    s = Spectrum([5.0, 5.0, 5.0, 1.0], mean=[1.0, 2.0, 1.0, 2.0]).merged()
    assert s.eigenvalues.tolist() == [5.0, 5.0, 1.0]
    assert s.mean.tolist() == [1.0, 2.0, 2.0]
    assert s.counts.tolist() == [2.0, 1.0, 1.0]


def test_merged_returns_the_spectrum_itself_when_nothing_is_equal():
    for s in (Spectrum([1.0]), Spectrum([2.0, 1.0], counts=[1, 2])):
        assert s.merged() is s


def test_merged_counts_stay_in_range():
    with pytest.raises(ValueError, match=r"^merged counts\[1\] = 2e\+30: a count must be within"):
        Spectrum([1.0, 2.0, 2.0], counts=[1, 1e30, 1e30]).merged()


def test_merged_against_a_dictionary(rng):
    for size in (1, 2, 50, 500):
        values = rng.integers(0, 6, size) / 4
        mean = rng.integers(0, 3, size) - 1.0
        counts = rng.integers(1, 9, size)
        expected = {}
        for key, count in zip(zip(values.tolist(), mean.tolist(), strict=True), counts.tolist(), strict=True):
            expected[key] = expected.get(key, 0) + count
        s = Spectrum(values, counts, mean).merged()
        assert list(zip(s.eigenvalues.tolist(), s.mean.tolist(), strict=True)) == list(expected)
        assert s.counts.tolist() == list(expected.values())
        assert s.merged() is s


def test_floored():
    s = Spectrum([1.0, 0.0], counts=[1, 3], mean=[2.0, 3.0])
    f = s.floored(0.25)
    assert f.eigenvalues.tolist() == [1.25, 0.25]
    assert f.counts.tolist() == [1, 3]
    assert f.mean.tolist() == [2, 3]
    assert f.total_variance == s.total_variance + 0.25 * s.dim
    assert s.floored(0) is s
    assert s.eigenvalues.tolist() == [1.0, 0.0]


def test_as_spectrum():
    s = Spectrum([1.0, 2.0])
    assert as_spectrum("spectrum", s) is s
    assert as_spectrum("spectrum", [1, 2]) == s
    with pytest.raises(ValueError, match=r"spectrum\[1\] = -2\.0: "):
        as_spectrum("spectrum", [1, -2])
    with pytest.raises(ValueError, match=r"^target: must be 1-D"):
        as_spectrum("target", np.ones((2, 2)))
    with pytest.raises(TypeError, match=r"^target: .*NoneType"):
        as_spectrum("target", None)


def test_importing_loads_no_scipy():
    code = "import sys, fastkl; fastkl.Spectrum([1.0]).floored(1); fastkl.Spectrum.preset('mnist'); "
    code += "sys.exit(any(name in sys.modules for name in ('scipy', 'numba')))"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=dict(os.environ)).returncode == 0


# ---- power_law


@pytest.mark.parametrize(
    ("dim", "exponent", "mean_variance"), [(1, 2.0, 3.0), (5, 0.0, 1.0), (3072, 1.5, 0.25)]
)
def test_power_law(dim, exponent, mean_variance):
    s = Spectrum.power_law(dim, exponent, mean_variance)
    assert len(s) == dim
    assert s.eigenvalues.mean() == pytest.approx(mean_variance, rel=1e-14)
    np.testing.assert_allclose(
        s.eigenvalues / s.eigenvalues[0], np.arange(1, dim + 1) ** -exponent, rtol=1e-14
    )
    assert s.mean is None


BAD_POWER_LAWS = [
    ((0, 1.0), ValueError, r"^dim = 0"),
    ((10**400, 1.0), ValueError, r"^dim = an integer of more than 40 digits: must be at most 1000000000000$"),
    ((-(10**5000), 1.0), ValueError, r"^dim = an integer of more than 40 digits: must be at least 1$"),
    ((2.0, 1.0), TypeError, r"^dim: "),
    ((3, np.nan), ValueError, r"^exponent = nan"),
    ((3, "1"), TypeError, r"^exponent: "),
    ((1000, 21.0), ValueError, r"^exponent = 21\.0: .*1e60"),
    ((1000, -500.0), ValueError, r"^exponent = -500\.0: .*1e60"),
    ((3, 1.0, 0.0), ValueError, r"^mean_variance = 0\.0"),
    ((1000, 19.0), ValueError, r"^eigenvalues\[\d+\] = .*1e-30"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_POWER_LAWS)
def test_bad_power_law(arguments, error, message):
    with pytest.raises(error, match=message):
        Spectrum.power_law(*arguments)


# ---- bad input


BAD_ARRAYS = [
    ([1.0, np.nan, 2.0], ValueError, r"\[1\] = nan"),
    ([1.0, np.inf], ValueError, r"\[1\] = inf"),
    ([1.0, 2.0, -np.inf], ValueError, r"\[2\] = -inf"),
    (np.ones((2, 2)), ValueError, r": must be 1-D, got shape \(2, 2\)"),
    (3.0, ValueError, r": must be 1-D, got shape \(\)"),
    ([], ValueError, r": must have at least 1"),
    (np.array([1.0, None]), TypeError, r": .*object"),
    ([1.0, [2.0]], ValueError, r": must be a rectangular"),
    (["1", "2"], TypeError, r": .*<U1"),
    ("12", TypeError, r": .*str"),
    ([1 + 0j], TypeError, r": .*complex"),
    ([True, False], TypeError, r": .*bool"),
    (np.ma.masked_equal([1.0, 2.0], 2.0), TypeError, r": .*masked"),
    ({"a": 1}, TypeError, r": .*dict"),
    ([True, 0.5, 0], TypeError, r"\[0\] = True: must be a real number, not a boolean"),
    ((1, 0.5, np.False_), TypeError, r"\[2\] = .*False.*: must be a real number, not a boolean"),
    ([[1.0, 2.0], (1.0, True)], TypeError, r"\[1, 1\] = True: "),
    ([2.0, np.array(True)], TypeError, r"\[1\] = .*True.*: "),
    ([1.0, 10**400], TypeError, r": .*object"),
]


@pytest.mark.parametrize("argument", ["eigenvalues", "counts", "mean"])
@pytest.mark.parametrize(("value", "error", "message"), BAD_ARRAYS)
def test_bad_arrays(argument, value, error, message):
    length = len(value) if isinstance(value, list) and value else 2
    arguments = {"eigenvalues": np.ones(length)}
    arguments[argument] = value
    with pytest.raises(error, match="^" + argument + message):
        Spectrum(**arguments)


BAD_VALUES = [
    ({"eigenvalues": [1.0, -1e-300]}, r"^eigenvalues\[1\] = -1e-300: "),
    ({"eigenvalues": [1.0, 0.0, 9e-31]}, r"^eigenvalues\[2\] = 9e-31: .*\[1e-30, 1e30\]"),
    ({"eigenvalues": [5e-324]}, r"^eigenvalues\[0\] = 5e-324: "),
    ({"eigenvalues": [1.0, 1.1e30]}, r"^eigenvalues\[1\] = 1\.1e\+30: .*\[1e-30, 1e30\]"),
    ({"eigenvalues": [1, 2], "counts": [1]}, r"^counts: must have shape \(2,\) .* \(1,\)"),
    ({"eigenvalues": [1], "counts": [1, 2]}, r"^counts: must have shape \(1,\) .* \(2,\)"),
    (
        {"eigenvalues": [1, 2], "counts": [1, 0]},
        r"^counts\[1\] = 0\.0: a count must be within \[1e-30, 1e30\]",
    ),
    ({"eigenvalues": [1, 2], "counts": [-3, 1]}, r"^counts\[0\] = -3\.0: a count must be within"),
    ({"eigenvalues": [1, 2], "counts": [1, 1.1e30]}, r"^counts\[1\] = 1\.1e\+30: .*\[1e-30, 1e30\]"),
    ({"eigenvalues": [1, 2], "counts": [9e-31, 1]}, r"^counts\[0\] = 9e-31: .*\[1e-30, 1e30\]"),
    ({"eigenvalues": [1, 2], "mean": [1]}, r"^mean: must have shape \(2,\)"),
    ({"eigenvalues": [1], "mean": [1, 2]}, r"^mean: must have shape \(1,\)"),
    ({"eigenvalues": [1, 2], "mean": [0, -2e15]}, r"^mean\[1\] = -2000000000000000\.0: .*1e15"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_VALUES)
def test_bad_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        Spectrum(**arguments)


BAD_FLOORS = [
    (-1e-9, ValueError, "^floor = -1e-09: must be at least 0"),
    (np.nan, ValueError, "^floor = nan: must be finite"),
    (np.inf, ValueError, "^floor = inf: must be finite"),
    ("0", TypeError, "^floor: must be a real number"),
    (True, TypeError, "^floor: must be a real number"),
    ([0.1], TypeError, "^floor: must be a real number"),
    (10**400, ValueError, "^floor: must be within the range of float64, got a larger int"),
    (-(10**5000), ValueError, "^floor: must be within the range of float64, got a larger int"),
    (Fraction(10**400), ValueError, "^floor: must be within the range of float64, got a larger Fraction"),
    (1e31, ValueError, r"^eigenvalues \+ floor\[0\] = 1e\+31: "),
]


@pytest.mark.parametrize(("floor", "error", "message"), BAD_FLOORS, ids=range(len(BAD_FLOORS)))
@pytest.mark.parametrize(
    "call",
    [
        lambda floor: Spectrum([1.0, 0.0]).floored(floor),
        lambda floor: Spectrum.from_covariance(np.eye(2), floor),
        lambda floor: Spectrum.from_samples(np.eye(3), floor),
        lambda floor: Spectrum.preset("digits", floor),
    ],
    ids=["floored", "from_covariance", "from_samples", "preset"],
)
def test_bad_floor(call, floor, error, message):
    with pytest.raises(error, match=message):
        call(floor)
