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

from fastkl.kernels.compiling import fma

ROOT = Path(__file__).resolve().parents[1]
CHAIN = 32


@njit(nogil=True, error_model="numpy")
def multiply_add(x, repeats):
    """2 * CHAIN dependent multiply-adds on every element of x, in two chains, `repeats` times over."""
    for _ in range(repeats):
        for j in range(x.size):
            value = x[j]
            a, b = value, value + 1.0
            for _ in range(CHAIN):
                a = fma(a, value, 0.25)
                b = fma(b, value, 0.5)
            x[j] = value + (a + b) * 1e-300


def multiply_adds(threads: int, repeats: int = 2000, size: int = 512) -> int:
    """Run the loop on `threads` threads at once; return how many multiply-adds that was."""
    arrays = [np.linspace(0.1, 0.6, size) for _ in range(threads)]
    workers = [threading.Thread(target=multiply_add, args=(array, repeats)) for array in arrays]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return threads * repeats * size * 2 * CHAIN


def multiply_add_rate(threads: int, rounds: int = 3) -> float:
    """Multiply-adds a second, the best of a few rounds of about 20 ms."""
    multiply_adds(1, 1)
    best = 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        count = multiply_adds(threads)
        best = max(best, count / (time.perf_counter() - start))
    return best


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


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
