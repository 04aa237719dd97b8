"""Memory of the GPU backend: copies of spectra, chunks, and what happens where it runs out."""

import emulation
import numpy as np
import pytest
from cases import METRICS, PRIORS, SCHEDULES, SPECTRA
from device_cases import AGREEMENT, largest_difference, on_device, put_in_place

import fastkl
from fastkl import _gpu_copies
from fastkl._gpu_layout import Need, in_chunks
from fastkl._gpu_spectrum import DeviceSpectrum


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
    for stream in range(_gpu_copies.MOST_COPIES + 1):
        device.current_stream = stream
        fastkl.divergence(spectrum, levels)
        device.current_stream = 0  # used again and again, so never the one to go
        fastkl.divergence(spectrum, levels)
    assert device.uploads == _gpu_copies.MOST_COPIES + 1
    device.current_stream = 1  # its copy went
    fastkl.divergence(spectrum, levels)
    assert device.uploads == _gpu_copies.MOST_COPIES + 2
    assert [
        len(kept.made) for kept in _gpu_copies.COPIES._kept.values() if kept.refs[0]() is spectrum.eigenvalues
    ] == [_gpu_copies.MOST_COPIES]


def test_copies_are_given_up_where_memory_runs_out(device, monkeypatch):
    """The device has no room as long as another spectrum's copy is there."""
    _gpu_copies.COPIES.drop()
    other = fastkl.Spectrum([1.0, 2.0])
    fastkl.divergence(other, [3.0, 1.0, 0.0], backend="gpu")
    (held,) = _gpu_copies.COPIES._kept.values()
    plain, spectrum = device.empty, fastkl.Spectrum([4.0, 1.0, 0.25])

    def empty(*arguments):
        if any(kept is held for kept in _gpu_copies.COPIES._kept.values()):
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
        _gpu_copies.COPIES._kept["other"] = held
        failures = device.failures
        assert largest_difference(call(), expected) <= AGREEMENT
        assert device.failures > failures
    _gpu_copies.COPIES.drop()


def test_device_copies_die_with_their_spectrum(device):
    levels = on_device([[2.0, 1.0, 0.0]])
    spectrum = fastkl.Spectrum([1.0, 2.0], mean=[1.0, 0.0])
    fastkl.divergence(spectrum, levels, "reverse_kl")
    before = len(_gpu_copies.COPIES._kept)
    del spectrum  # its eigenvalues' copy and its mean's
    assert len(_gpu_copies.COPIES._kept) == before - 2


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


def every_result(spectrum, levels, place):
    """Results of everything that walks the spectrum, from arrays on the host or on the device."""
    calls = [
        *(lambda s, x, m=m: fastkl.divergence(s, x, m, prior="exact", backend="gpu") for m in METRICS),
        lambda s, x: fastkl.divergence(s, x, precision="float32", backend="gpu"),
        lambda s, x: fastkl.output_variance(s, x, backend="gpu"),
        lambda s, x: fastkl.trajectory(s, x, backend="gpu"),
    ]
    for name in ("heun", "euler_ancestral"):
        calls += [
            lambda s, x, name=name: fastkl.divergence(s, x, "jeffreys", name, backend="gpu"),
            lambda s, x, name=name: fastkl.output_variance(s, x, name, backend="gpu"),
            lambda s, x, name=name: fastkl.trajectory(s, x, name, backend="gpu"),
        ]
    results = [call(spectrum, place(levels)) for call in calls]
    return [np.asarray(getattr(result, "values", result)) for result in results]


@pytest.mark.parametrize("place", [np.asarray, on_device])
def test_a_spectrum_in_pieces_changes_no_bit(monkeypatch, place):
    """Few candidates and little memory: the spectrum is walked in pieces, or not even copied whole."""
    spectrum = fastkl.Spectrum(**SPECTRA["with_mean"](9000), counts=np.arange(9000) % 4 + 1.0)
    for levels in (SCHEDULES["karras"](2, 6), SCHEDULES["fine"](2, 6)):
        roomy = put_in_place(monkeypatch, emulation.HostDevice())
        _gpu_copies.COPIES.drop()
        expected = every_result(spectrum, levels, place)
        for claimed in (300_000, 40_000):
            tight = put_in_place(monkeypatch, emulation.HostDevice(claimed=claimed, memory=1 << 40))
            _gpu_copies.COPIES.drop()
            got = every_result(spectrum, levels, place)
            assert all((a == b).all() for a, b in zip(got, expected, strict=True))
            assert len(tight.log) > (1.2 if claimed > 100_000 else 2.0) * len(roomy.log)


def test_roundings_are_counted_once_for_all_pieces(monkeypatch):
    """They are of the whole spectrum: once for each piece would be quadratic in its size."""
    levels, eigenvalues = SCHEDULES["karras"](2, 6), SPECTRA["wide"](9000)["eigenvalues"]
    for function in (fastkl.output_variance, fastkl.trajectory):
        device = put_in_place(monkeypatch, emulation.HostDevice(claimed=300_000, memory=1 << 40))
        expected = function(eigenvalues, levels, "heun", backend="cpu")
        assert largest_difference(function(eigenvalues, levels, "heun", backend="gpu"), expected) <= AGREEMENT
        assert device.log.count("sampler_variances") > device.log.count("sampler_tables")
        assert device.log.count("sampler_roundings") == device.log.count("sampler_tables")


def test_memory_is_bounded_however_many_eigenvalues_there_are(monkeypatch):
    """One candidate: beside what grows with the tiles, 1/100 of the spectrum, what was free is enough."""
    for size in (50_000, 400_000):
        eigenvalues = SPECTRA["log_normal"](size)["eigenvalues"]
        for call in (
            lambda x: fastkl.divergence(x, [3.0, 1.0, 0.0], backend="gpu"),
            lambda x: fastkl.divergence(x, [3.0, 1.0, 0.0], sampler="heun", backend="gpu"),
            lambda x: fastkl.trajectory(x, [3.0, 1.0, 0.0], backend="gpu"),
            lambda x: fastkl.trajectory(x, [3.0, 1.0, 0.0], sampler="heun", backend="gpu"),
        ):
            device = put_in_place(monkeypatch, emulation.HostDevice(claimed=200_000, memory=1 << 40))
            monkeypatch.setattr("fastkl._gpu_spectrum.PREPARED", 16)
            call(eigenvalues)
            assert device.peak <= 400_000 + 0.1 * 8 * size, size


def test_a_spectrum_for_which_there_is_no_room_is_copied_piece_by_piece(monkeypatch):
    eigenvalues = SPECTRA["wide"](200_000)["eigenvalues"]
    expected = fastkl.divergence(eigenvalues, [3.0, 1.0, 0.0], backend="cpu")
    monkeypatch.setattr("fastkl._gpu_spectrum.PREPARED", 16)
    small = put_in_place(monkeypatch, emulation.HostDevice(memory=600_000, claimed=1 << 40))
    small.upload = limited(small, small.upload)
    spectrum = fastkl.Spectrum(eigenvalues)
    assert (
        largest_difference(fastkl.divergence(spectrum, [3.0, 1.0, 0.0], backend="gpu"), expected) <= AGREEMENT
    )
    assert small.failures >= 1
    uploads = small.uploads
    small.upload = type(small).upload.__get__(small)  # there is room now
    fastkl.divergence(spectrum, [3.0, 1.0, 0.0], backend="gpu")
    assert small.uploads - uploads <= 3


def limited(device, upload):
    """An upload that runs out of memory where `empty` does."""

    def checked(array):
        if array.nbytes > device.memory:
            device.failures += 1
            raise device.OutOfMemory(f"{array.nbytes} bytes")
        return upload(array)

    return checked


def test_what_is_halved_where_memory_runs_out():
    device, tried = emulation.HostDevice(claimed=1 << 20), []

    def run(begin, end, length):
        tried.append((begin, end, length))
        if (end - begin) * length > 6:
            raise device.OutOfMemory

    need = Need(candidate=1000, tile=2000, shared=0, tiles=50)
    in_chunks(device, 10, need, run)
    assert tried[0] == (0, 10, 13)
    done = [(begin, end) for begin, end, length in tried if (end - begin) * length <= 6]
    assert done[0][0] == 0
    assert done[-1][1] == 10
    assert [end for _, end in done[:-1]] == [begin for begin, _ in done[1:]]
    with pytest.raises(device.OutOfMemory):
        in_chunks(device, 10, need, lambda *_: (_ for _ in ()).throw(device.OutOfMemory))


def test_a_spectrum_knows_its_tiles(monkeypatch):
    device, eigenvalues = emulation.HostDevice(), SPECTRA["wide"](2500)["eigenvalues"]
    for place in (np.asarray, on_device):
        data = DeviceSpectrum(device, place(eigenvalues), None)
        assert data.resident == (place is on_device)
        pieces = list(data.pieces(2))
        places = [(piece.first, piece.tiles, piece.begin, piece.size) for piece in pieces]
        assert places == [(0, 2, 0, 2048), (2, 1, 2048, 452)]
        assert (np.concatenate([piece.eigenvalues.values for piece in pieces]) == eigenvalues).all()
        assert data.streamed_bytes == (0 if data.resident else 8192)
