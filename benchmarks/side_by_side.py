"""The figures the README states, measured side by side: every round times all rivals, and ratios are taken per round.

Run as `python benchmarks/side_by_side.py`; it writes benchmarks/results/cpu.json and prints the table.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import machine
import numpy as np

import fastkl
from fastkl.kernels import reference

sys.path.append(str(machine.ROOT / "tests"))
import cases

RESULTS = Path(__file__).resolve().parent / "results"
EIGENVALUES, CANDIDATES, ROUNDS = 10**6, 32, 15


def spectrum(size: int) -> np.ndarray:
    """Log-normal eigenvalues."""
    return cases.log_normal(size)["eigenvalues"]


def candidates(count: int, steps: int) -> np.ndarray:
    """Power-uniform levels from 80 to 0."""
    return cases.power_uniform(count, steps)


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def rate_row(steps: int, threads: int) -> dict[str, float]:
    """Exact kernel against the machine's multiply-add rate and against vectorised NumPy."""
    values, levels = spectrum(EIGENVALUES), candidates(CANDIDATES, steps)
    few = levels[:2]  # NumPy's time is proportional to the number of candidates; two are enough to time it
    fastkl.divergence(values, levels, num_threads=threads)
    rows = []
    for _ in range(ROUNDS):
        peak = machine.multiply_add_rate(threads, rounds=2)
        ours = seconds(lambda: fastkl.divergence(values, levels, num_threads=threads))
        numpy_seconds = seconds(lambda: reference.divergence(values, few)) * CANDIDATES / len(few)
        pairs = EIGENVALUES * CANDIDATES * steps
        rows.append(
            (pairs / ours, 2 * pairs / ours / peak, numpy_seconds / ours, pairs / numpy_seconds, peak)
        )
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    names = (
        "eigenvalue_steps_per_s",
        "share_of_fma_rate",
        "times_numpy",
        "numpy_eigenvalue_steps_per_s",
        "fma_per_s",
    )
    return {
        "d": EIGENVALUES,
        "M": CANDIDATES,
        "N": steps,
        "threads": threads,
        **dict(zip(names, medians, strict=True)),
    }


def growth(sizes: list[int], call: Callable[[int], Callable[[], object]]) -> dict[str, object]:
    """Median times over a range of sizes, and the exponent of the power law fitted to them."""
    times = []
    for size in sizes:
        run = call(size)
        run()
        times.append(statistics.median(seconds(run) for _ in range(ROUNDS)))
    exponent = float(np.polyfit(np.log(sizes), np.log(times), 1)[0])
    return {"sizes": sizes, "seconds": times, "exponent": exponent}


def all_growth() -> dict[str, object]:
    """How the time grows with d, M and N, on one thread."""

    def run(size: int, count: int, steps: int) -> Callable[[], object]:
        values, levels = fastkl.Spectrum(spectrum(size)), candidates(count, steps)
        return lambda: fastkl.divergence(values, levels, num_threads=1)

    return {
        "d": growth([10**5, 3 * 10**5, 10**6, 3 * 10**6], lambda size: run(size, 16, 16)),
        "M": growth([16, 64, 256, 1024], lambda size: run(10**5, size, 16)),
        "N": growth([4, 16, 64, 256], lambda size: run(10**5, 16, size)),
    }


def fine_rate() -> float:
    """Eigenvalue-steps a second of schedules so fine that they need the kernel that keeps more digits."""
    values, levels = fastkl.Spectrum(spectrum(10**5)), candidates(4, 1000)
    times = [seconds(lambda: fastkl.divergence(values, levels, num_threads=1)) for _ in range(ROUNDS)]
    return 10**5 * 4 * 1000 / statistics.median(times)


FRESH_CACHE = "import tempfile, os; os.environ['NUMBA_CACHE_DIR'] = tempfile.mkdtemp()\n"
FIRST_CALL = """
import time
t0 = time.perf_counter(); import fastkl; t1 = time.perf_counter()
fastkl.divergence([1.0, 0.5], [10.0, 1.0, 0.0]); t2 = time.perf_counter()
print(t1 - t0, t2 - t1)
"""


def startup(rounds: int = 9) -> dict[str, float]:
    """Import, first call with and without compiled kernels on disk, and a warm call, in fresh processes."""

    def fresh(code: str) -> list[float]:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return [float(word) for word in done.stdout.split()]

    fresh(FIRST_CALL)
    warm = [fresh(FIRST_CALL) for _ in range(rounds)]
    cold = [fresh(FRESH_CACHE + FIRST_CALL) for _ in range(3)]
    small, levels = np.array([1.0, 0.5]), np.array([10.0, 1.0, 0.0])
    return {
        "import_s": statistics.median(row[0] for row in warm),
        "first_call_warm_cache_s": statistics.median(row[1] for row in warm),
        "first_call_cold_cache_s": statistics.median(row[1] for row in cold),
        "later_call_s": statistics.median(
            seconds(lambda: fastkl.divergence(small, levels)) for _ in range(101)
        ),
    }


def main() -> None:
    """Measure everything and write it down."""
    result = {
        **machine.description(),
        "rates": [rate_row(steps, threads) for steps in (4, 10, 16, 100) for threads in (1, 2)],
        "growth": all_growth(),
        "fine_eigenvalue_steps_per_s": fine_rate(),
        "startup": startup(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "cpu.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
