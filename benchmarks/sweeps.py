"""Sweeps measured: 1e8 candidates of 10 steps, the growth with their number, all rows to disk, and Dask's overhead.

Run as `python benchmarks/sweeps.py [FOLDER]`; it writes benchmarks/results/sweeps.json and takes some ten minutes on
two idle cores. FOLDER, by default the system's for temporary files, needs 1 GB. Each sweep runs in a process of its
own, whose peak memory is taken. The top 100 of the sweep of 1e8 is compared with the exact evaluation of every
candidate that a bound does not exclude, found by a loop over fastkl.discretize and fastkl.divergence without sweeps.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import machine
import numpy as np

import fastkl

RESULTS = Path(__file__).resolve().parent / "results"
TOP, RTOL = 100, 1e-6
LOADED = [os.getloadavg()[0]]
CODE = """
import json, sys, time
import fastkl
from sweeps import configuration, cluster_of
if __name__ == "__main__":
    size, full, threads, workers, folder = json.loads(sys.argv[1])
    fastkl.sweep(configuration(10_000, False), num_threads=threads)
    if workers:
        with cluster_of(workers) as client:
            for _ in range(2):
                fastkl.sweep(configuration(100_000, False), client=client)
            start = time.perf_counter()
            found = fastkl.sweep(configuration(size, full), folder, client=client)
    else:
        start = time.perf_counter()
        found = fastkl.sweep(configuration(size, full), folder, num_threads=threads)
    seconds = time.perf_counter() - start
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
    print(json.dumps({"candidates": found.candidates, "seconds": seconds, "peak_memory_MB": int(peak) / 1024,
                      "index": found.top["index"].to_pylist(), "value": found.top["value"].to_pylist()}))
"""


def configuration(size: int, full: bool) -> dict:
    """Karras' levels for EDM on MNIST, 10 steps: 100 ends times size/100 exponents."""
    rho = {"start": 1.0, "stop": 20.0, "num": size // 100}
    low = {"start": 0.002, "stop": 0.1, "num": 10, "spacing": "log"}
    high = {"start": 20.0, "stop": 80.0, "num": 10}
    family = {"family": "karras", "sigma_min": low, "sigma_max": high, "rho": rho}
    return {"spectra": ["mnist"], "schedules": ["edm"], "steps": 10, "families": [family], "top": TOP, "rtol": RTOL,
            "full": full}  # fmt: skip


@contextmanager
def cluster_of(workers: int) -> Iterator:
    """Yield a client of a cluster on this machine, with one thread a worker."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def swept(
    size: int, *, full: bool = False, threads: int = 2, workers: int = 0, folder: str | None = None
) -> dict:
    """Sweep in a new process; return what it printed."""
    arguments = json.dumps([size, full, threads, workers, folder])
    with tempfile.TemporaryDirectory() as place:
        script = Path(place) / "run.py"
        script.write_text(CODE)
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent)}
        done = subprocess.run([sys.executable, str(script), arguments], capture_output=True, text=True, check=False,
                              env=environment)  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    LOADED.append(os.getloadavg()[0])
    return json.loads(done.stdout.splitlines()[-1])


def direct_best(size: int) -> tuple[list[int], list[float]]:
    """Return the exact best of the same candidates: indices and values, least first.

    Every candidate is evaluated on a compression with a stated error of 1e-4; those whose value could still be
    among the TOP least are evaluated exactly. The configuration's own arithmetic of ranges is written out again here.
    """
    spectrum, schedule = fastkl.Spectrum.preset("mnist"), fastkl.NoiseSchedule.edm()
    small, error = spectrum.compress(1e-4), 1e-4
    count = size // 100
    lows, highs = np.geomspace(0.002, 0.1, 10), np.linspace(20.0, 80.0, 10)
    lows[[0, -1]] = 0.002, 0.1
    kept: list[tuple[float, int]] = []
    bar = np.inf
    for pair in range(100):
        for begin in range(0, count, 1 << 18):
            places = np.arange(begin, min(begin + (1 << 18), count))
            rho = 1.0 + places / (count - 1) * 19.0
            levels = fastkl.discretize.karras(schedule, 10, rho, lows[pair // 10], highs[pair % 10])
            values = fastkl.divergence(small, levels, prior=schedule.prior)
            rows = np.flatnonzero(values <= bar * (1.0 + 3.0 * error))
            if len(rows) > 50 * TOP:  # the first blocks
                nearest = np.partition(values[rows], TOP)[TOP]
                rows = rows[values[rows] <= nearest * (1.0 + 3.0 * error)]
            if not len(rows):
                continue
            exact = fastkl.divergence(spectrum, levels[rows], prior=schedule.prior)
            kept += [(float(v), (begin + int(r)) * 100 + pair) for v, r in zip(exact, rows, strict=True)]
            kept = sorted(kept)[:TOP]
            bar = kept[-1][0] if len(kept) == TOP else np.inf
    return [index for _, index in kept], [value for value, _ in kept]


def check(found: dict, size: int) -> dict:
    """Compare a sweep's best with the direct ones; raise if they are not the same."""
    indices, values = direct_best(size)
    error = float(np.abs(np.array(found["value"]) / np.array(values) - 1.0).max())
    same = found["index"] == indices
    if not same or error > 1e-12:
        raise RuntimeError(f"the best differ: same candidates {same}, values within {error}")
    return {"same_candidates": same, "largest_relative_difference": error}


def main() -> None:
    """Measure everything and write the result file."""
    folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.gettempdir()
    whole = 10**8
    fastkl.warmup()
    with tempfile.TemporaryDirectory(dir=folder) as place:
        large = swept(whole, folder=f"{place}/large")
        growth = [{**swept(size), "candidates": size} for size in (10**6, 3 * 10**6, 10**7, 3 * 10**7)]
        rows = swept(10**7, full=True, folder=f"{place}/full")
        disk = sum(path.stat().st_size for path in Path(place, "full").glob("**/*.parquet"))
        pairs = []
        for _ in range(3):  # one after the other, so that a change of the machine's load meets both
            local = swept(10**7, threads=2)
            pairs.append((local["seconds"], swept(10**7, workers=2)["seconds"]))
    points = [*growth, large]
    plain = [{k: p[k] for k in ("candidates", "seconds", "peak_memory_MB")} for p in points]
    result = {
        **machine.description(),
        "top": TOP,
        "rtol": RTOL,
        "points": plain,
        "right": check(large, whole),
        "full": {"candidates": rows["candidates"], "seconds": rows["seconds"], "peak_memory_MB": rows["peak_memory_MB"],
                 "bytes_per_row": disk / rows["candidates"]},
        "dask": {"candidates": 10**7, "local_s": statistics.median(p[0] for p in pairs),
                 "workers_s": statistics.median(p[1] for p in pairs),
                 "overhead": statistics.median(p[1] / p[0] for p in pairs) - 1.0},
        "largest_load_average": max(LOADED),
    }  # fmt: skip
    path = RESULTS / "sweeps.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in result.items() if k != "versions"}, indent=1))


if __name__ == "__main__":
    main()
