"""Spectra from data: time, agreement with NumPy, and error of the Lanczos quadrature against exact spectra.

Run as `python benchmarks/spectra_from_data.py` (about two minutes); it writes benchmarks/results/from_data.json and
fails if a claim does not hold. Linear algebra has one thread unless OPENBLAS_NUM_THREADS says otherwise. MNIST's
70,000 raw images are taken from the package that setup_ext/make_presets.py names, if it is installed, else from a
stand-in of the same shape and type.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import machine
import numpy as np

import fastkl
from fastkl import Spectrum

sys.path.append(str(machine.ROOT / "setup_ext"))
from make_presets import ArrayUnpickler, package_file

RESULT = Path(__file__).resolve().parent / "results" / "from_data.json"
GRID = [(n, d) for d in (64, 256, 1024, 2048) for n in (d // 2, 4 * d)] + [(8192, 4096)]
GREY_FLOOR = (2 / 255) ** 2 / 12  # of 8-bit images scaled to [-1, 1]
ENDS, STEPS = (0.01, 0.05, 0.2, 0.5), (3, 5, 10, 20, 50)
SCHEDULES = [np.append(np.geomspace(80, end, steps), 0.0) for end in ENDS for steps in STEPS]


def timed(call: Callable[[], Any], rounds: int = 1) -> tuple[float, Any]:
    """Best wall time of a few calls, and what the last returned."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return min(times), result


def numpy_spectrum(x: np.ndarray) -> np.ndarray:
    """What one writes without a library: all in float64 at once."""
    return np.linalg.eigvalsh(np.cov(x.reshape(len(x), -1).astype(np.float64).T, bias=True))[::-1]


def agreement(spectrum: Spectrum, expected: np.ndarray) -> float:
    """Largest difference of eigenvalues over the largest eigenvalue."""
    return float(np.abs(spectrum.eigenvalues - expected).max() / expected[0])


def normal_samples(n: int, d: int, exponent: float = 0.7) -> np.ndarray:
    """Samples in single precision with falling variances."""
    weights = np.arange(1, d + 1, dtype=np.float32) ** np.float32(-exponent)
    return np.random.default_rng(n + d).standard_normal((n, d), dtype=np.float32) * weights


def raw_images() -> tuple[str, np.ndarray]:
    """Return 70,000 images of 28 x 28 grey levels, MNIST's or a stand-in, and what they are."""
    if importlib.util.find_spec("mnist") is not None:
        with gzip.open(package_file("mnist", "data", "mnist.pkl.gz")) as file:
            parts = ArrayUnpickler(file, encoding="latin1").load()
        grey = np.rint(np.concatenate([images for images, _ in parts]) * np.float32(256))
        return "MNIST, training and test images", grey.astype(np.uint8).reshape(-1, 28, 28)
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(28)[:, None], np.fft.rfftfreq(28)) + 1 / 28
    window = np.sin(np.pi * np.arange(28) / 28) ** 2
    images = np.empty((70_000, 28, 28), dtype=np.uint8)
    for rows in range(0, len(images), 10_000):
        noise = np.fft.rfft2(rng.standard_normal((10_000, 28, 28))) / frequency**1.5
        smooth = np.fft.irfft2(noise, s=(28, 28)) * window * window[:, None]
        images[rows : rows + 10_000] = np.clip(smooth * 20, 0, 255)
    return "stand-in: smoothed noise, dark borders", images


def grid_row(n: int, d: int) -> dict[str, Any]:
    """Time of from_samples and of NumPy on an array."""
    x = normal_samples(n, d)
    seconds, spectrum = timed(lambda: Spectrum.from_samples(x, shrinkage=0.0), 3 if d < 1024 else 1)
    row = {"n": n, "d": d, "seconds": seconds}
    if d <= 1024:
        row["numpy_seconds"], expected = timed(lambda: numpy_spectrum(x), 3 if d < 1024 else 1)
        row["difference"] = agreement(spectrum, expected)
    return row


def images_rows(name: str, x: np.ndarray) -> dict[str, Any]:
    """Streaming of raw images against the array and NumPy."""
    numpy_seconds, expected = timed(lambda: numpy_spectrum(x))
    rows: dict[str, Any] = {"data": name, "n": len(x), "d": expected.size, "numpy_seconds": numpy_seconds}
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "x.npy", x)
        sources: dict[str, Callable[[], Any]] = {
            "array": lambda: x,
            "memory map": lambda: np.load(Path(folder) / "x.npy", mmap_mode="r"),
            "batches of 256": lambda: (x[k : k + 256] for k in range(0, len(x), 256)),
            "batches of 1": lambda: (x[k : k + 1] for k in range(len(x))),
        }
        for source, make in sources.items():
            seconds, spectrum = timed(lambda make=make: Spectrum.from_samples(make()))
            difference = agreement(spectrum, expected)
            if difference > 1e-10:
                raise SystemExit(
                    f"{source}: differs from NumPy by {difference:.1e} of the largest eigenvalue"
                )
            rows[source] = {"seconds": seconds, "difference": difference}
    seconds, stationary = timed(lambda: Spectrum.from_images(x))
    rows["stationary model"] = {"seconds": seconds, "entries": len(stationary)}
    return rows


def lanczos_row(
    name: str, x: np.ndarray, floor: float, probes: int, steps: int, exact: Spectrum
) -> dict[str, Any]:
    """Time, nodes and error of the quadrature; `exact` is the spectrum without the floor."""
    seconds, spectrum = timed(
        lambda: Spectrum.from_samples(x, floor, method="lanczos", shrinkage=0.0, probes=probes, steps=steps)
    )
    row = {"data": name, "n": len(x), "d": spectrum.dim, "floor": floor, "probes": probes, "steps": steps}
    row |= {"nodes": len(spectrum), "seconds": seconds, "rtol": spectrum.rtol}
    truth = exact.floored(floor)
    for metric in ("kl", "w2"):
        ratios = [
            fastkl.divergence(spectrum, s, metric) / fastkl.divergence(truth, s, metric) for s in SCHEDULES
        ]
        row[f"{metric}_error"] = float(np.abs(np.array(ratios) - 1).max())
        if row[f"{metric}_error"] > max(spectrum.rtol, 1e-9):
            raise SystemExit(f"{row}: {metric} is not within the stated error")
    print(row, flush=True)
    return row


def main() -> None:
    """Measure, print and write."""
    name, raw = raw_images()
    result: dict[str, Any] = {**machine.description(), "blas_threads": os.environ["OPENBLAS_NUM_THREADS"]}
    result["images"] = images_rows(name, raw)
    print(json.dumps(result["images"], indent=1), flush=True)
    scaled = raw.reshape(len(raw), -1).astype(np.float32) * np.float32(2 / 255) - 1
    exact = Spectrum.from_samples(scaled)
    rows = [
        lanczos_row(name, scaled, floor, probes, steps, exact)
        for floor, probes, steps in ((1e-3, 8, 50), (GREY_FLOOR, 8, 50))
    ]
    result["from_samples"] = []
    for n, d in GRID:
        result["from_samples"].append(grid_row(n, d))
        print(result["from_samples"][-1], flush=True)
    for n, d in ((8192, 4096), (1024, 4096)):
        wide = normal_samples(n, d)
        exact = Spectrum.from_samples(wide, shrinkage=0.0)
        rows += [lanczos_row("normal samples", wide, 1e-4, 16, steps, exact) for steps in (15, 30)]
    result["lanczos"] = rows
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
