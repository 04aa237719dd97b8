"""Shared fixtures. Every random test draws from `rng`; FASTKL_TEST_SEED chooses the seed, which pytest prints."""

import os
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import fastkl
from fastkl import _gpu_device

SEED = int(os.environ.get("FASTKL_TEST_SEED", "20260113"))
REQUIRE_GPU = os.environ.get("FASTKL_REQUIRE_GPU", "") == "1"
gpu_tests = Counter()


def pytest_report_header(config):
    return f"fastkl seed: {SEED} (set FASTKL_TEST_SEED to change it)"


def pytest_runtest_setup(item):
    """A test marked `gpu` is skipped and counted where there is none, and fails there with FASTKL_REQUIRE_GPU=1."""
    if item.get_closest_marker("gpu") is None:
        return
    lack = _gpu_device.missing()
    gpu_tests["run" if lack is None else "skipped"] += 1
    if lack is not None and REQUIRE_GPU:
        pytest.fail(f"FASTKL_REQUIRE_GPU=1, but {lack}", pytrace=False)
    if lack is not None:
        pytest.skip(f"no GPU: {lack}")


def pytest_terminal_summary(terminalreporter):
    if gpu_tests:
        run, skipped = gpu_tests["run"], gpu_tests["skipped"]
        outcome = "failed" if REQUIRE_GPU else "skipped"
        terminalreporter.write_line(f"GPU tests: {run} run, {skipped} {outcome} for want of a GPU")


@pytest.fixture
def experiments(monkeypatch):
    """Makes the scripts of benchmarks/experiments importable, as they import each other, and forgets them again."""
    folder = str(Path(__file__).resolve().parents[1] / "benchmarks" / "experiments")
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if folder in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="session")
def undisturbed_small(tmp_path_factory):
    """What the folder of the sweep `small` holds after a run that nothing disturbed."""
    from sweeps import contents, small

    folder = tmp_path_factory.mktemp("expected") / "out"
    fastkl.sweep(small(), folder)
    return contents(folder)


@pytest.fixture
def device(monkeypatch):
    """A host in a device's place, which every call of the GPU backend gets; building it takes a C++ compiler."""
    import emulation
    from device_cases import put_in_place

    return put_in_place(monkeypatch, emulation.HostDevice())


@pytest.fixture
def rng(request):
    """A generator that depends on the seed and on the test's name; both are shown when the test fails."""
    name = request.node.nodeid
    print(f"seed {SEED}, test {name}")
    return np.random.default_rng([SEED, zlib.crc32(name.encode())])
