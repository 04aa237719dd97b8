"""Python processes for tests, away from the repository, with a problem at hand that is large enough for threads."""

import os
import subprocess
import sys

import pytest

LIMIT = 120  # seconds; a deadlock is a failure, not a hang

PROBLEM = """
import hashlib, os, signal, sys, threading, time
import numpy as np
import fastkl

eigenvalues = np.geomspace(1e-3, 1e3, 40_000)
sigmas = np.linspace(0.5, 2, 12)[:, None] * np.geomspace(50, 0.1, 17)   # 7.7e6 eigenvalue-steps: threads are used
sigmas[0] = np.geomspace(2.0, 1.999, 17)                               # needs pairs
METRICS = "kl", "reverse_kl", "jeffreys", "w2"
SAMPLERS = ()

def results(threads=2):
    values = [fastkl.divergence(eigenvalues, sigmas, m, prior="exact", num_threads=threads) for m in METRICS]
    values.append(fastkl.output_variance(eigenvalues, sigmas, num_threads=threads)[:, ::999].ravel())
    values.append(fastkl.trajectory(eigenvalues, sigmas[:2], num_threads=threads)[:, -1, ::999].ravel())
    for sampler in SAMPLERS:
        values.append(fastkl.divergence(eigenvalues, sigmas, "kl", sampler, "exact", num_threads=threads))
    return hashlib.sha256(np.concatenate(values).tobytes()).hexdigest()
"""


def start(code, cwd, *, env=None, flags=("-W", "error")):
    """Start Python on `code`, after PROBLEM, away from the repository."""
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1", **(env or {})}
    return subprocess.Popen(
        [sys.executable, *flags, "-c", PROBLEM + code],
        cwd=cwd,
        env={name: value for name, value in environment.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code, cwd, **options):
    """Run Python on `code` and return what it printed; fail on an error, a signal, anything on stderr or a hang."""
    process = start(code, cwd, **options)
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"no answer in {LIMIT} s: {out}{err}")
    assert (process.returncode, err) == (0, ""), out + err
    return out
