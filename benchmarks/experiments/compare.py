"""Run the strategies on a trained model and score the samples.

    python benchmarks/experiments/compare.py mnist-edm-ddim [--count 10000] [--seeds 0 1 2] [--nfe 3 4 5 6 8 10 15 20]
        [--strategies NAME ...] [--processes 2] [--compile] [--minutes M]
    python benchmarks/experiments/compare.py own --pipeline FOLDER --images FOLDER --out FOLDER [--sampler dpmpp_2m]

The first form runs a committed model, the second a diffusers pipeline of your own (see pipelines.py). Adds what is
missing to samples-<setup>.json in results/ or --out. First it measures the spectrum of the images and the model's
denoising errors, from which the effective spectrum follows (measured-<model>.json). The noise of a seed is the same for
every strategy.

"to_teacher" and "fd_teacher" compare with what the network makes of the same noise in 64 steps. These start at the
schedule's first level for the committed models, and for your own at the greatest level where the network beats the
mean of the data, which the file names as "teacher_from": all rows of a file have the same teacher.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any

import measured
import numpy as np
import sampling
import scores
import strategies
import torch
from numpy.typing import NDArray
from store import RESULTS, Store, rows_in

from fastkl import discretize

NFE = (3, 4, 5, 6, 8, 10, 15, 20)
PACKAGES = ("torch", "diffusers", "safetensors")
TEACHER = 64  # evaluations of what the network itself makes of the noise
TAUGHT = 1000  # of how many samples
WORKER: dict[str, Any] = {}


def end_with_parent() -> None:
    """Workers of a killed run would wait for cells for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def start_worker(setup: sampling.Setup, compiled: bool, device: str, first: float | None) -> None:
    """Load the model and the scorer once for each process."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    images = setup.images()
    model = sampling.ready(setup, device=device, compiled=compiled)
    WORKER["run"] = sampling.runner(setup, model, device)
    WORKER["schedule"], WORKER["first"] = setup.schedule, first
    WORKER["scorer"] = scores.Scorer(images)
    WORKER["shape"], WORKER["device"] = images.training.shape[1:], device


def drawn(sigmas: NDArray[np.float64], cell: dict[str, Any]) -> NDArray[np.float32]:
    """Samples of a cell's seed and count at some levels."""
    return sampling.samples(
        WORKER["run"], sigmas, WORKER["shape"], cell["count"], cell["seed"], WORKER["device"]
    )


def work(cell: dict[str, Any]) -> dict[str, Any]:
    """Draw and score one cell."""
    exact, exact_normal = teacher(cell)
    start = time.monotonic()
    found = drawn(np.array(cell["sigmas"]), cell)
    seconds = round(time.monotonic() - start, 1)
    for name, images in (("samples", found), ("the teacher's samples", exact)):
        if not np.isfinite(images).all():
            return cell | {"failed": f"{name} are not finite"}
    gap = np.square(found[: len(exact)].astype(np.float64) - exact).sum((1, 2, 3)).mean()
    return (
        cell | WORKER["scorer"].scores(found, exact_normal) | {"to_teacher": float(gap), "seconds": seconds}
    )


def teacher(cell: dict[str, Any]) -> tuple[NDArray[np.float32], scores.Normal]:
    """What the network makes of the first noises of a seed in TEACHER steps, and its features: once for a seed."""
    count = min(cell["count"], TAUGHT)
    key = cell["seed"], count
    if WORKER.get("key") != key:
        schedule = WORKER["schedule"]
        levels = discretize.tangent(schedule, TEACHER, sigma_min=0.0, sigma_max=WORKER["first"])
        sigmas = strategies.on_table(schedule, levels)
        exact = drawn(sigmas, cell | {"count": count})
        WORKER["key"], WORKER["teacher"] = key, (exact, WORKER["scorer"].normal(exact))
    return WORKER["teacher"]


def found_on_samples(setup: str, out: pathlib.Path) -> dict[tuple[str, int], list[float]]:
    """Levels that find.py found, by strategy and number of evaluations."""
    return {(row["strategy"], row["nfe"]): row["sigmas"] for row in rows_in(out / f"found-{setup}.json")}


def chosen_strategies(
    s: strategies.Situation, found: dict[tuple[str, int], list[float]], names: list[str] | None
) -> dict[str, strategies.Choose | None]:
    """All strategies, or those that are named."""
    chosen: dict[str, strategies.Choose | None] = dict(strategies.all_of(s))
    chosen |= dict.fromkeys(sorted({strategy for strategy, _ in found}))
    if names is None:
        return chosen
    for name in names:
        if name not in chosen:
            raise SystemExit(f"--strategies {name}: not one of {', '.join(chosen)}")
    return {name: chosen[name] for name in names}


def cells(s: strategies.Situation, arguments: argparse.Namespace, there: Store) -> Iterator[dict[str, Any]]:
    """Cells that are missing with their levels: all strategies at one number of evaluations, then the next."""
    found = found_on_samples(there.about["setup"], arguments.out)
    chosen = chosen_strategies(s, found, arguments.strategies)
    known = found | {(row["strategy"], row["nfe"]): row["sigmas"] for row in there.rows}
    for seed in arguments.seeds:
        for nfe in arguments.nfe:
            for name, choose in chosen.items():
                cell = {"strategy": name, "nfe": nfe, "seed": seed, "count": arguments.count}
                sigmas = known.get((name, nfe))
                if not there.missing([cell]) or not (sigmas or choose):
                    continue
                try:
                    yield cell | {"sigmas": sigmas or strategies.levels(s, choose, nfe).tolist()}
                except ValueError as error:
                    print(f"NFE {nfe}, {name}: no levels: {error}", flush=True)


def line_of(row: dict[str, Any]) -> str:
    """What is printed of a row."""
    cell = f"seed {row['seed']}  NFE {row['nfe']:2d}  {row['strategy']:24s}"
    if "failed" in row:
        return f"{cell}  failed: {row['failed']}"
    distances = f"FD {row['fd_features']:9.3f}  to teacher {row['to_teacher']:8.3f}"
    return f"{cell}  {distances}  {row['seconds']:6.1f} s"


def run(
    setup: sampling.Setup, todo: Iterator[dict[str, Any]], there: Store, arguments: argparse.Namespace
) -> None:
    """Hand the cells to the processes, two each at most, and keep every row as it comes."""
    deadline = time.monotonic() + 60 * arguments.minutes
    context = multiprocessing.get_context("spawn")
    initial = (setup, arguments.compile, arguments.device, there.about.get("teacher_from"))
    with ProcessPoolExecutor(arguments.processes, context, start_worker, initial) as pool:
        waiting: set[Future[dict[str, Any]]] = set()
        done = 0
        more = True
        while more or waiting:
            while more and len(waiting) < 2 * arguments.processes:
                cell = next(todo, None) if time.monotonic() < deadline else None
                more = cell is not None
                if cell is not None:
                    waiting.add(pool.submit(work, cell))
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                row = future.result()
                done += 1
                there.add(row)
                print(f"{done:5d}  {line_of(row)}", flush=True)


def at_least(least: int) -> Callable[[str], int]:
    """A type of whole numbers for argparse."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number, {least} or more, got {text}")
        return int(text)

    return number


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("setup", choices=[*sampling.SETUPS, "own"])
    parser.add_argument("--pipeline", type=pathlib.Path, help="folder of a saved diffusers pipeline")
    parser.add_argument(
        "--images", type=pathlib.Path, help="folder of images like those that it was trained on"
    )
    parser.add_argument("--sampler", choices=["ddim", "dpmpp_2m"], default="ddim", help="for --pipeline")
    parser.add_argument("--out", type=pathlib.Path, help="folder of the result files; own needs one")
    least = scores.NEIGHBOURS + 1
    parser.add_argument("--count", type=at_least(least), default=10_000, help=f"samples, at least {least}")
    parser.add_argument("--seeds", type=at_least(0), nargs="+", default=[0, 1, 2])
    parser.add_argument("--nfe", type=at_least(1), nargs="+", default=list(NFE))
    parser.add_argument("--strategies", nargs="+", help="default: all")
    parser.add_argument("--processes", type=at_least(1), default=2)
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler; about twice as fast")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=1e6, help="start no cell after this")
    found = parser.parse_args()
    for name in ("seeds", "nfe"):  # each cell once
        setattr(found, name, list(dict.fromkeys(getattr(found, name))))
    return found


def setup_of(arguments: argparse.Namespace) -> sampling.Setup:
    """The committed setup, or the user's own."""
    if arguments.setup != "own":
        arguments.out = arguments.out or RESULTS
        return sampling.SETUPS[arguments.setup]
    for name in ("pipeline", "images"):
        folder = getattr(arguments, name)
        if folder is None or not folder.is_dir():
            raise SystemExit(f"own needs --{name}, a folder that exists; got {folder}")
    if arguments.out is None or arguments.out.resolve() == RESULTS.resolve():
        raise SystemExit("own needs --out, a folder for its result files; results/ holds the committed ones")
    name = f"{arguments.pipeline.resolve().name}-{arguments.sampler}"
    return sampling.Setup(name, str(arguments.pipeline), str(arguments.images), arguments.sampler)


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(1)
    setup = setup_of(arguments)
    s = measured.situation(setup, arguments.out, arguments.device)
    about: dict[str, Any] = {"setup": setup.name, "model": setup.model_name, "sampler": setup.sampler}
    if setup.pipeline is not None:
        about |= setup.made_from | {"teacher_from": s.useful_max}
    keys = ("strategy", "nfe", "seed", "count")
    there = Store(arguments.out / f"samples-{setup.name}.json", keys, about, PACKAGES)
    run(setup, cells(s, arguments, there), there, arguments)


if __name__ == "__main__":
    main()
