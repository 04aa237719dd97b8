"""Arrays that are on a device: they stay there, nothing is waited for, and bad ones are refused or make NaN."""

import emulation
import numpy as np
import pytest
from cases import METRICS, PRIORS, SCHEDULES, SPECTRA
from device_cases import AGREEMENT, BAD_LEVELS, largest_difference, on_device

import fastkl


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("metric", METRICS)
def test_arrays_on_a_device_stay_there_and_nothing_is_waited_for(device, metric, prior):
    levels, eigenvalues = SCHEDULES["karras"](5, 9), SPECTRA["wide"](1500)["eigenvalues"]
    got = fastkl.divergence(on_device(eigenvalues), on_device(levels), metric, prior=prior)
    assert isinstance(got, emulation.HostArray)
    assert (device.downloads, device.uploads) == (0, 0)
    assert (
        largest_difference(got.values, fastkl.divergence(eigenvalues, levels, metric, prior=prior))
        <= AGREEMENT
    )


def test_variances_of_arrays_on_a_device(device):
    levels, eigenvalues = SCHEDULES["tangent"](3, 5), SPECTRA["log_normal"](70)["eigenvalues"]
    for function in (fastkl.output_variance, fastkl.trajectory):
        got = function(on_device(eigenvalues), on_device(levels))
        assert device.downloads == 0
        assert largest_difference(got.values, function(eigenvalues, levels)) <= AGREEMENT
        single = function(on_device(eigenvalues), on_device(levels[1]))
        assert (single.values == got.values[1]).all()


def test_one_candidate_on_a_device_makes_a_scalar_array(device):
    got = fastkl.divergence(on_device([4.0, 1.0]), on_device([80.0, 5.0, 0.0]))
    assert got.shape == ()
    assert largest_difference(got.values, fastkl.divergence([4.0, 1.0], [80.0, 5.0, 0.0])) <= AGREEMENT


class RefusesToBeRead:
    """As a PyTorch tensor on a GPU that requires a gradient."""

    @property
    def __cuda_array_interface__(self):
        raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad.")


def test_an_array_that_refuses_to_be_read_is_named(device):
    for function in (fastkl.divergence, fastkl.output_variance, fastkl.trajectory):
        with pytest.raises(TypeError, match=r"^spectrum: .*RefusesToBeRead.*requires grad"):
            function(RefusesToBeRead(), on_device([2.0, 1.0]))
        with pytest.raises(TypeError, match=r"^sigmas: .*RefusesToBeRead.*requires grad"):
            function([1.0], RefusesToBeRead())
    assert not device.log


@pytest.mark.parametrize("case", BAD_LEVELS)
def test_a_bad_candidate_on_a_device_is_nan_and_touches_no_other(device, case):
    good = [3.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="sigmas"):
        fastkl.divergence([2.0, 1.0], [good, BAD_LEVELS[case]])
    rows = on_device([good, BAD_LEVELS[case], good])
    for metric in METRICS:
        got = fastkl.divergence(on_device([2.0, 1.0]), rows, metric).values
        assert np.isnan(got[1])
        assert largest_difference(got[::2], [fastkl.divergence([2.0, 1.0], good, metric)] * 2) <= AGREEMENT
    for function in (fastkl.output_variance, fastkl.trajectory):
        got = function(on_device([2.0, 1.0]), rows).values
        assert np.isnan(got[1]).all()
        assert not np.isnan(got[::2]).any()


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, 1e-31, 1e31])
def test_a_bad_eigenvalue_on_a_device_makes_nan(device, value):
    with pytest.raises(ValueError, match="spectrum"):
        fastkl.divergence([2.0, value], [3.0, 1.0, 0.0])
    eigenvalues = on_device([2.0, value])
    for metric in METRICS:
        assert np.isnan(fastkl.divergence(eigenvalues, on_device([[3.0, 1.0, 0.0]] * 2), metric).values).all()
    assert np.isnan(fastkl.output_variance(eigenvalues, on_device([3.0, 1.0, 0.0])).values).all()


def test_a_zero_eigenvalue_on_a_device(device):
    rows, zero = on_device([[3.0, 1.0, 0.0], [3.0, 1.0, 0.5]]), on_device([2.0, 0.0])
    for metric in METRICS:
        got = fastkl.divergence(zero, rows, metric).values
        assert np.isnan(got[0]) == (metric != "w2")
        assert largest_difference(got[1], fastkl.divergence([2.0, 0.0], [3.0, 1.0, 0.5], metric)) <= AGREEMENT


@pytest.mark.parametrize(
    ("spectrum", "sigmas", "kind", "words"),
    [
        (np.ones(2), on_device([2.0, 1.0]), TypeError, ["numpy.ndarray", "emulation.HostArray"]),
        ([1.0], on_device([2.0, 1.0]), TypeError, ["list", "HostArray"]),
        (on_device([1.0]), [2.0, 1.0], TypeError, ["HostArray", "list"]),
        (on_device([[1.0]]), on_device([2.0, 1.0]), ValueError, ["spectrum: must be 1-D", r"\(1, 1\)"]),
        (on_device([]), on_device([2.0, 1.0]), ValueError, ["spectrum", "at least 1", r"\(0,\)"]),
        (on_device([1.0]), on_device([2.0]), ValueError, ["sigmas", "two levels", r"\(1,\)"]),
        (on_device([1.0]), on_device(np.ones((0, 3))), ValueError, ["sigmas", "at least 1", r"\(0, 3\)"]),
        (on_device([1.0]), on_device(np.ones((1, 1, 3))), ValueError, ["sigmas: must be 1-D or 2-D"]),
        (emulation.HostArray(np.ones(1, bool)), on_device([2.0, 1.0]), TypeError, ["spectrum", "bool"]),
        (on_device([1.0]), emulation.HostArray(np.ones(2, complex)), TypeError, ["sigmas", "complex"]),
    ],
)  # fmt: skip
def test_bad_arrays_on_a_device_are_refused(device, spectrum, sigmas, kind, words):
    for function in (fastkl.divergence, fastkl.output_variance, fastkl.trajectory):
        with pytest.raises(kind) as caught:
            function(spectrum, sigmas)
        for word in words:
            assert caught.match(word)
    assert not device.log


def test_options_are_checked_before_anything_runs_on_a_device(device):
    arrays = on_device([1.0]), on_device([2.0, 1.0])
    for option in ({"metric": "fid"}, {"prior": "edm"}, {"sampler": "edm"}, {"rtol": -1.0}, {"num_threads": 0},
                   {"backend": "cuda"}, {"precision": "float16"}):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(option))):
            fastkl.divergence(*arrays, **option)
    with pytest.raises(TypeError, match=r"backend 'cpu' takes arrays on the host, got emulation\.HostArray"):
        fastkl.divergence(*arrays, backend="cpu")
    with pytest.raises(ValueError, match=r"precision = 'float32': only DDIM"):
        fastkl.divergence(*arrays, sampler="heun", precision="float32")
    assert not device.log


def test_other_types_and_layouts_are_taken(device):
    eigenvalues, levels = np.array([4, 1, 9]), np.array([[80, 5, 0], [70, 6, 1]])
    expected = fastkl.divergence(eigenvalues, levels)
    for kind in (np.int32, np.float32, np.float64):
        got = fastkl.divergence(
            emulation.HostArray(eigenvalues.astype(kind)), emulation.HostArray(levels.astype(kind))
        )
        assert largest_difference(got.values, expected) <= AGREEMENT
    turned = emulation.HostArray(np.asfortranarray(levels.astype(float)))
    assert largest_difference(fastkl.divergence(on_device(eigenvalues), turned).values, expected) <= AGREEMENT
