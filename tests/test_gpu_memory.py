"""Memory of the GPU backend: copies of spectra, chunks, and what happens where it runs out."""

import emulation
import numpy as np
import pytest
from cases import METRICS, PRIORS, SCHEDULES, SPECTRA
from device_cases import AGREEMENT, largest_difference, on_device, put_in_place

import fastkl
from fastkl import _gpu


@pytest.fixture
def device(monkeypatch):
    """A device that every call of the GPU backend gets."""
    return put_in_place(monkeypatch, emulation.HostDevice())


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
    for call, memory in zip(calls, (5_000, 5_000, 60_000, 60_000, 500_000), strict=True):
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
