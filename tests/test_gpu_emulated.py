"""The GPU backend for DDIM with a host in the device's place: agreement with the CPU, and launch geometry."""

import itertools

import emulation
import numpy as np
import pytest
from cases import METRICS, PRIORS, SCHEDULES, SMALL_SHAPES, SPECTRA
from device_cases import AGREEMENT, largest_difference, on_device

import fastkl
from fastkl._gpu_layout import Layout
from fastkl._gpu_source import instances, unit


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", SMALL_SHAPES)
def test_divergences_agree_with_the_cpu(device, shape, schedule):
    size, count, steps = SMALL_SHAPES[shape]
    levels = SCHEDULES[schedule](count, steps)
    for name, make in SPECTRA.items():
        spectrum = fastkl.Spectrum(**make(size))
        for prior in PRIORS:
            for metric in METRICS:
                cpu = fastkl.divergence(spectrum, levels, metric, prior=prior, backend="cpu")
                gpu = fastkl.divergence(spectrum, levels, metric, prior=prior, backend="gpu")
                assert largest_difference(gpu, cpu) <= AGREEMENT, (name, prior, metric)
    assert any(name.startswith("ddim_entropies_") for name in device.log)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", SMALL_SHAPES)
def test_variances_agree_with_the_cpu(device, shape, schedule):
    size, count, steps = SMALL_SHAPES[shape]
    levels, eigenvalues = SCHEDULES[schedule](count, steps), SPECTRA["wide"](size)["eigenvalues"]
    for prior in PRIORS:
        for function in (fastkl.output_variance, fastkl.trajectory):
            cpu = function(eigenvalues, levels, prior=prior, backend="cpu")
            gpu = function(eigenvalues, levels, prior=prior, backend="gpu")
            assert largest_difference(gpu, cpu) <= AGREEMENT


def test_every_instance_of_the_fast_kernel_is_used(device):
    for steps in (*range(1, 18), 20, 24):
        levels = SCHEDULES["karras"](2, steps)
        for metric in METRICS:
            cpu, gpu = (
                fastkl.divergence([3.0, 0.1, 1e-3], levels, metric, backend=b) for b in ("cpu", "gpu")
            )
            assert largest_difference(gpu, cpu) <= AGREEMENT, (steps, metric)
    fast = ("ddim_entropies_", "ddim_distances_")
    every = {name for name in instances(unit(emulation.FOLDER)) if name.startswith(fast)}
    assert len(every) == 24
    assert every == {name for name in device.log if name.startswith(fast)}


@pytest.mark.parametrize("size", [1, 7, 8, 9, 31, 1023, 1024, 1025, 1032, 3000])
@pytest.mark.parametrize("count", [1, 2, 3, 17, 31, 32, 33, 40, 100, 129])
def test_launch_geometry(device, size, count):
    """Tails of blocks, of batches and of tiles; one eigenvalue, one candidate, and numbers that fill no warp."""
    eigenvalues, levels = np.geomspace(1e-3, 1e3, size), SCHEDULES["power_uniform"](count, 5)
    for metric in ("kl", "w2"):
        cpu, gpu = (fastkl.divergence(eigenvalues, levels, metric, backend=b) for b in ("cpu", "gpu"))
        assert largest_difference(gpu, cpu) <= AGREEMENT
    cpu, gpu = (fastkl.divergence(eigenvalues, levels, sampler="heun", backend=b) for b in ("cpu", "gpu"))
    assert largest_difference(gpu, cpu) <= AGREEMENT


def busy_lanes(candidates, size, slices):
    """The share of a launch's threads' time that is spent on batches, if all that run are as slow as the slowest."""
    tiles = [min(1024, size - begin) for begin in range(0, size, 1024)]
    threads = len(tiles) * slices * candidates
    launched = -(-threads // 128) * 128
    batches = [-(-tile // 8) for tile in tiles]
    return candidates * sum(batches) / (launched * max(-(-count // slices) for count in batches))


@pytest.mark.parametrize("size", [1000, 1024 * 40, 10**6])
def test_lanes_have_work_for_any_number_of_candidates(size):
    for count in (*range(1, 130), 200, 1000, 10**5):
        slices = Layout.of(count, size).slices
        tiles = -(-size // 1024)
        assert 1 <= slices <= 128
        assert tiles * slices * count >= min(2**15, tiles * count * 125)  # enough, or all there are
        if tiles * slices * count > 4096:  # a last block of 128 that is not full does not count
            assert busy_lanes(count, size, slices) > 0.96, (count, slices)


def test_layouts_of_some_problems():
    for count, size, slices in ((1, 10**6, 64), (17, 10**6, 4), (1000, 10**6, 4), (10**5, 8, 1), (3, 50, 7)):
        assert Layout.of(count, size) == Layout(slices)
    assert Layout.of(100, 10**4) == Layout(64)  # few of both: more slices


def test_quotients_and_roots_are_the_nearest_numbers_but_for_rare_last_bits(rng):
    """The kernels refine a rough inverse of some 20 bits, as the GPU's instruction gives it."""
    wrong = 0
    for a, b in 10.0 ** rng.uniform(-140, 140, (5000, 2)):
        got = emulation.arithmetic("quotient", a, b)
        assert abs(got - a / b) <= np.spacing(a / b)
        wrong += got != a / b
        root = emulation.arithmetic("square_root", a)
        assert abs(root - np.sqrt(a)) <= np.spacing(np.sqrt(a))
        wrong += root != np.sqrt(a)
    assert wrong < 50
    assert emulation.arithmetic("square_root", 0.0) == 0.0
    assert emulation.arithmetic("quotient", 0.0, 3.0) == 0.0


@pytest.mark.parametrize("shape", SMALL_SHAPES)
def test_float32_is_within_1e_5_where_kl_is_at_least_1e_3(device, shape):
    (size, count, steps), checked = SMALL_SHAPES[shape], 0
    for schedule, (name, make), prior in itertools.product(SCHEDULES, SPECTRA.items(), PRIORS):
        levels, spectrum = SCHEDULES[schedule](count, steps), fastkl.Spectrum(**make(size))
        held = fastkl.divergence(spectrum, levels, prior=prior) >= 1e-3
        for metric in METRICS:
            exact = fastkl.divergence(spectrum, levels, metric, prior=prior)[held]
            got = fastkl.divergence(
                spectrum, levels, metric, prior=prior, backend="gpu", precision="float32"
            )[held]
            checked += held.sum()
            if held.any():
                assert largest_difference(got, exact) <= 1e-5, (schedule, name, prior, metric)
    assert checked > 50
    assert "ddim_float_sums" in device.log


def test_float32_of_arrays_on_a_device(device):
    levels, eigenvalues = SCHEDULES["karras"](5, 9), SPECTRA["log_normal"](1500)["eigenvalues"]
    got = fastkl.divergence(on_device(eigenvalues), on_device(levels), precision="float32").values
    difference = largest_difference(got, fastkl.divergence(eigenvalues, levels))
    assert 1e-12 < difference <= 1e-5
