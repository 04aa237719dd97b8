"""`fastkl.search` measured: time, proof and gap over spectra, schedules and N, rivals, and growth with T and N.

Run as `python benchmarks/search.py` with the extra `bench` installed; it writes benchmarks/results/search.json, in
about ten minutes on two cores. Options: `--metrics kl,w2` for some metrics, `--no-cma` where the package cma is not
installed, and `--quick` for a small run that prints its result and writes no file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import machine
import numpy as np
from search_rivals import RIVALS, Task

import fastkl
from fastkl import NoiseSchedule, Spectrum
from fastkl.cli.standards import Standard, standards

RESULTS = Path(__file__).resolve().parent / "results"
METRICS = ("kl", "reverse_kl", "w2")
STEPS = (3, 5, 8, 10, 20, 30, 50)
GRID = 1000  # levels, of continuous schedules too
RUNS, ENOUGH = 3, 2.5  # repetitions of a timing, none after that many seconds
TIME_LIMIT = 30.0  # seconds of one search
RIVALS_AT = {"spectrum": ("mnist", "1/i"), "schedule": ("linear", "EDM"), "N": (5, 10, 20)}
GROWTH_T = (1_000, 3_000, 10_000, 30_000, 100_000)  # at N = 10
GROWTH_N = (5, 10, 20, 40, 80)  # at T = 10,000


def spectra() -> dict[str, Spectrum]:
    """The data: three presets with their own floors, and a power law."""
    presets = {name: Spectrum.preset(name) for name in ("mnist", "digits", "photographs")}
    return {**presets, "1/i": Spectrum.power_law(3072, 1.0)}


def schedules(size: int) -> dict[str, NoiseSchedule]:
    """The noise schedules; linear and EDM for any number of levels, the same range of levels more finely."""
    scale = 1000.0 / size
    some = {
        "linear": NoiseSchedule.ddpm_linear(size, 1e-4 * scale, 0.02 * scale),
        "EDM": NoiseSchedule.edm(),
    }
    if size != GRID:
        return some
    others = {
        "scaled-linear": NoiseSchedule.scaled_linear(),
        "cosine": NoiseSchedule.cosine(),
        "flow": NoiseSchedule.flow(),
    }
    return {**some, **others}


def timed(call: Callable[[], Any]) -> tuple[Any, float, int]:
    """Return a result, the median of the seconds it took, and of how many runs."""
    times: list[float] = []
    while len(times) < RUNS and sum(times) < ENOUGH:
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return result, statistics.median(times), len(times)


def case(
    spectrum: Spectrum, schedule: NoiseSchedule, steps: int, metric: str, others: list[Standard]
) -> dict[str, Any]:
    """Search with and without a proof, and evaluate the standard schedules."""
    ask = partial(fastkl.search, spectrum, schedule, steps, metric=metric, grid=GRID)
    best, seconds, runs = timed(partial(ask, time_limit=TIME_LIMIT))
    fast, fast_seconds, _ = timed(partial(ask, prove=False))
    return {
        "seconds": seconds,
        "runs": runs,
        "proved": best.proved_optimal,
        "gap": 1.0 - best.lower_bound / best.value,
        "value": best.value,
        "iterations": best.iterations,
        "fast_seconds": fast_seconds,
        "fast_excess": fast.value / best.value - 1.0,
        "fast_gap": 1.0 - fast.lower_bound / fast.value,
        "refined_excess": None if best.refined_value is None else best.refined_value / best.value - 1.0,
        "times_best": {
            other.name: None
            if other.levels is None
            else fastkl.divergence(spectrum, other.levels, metric, prior=schedule.prior) / best.value
            for other in others
        },
    }


def cases(metrics: tuple[str, ...], quick: bool) -> Iterator[dict[str, Any]]:
    """Every combination of spectrum, schedule, N and metric."""
    for data, spectrum in spectra().items():
        for name, schedule in schedules(GRID).items():
            for steps in (5,) if quick else STEPS:
                others = [  # but for the one that starts at another level than the search does
                    other
                    for other in standards(schedule, spectrum, steps, GRID)
                    if other.name != "uniform leading"
                ]
                for metric in metrics:
                    keys = {"metric": metric, "spectrum": data, "schedule": name, "N": steps}
                    row = {**keys, **case(spectrum, schedule, steps, metric, others)}
                    note(row, "seconds", "proved", "gap", "fast_seconds", "fast_excess")
                    yield row


def rivalry(rows: list[dict[str, Any]], names: list[str]) -> Iterator[dict[str, Any]]:
    """What the rivals reach, and in which time, in some of the cases; `excess` is over the proved optimum.

    They run in a process of their own, without threads of BLAS, which slow such small problems down by a factor.
    """
    os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "MKL", "OMP", "VECLIB_MAXIMUM")})
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for row in rows:
            keys = {key: row[key] for key in ("metric", "spectrum", "schedule", "N")}
            if all(keys[key] in allowed for key, allowed in RIVALS_AT.items()):
                for name in names:
                    found = {**keys, **pool.submit(rival, name, **keys, best=row["value"]).result()}
                    note(found, "rival", "seconds", "excess")
                    yield found


def rival(name: str, metric: str, spectrum: str, schedule: str, N: int, best: float) -> dict[str, Any]:
    """Time one rival, from the compression of the spectrum to levels of the schedule."""
    data, levels = spectra()[spectrum], schedules(GRID)[schedule]
    RIVALS[name](Task(data, levels, 3, metric))  # loads what it needs
    sigmas, seconds, runs = timed(lambda: RIVALS[name](Task(data, levels, N, metric)))
    value = fastkl.divergence(data, sigmas, metric, prior=levels.prior)
    return {"rival": name, "seconds": seconds, "runs": runs, "excess": value / best - 1.0}


def growth(quick: bool) -> dict[str, Any]:
    """Time against T and N under kl on the 1/i spectrum, and the exponents of power laws fitted to it."""
    spectrum = spectra()["1/i"]
    result: dict[str, Any] = {"metric": "kl", "spectrum": "1/i"}
    for name in ("linear", "EDM"):
        by_size = [point(spectrum, size, name, 10) for size in (GROWTH_T[:3] if quick else GROWTH_T)]
        by_steps = [point(spectrum, 10_000, name, steps) for steps in GROWTH_N[: 2 if quick else None]]
        result[name] = {"T": fitted(by_size, "T"), "N": fitted(by_steps, "N")}
    return result


def point(spectrum: Spectrum, size: int, name: str, steps: int) -> dict[str, Any]:
    """One search with proof, on a grid of any size."""
    ask = partial(fastkl.search, spectrum, schedules(size)[name], steps, grid=size)
    best, seconds, runs = timed(ask)
    row = {
        "T": size,
        "N": steps,
        "seconds": seconds,
        "runs": runs,
        "iterations": best.iterations,
        "proved": best.proved_optimal,
        "fast_seconds": timed(partial(ask, prove=False))[1],
    }
    note({"schedule": name, **row})
    return row


def fitted(rows: list[dict[str, Any]], by: str) -> dict[str, Any]:
    """Rows, and the exponents of the time and of the time of one shortest path (and its share of all the rest)."""
    sizes = np.log([row[by] for row in rows])
    whole = np.log([row["seconds"] for row in rows])
    single = np.log([row["seconds"] / row["iterations"] for row in rows])
    exponent, single_exponent = (float(np.polyfit(sizes, y, 1)[0]) for y in (whole, single))
    return {"rows": rows, "exponent": exponent, "exponent_of_an_iteration": single_exponent}


def note(row: dict[str, Any], *keys: str) -> None:
    """Show progress: all of a row, or its case and some of its keys."""
    kept = ["metric", "spectrum", "schedule", "N", *keys] if keys else list(row)
    words = (f"{row[key]:.2g}" if isinstance(row[key], float) else str(row[key]) for key in kept)
    print(*words, file=sys.stderr, flush=True)


def main() -> None:
    """Measure everything and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metrics", default=",".join(METRICS), help="separated by commas")
    parser.add_argument("--no-cma", action="store_true", help="leave out CMA-ES")
    parser.add_argument("--quick", action="store_true", help="N = 5 alone, small grids; print, write nothing")
    arguments = parser.parse_args()
    metrics = tuple(arguments.metrics.split(","))
    for metric in metrics:  # compile or load everything
        fastkl.search(spectra()["digits"], NoiseSchedule.ddpm_linear(50), 3, metric=metric)
    description, began = machine.description(), time.perf_counter()
    names = [name for name in RIVALS if not (arguments.no_cma and name == "CMA-ES")]
    rows = list(cases(metrics, arguments.quick))
    result = {
        **description,
        "cma": None if arguments.no_cma else version("cma"),
        "runs_at_most": RUNS,
        "time_limit_s": TIME_LIMIT,
        "cases": rows,
        "rivals": list(rivalry(rows, names)),
        "growth": growth(arguments.quick),
    }
    result["total_s"] = time.perf_counter() - began
    text = json.dumps(result, indent=1)
    if arguments.quick:
        print(text)
    else:
        (RESULTS / "search.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
