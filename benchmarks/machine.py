"""What this machine is and what it can do: its description, and the rate of fused multiply-adds that it reaches."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import threading
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numba import njit

from fastkl._machine import cpu_name
from fastkl.kernels.compiling import fma

ROOT = Path(__file__).resolve().parents[1]
CHAIN = 16


@njit(nogil=True, error_model="numpy")
def multiply_add(x, a, b, repeats):
    """Two chains of CHAIN dependent multiply-adds for every element of x, `repeats` times over.

    Of several lengths and numbers of chains this was the fastest, and so the nearest to what the processor can do.
    """
    for _ in range(repeats):
        for j in range(x.size):
            u, w = 1.0, 2.0
            for k in range(CHAIN):
                u = fma(u, x[j], 0.25 + k)
                w = fma(w, x[j], 0.5 + k)
            a[j] = u
            b[j] = w


def multiply_adds(threads: int, repeats: int = 80_000, size: int = 512) -> int:
    """Run the loop on `threads` threads at once; return how many multiply-adds that was."""
    arrays = [(np.linspace(0.1, 0.6, size), np.empty(size), np.empty(size)) for _ in range(threads)]
    workers = [threading.Thread(target=multiply_add, args=(*array, repeats)) for array in arrays]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return threads * repeats * size * 2 * CHAIN


def multiply_add_rate(threads: int, rounds: int = 3) -> float:
    """Multiply-adds a second, the best of a few rounds of about 40 ms."""
    multiply_adds(1, 1)
    best = 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        count = multiply_adds(threads)
        best = max(best, count / (time.perf_counter() - start))
    return best


def description() -> dict[str, object]:
    """Machine, versions, date and commit, for a result file."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run(
        [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    status = subprocess.run(
        [*git, "status", "--porcelain"], capture_output=True, text=True, check=True
    ).stdout
    return {
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("fastkl", "numpy", "scipy", "numba", "llvmlite")},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": commit + (" with uncommitted changes" if status.strip() else ""),
    }
