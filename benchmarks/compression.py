"""Compression measured: nodes and error against rtol and condition number, what it gains, time against d up to 1e9.

Run as `python benchmarks/compression.py [FOLDER]`; it writes benchmarks/results/compression.json. FOLDER, by default
the system's for temporary files, must have room for 8 GB: 1e9 eigenvalues are written there, read through a memory map
with a cold cache, and deleted.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import machine
import numpy as np

import fastkl

RESULTS = Path(__file__).resolve().parent / "results"
RTOLS = (1e-4, 1e-6, 1e-8, 1e-10)
METRICS = ("kl", "reverse_kl", "w2")
ROUNDS = 9
CHUNK = 10**7
FROM_DISK = """
import sys, time
import numpy as np, fastkl
path, threads = sys.argv[1], int(sys.argv[2])
fastkl.SpectrumMoments.from_chunks(np.ones(10))
start = time.perf_counter()
moments = fastkl.SpectrumMoments.from_chunks(np.memmap(path, np.float64, "r"), num_threads=threads)
seconds = time.perf_counter() - start
spectrum = moments.spectrum(1e-10)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(seconds, moments.dim, len(spectrum), spectrum.rtol, int(peak) / 1024)
"""


def log_normal(size: int, deviation: float) -> np.ndarray:
    """Log-normal eigenvalues, the standard deviation of the logarithm given."""
    return np.exp(np.random.default_rng(size).normal(0, deviation, size))


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def candidates(spectrum: fastkl.Spectrum) -> Iterator[np.ndarray]:
    """Near-optimal and absurd schedules, and the single narrow steps that are a compression's worst case."""
    rng = np.random.default_rng(0)
    low, high = np.log(spectrum.eigenvalues.min()), np.log(spectrum.eigenvalues.max())
    centres = np.exp(np.linspace(low - 4, high + 4, 400) / 2)
    yield centres[:, None] * [1.1, 1.0]
    for steps in (1, 4, 16):
        logs = np.sort(rng.uniform(low - 6, high + 10, (60, steps + 1)), axis=1)[:, ::-1]
        sigmas = np.exp(logs / 2)
        sigmas[::2, -1] = 0.0
        yield sigmas
    yield fastkl.discretize.geodesic(fastkl.NoiseSchedule.edm(), 10, spectrum)[None]


def accuracy() -> list[dict[str, object]]:
    """Nodes, error stated and worst error found, for spectra of growing condition number."""
    spectra = {f"log-normal, deviation {s:g}": log_normal(20_000, s) for s in (0.5, 1, 2, 3, 4)}
    spectra["log-uniform over 24 decades"] = 10 ** np.random.default_rng(0).uniform(-12, 12, 20_000)
    spectra["1/i"] = np.arange(1, 20_001) ** -1.0
    spectra |= {name: fastkl.Spectrum.preset(name).eigenvalues for name in ("mnist", "photographs", "digits")}
    rows = []
    for name, values in spectra.items():
        spectrum = fastkl.Spectrum(values)
        exact = [
            fastkl.divergence(spectrum, s, m, prior="exact") for s in candidates(spectrum) for m in METRICS
        ]
        for rtol in RTOLS:
            small = spectrum.compress(rtol)
            found = [
                fastkl.divergence(small, s, m, prior="exact") for s in candidates(spectrum) for m in METRICS
            ]
            worst = max(float(np.abs(f / e - 1).max()) for f, e in zip(found, exact, strict=True))
            rows.append(
                {
                    "spectrum": name,
                    "d": len(values),
                    "decades": float(np.log10(values.max() / values.min())),
                    "rtol": rtol,
                    "nodes": len(small),
                    "stated": small.rtol,
                    "worst_found": worst,
                }
            )
    return rows


def gain() -> dict[str, float]:
    """Compression of 1e6 eigenvalues beside their exact evaluation, and the rate of candidates after it."""
    values = log_normal(10**6, 2.0)
    schedule = fastkl.NoiseSchedule.ddpm_linear()
    few, many = (
        fastkl.discretize.power_uniform(schedule, steps=10, power=np.linspace(1, 4, count))
        for count in (32, 100_000)
    )
    fastkl.warmup()
    fastkl.Spectrum(values).compress()
    rows = []
    for _ in range(ROUNDS):
        spectrum = fastkl.Spectrum(values)
        exact = seconds(partial(fastkl.divergence, spectrum, few))
        compression = seconds(spectrum.compress)
        sweep = seconds(partial(fastkl.divergence, spectrum.compress(), many))
        rows.append((exact, compression, sweep, (exact / len(few)) / (sweep / len(many))))
    small = fastkl.Spectrum(values).compress()
    error = np.abs(fastkl.divergence(small, few) / fastkl.divergence(values, few) - 1).max()
    names = ("exact_32_candidates_s", "compression_s", "candidates_100000_s", "times_exact_rate")
    medians = dict(zip(names, (statistics.median(column) for column in zip(*rows, strict=True)), strict=True))
    return {**medians, "nodes": len(small), "stated": small.rtol, "worst_of_32": float(error)}


def growth() -> list[dict[str, float]]:
    """Time of the pass over eigenvalues in memory, chunk by chunk."""
    chunk = log_normal(CHUNK, 2.0)
    rows = []
    for size in (10**4, 10**5, 10**6, 10**7, 10**8):
        parts = [chunk[: min(size, CHUNK)]] * max(1, size // CHUNK)
        for threads in (1, 2):
            times = [
                seconds(partial(fastkl.SpectrumMoments.from_chunks, parts, num_threads=threads))
                for _ in range(3 if size > CHUNK else 7)
            ]
            rows.append({"d": size, "threads": threads, "seconds": statistics.median(times)})
    return rows


def from_disk(folder: str, size: int = 10**9) -> dict[str, float]:
    """Read `size` eigenvalues through a memory map, beside reading the file and doing nothing with it."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "eigenvalues"
        chunk = log_normal(CHUNK, 2.0)
        with open(path, "wb") as file:
            for begin in range(0, size, CHUNK):
                chunk[: size - begin].tofile(file)
        reading, passing = [], []
        for _ in range(3):
            forget(path)
            reading.append(seconds(partial(read_through, path)))
            forget(path)
            done = subprocess.run(
                [sys.executable, "-c", FROM_DISK, str(path), "2"], capture_output=True, text=True, check=True
            )
            took, dim, nodes, stated, peak = map(float, done.stdout.split())
            passing.append(took)
    assert dim == size
    return {
        "d": size,
        "seconds": statistics.median(passing),
        "reading_alone_s": statistics.median(reading),
        "bytes_per_s": 8 * size / statistics.median(passing),
        "nodes": nodes,
        "stated": stated,
        "peak_memory_MB": peak,
    }


def forget(path: Path) -> None:
    """Drop a file from the system's cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_through(path: Path) -> None:
    """Read a file once, 32 MB at a time."""
    buffer = bytearray(1 << 25)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def main() -> None:
    """Measure everything and write the result file."""
    folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.gettempdir()
    result = {
        **machine.description(),
        "gain": gain(),
        "accuracy": accuracy(),
        "growth": growth(),
        "from_disk": from_disk(folder),
    }
    path = RESULTS / "compression.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: result[k] for k in ("gain", "growth", "from_disk")}, indent=1))
    for row in result["accuracy"]:
        print(
            f"{row['spectrum']:30s} {row['decades']:5.1f} {row['rtol']:.0e} {row['nodes']:4d} "
            f"{row['stated']:.1e} {row['worst_found']:.1e}"
        )


if __name__ == "__main__":
    main()
