"""The GPU backend on a GPU: agreement with the CPU, streams, no synchronisation, other libraries' arrays, memory."""

import itertools
import threading

import numpy as np
import pytest
from cases import METRICS, PRIORS, SCHEDULES, SMALL_SHAPES, SPECTRA, variance_difference
from device_cases import AGREEMENT, BAD_LEVELS, largest_difference

import fastkl
from fastkl import _gpu_device, samplers

pytestmark = pytest.mark.gpu


@pytest.fixture
def cupy():
    import cupy

    return cupy


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", SMALL_SHAPES)
def test_divergences_agree_with_the_cpu(shape, schedule):
    size, count, steps = SMALL_SHAPES[shape]
    levels = SCHEDULES[schedule](count, steps)
    for make in SPECTRA.values():
        spectrum = fastkl.Spectrum(**make(size))
        for prior in PRIORS:
            for metric in METRICS:
                cpu, gpu = (
                    fastkl.divergence(spectrum, levels, metric, prior=prior, backend=b)
                    for b in ("cpu", "gpu")
                )
                assert largest_difference(gpu, cpu) <= AGREEMENT


@pytest.mark.parametrize("name", samplers.names())
def test_samplers_agree_with_the_cpu(name):
    rule = samplers.get(name)
    for schedule, steps, size in (("karras", 6, 1030), ("fine", 6, 7)):
        levels = SCHEDULES[schedule](3, steps)
        if rule.above_zero and levels[0, -1] == 0.0:
            levels = levels[:, :-1]
        spectrum = fastkl.Spectrum(**SPECTRA["with_mean"](size))
        for function in (fastkl.divergence, fastkl.output_variance):
            cpu, gpu = (function(spectrum, levels, sampler=name, backend=b) for b in ("cpu", "gpu"))
            assert largest_difference(gpu, cpu) <= AGREEMENT
        cpu, gpu = (fastkl.trajectory(spectrum, levels, name, backend=b) for b in ("cpu", "gpu"))
        assert largest_difference(gpu[:, -1], cpu[:, -1]) <= AGREEMENT
        assert variance_difference(gpu, cpu, spectrum.eigenvalues, levels) <= AGREEMENT


def test_the_same_bits_every_time():
    spectrum, levels = SPECTRA["wide"](100_000)["eigenvalues"], SCHEDULES["karras"](40, 12)
    first = fastkl.divergence(spectrum, levels, backend="gpu")
    assert all((fastkl.divergence(spectrum, levels, backend="gpu") == first).all() for _ in range(5))


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2m", "euler_ancestral"])
def test_work_is_queued_on_the_current_stream(cupy, sampler):
    """The result is right though the stream still has a long wait before the inputs are written."""
    levels, eigenvalues = SCHEDULES["karras"](5, 9), SPECTRA["log_normal"](1500)["eigenvalues"]
    expected = fastkl.divergence(eigenvalues, levels, sampler=sampler)
    fastkl.divergence(cupy.asarray(eigenvalues), cupy.asarray(levels), sampler=sampler)  # compiled
    spin = cupy.RawKernel(
        'extern "C" __global__ void spin(long long n) { long long t = clock64(); while (clock64() - t < n) {} }',
        "spin",
    )
    source = cupy.asarray(eigenvalues)
    target, sigmas = cupy.full_like(source, -1.0), cupy.asarray(levels)
    stream, done = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Event()
    cupy.cuda.Device().synchronize()
    with stream:
        spin((1,), (1,), (np.int64(2_000_000_000),))
        target[:] = source
        got = fastkl.divergence(target, sigmas, sampler=sampler)
        done.record()
        assert not done.done  # the call returned while the wait went on
    stream.synchronize()
    assert largest_difference(cupy.asnumpy(got), expected) <= AGREEMENT


class OnlyDLPack:
    """An array that offers nothing but DLPack, as other libraries' do."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


def test_arrays_of_other_libraries(cupy):
    levels, eigenvalues = SCHEDULES["karras"](5, 9), SPECTRA["log_normal"](1500)["eigenvalues"]
    got = fastkl.divergence(OnlyDLPack(cupy.asarray(eigenvalues)), OnlyDLPack(cupy.asarray(levels)))
    assert isinstance(got, cupy.ndarray)
    assert largest_difference(cupy.asnumpy(got), fastkl.divergence(eigenvalues, levels)) <= AGREEMENT
    with pytest.raises(TypeError, match=r"numpy\.ndarray.*cupy\.ndarray"):
        fastkl.divergence(eigenvalues, cupy.asarray(levels))


def test_results_on_a_device_have_the_shapes_of_those_on_the_host(cupy):
    levels, eigenvalues = SCHEDULES["karras"](5, 9), SPECTRA["log_normal"](30)["eigenvalues"]
    for function in (fastkl.divergence, fastkl.output_variance, fastkl.trajectory):
        for rows, sampler in itertools.product((levels, levels[0]), ("ddim", "heun")):
            got = function(cupy.asarray(eigenvalues), cupy.asarray(rows), sampler=sampler)
            expected = function(eigenvalues, rows, sampler=sampler)
            assert got.shape == np.shape(expected)
            assert largest_difference(cupy.asnumpy(got), expected) <= AGREEMENT


def test_devices_are_left_as_they_were(cupy):
    before = cupy.cuda.runtime.getDevice()
    with _gpu_device.current_device() as device, device:
        assert device.name
    assert cupy.cuda.runtime.getDevice() == before


@pytest.mark.parametrize("case", BAD_LEVELS)
def test_a_bad_candidate_is_nan(cupy, case):
    got = fastkl.divergence(cupy.asarray([2.0, 1.0]), cupy.asarray([[3.0, 1.0, 0.0], BAD_LEVELS[case]]))
    assert np.isnan(cupy.asnumpy(got)).tolist() == [False, True]


def test_memory_is_given_back_to_the_pool(cupy):
    levels, eigenvalues = (
        cupy.asarray(SCHEDULES["karras"](50, 9)),
        cupy.asarray(SPECTRA["wide"](50_000)["eigenvalues"]),
    )
    pool = cupy.get_default_memory_pool()
    del_me = fastkl.divergence(eigenvalues, levels)
    del del_me
    used, held = pool.used_bytes(), pool.total_bytes()
    fastkl.divergence(eigenvalues, levels)
    assert (pool.used_bytes(), pool.total_bytes()) == (used, held)


def test_threads_may_call_at_once(cupy):
    levels, eigenvalues = SCHEDULES["karras"](50, 9), SPECTRA["wide"](5_000)["eigenvalues"]
    expected, results = fastkl.divergence(eigenvalues, levels, backend="gpu"), []

    def call():
        with cupy.cuda.Stream(non_blocking=True):
            results.append(fastkl.divergence(eigenvalues, levels, backend="gpu"))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all((result == expected).all() for result in results)


def test_float32(cupy):
    levels, eigenvalues = SCHEDULES["karras"](5, 9), SPECTRA["log_normal"](1500)["eigenvalues"]
    got = fastkl.divergence(cupy.asarray(eigenvalues), cupy.asarray(levels), precision="float32")
    assert largest_difference(cupy.asnumpy(got), fastkl.divergence(eigenvalues, levels)) <= 1e-5


def test_the_doctor_is_content():
    from fastkl.cli.doctor import check_gpu

    report = check_gpu()
    assert report["gpu_backend"] == f"works ({_gpu_device.current_device().name})"
    assert "compiled" in report["gpu_kernels"]
