"""The cache of compiled kernels: whatever its history, a kernel does what its source says."""

import os
import subprocess
import sys

import pytest

CHECK = """
import sys
import numpy as np
import fastkl
from fastkl.kernels import reference

x = np.array([0.3, 2.0, 7.0])
for steps in (*range(1, 18), 40):
    s = np.linspace(1, 0.01, steps + 1)[None] ** 3 * 80
    if "divergence" in sys.argv:
        for metric in ("kl", "w2"):
            np.testing.assert_allclose(
                fastkl.divergence(x, s, metric), reference.divergence(x, s, metric), rtol=1e-9
            )
    if "variance" in sys.argv:
        np.testing.assert_allclose(
            fastkl.output_variance(x, s), reference.output_variance(x, s), rtol=1e-11
        )
"""
OTHER_FUNCTIONS = """
from numba import njit

def another(k):
    return njit(lambda x: x + k)

for k in range(5):
    another(k)(1.0)
"""


def start(code, cache, *arguments):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=environment, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors


def run(code, cache, *arguments):
    finish(start(code, cache, *arguments))


def files(cache, ending):
    return sorted(cache.rglob(f"*.{ending}"))


def test_kernels_compiled_by_different_processes_do_not_mix(tmp_path):
    """Numba numbers functions in the order of their compilation; code from disk brings another process's numbers."""
    run(CHECK, tmp_path, "divergence")
    run(OTHER_FUNCTIONS + CHECK, tmp_path, "divergence", "variance")
    run(CHECK, tmp_path, "variance", "divergence")


def test_processes_that_compile_at_once_do_not_mix(tmp_path):
    both = [start(code, tmp_path, "divergence", "variance") for code in (CHECK, OTHER_FUNCTIONS + CHECK)]
    for process in both:
        finish(process)
    run(CHECK, tmp_path, "divergence", "variance")
    assert len(files(tmp_path, "nbi")) == len(files(tmp_path, "nbc"))  # one signature each


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_damaged_files_are_replaced(tmp_path, ending):
    run(CHECK, tmp_path, "divergence")
    damaged = files(tmp_path, ending)
    assert damaged
    for path in damaged:
        path.write_bytes(path.read_bytes()[:10])
    run(CHECK, tmp_path, "divergence")
    for path in damaged:
        assert path.stat().st_size > 100
