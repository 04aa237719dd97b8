"""Bad input: the type of the exception, and the argument, index and value in its message. Odd but good input works."""

import math
import re

import numpy as np
import pytest
from cases import FUNCTIONS, METRICS, PRIORS

import fastkl

INF, NAN = math.inf, math.nan
EIGENVALUES = [4.0, 1.0, 0.25]
SIGMAS = [80.0, 10.0, 2.0, 0.5, 0.0]


def must_raise(function, args, kwargs, exception, fragments):
    with pytest.raises(exception) as caught:
        function(*args, **kwargs)
    assert type(caught.value) is exception
    message = str(caught.value)
    for fragment in fragments:
        assert re.search(fragment, message), f"{fragment!r} is not in {message!r}"


BAD_SIGMAS = {
    "nan": ([3.0, NAN, 0.0], ValueError, [r"sigmas\[1\]", "nan"]),
    "nan first": ([NAN, 1.0, 0.0], ValueError, [r"sigmas\[0\]", "nan"]),
    "nan last": ([3.0, 1.0, NAN], ValueError, [r"sigmas\[2\]", "nan"]),
    "nan in a row": ([[3.0, 1.0, 0.0], [3.0, NAN, 0.0]], ValueError, [r"sigmas\[1, 1\]", "nan"]),
    "negative": ([3.0, 1.0, -0.5], ValueError, [r"sigmas\[2\] = -0\.5"]),
    "negative first": ([-3.0, -4.0, -5.0], ValueError, [r"sigmas\[0\] = -3\.0"]),
    "increasing": ([0.0, 1.0, 3.0], ValueError, [r"sigmas\[0\] = 0\.0"]),
    "increasing above zero": ([1.0, 2.0, 3.0], ValueError, [r"sigmas\[1\] = 2\.0", r"1\.0", "decreasing"]),
    "one rise": ([5.0, 3.0, 4.0, 1.0], ValueError, [r"sigmas\[2\] = 4\.0", r"3\.0", "decreasing"]),
    "one rise in a row": (
        [[5.0, 3.0, 1.0], [5.0, 3.0, 4.0]],
        ValueError,
        [r"sigmas\[1, 2\] = 4\.0", "decreasing"],
    ),
    "repeated": ([3.0, 1.0, 1.0, 0.0], ValueError, [r"sigmas\[2\] = 1\.0", "decreasing"]),
    "repeated inf": ([INF, INF, 1.0], ValueError, [r"sigmas\[1\] = inf"]),
    "inf in the middle": ([3.0, INF, 0.0], ValueError, [r"sigmas\[1\] = inf"]),
    "inf last": ([3.0, 1.0, INF], ValueError, [r"sigmas\[2\] = inf"]),
    "minus inf": ([3.0, 1.0, -INF], ValueError, [r"sigmas\[2\] = -inf"]),
    "0 in the middle": ([3.0, 0.0, 0.0], ValueError, [r"sigmas\[1\] = 0\.0"]),
    "0 before": ([[3.0, 1.0, 0.0], [0.0, 1.0, 0.0]], ValueError, [r"sigmas\[1, 0\] = 0\.0"]),
    "too large": ([1e16, 1.0], ValueError, [r"sigmas\[0\] = 1e\+16", r"1e\+15"]),
    "too small": ([1.0, 1e-16], ValueError, [r"sigmas\[1\] = 1e-16", r"1e-15"]),
    "subnormal": ([1.0, 5e-324], ValueError, [r"sigmas\[1\] = 5e-324"]),
    "0-D": (3.0, ValueError, ["sigmas", r"\(\)"]),
    "3-D": (np.ones((2, 2, 2)), ValueError, ["sigmas", r"\(2, 2, 2\)"]),
    "one level": ([1.0], ValueError, ["sigmas", r"\(1,\)", "two levels"]),
    "one level in each row": ([[1.0], [2.0]], ValueError, ["sigmas", r"\(2, 1\)"]),
    "empty": ([], ValueError, ["sigmas", r"\(0,\)"]),
    "no rows": (np.ones((0, 5)), ValueError, ["sigmas", r"\(0, 5\)"]),
    "no columns": (np.ones((5, 0)), ValueError, ["sigmas", r"\(5, 0\)"]),
    "ragged": ([[3.0, 1.0, 0.0], [3.0, 0.0]], ValueError, ["sigmas", "rectangular"]),
    "complex": ([3 + 0j, 1, 0], TypeError, ["sigmas", "complex128"]),
    "bool": ([True, False], TypeError, ["sigmas", "bool"]),
    "string": ("3,1,0", TypeError, ["sigmas", "str"]),
    "strings": (["3", "1", "0"], TypeError, ["sigmas", "U1"]),
    "bytes": (np.array([b"3", b"1"]), TypeError, ["sigmas", "S1"]),
    "object": (np.array([3.0, 1.0, 0.0], dtype=object), TypeError, ["sigmas", "object"]),
    "huge integers": ([10**30, 1, 0], TypeError, ["sigmas", "object"]),
    "none": (None, TypeError, ["sigmas", "NoneType"]),
    "none inside": ([3.0, None, 0.0], TypeError, ["sigmas", "object"]),
    "datetime": (np.array(["2026-01-02", "2026-01-01"], "M8[D]"), TypeError, ["sigmas", "datetime64"]),
    "timedelta": (np.array([2, 1], "m8[s]"), TypeError, ["sigmas", "timedelta64"]),
    "record": (np.zeros(3, dtype=[("a", float)]), TypeError, ["sigmas"]),
    "masked": (np.ma.masked_array([3.0, 1.0, 0.0], [False, True, False]), TypeError, ["sigmas", "masked"]),
    "dictionary": ({"a": 1}, TypeError, ["sigmas", "dict"]),
    "set": ({3.0, 1.0}, TypeError, ["sigmas", "set"]),
    "generator": ((s for s in SIGMAS), TypeError, ["sigmas", "generator"]),
    "a spectrum": (fastkl.Spectrum(EIGENVALUES), TypeError, ["sigmas", "Spectrum"]),
}

BAD_SPECTRA = {
    "nan": ([1.0, NAN], ValueError, [r"spectrum\[1\]", "nan"]),
    "negative": ([1.0, 2.0, -1e-9], ValueError, [r"spectrum\[2\] = -1e-09"]),
    "inf": ([INF, 1.0], ValueError, [r"spectrum\[0\] = inf"]),
    "too large": ([1.0, 1e31], ValueError, [r"spectrum\[1\] = 1e\+31", "1e30"]),
    "too small": ([1.0, 1e-31], ValueError, [r"spectrum\[1\] = 1e-31", r"1e-30"]),
    "subnormal": ([1.0, 5e-324], ValueError, [r"spectrum\[1\] = 5e-324"]),
    "0-D": (1.0, ValueError, ["spectrum", r"\(\)"]),
    "2-D": (np.eye(3), ValueError, ["spectrum", r"\(3, 3\)"]),
    "a row": ([[1.0, 2.0]], ValueError, ["spectrum", r"\(1, 2\)"]),
    "empty": ([], ValueError, ["spectrum", r"\(0,\)"]),
    "ragged": ([[1.0], [1.0, 2.0]], ValueError, ["spectrum", "rectangular"]),
    "complex": (np.ones(3, dtype=complex), TypeError, ["spectrum", "complex128"]),
    "bool": ([True, True], TypeError, ["spectrum", "bool"]),
    "string": ("mnist", TypeError, ["spectrum", "str"]),
    "object": (np.array([1.0, 2.0], dtype=object), TypeError, ["spectrum", "object"]),
    "none": (None, TypeError, ["spectrum", "NoneType"]),
    "datetime": (np.array(["2026-01-02"], "M8[D]"), TypeError, ["spectrum", "datetime64"]),
    "masked": (np.ma.masked_array([1.0, 2.0], [False, True]), TypeError, ["spectrum", "masked"]),
    "the class": (fastkl.Spectrum, TypeError, ["spectrum", "type"]),
}

BAD_OPTIONS = {
    "sampler": [
        ("edm", ValueError, ["sampler = 'edm'", "'ddim'", "'dpmpp_2m'"]),
        ("DDIM", ValueError, ["sampler = 'DDIM'"]),
        (None, TypeError, ["sampler", "None"]),
        (fastkl.samplers.heun, TypeError, ["sampler", "function"]),
    ],
    "prior": [
        ("edm", ValueError, ["prior = 'edm'", "'vp'", "'exact'"]),
        ("", ValueError, ["prior = ''"]),
        (None, TypeError, ["prior", "None"]),
        (0, TypeError, ["prior", "0"]),
        (["vp"], TypeError, ["prior", "list"]),
    ],
    "metric": [
        ("fid", ValueError, ["metric = 'fid'", "'kl'", "'w2'"]),
        ("mean_kl", ValueError, ["metric = 'mean_kl'"]),
        ("KL", ValueError, ["metric = 'KL'"]),
        (0, TypeError, ["metric", "0"]),
        (("kl", "w2"), TypeError, ["metric", "tuple"]),
    ],
    "backend": [
        ("gpu", RuntimeError, ["backend = 'gpu'", "GPU"]),
        ("cuda", ValueError, ["backend = 'cuda'", "'auto'", "'cpu'", "'gpu'"]),
        (None, TypeError, ["backend", "None"]),
    ],
    "precision": [
        ("float32", ValueError, ["precision = 'float32'", "GPU"]),
        ("float16", ValueError, ["precision = 'float16'", "'float64'", "'float32'"]),
        (32, TypeError, ["precision", "32"]),
    ],
    "rtol": [
        (-1e-3, ValueError, [r"rtol = -0\.001", "at least 0"]),
        (1.0, ValueError, [r"rtol = 1\.0", "below 1"]),
        (10**400, ValueError, ["rtol", "range of float64"]),
        (NAN, ValueError, ["rtol = nan", "finite"]),
        (INF, ValueError, ["rtol = inf", "finite"]),
        ("0", TypeError, ["rtol", "'0'"]),
        (True, TypeError, ["rtol", "True"]),
        (None, TypeError, ["rtol", "None"]),
        ([1e-3], TypeError, ["rtol", "list"]),
        (1e-3 + 0j, TypeError, ["rtol", "complex"]),
    ],
    "num_threads": [
        (0, ValueError, ["num_threads = 0", "at least 1"]),
        (-1, ValueError, ["num_threads = -1"]),
        (1.5, TypeError, ["num_threads", r"1\.5"]),
        (2.0, TypeError, ["num_threads", r"2\.0"]),
        (True, TypeError, ["num_threads", "True"]),
        ("2", TypeError, ["num_threads", "'2'"]),
        (NAN, TypeError, ["num_threads", "nan"]),
        ([2], TypeError, ["num_threads", r"\[2\]"]),
    ],
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("case", BAD_SIGMAS)
def test_bad_sigmas(case, name):
    sigmas, exception, fragments = BAD_SIGMAS[case]
    must_raise(getattr(fastkl, name), (EIGENVALUES, sigmas), {}, exception, fragments)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("case", BAD_SPECTRA)
def test_bad_spectra(case, name):
    spectrum, exception, fragments = BAD_SPECTRA[case]
    must_raise(getattr(fastkl, name), (spectrum, SIGMAS), {}, exception, fragments)


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name in FUNCTIONS for option in FUNCTIONS[name]]
)
def test_bad_options(name, option, monkeypatch):
    monkeypatch.setattr("fastkl._gpu_device.missing", lambda: "there is no driver")  # also where there is one
    for value, exception, fragments in BAD_OPTIONS[option]:
        must_raise(getattr(fastkl, name), (EIGENVALUES, SIGMAS), {option: value}, exception, fragments)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_wrong_calls(name):
    function = getattr(fastkl, name)
    must_raise(function, (EIGENVALUES,), {}, TypeError, ["sigmas"])
    must_raise(function, (EIGENVALUES, SIGMAS), {"steps": 3}, TypeError, ["steps"])
    positional = [
        EIGENVALUES,
        SIGMAS,
        *(["kl", "ddim", "vp", "auto", 0.0] if name == "divergence" else ["ddim", "vp"]),
    ]
    function(*positional)
    must_raise(function, (*positional, 1), {}, TypeError, ["positional"])


@pytest.mark.parametrize("metric", METRICS[:3])
def test_zero_eigenvalue(metric):
    to_zero, above = [3.0, 1.0, 0.0], [3.0, 1.0, 0.1]
    expected = [r"spectrum\[1\] = 0\.0", metric, "floored"]
    must_raise(fastkl.divergence, ([1.0, 0.0, 0.0], to_zero, metric), {}, ValueError, expected)
    batch = [above, above, to_zero]
    must_raise(fastkl.divergence, ([1.0, 0.0], batch, metric), {}, ValueError, [*expected, "row 2"])
    spectrum = fastkl.Spectrum([1.0, 0.0])
    must_raise(
        fastkl.divergence, (spectrum, to_zero, metric), {}, ValueError, [r"spectrum\.eigenvalues\[1\] = 0\.0"]
    )
    assert math.isfinite(fastkl.divergence([1.0, 0.0], above, metric))
    assert math.isfinite(fastkl.divergence(spectrum.floored(1e-3), to_zero, metric))
    assert math.isfinite(fastkl.divergence(spectrum, to_zero, "w2"))
    assert fastkl.output_variance(spectrum, to_zero)[1] == 0.0


def test_the_index_is_that_of_the_whole_array_in_large_batches():
    sigmas = np.linspace(5, 1, 3) * np.ones((500_000, 1))
    sigmas[400_001, 2] = 3.0
    must_raise(
        fastkl.divergence,
        (EIGENVALUES, sigmas),
        {},
        ValueError,
        [r"sigmas\[400001, 2\] = 3\.0", "decreasing"],
    )
    sigmas[499_999, 1] = NAN
    sigmas[400_001, 2] = 1.0
    must_raise(fastkl.divergence, (EIGENVALUES, sigmas), {}, ValueError, [r"sigmas\[499999, 1\] = nan"])
    eigenvalues = np.ones(3_000_000)
    eigenvalues[2_999_999] = -2.0
    must_raise(fastkl.divergence, (eigenvalues, SIGMAS), {}, ValueError, [r"spectrum\[2999999\] = -2\.0"])


@pytest.mark.skipif(np.finfo(np.longdouble).max == np.finfo(float).max, reason="long double is double here")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_long_doubles_that_float64_cannot_hold(name):
    """Nothing is changed in silence: 1e400 is not inf, 1e-400 not 0."""
    huge, tiny = np.longdouble("1e400"), np.longdouble("1e-400")
    function = getattr(fastkl, name)
    must_raise(function, (EIGENVALUES, np.array([huge, 1, 0])), {}, ValueError, [r"sigmas\[0\]"])
    must_raise(function, (EIGENVALUES, np.array([2, 1, tiny])), {}, ValueError, [r"sigmas\[2\]"])
    must_raise(function, (np.array([1, tiny]), [2, 1]), {}, ValueError, [r"spectrum\[1\]"])


def misaligned(array):
    buffer = bytearray(array.nbytes + 1)
    view = np.frombuffer(buffer, dtype=array.dtype, offset=1, count=array.size).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


FORMS = {
    "list": np.ndarray.tolist,
    "tuple": lambda array: tuple(map(tuple, array)) if array.ndim == 2 else tuple(array),
    "list of arrays": list,
    "float32": lambda array: array.astype(np.float32),
    "float16": lambda array: array.astype(np.float16),
    "long double": lambda array: array.astype(np.longdouble),
    "int8": lambda array: array.astype(np.int8),
    "uint64": lambda array: array.astype(np.uint64),
    "big-endian": lambda array: array.astype(">f8"),
    "big-endian integers": lambda array: array.astype(">i4"),
    "reversed": lambda array: array[::-1].copy()[::-1],
    "Fortran order": lambda array: np.asfortranarray(array),
    "every second": lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
    "broadcast": lambda array: np.broadcast_to(array, array.shape),
    "read-only": read_only,
    "misaligned": misaligned,
    "subclass": lambda array: array.view(type("Array", (np.ndarray,), {})),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_any_real_array_gives_the_right_values(form, name):
    """All values are small integers, so that every type holds them exactly."""
    eigenvalues = np.array([9.0, 4.0, 1.0, 100.0])
    sigmas = np.array([[90.0, 20.0, 5.0, 0.0], [7.0, 6.0, 2.0, 1.0], [100.0, 3.0, 2.0, 0.0]])
    function, convert = getattr(fastkl, name), FORMS[form]
    expected = function(eigenvalues, sigmas)
    np.testing.assert_array_equal(function(convert(eigenvalues), convert(sigmas)), expected)
    np.testing.assert_array_equal(function(convert(eigenvalues), convert(sigmas[0])), expected[0])
    spectrum = fastkl.Spectrum(convert(eigenvalues), counts=convert(eigenvalues), mean=convert(eigenvalues))
    plain = fastkl.Spectrum(eigenvalues, counts=eigenvalues, mean=eigenvalues)
    np.testing.assert_array_equal(function(spectrum, convert(sigmas)), function(plain, sigmas))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_inf_and_broadcast_candidates(name):
    function = getattr(fastkl, name)
    sigmas = np.array([INF, 3.0, 0.0])
    np.testing.assert_array_equal(function([2.0], sigmas.astype(np.float32)), function([2.0], sigmas))
    many = np.broadcast_to(sigmas, (4, 3))
    np.testing.assert_array_equal(function([2.0], many), [function([2.0], sigmas)] * 4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_options_of_equal_kinds(name):
    function = getattr(fastkl, name)
    expected = function(EIGENVALUES, SIGMAS)
    np.testing.assert_array_equal(function(EIGENVALUES, SIGMAS, num_threads=np.int64(2)), expected)
    np.testing.assert_array_equal(function(EIGENVALUES, SIGMAS, prior=np.str_("vp")), expected)
    if name == "divergence":
        assert function(EIGENVALUES, SIGMAS, rtol=np.float32(0.5)) == expected
        assert (
            function(EIGENVALUES, SIGMAS, rtol=0) == function(EIGENVALUES, SIGMAS, backend="cpu") == expected
        )


@pytest.mark.parametrize("prior", PRIORS)
def test_inputs_are_never_modified(rng, prior):
    eigenvalues, counts, mean = np.exp(rng.normal(size=(3, 1500)))
    sigmas = np.stack([np.geomspace(50, 0.1, 9), np.geomspace(2, 1.99, 9), np.geomspace(9, 1e-3, 9)])
    sigmas[2, 0] = INF
    before = [array.copy() for array in (eigenvalues, counts, mean, sigmas)]
    for spectrum in (eigenvalues, fastkl.Spectrum(eigenvalues, counts, mean)):
        for metric in METRICS:
            fastkl.divergence(spectrum, sigmas, metric, prior=prior, num_threads=2)
        fastkl.output_variance(spectrum, sigmas, prior=prior)
        fastkl.trajectory(spectrum, sigmas, prior=prior)
    for array, copy in zip((eigenvalues, counts, mean, sigmas), before, strict=True):
        np.testing.assert_array_equal(array, copy)
        assert array.flags.writeable


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_are_the_callers_own(name):
    """Writable, and no view of anything that a later call could see."""
    function, eigenvalues, sigmas = getattr(fastkl, name), np.array(EIGENVALUES), np.array([SIGMAS, SIGMAS])
    first = function(eigenvalues, sigmas)
    kept = first.copy()
    assert first.flags.writeable
    assert not np.shares_memory(first, eigenvalues)
    assert not np.shares_memory(first, sigmas)
    second = function(eigenvalues, sigmas)
    first[...] = -1.0
    np.testing.assert_array_equal(second, kept)
    np.testing.assert_array_equal(function(eigenvalues, sigmas), kept)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_far_more_threads_than_tasks(name):
    function = getattr(fastkl, name)
    eigenvalues = np.linspace(1, 2, 300_000)
    expected = function(eigenvalues, np.linspace(5, 1, 17))
    np.testing.assert_array_equal(function(eigenvalues, np.linspace(5, 1, 17), num_threads=10**9), expected)
