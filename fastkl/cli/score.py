"""``fastkl score``: the divergence of the candidates in a file."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from fastkl import __version__, samplers
from fastkl.cli.files import read_sigmas
from fastkl.cli.options import add_json, add_prior, add_spectrum, add_threads
from fastkl.cli.pictures import add_plot, check_picture, draw_levels
from fastkl.cli.printing import digits, line, print_json, require_rich, table
from fastkl.cli.spectra import check_finite, read_spectrum
from fastkl.evaluate import METRICS, divergence

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "score the noise levels in a file"
DESCRIPTION = (
    "Prints the exact divergence of every candidate in a file. Files: .npy; .npz with one array or one called sigmas; "
    ".csv and .txt with one candidate a row (or a single column for one candidate) and # comments; .json with a list "
    "or a list of lists. Levels are noise-to-signal ratios, strictly decreasing, usually to 0."
)

TABLE_ROWS = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `score`."""
    parser.add_argument("file", metavar="FILE", help="file of sigmas; - reads text or JSON from stdin")
    add_spectrum(parser)
    text = "divergence, may be repeated (default: w2)"
    parser.add_argument("--metric", action="append", choices=(*METRICS, "all"), default=[], help=text)
    text = "the sampler's name (default: %(default)s)"
    parser.add_argument("--sampler", choices=samplers.names(), default="ddim", metavar="NAME", help=text)
    add_prior(parser, "vp")
    add_threads(parser)
    add_plot(parser, "the first candidates' levels and what they return of each eigenvalue")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Score, and print the values."""
    if not arguments.json:
        require_rich()
    check_picture(arguments.plot)
    chosen = arguments.metric or ["w2"]
    metrics = list(METRICS) if "all" in chosen else list(dict.fromkeys(chosen))
    spectrum = read_spectrum(arguments.spectrum, arguments.floor)
    levels = np.atleast_2d(read_sigmas(arguments.file))
    if levels.size and (levels[:, -1] == 0.0).any():
        for metric in metrics:
            check_finite(arguments.spectrum, spectrum, metric)
    began = time.perf_counter()
    values = {
        metric: divergence(
            spectrum, levels, metric, arguments.sampler, arguments.prior, num_threads=arguments.threads
        ).tolist()
        for metric in metrics
    }
    if arguments.plot is not None:
        named = {f"candidate {i}": row for i, row in enumerate(levels)}
        draw_levels(arguments.plot, spectrum, named, arguments.sampler, arguments.prior)
    report = {
        "fastkl": __version__,
        "spectrum": {"name": arguments.spectrum, "dim": spectrum.dim, "floor": arguments.floor},
        "sampler": arguments.sampler,
        "prior": arguments.prior,
        "candidates": levels.shape[0],
        "steps": levels.shape[1] - 1,
        "seconds": time.perf_counter() - began,
        "values": values,
    }
    print_json(report) if arguments.json else print_scores(arguments.file, report)
    return 0


def print_scores(file: str, report: dict[str, Any]) -> None:
    """Print a table with a row for each candidate, in the order of the file."""
    values = report["values"]
    rows = list(zip(*values.values(), strict=True))
    where = f"{file} on {report['spectrum']['name']}"
    title = f"{where}, {report['sampler']}, prior {report['prior']}, N = {report['steps']}"
    columns = [("candidate", "right"), *((metric, "right") for metric in values)]
    table(title, columns, [(str(i), *map(digits, row)) for i, row in enumerate(rows[:TABLE_ROWS])])
    if len(rows) > TABLE_ROWS:
        line(f"and {len(rows) - TABLE_ROWS:,} more candidates: --json prints all")
    if len(rows) > 1:
        for metric, column in values.items():
            least = int(np.argmin(column))
            line(f"least {metric}: candidate {least} with {digits(column[least])}")
