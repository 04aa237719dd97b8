"""The whole GPU backend with a host in the device's place: agreement with the CPU and the 50-digit reference."""

import itertools

import emulation
import numpy as np
import pytest
from cases import METRICS, PRIORS, SCHEDULES, SMALL_SHAPES, SPECTRA
from sampler_cases import RUNS, library_sampler
from test_accuracy import (
    SYSTEMATIC,
    assert_accurate,
    crossing,
    exact_divergences,
    geometric,
    random_levels,
    relative_error,
)

import fastkl
from fastkl import _gpu, _gpu_device, _gpu_sampler, samplers
from fastkl._sampler_program import Program

AGREEMENT = 1e-12
BOUND = 1e-10


@pytest.fixture
def device(monkeypatch):
    """A device that every call of the GPU backend gets."""
    return put_in_place(monkeypatch, emulation.HostDevice())


def put_in_place(monkeypatch, made):
    monkeypatch.setattr(_gpu_device, "current_device", lambda: made)
    monkeypatch.setattr(_gpu_device, "device_of", lambda array: made)
    return made


def on_device(array):
    return emulation.HostArray(np.array(array, dtype=np.float64))


def largest_difference(got, expected):
    """The largest relative difference; equal infinities and equal zeros differ by 0, a NaN by inf."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    with np.errstate(all="ignore"):
        difference = np.where(got == expected, 0.0, np.abs(got / expected - 1.0))
    return np.where(np.isnan(difference), np.inf, difference).max()


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
    assert any(name.startswith("ddim_tile_sums_") for name in device.log)


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
        cpu, gpu = (
            fastkl.divergence([3.0, 0.1, 1e-3], levels, backend=backend) for backend in ("cpu", "gpu")
        )
        assert largest_difference(gpu, cpu) <= AGREEMENT, steps
    from fastkl._gpu_source import instances, unit

    every = {name for name in instances(unit(emulation.FOLDER)) if name.startswith("ddim_tile_sums_")}
    assert every == {name for name in device.log if name.startswith("ddim_tile_sums_")}


@pytest.mark.parametrize("size", [1, 7, 8, 9, 31, 1023, 1024, 1025, 1032, 3000])
@pytest.mark.parametrize("count", [1, 2, 3, 31, 32, 33, 129])
def test_launch_geometry(device, size, count):
    """Tails of blocks, of batches and of tiles; one eigenvalue, one candidate, and more than a warp of them."""
    eigenvalues, levels = np.geomspace(1e-3, 1e3, size), SCHEDULES["power_uniform"](count, 5)
    for metric in ("kl", "w2"):
        cpu, gpu = (fastkl.divergence(eigenvalues, levels, metric, backend=b) for b in ("cpu", "gpu"))
        assert largest_difference(gpu, cpu) <= AGREEMENT
    cpu, gpu = (fastkl.divergence(eigenvalues, levels, sampler="heun", backend=b) for b in ("cpu", "gpu"))
    assert largest_difference(gpu, cpu) <= AGREEMENT


def test_layout_fills_a_block_where_there_is_work():
    assert _gpu.Layout.of(1, 10**6) == _gpu.Layout(1, 128)
    assert _gpu.Layout.of(1000, 10**6) == _gpu.Layout(32, 4)
    assert _gpu.Layout.of(10**5, 8) == _gpu.Layout(32, 1)
    assert _gpu.Layout.of(3, 50) == _gpu.Layout(4, 8)


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


# Accuracy: what tests/test_accuracy.py sweeps for the CPU, where the GPU's own arithmetic decides.


def assert_accurate_on_gpu(monkeypatch, *problem, **options):
    """test_accuracy.assert_accurate with every divergence taken from the GPU backend."""
    divergence = fastkl.divergence
    with monkeypatch.context() as patch:
        patch.setattr(fastkl, "divergence", lambda *a, **k: divergence(*a, backend="gpu", **k))
        assert_accurate(*problem, **options)


@pytest.mark.parametrize("prior", PRIORS)
def test_random_cases_of_the_whole_contract(device, monkeypatch, rng, prior):
    for case in range(24):
        steps = [1, 2, 3, 1000][case] if case < 4 else round(10 ** rng.uniform(0, 2.5))
        size = 1 if steps == 1000 else int(rng.integers(1, 6))
        levels = random_levels(rng, steps, last=0.0 if case % 2 else None)
        if case % 3 == 0:
            levels[0] = np.inf
        counts = 10 ** rng.uniform(-3, 6, size) if case % 3 == 1 else None
        mean = rng.normal(size=size) * 10 ** rng.uniform(-6, 4) if case % 4 == 2 else None
        assert_accurate_on_gpu(monkeypatch, 10 ** rng.uniform(-12, 12, size), levels, prior, counts, mean)


@pytest.mark.parametrize("steps", [1, 2, 16, 17, 100, 1000])
def test_divergences_made_tiny_by_fine_schedules(device, monkeypatch, rng, steps):
    for target in 10 ** rng.uniform(-24, -1, 8 if steps < 1000 else 2):
        width, centre = np.sqrt(4 * steps * 2 * np.sqrt(target)), 10 ** rng.uniform(-3, 4)
        levels = centre * np.exp(np.linspace(min(width, 2.0), 0, steps + 1))
        eigenvalues = centre**2 * 10 ** rng.uniform(-2, 2, 2)
        assert_accurate_on_gpu(monkeypatch, eigenvalues, levels, "exact")


@pytest.mark.parametrize("prior", ["vp", "flow"])
def test_divergences_made_tiny_by_cancellation_between_prior_and_steps(device, monkeypatch, rng, prior):
    found = 0
    for _ in range(100):
        levels = random_levels(rng, round(10 ** rng.uniform(0, 1.7)), -3.0, 2.0, 0.0 if found % 2 else None)
        eigenvalue = crossing(levels, prior)
        if eigenvalue is None:
            continue
        found += 1
        for change in (0.0, 1e-12, -1e-8, 1e-6, 1e-4, -3e-3, 1e-1):
            assert_accurate_on_gpu(monkeypatch, [eigenvalue * (1 + change)], levels, prior)
        near = eigenvalue * (1 + np.array([1e-5, -1e-9, 1e-3]))
        assert_accurate_on_gpu(monkeypatch, near, levels, prior, counts=[1.0, 1e6, 1e-3])
        if found == 4:
            break
    assert found >= 3


@pytest.mark.parametrize(("first", "per_octave", "eigenvalue"), SYSTEMATIC[::3])
def test_rounding_errors_that_recur_in_every_octave(device, monkeypatch, first, per_octave, eigenvalue):
    assert_accurate_on_gpu(monkeypatch, [eigenvalue], geometric(first, per_octave), "exact")


@pytest.mark.parametrize("spread", [0.0, 1e-9, 1e-4, 3e-2])
def test_full_tiles_of_nearly_vanishing_terms(device, monkeypatch, rng, spread):
    levels = np.geomspace(30.0, 0.05, 5)
    eigenvalues = crossing(levels, "vp") * (1 + spread * rng.normal(size=1100)).clip(0.1)
    assert_accurate_on_gpu(monkeypatch, eigenvalues, levels, "vp", metrics=("kl", "w2"))


def test_few_huge_terms_among_tiny_ones(device, monkeypatch, rng):
    levels = np.geomspace(30.0, 0.05, 9)
    eigenvalues = crossing(levels, "vp") * (1 + 1e-8 * rng.normal(size=1500))
    eigenvalues[1024] = 1e-9
    assert_accurate_on_gpu(monkeypatch, eigenvalues, levels, metrics=("kl",))
    counts = np.full(1500, 1e9)
    counts[1024] = 1e-9
    assert_accurate_on_gpu(monkeypatch, eigenvalues, levels, counts=counts, metrics=("kl",))


def test_values_beyond_the_contract_that_validation_lets_in(device):
    for eigenvalue in (1e-30, 1.0, 1e30):
        for levels in ([1e15, 1e-15], [1e15, 0.0], [np.inf, 1e15, 1e-15, 0.0], np.geomspace(1e15, 1e-15, 60)):
            for metric in METRICS:
                cpu, gpu = (
                    fastkl.divergence([eigenvalue], levels, metric, backend=b) for b in ("cpu", "gpu")
                )
                assert largest_difference(gpu, cpu) <= 1e-9, (eigenvalue, metric, levels)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("prior", PRIORS)
def test_full_batches_of_the_most_extreme_ratios(device, prior, metric):
    """Four of them are multiplied before a power of two is taken out."""
    for eigenvalues in ([1e-30], [1.0], [1e30], [1e-30, 1e30, 1.0, 1e-10]):
        full = np.resize(eigenvalues, 24)
        for levels in (
            [1e15, 1e-15],
            [1e15, 0.0],
            [1e-15, 0.0],
            [np.inf, 1e15, 1e-15, 0.0],
            np.geomspace(1e15, 1e-15, 60),
            np.append(np.geomspace(1e15, 1e-15, 16), 0.0),
        ):
            cpu, gpu = (
                fastkl.divergence(full, levels, metric, prior=prior, backend=b) for b in ("cpu", "gpu")
            )
            assert np.isfinite(cpu)
            assert largest_difference(gpu, cpu) <= 1e-9, (eigenvalues, levels)


@pytest.mark.parametrize("metric", METRICS)
def test_batches_with_one_ratio_near_1_or_none(device, metric):
    """One eigenvalue of a batch is where the prior and the steps cancel, or none is, or all are near there."""
    levels = np.geomspace(30.0, 0.05, 5)
    values, near = np.geomspace(1e-3, 1e3, 200), crossing(levels, "vp")
    distance = np.abs((values + levels[-1] ** 2) / fastkl.output_variance(values, levels) - 1.0)
    far = values[distance >= 0.0625][::5][:16]
    assert far.size == 16
    for place in range(17):
        eigenvalues = far.copy()
        eigenvalues[place : place + 1] = near * (1 + 1e-3)
        for some in (eigenvalues, np.full(16, near * (1 + 1e-3))):
            cpu, gpu = (fastkl.divergence(some, levels, metric, backend=b) for b in ("cpu", "gpu"))
            assert largest_difference(gpu, cpu) <= AGREEMENT


# Samplers


@pytest.mark.parametrize("name", samplers.names())
def test_samplers_agree_with_the_cpu(device, name):
    rule = samplers.get(name)
    for schedule, steps, size in (("karras", 6, 1030), ("fine", 6, 7), ("above_zero", 17, 3)):
        levels = SCHEDULES[schedule](3, steps)
        if rule.above_zero and levels[0, -1] == 0.0:
            levels = levels[:, :-1]
        for make in ("counted", "with_mean"):
            spectrum = fastkl.Spectrum(**SPECTRA[make](size))
            for metric, prior in zip(METRICS, PRIORS, strict=True):
                cpu = fastkl.divergence(spectrum, levels, metric, name, prior, "cpu")
                gpu = fastkl.divergence(spectrum, levels, metric, name, prior, "gpu")
                assert largest_difference(gpu, cpu) <= AGREEMENT, (schedule, make, metric)
        for function in (fastkl.output_variance, fastkl.trajectory):
            cpu, gpu = (function(spectrum, levels, name, backend=b) for b in ("cpu", "gpu"))
            assert largest_difference(gpu, cpu) <= AGREEMENT, (schedule, function)


def test_samplers_from_an_infinite_level_agree_with_the_cpu(device):
    levels, spectrum = SCHEDULES["tangent"](3, 6), fastkl.Spectrum(**SPECTRA["with_mean"](40))
    taken = [
        name
        for name in samplers.names()
        if not samplers.get(name).finite_start and not samplers.get(name).above_zero
    ]
    assert len(taken) > 5
    for name in taken:
        for function in (fastkl.divergence, fastkl.output_variance, fastkl.trajectory):
            cpu, gpu = (function(spectrum, levels, sampler=name, backend=b) for b in ("cpu", "gpu"))
            assert largest_difference(gpu, cpu) <= AGREEMENT, (name, function)


def test_no_sampler_needs_more_registers_than_the_kernels_have():
    most = 0
    for rule in [*map(samplers.get, samplers.names()), *map(library_sampler, RUNS.values())]:
        for levels in (SCHEDULES["karras"](1, 13), SCHEDULES["above_zero"](1, 13)):
            if not (rule.above_zero and levels[0, -1] == 0.0) and rule.check is None:
                most = max(most, Program(rule, levels).registers)
    assert 4 < most <= _gpu_sampler.MOST_REGISTERS


def test_more_registers_than_that_are_refused(device, monkeypatch):
    monkeypatch.setattr(_gpu_sampler, "MOST_REGISTERS", 2)
    with pytest.raises(RuntimeError, match=r"registers, the GPU kernels have 2; use backend 'cpu'"):
        fastkl.divergence([1.0], [2.0, 1.0, 0.0], sampler="unipc_3", backend="gpu")


# Arrays that are on a device


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


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("metric", METRICS)
def test_a_spectrum_goes_to_the_device_once(device, metric, prior):
    levels, spectrum = SCHEDULES["karras"](5, 9), fastkl.Spectrum(**SPECTRA["with_mean"](50))
    levels[::2, 0] = np.inf
    expected = fastkl.divergence(spectrum, levels, metric, prior=prior)
    first = fastkl.divergence(spectrum, on_device(levels), metric, prior=prior)
    uploads = device.uploads
    second = fastkl.divergence(spectrum, on_device(levels), metric, prior=prior)
    assert uploads > 0
    assert (device.uploads, device.downloads) == (uploads, 0)
    assert largest_difference(first.values, expected) <= AGREEMENT
    assert (first.values == second.values).all()


def test_each_stream_has_its_own_copy_of_a_spectrum(device):
    levels, spectrum = on_device([[3.0, 1.0, 0.0]]), fastkl.Spectrum([1.0, 2.0])
    for stream, uploads in ((1, 1), (2, 2), (1, 2), (2, 2)):
        device.current_stream = stream
        fastkl.divergence(spectrum, levels)
        assert device.uploads == uploads


def test_only_the_streams_that_used_a_spectrum_last_keep_a_copy(device):
    levels, spectrum = on_device([[3.0, 1.0, 0.0]]), fastkl.Spectrum([1.0, 2.0])
    for stream in range(_gpu.MOST_COPIES + 1):
        device.current_stream = stream
        fastkl.divergence(spectrum, levels)
        device.current_stream = 0  # used again and again, so never the one to go
        fastkl.divergence(spectrum, levels)
    assert device.uploads == _gpu.MOST_COPIES + 1
    device.current_stream = 1  # its copy went
    fastkl.divergence(spectrum, levels)
    assert device.uploads == _gpu.MOST_COPIES + 2
    assert [
        len(kept.made) for kept in _gpu.COPIES._kept.values() if kept.refs[0]() is spectrum.eigenvalues
    ] == [_gpu.MOST_COPIES]


def test_copies_are_given_up_where_memory_runs_out(device, monkeypatch):
    """The device has no room as long as another spectrum's copy is there."""
    _gpu.COPIES.drop()
    other = fastkl.Spectrum([1.0, 2.0])
    fastkl.divergence(other, [3.0, 1.0, 0.0], backend="gpu")
    (held,) = _gpu.COPIES._kept.values()
    plain, spectrum = device.empty, fastkl.Spectrum([4.0, 1.0, 0.25])

    def empty(*arguments):
        if any(kept is held for kept in _gpu.COPIES._kept.values()):
            device.failures += 1
            raise device.OutOfMemory
        return plain(*arguments)

    monkeypatch.setattr(device, "empty", empty)
    levels = SCHEDULES["karras"](3, 5)
    calls = {
        "host": lambda: fastkl.divergence(spectrum, levels, backend="gpu"),
        "device": lambda: fastkl.divergence(spectrum, on_device(levels)).values,
        "heun": lambda: fastkl.divergence(spectrum, levels, "kl", "heun", backend="gpu"),
    }
    for name, call in calls.items():
        expected = fastkl.divergence(
            spectrum, levels, "kl", "heun" if name == "heun" else "ddim", backend="cpu"
        )
        _gpu.COPIES._kept["other"] = held
        failures = device.failures
        assert largest_difference(call(), expected) <= AGREEMENT
        assert device.failures > failures
    _gpu.COPIES.drop()


def test_device_copies_die_with_their_spectrum(device):
    levels = on_device([[2.0, 1.0, 0.0]])
    spectrum = fastkl.Spectrum([1.0, 2.0], mean=[1.0, 0.0])
    fastkl.divergence(spectrum, levels, "reverse_kl")
    before = len(_gpu.COPIES._kept)
    del spectrum  # its eigenvalues' copy and its mean's
    assert len(_gpu.COPIES._kept) == before - 2


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


def test_other_samplers_on_a_device_return_there(device):
    levels, eigenvalues = SCHEDULES["karras"](5, 9), SPECTRA["log_normal"](30)["eigenvalues"]
    for function in (fastkl.divergence, fastkl.output_variance, fastkl.trajectory):
        for rows in (levels, levels[0]):
            got = function(on_device(eigenvalues), on_device(rows), sampler="heun")
            assert isinstance(got, emulation.HostArray)
            assert largest_difference(got.values, function(eigenvalues, rows, sampler="heun")) <= AGREEMENT


def test_other_samplers_run_on_the_device_of_the_arrays(monkeypatch):
    first, second = emulation.HostDevice(), emulation.HostDevice()
    second.number = 1
    monkeypatch.setattr(_gpu_device, "current_device", lambda: second if second.entered else first)
    monkeypatch.setattr(_gpu_device, "device_of", lambda array: second)
    eigenvalues, levels = SPECTRA["log_normal"](30)["eigenvalues"], SCHEDULES["karras"](3, 6)
    for function in (fastkl.divergence, fastkl.output_variance, fastkl.trajectory):
        got = function(on_device(eigenvalues), on_device(levels), sampler="heun")
        assert largest_difference(got.values, function(eigenvalues, levels, sampler="heun")) <= AGREEMENT
        assert (first.log, second.entered) == ([], 0)
        assert second.log
        second.log.clear()


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


BAD_LEVELS = {
    "rises": [3.0, 4.0, 0.0],
    "repeats": [3.0, 3.0, 0.0],
    "nan": [3.0, np.nan, 0.0],
    "negative": [3.0, 1.0, -1.0],
    "too large": [1e16, 1.0, 0.0],
    "too small": [1.0, 1e-16, 0.0],
    "0 inside": [1.0, 0.0, 0.0],
    "inf inside": [np.inf, np.inf, 0.0],
    "minus inf": [-np.inf, 1.0, 0.0],
}


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


# Memory


def test_chunks_sized_from_free_memory_change_no_bit(monkeypatch):
    levels, spectrum = SCHEDULES["karras"](70, 9), fastkl.Spectrum(**SPECTRA["with_mean"](2100))

    def results():
        values = [fastkl.divergence(spectrum, levels, m, prior="exact", backend="gpu") for m in METRICS]
        values.append(fastkl.divergence(spectrum, levels, sampler="heun", backend="gpu"))
        values.append(fastkl.output_variance(spectrum, levels, backend="gpu").ravel())
        values.append(fastkl.trajectory(spectrum, levels, backend="gpu").ravel())
        return np.concatenate(values)

    roomy = put_in_place(monkeypatch, emulation.HostDevice())
    expected = results()
    assert (results() == expected).all()  # the same bits every time
    tight = put_in_place(monkeypatch, emulation.HostDevice(claimed=100_000, memory=1 << 40))
    assert (results() == expected).all()
    assert len(tight.log) > 1.5 * len(roomy.log)
    assert tight.failures == 0


def test_out_of_memory_halves_the_chunk_and_goes_on(monkeypatch):
    levels, eigenvalues = SCHEDULES["karras"](64, 9), SPECTRA["wide"](2100)["eigenvalues"]
    calls = [
        lambda: fastkl.divergence(eigenvalues, levels, backend="gpu"),
        lambda: fastkl.divergence(on_device(eigenvalues), on_device(levels)).values,
        lambda: fastkl.divergence(eigenvalues, levels, sampler="heun", backend="gpu"),
        lambda: fastkl.output_variance(eigenvalues, levels, backend="gpu"),
        lambda: fastkl.trajectory(eigenvalues, levels, backend="gpu"),
    ]
    failures = 0
    for call, memory in zip(calls, (5_000, 5_000, 4_000, 60_000, 500_000), strict=True):
        put_in_place(monkeypatch, emulation.HostDevice())
        expected = call()
        small = put_in_place(monkeypatch, emulation.HostDevice(memory=memory, claimed=1 << 40))
        assert (call() == expected).all()
        assert small.failures >= 1
        failures += small.failures
    assert failures >= 8


def test_memory_too_small_for_one_candidate_is_an_error(monkeypatch):
    small = put_in_place(monkeypatch, emulation.HostDevice(memory=100))
    with pytest.raises(small.OutOfMemory):
        fastkl.divergence(np.ones(5000), [3.0, 1.0, 0.0], backend="gpu")


# float32


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


def test_the_reference_agrees_too(device, rng):
    """Not only through the CPU backend: 50 digits."""
    eigenvalues, levels = 10 ** rng.uniform(-6, 6, 12), SCHEDULES["karras"](1, 12)[0]
    exact = exact_divergences(eigenvalues, levels)
    for metric in METRICS:
        assert (
            relative_error(fastkl.divergence(eigenvalues, levels, metric, backend="gpu"), exact[metric])
            <= AGREEMENT
        )
