"""``fastkl sweep``: every candidate of a configuration file, in chunks that survive a kill."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastkl import __version__
from fastkl.cli.errors import InputError
from fastkl.cli.options import add_json, add_threads
from fastkl.cli.printing import digits, line, print_json, require_rich, table
from fastkl.cli.spectrum import warnings_in_lines

if TYPE_CHECKING:
    from fastkl.sweeps.result import SweepResult

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "evaluate millions to billions of candidates of a configuration file"
DESCRIPTION = (
    "Evaluates the product of spectra, schedules, families of levels with their parameter grids, samplers, steps and "
    "metrics in a TOML file (help(fastkl.sweep) lists its keys), on this machine or on a Dask cluster. Results are "
    "Parquet files. A run that was killed goes on where it was when the same command is given again."
)
SHOWN, FEW, MOST = 3, 4, 100  # ranks shown of each of few groups; rows shown at most


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sweep`."""
    parser.add_argument("config", metavar="CONFIG.toml", help="the configuration")
    text = (
        "folder for the results, new or of an earlier run (default: the file's name and -results, beside it)"
    )
    parser.add_argument("--out", metavar="FOLDER", help=text)
    text = "evaluate on the Dask cluster of this scheduler, such as tcp://host:8786"
    parser.add_argument("--dask", metavar="ADDRESS", help=text)
    add_threads(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Sweep, and print the best of each group."""
    if not arguments.json:
        require_rich()
    config = Path(arguments.config)
    if config.is_dir():
        raise InputError(f"{arguments.config}: is a folder; a sweep needs a TOML file")
    out = Path(arguments.out) if arguments.out else config.with_name(f"{config.stem}-results")
    import fastkl

    try:
        with cluster(arguments.dask) as client, warnings_in_lines():
            found = fastkl.sweep(config, out, client=client, progress=True, num_threads=arguments.threads)
    except KeyboardInterrupt as stop:
        for note in getattr(stop, "__notes__", ()):
            print(f"fastkl: stopped: {note}", file=sys.stderr)
        raise
    except ImportError as error:  # of an extra, which the message names
        raise InputError(str(error)) from None
    for name in found.damaged:
        again = "it was written again" if name == "manifest.json" else "its chunk was evaluated again"
        print(f"fastkl: warning: {name}: was damaged; {again}", file=sys.stderr)
    report = summary(arguments.config, found)
    print_json(report) if arguments.json else print_summary(report, found)
    if found.left_out == found.candidates:
        print("fastkl: warning: not one candidate has levels that can be evaluated", file=sys.stderr)
        return 1
    return 0


@contextmanager
def cluster(address: str | None) -> Iterator[Any]:
    """Connect to a scheduler, if one is named."""
    if address is None:
        yield None
        return
    try:
        from distributed import Client
    except ImportError:
        raise InputError("--dask: needs dask.distributed: pip install 'fastkl[dask]'") from None
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise InputError(f"--dask {address}: no scheduler answers ({error})") from None
    with client:
        yield client


def summary(config: str, found: SweepResult) -> dict[str, Any]:
    """Return what is printed."""
    best = [row for row in found.top.to_pylist() if row["rank"] == 1]
    return {
        "fastkl": __version__,
        "config": config,
        "out": str(found.folder),
        "config_hash": found.config_hash,
        "candidates": found.candidates,
        "evaluated_now": found.evaluated_now,
        "left_out": found.left_out,
        "damaged": list(found.damaged),
        "seconds": found.seconds,
        "best": best,
    }


def print_summary(report: dict[str, Any], found: SweepResult) -> None:
    """Print the first ranks of each group, and where all results are."""
    columns = [("rank", "right"), ("value", "right"), ("metric", "left"), ("spectrum", "left"), ("schedule", "left"),
               ("sampler", "left"), ("steps", "right"), ("family", "left"), ("parameters", "left")]  # fmt: skip
    groups = len(report["best"])
    ranks = SHOWN if groups <= FEW else 1
    rows = [shown(row, columns) for row in found.top.to_pylist() if row["rank"] <= ranks][:MOST]
    table(f"{report['candidates']:,} candidates, the best of each group", columns, rows)
    best = report["best"][0] if report["best"] else None
    if best is not None:
        line(f"sigmas of the first: {', '.join(f'{level:.6g}' for level in best['sigmas'])}")
    if best is not None and best["timesteps"] is not None:
        line(f"timesteps of the first: {', '.join(map(str, best['timesteps']))}")
    if groups > MOST:
        line(f"{groups - MOST:,} more groups are in top.parquet")
    if report["left_out"]:
        line(f"left out: {report['left_out']:,}, whose levels coincide or leave the schedule's range")
    line(f"results in {report['out']}")


def shown(row: dict[str, Any], columns: list[tuple[str, str]]) -> list[str]:
    """Return the cells of a row."""
    from fastkl.sweeps.generation import PARAMETERS

    keys = [key for key in ("spacing", *PARAMETERS) if row[key] is not None]
    parameters = ", ".join(f"{key}={digits(row[key])}" for key in keys)
    return [digits({**row, "parameters": parameters}[name]) for name, _ in columns]
