"""Samplers other than DDIM on the GPU backend, with a host in the device's place."""

import dataclasses
import re

import emulation
import numpy as np
import pytest
from cases import METRICS, PRIORS, SCHEDULES, SPECTRA, variance_difference
from device_cases import AGREEMENT, BAD_LEVELS, largest_difference, on_device
from sampler_cases import RUNS, library_sampler
from test_samplers_accuracy import NAMES, assert_accurate, last_level

import fastkl
from fastkl import _gpu_device, _gpu_program, samplers
from fastkl._gpu_layout import Layout
from fastkl._gpu_sampler import SamplerChunk
from fastkl._gpu_spectrum import DeviceSpectrum
from fastkl._sampler_losses import LossTable
from fastkl._sampler_program import Program
from fastkl._sampler_trace import OPERATIONS, Instructions, SymbolicLevels


def assert_variances_agree(spectrum, levels, name):
    """The last level in itself, those before it relative to the true variance where theirs has all but cancelled."""
    cpu, gpu = (fastkl.output_variance(spectrum, levels, name, backend=b) for b in ("cpu", "gpu"))
    assert largest_difference(gpu, cpu) <= AGREEMENT, name
    cpu, gpu = (fastkl.trajectory(spectrum, levels, name, backend=b) for b in ("cpu", "gpu"))
    assert largest_difference(gpu[:, -1], cpu[:, -1]) <= AGREEMENT, name
    assert variance_difference(gpu, cpu, spectrum.eigenvalues, levels) <= AGREEMENT, name


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
        assert_variances_agree(spectrum, levels, name)


def test_samplers_from_an_infinite_level_agree_with_the_cpu(device):
    levels, spectrum = SCHEDULES["tangent"](3, 6), fastkl.Spectrum(**SPECTRA["with_mean"](40))
    taken = [
        name
        for name in samplers.names()
        if not samplers.get(name).finite_start and not samplers.get(name).above_zero
    ]
    assert len(taken) > 5
    for name in taken:
        cpu, gpu = (fastkl.divergence(spectrum, levels, sampler=name, backend=b) for b in ("cpu", "gpu"))
        assert largest_difference(gpu, cpu) <= AGREEMENT, name
        assert_variances_agree(spectrum, levels, name)


def test_no_sampler_needs_more_registers_than_the_kernels_have():
    most = 0
    for rule in [*map(samplers.get, samplers.names()), *map(library_sampler, RUNS.values())]:
        for levels in (SCHEDULES["karras"](1, 13), SCHEDULES["above_zero"](1, 13)):
            if not (rule.above_zero and levels[0, -1] == 0.0) and rule.check is None:
                most = max(most, Program(rule, levels).registers)
    assert 4 < most <= _gpu_program.MOST_REGISTERS


def test_more_registers_than_that_are_refused(device, monkeypatch):
    _gpu_program.device_program.cache_clear()
    monkeypatch.setattr(_gpu_program, "MOST_REGISTERS", 2)
    with pytest.raises(RuntimeError, match=r"registers, the GPU kernels have 2; use backend 'cpu'"):
        fastkl.divergence([1.0], [2.0, 1.0, 0.0], sampler="unipc_3", backend="gpu")


def test_a_sampler_of_ones_own_may_have_an_option_without_a_hash(device):
    base = samplers.get("dpmpp_2m")
    options = dict(base.options)
    rule = dataclasses.replace(
        base, options=(("unused", [1.0]),), draw=lambda tape, unused: base.draw(tape, **options), check=None
    )
    with pytest.raises(TypeError, match="unhashable"):
        hash(rule)
    levels, eigenvalues = SCHEDULES["karras"](3, 6), SPECTRA["log_normal"](30)["eigenvalues"]
    cpu, gpu = (fastkl.divergence(eigenvalues, levels, sampler=rule, backend=b) for b in ("cpu", "gpu"))
    assert largest_difference(gpu, cpu) <= AGREEMENT


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


# Coefficients made on the device


def values_of(instructions, levels, device, outputs):
    """The outputs of instructions for candidates (M, N+1)."""
    count, steps = levels.shape[0], levels.shape[1] - 1
    rows, scratch = device.empty((outputs, count)), device.empty((instructions.registers, count))
    device.launch("sampler_tables", count, on_device(levels), emulation.HostArray(instructions.code),
                  on_device(instructions.constants), np.int64(len(instructions.code)), np.int64(count),
                  np.int64(steps), np.int32(0), scratch, rows)  # fmt: skip
    return rows.values


def test_instructions_do_what_numpy_does(device, rng):
    functions = [
        np.sqrt, np.exp, np.expm1, np.log, np.log1p, np.abs, np.square, np.negative, np.isinf, np.isfinite,
        np.hypot, np.maximum, np.minimum, np.add, np.subtract, np.multiply, np.divide, np.less, np.less_equal,
        np.greater, np.greater_equal, np.equal, np.not_equal,
        lambda x: x**3, lambda x: x**2, lambda x: x**1, lambda x: x**0.5, lambda x: 2.0 - x, lambda x: 1.0 / x,
        lambda x, y: np.where(x < y, x, 2.0 * y), lambda x, y: (x < y) & (y < 3.0),
        lambda x: np.where(x == 1.0, 3.0, x), lambda x: np.where(x != 1.0, x, 3.0), lambda x, y: x == y,
        lambda x: np.zeros_like(x) + np.ones_like(x) + np.full_like(x, 0.1) + x,
    ]  # fmt: skip
    special = [0.0, np.inf, 1.0, 1e-300, 1e300, 0.5]
    some = np.array([(a, b, 1.0) for a in special for b in special] + list(10 ** rng.uniform(-3, 3, (50, 3))))
    symbols = SymbolicLevels(2, False)
    makes = [
        (f, (symbols[:, 0], symbols[:, 1])[: getattr(f, "nin", None) or f.__code__.co_argcount])
        for f in functions
    ]
    outputs = [function(*arguments) for function, arguments in makes]
    got = values_of(Instructions(symbols.recorder, outputs), some, device, len(outputs))
    with np.errstate(all="ignore"):
        for row, (function, arguments) in zip(got, makes, strict=True):
            expected = np.asarray(function(*(some[:, k] for k in range(len(arguments)))), dtype=float)
            same = (row == expected) | (np.isnan(row) & np.isnan(expected))
            assert (same | (np.abs(row - expected) <= 4 * np.spacing(np.abs(expected)))).all(), function


def test_every_operation_of_the_interpreter_is_named_alike():
    text = (emulation.FOLDER / "expressions.cuh").read_text()
    names = re.search(r"enum Operation \{(.*?)\}", text, re.DOTALL)[1].replace("\n", " ").split(",")
    assert tuple(name.strip().lower() for name in names) == OPERATIONS


def test_steps_that_depend_on_the_values_of_levels_are_refused():
    levels = SymbolicLevels(2, False)
    with pytest.raises(TypeError, match="must not depend on the values"):
        max(levels[:, 0], levels[:, 1])
    for function in (np.add.reduce, np.tanh, np.cumsum):
        with pytest.raises(TypeError):
            function(levels[:, 0])


@pytest.mark.parametrize("name", samplers.names())
@pytest.mark.parametrize("to_zero", [True, False])
def test_tables_are_those_of_the_host(device, name, to_zero):
    rule = samplers.get(name)
    levels = SCHEDULES["karras" if to_zero and not rule.above_zero else "above_zero"](3, 7)
    program = Program(rule, levels)
    made = _gpu_program.device_program(rule, levels.shape[1] - 1, bool(levels[0, -1] == 0.0))
    expected = {"coefficients": program.coefficients, "sizes": program.sizes(), "allowed": np.ones((3, 1, 1))}
    if rule.stochastic:
        losses = LossTable(program)
        expected |= {"defects": losses.defects, "extras": losses.extras}
    else:
        expected["deviations"] = program.deviations()
    chunk = SamplerChunk(
        device, spectrum_on(device, [1.0]), on_device(levels), rule, "vp", Layout.of(3, 1),
        (bool(levels[0, -1] == 0.0),), 1,
    )  # fmt: skip
    assert set(made.sections) == set(expected)
    for table, values in expected.items():
        got = np.moveaxis(chunk.endings[0].tables[table].values.reshape(*values.shape[1:], 3), -1, 0)
        scale = np.maximum(np.abs(values), 1e-3 * np.abs(values).max(axis=(0, 1), keepdims=True))
        assert (np.abs(got - values) <= 1e-12 * scale).all(), table


def spectrum_on(device, eigenvalues):
    return DeviceSpectrum(device, on_device(eigenvalues), None)


@pytest.mark.parametrize("name", samplers.names())
def test_roundings_are_counted_as_on_the_host(device, name):
    rule, eigenvalues = samplers.get(name), SPECTRA["wide"](5000)["eigenvalues"]
    levels = SCHEDULES["above_zero"](3, 9)
    chunk = SamplerChunk(
        device, spectrum_on(device, eigenvalues), on_device(levels), rule, "vp", Layout.of(3, 5000), (False,), 1
    )  # fmt: skip
    least = np.minimum.reduceat(eigenvalues, np.arange(0, 5000, 1024))
    assert largest_difference(chunk.data.least().values, least) == 0.0
    expected = Program(rule, levels).roundings(least)
    # a count is itself off by as many roundings
    assert (np.abs(chunk.roundings().values.T / expected - 1.0) <= 1e-12 + 1e-15 * expected).all()


# Arrays that are on a device


@pytest.mark.parametrize("name", samplers.names())
def test_arrays_on_a_device_stay_there_and_nothing_is_waited_for(device, name):
    """Candidates that end at 0 and above, and that start at inf, side by side."""
    rule = samplers.get(name)
    rows = [
        [80.0, 20.0, 7.0, 2.0, 0.5, 0.1],
        [np.inf, 20.0, 7.0, 2.0, 0.5, 0.1],
        [np.inf, 20.0, 7.0, 2.0, 0.5, 0.0],
        [80.0, 20.0, 7.0, 2.0, 0.5, 0.0],
        [1.05, 1.04, 1.03, 1.02, 1.01, 1.0],
    ]
    good = [
        not (rule.finite_start and row[0] == np.inf) and not (rule.above_zero and row[-1] == 0.0)
        for row in rows
    ]
    spectra = (
        fastkl.Spectrum(**SPECTRA["with_mean"](1030)),
        on_device(SPECTRA["log_normal"](1030)["eigenvalues"]),
    )
    levels, kept = on_device(rows), [row for row, fits in zip(rows, good, strict=True) if fits]
    for spectrum in spectra:
        here = spectrum if isinstance(spectrum, fastkl.Spectrum) else spectrum.values
        for metric, prior in zip(METRICS, PRIORS, strict=True):
            got = fastkl.divergence(spectrum, levels, metric, name, prior)
            assert isinstance(got, emulation.HostArray)
            expected = fastkl.divergence(here, kept, metric, name, prior, backend="cpu")
            assert largest_difference(got.values[good], expected) <= AGREEMENT
            assert np.isnan(got.values[~np.array(good)]).all()
        for function in (fastkl.output_variance, fastkl.trajectory):
            got, expected = function(spectrum, levels, name), function(here, kept, name)
            eigenvalues = np.asarray(getattr(here, "eigenvalues", here))
            if function is fastkl.trajectory:
                assert (
                    variance_difference(got.values[good], expected, eigenvalues, np.array(kept)) <= AGREEMENT
                )
            else:
                assert largest_difference(got.values[good], expected) <= AGREEMENT
            assert np.isnan(got.values[~np.array(good)]).all()
        uploads = device.uploads
        fastkl.divergence(spectrum, levels, sampler=name)
        assert (device.uploads, device.downloads) == (uploads, 0)


@pytest.mark.parametrize("case", BAD_LEVELS)
def test_a_bad_candidate_on_a_device_is_nan_and_touches_no_other(device, case):
    rows = on_device([[3.0, 1.0, 0.0], BAD_LEVELS[case], [3.0, 1.0, 0.5]])
    for name in ("heun", "euler_ancestral", "dpmpp_2m"):
        for function in (fastkl.divergence, fastkl.output_variance, fastkl.trajectory):
            got = function(on_device([2.0, 1.0]), rows, sampler=name).values
            assert np.isnan(got[1]).all()
            assert (
                largest_difference(got[0], function([2.0, 1.0], [3.0, 1.0, 0.0], sampler=name)) <= AGREEMENT
            )
            assert (
                largest_difference(got[2], function([2.0, 1.0], [3.0, 1.0, 0.5], sampler=name)) <= AGREEMENT
            )


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, 0.0])
def test_a_bad_eigenvalue_on_a_device_makes_nan(device, value):
    for metric in METRICS:
        got = fastkl.divergence(on_device([2.0, value]), on_device([3.0, 1.0, 0.0]), metric, "heun").values
        assert np.isnan(got) != (value == 0.0 and metric == "w2")


def test_what_a_sampler_refuses_on_the_host_is_nan_on_a_device(device):
    rule = samplers.prk(middles=(50.0, 12.0, 4.0))
    rows = np.array([[80.0, 20.0, 7.0, 2.0, 0.5, 0.0], [80.0, 55.0, 7.0, 2.0, 0.5, 0.0]])
    with pytest.raises(ValueError, match="middles"):
        fastkl.divergence([1.0], rows, sampler=rule)
    got = fastkl.divergence(on_device([1.0]), on_device(rows), sampler=rule).values
    assert np.isnan(got).tolist() == [False, True]
    assert largest_difference(got[0], fastkl.divergence([1.0], rows[0], sampler=rule)) <= AGREEMENT
    for levels in ([2.0, 1.0], on_device([2.0, 1.0])):
        with pytest.raises(ValueError, match="sampler = 'plms': needs at least 2 steps, sigmas has 1"):
            fastkl.divergence([1.0] if isinstance(levels, list) else on_device([1.0]), levels, sampler="plms")


def test_a_check_that_a_device_cannot_do_is_refused(device):
    rule = dataclasses.replace(samplers.heun(), check=lambda levels: None)
    for function in (fastkl.divergence, fastkl.output_variance, fastkl.trajectory):
        with pytest.raises(ValueError, match="check needs the values of sigmas"):
            function(on_device([1.0]), on_device([2.0, 1.0]), sampler=rule)
    assert not device.log
    fastkl.divergence([1.0], [2.0, 1.0], sampler=rule, backend="gpu")


def test_a_step_from_inf_to_0_leaves_nothing(device):
    got = fastkl.divergence(on_device([1.0]), on_device([np.inf, 0.0]), sampler="euler_ancestral")
    assert got.values == fastkl.divergence([1.0], [np.inf, 0.0], sampler="euler_ancestral") == np.inf


# Accuracy


@pytest.mark.parametrize("name", NAMES)
def test_fifty_digits(device, monkeypatch, name):
    """Paths that lose next to nothing, and the ends of the contract: where the precise kernels are asked."""
    divergence, variance = fastkl.divergence, fastkl.output_variance
    monkeypatch.setattr(fastkl, "divergence", lambda *a, **k: divergence(*a, backend="gpu", **k))
    monkeypatch.setattr(fastkl, "output_variance", lambda *a, **k: variance(*a, backend="gpu", **k))
    for levels in (np.geomspace(1.001, 1.0, 7), np.append(np.geomspace(1e5, 1e-4, 12), 0.0)):
        levels = last_level(name, levels)
        for eigenvalue in (1e-12, 1.0, 1e12):
            assert_accurate(name, eigenvalue, levels, "exact")
    assert_accurate(name, 0.3, last_level(name, np.append(np.geomspace(50.0, 0.1, 9), 0.0)), "vp")
