"""Sweeps on a Dask cluster: the same bits as on this machine, also when workers are killed or come and go."""

import contextlib
import logging
import os
import signal

import dask.array
import numpy as np
import pytest
from distributed import Client, LocalCluster
from sweeps import contents, small

import fastkl
from fastkl.sweeps.sources import local_moments, tree_sum

WIDE = small(families=[{"family": "tangent", "gamma": {"start": 0.1, "stop": 3.0, "num": 30_000}, "sigma_min": 0.0}],
             spectra=["mnist"], chunk=500, top=30)  # 60,000 candidates in 120 chunks  # fmt: skip


@contextlib.contextmanager
def cluster(workers):
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.CRITICAL
        ) as machines,
        Client(machines, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def two():
    with cluster(2) as client:
        yield client


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local") / "out"
    fastkl.sweep(WIDE, folder)
    return contents(folder)


class Killer:
    """Progress that kills workers once some chunks are done."""

    def __init__(self, client, workers, after):
        self.pids = list(client.run(os.getpid).values())[:workers]
        self.after, self.reports = after, 0

    def __call__(self, done, total):
        self.reports += 1
        if self.reports == self.after:
            for pid in self.pids:
                os.kill(pid, signal.SIGKILL)


def test_two_workers_one_killed_in_the_middle(two, tmp_path, undisturbed):
    killer = Killer(two, 1, after=40)
    found = fastkl.sweep(WIDE, tmp_path / "out", client=two, progress=killer)
    assert contents(tmp_path / "out") == undisturbed
    assert found.evaluated_now == 60_000
    assert killer.reports == 121  # each chunk once, and the start
    two.wait_for_workers(2)
    assert killer.pids[0] not in two.run(os.getpid).values()


def test_one_worker_killed_and_replaced(tmp_path, undisturbed):
    """All that the cluster held is lost, the spectra too; Dask makes it again on the worker that takes its place."""
    with cluster(1) as client:
        killer = Killer(client, 1, after=30)
        fastkl.sweep(WIDE, tmp_path / "out", client=client, progress=killer)
        assert contents(tmp_path / "out") == undisturbed
        assert killer.pids[0] not in client.run(os.getpid).values()


def test_begun_here_and_finished_on_a_cluster(two, tmp_path, undisturbed):
    folder = tmp_path / "out"

    def stop(done, total):
        if done >= total // 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fastkl.sweep(WIDE, folder, progress=stop)
    assert 0 < fastkl.sweep(WIDE, folder, client=two).evaluated_now < 60_000
    assert contents(folder) == undisturbed


def test_an_error_on_a_worker_is_raised_here(two, tmp_path, undisturbed):
    """What is there stays, and the cluster can be used again."""

    def full(done, total):
        if done > 5000:
            raise OSError(28, os.strerror(28))

    with pytest.raises(OSError, match=r"No space left on device; 1[0-9] of 120 chunks are written"):
        fastkl.sweep(WIDE, tmp_path / "out", client=two, progress=full)
    fastkl.sweep(WIDE, tmp_path / "out", client=two)
    assert contents(tmp_path / "out") == undisturbed


def test_searches_and_live_objects_travel(two):
    config = small(spectra=[fastkl.Spectrum([1.0, 0.1, 0.01])], schedules=[fastkl.NoiseSchedule.ddpm_linear(100)],
                   samplers=[fastkl.samplers.ddim(eta=0.5)], searches=[{}])  # fmt: skip
    config["families"] = [{"family": "power_uniform", "power": [1.0, 2.0]}]
    assert fastkl.sweep(config, client=two).top.equals(fastkl.sweep(config).top)


def test_moments_of_a_spectrum_in_chunks_are_merged_on_the_workers(two, tmp_path, rng):
    for k in range(11):
        np.save(tmp_path / f"part{k:02}.npy", rng.lognormal(0.0, 2.0, 5000))
    config = small(spectra=[{"name": "large", "chunks": str(tmp_path / "part*.npy")}])
    here, there = fastkl.sweep(config), fastkl.sweep(config, client=two)
    assert there.config_hash == here.config_hash  # which covers every bit of the compressed spectrum
    assert there.top.equals(here.top)


def test_a_dask_array_is_a_spectrum_in_chunks(two, rng):
    values = rng.lognormal(0.0, 1.0, 10_000)
    blocks = [values[i : i + 3000] for i in range(0, 10_000, 3000)]
    config = small(spectra=[{"name": "x", "chunks": blocks}], steps=4)
    lazy = small(spectra=[{"name": "x", "chunks": dask.array.from_array(values, chunks=3000)}], steps=4)
    assert fastkl.sweep(lazy, client=two).top.equals(fastkl.sweep(config).top)


@pytest.mark.parametrize("count", range(1, 20))
def test_the_tree_is_the_same_here_and_there(count, monkeypatch):
    class Text(str):
        def __add__(self, other):
            return Text(f"({self}+{other})")

    monkeypatch.setattr("fastkl.sweeps.sources.chunk_moments", Text)
    parts = [str(k) for k in range(count)]
    assert local_moments(parts) == tree_sum([Text(part) for part in parts], lambda a, b: a + b)


def test_a_client_that_cannot_be_used_is_refused():
    with pytest.raises(TypeError, match=r"client: must be a synchronous dask\.distributed\.Client, got str"):
        fastkl.sweep(WIDE, client="tcp://127.0.0.1:1")
