"""Import, cold compile, warm first call and a later call, each apart, in fresh processes."""

import os
import subprocess
import sys

import numpy as np

import fastkl

CALL = "import fastkl; fastkl.divergence([1.0, 0.5], [10.0, 1.0, 0.0])"


def run_python(code, cache=None):
    environment = dict(os.environ)
    if cache is not None:
        environment["NUMBA_CACHE_DIR"] = str(cache)
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_interpreter_alone(benchmark):
    benchmark(run_python, "pass")


def test_import(benchmark):
    benchmark(run_python, "import fastkl")


def test_first_call_warm_cache(benchmark):
    run_python(CALL)
    benchmark(run_python, CALL)


def test_first_call_cold_cache(benchmark, tmp_path_factory):
    def fresh_cache():
        return (CALL, tmp_path_factory.mktemp("cache")), {}

    benchmark.pedantic(run_python, setup=fresh_cache, rounds=3)


def test_later_call(benchmark):
    values, levels = np.array([1.0, 0.5]), np.array([10.0, 1.0, 0.0])
    benchmark(fastkl.divergence, values, levels)
