"""``fastkl rank``: score thousands of discretizations of a noise schedule and show the best."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl import __version__
from fastkl.cli.candidates import Candidates, all_candidates, can_be_scored, uniform_levels
from fastkl.cli.options import (
    add_json,
    add_metric,
    add_prior,
    add_spectrum,
    add_threads,
    positive_integer,
)
from fastkl.cli.printing import print_json, progress, require_rich
from fastkl.cli.rank_tables import print_report
from fastkl.cli.schedules import add_schedule, build_schedule
from fastkl.cli.spectra import check_finite, read_spectrum
from fastkl.evaluate import divergence
from fastkl.schedule import NoiseSchedule
from fastkl.spectrum import Spectrum

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "score thousands of discretizations of a noise schedule and rank them"
DESCRIPTION = (
    "Scores the known families of discretizations over ranges of their parameters by the exact divergence of DDIM's "
    "samples from Gaussian data of the given spectrum, and prints the best of each family and the winner's levels."
)

Array = NDArray[np.float64]
BATCH_STEPS = 1 << 23  # (eigenvalue, step) pairs between two moves of the progress bar: some milliseconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `rank`."""
    add_spectrum(parser)
    add_schedule(parser)
    text = "steps, that is evaluations of the network (default: %(default)s)"
    parser.add_argument("--steps", type=positive_integer, default=10, metavar="N", help=text)
    add_metric(parser)
    add_prior(parser, None)
    text = "score the ideal levels instead of moving them to timesteps of the schedule"
    parser.add_argument("--no-snap", dest="snap", action="store_false", help=text)
    text = "parameters tried for each family (default: %(default)s)"
    parser.add_argument(
        "--candidates-per-family", type=positive_integer, default=1000, metavar="NUMBER", help=text
    )
    text = "show the NUMBER best candidates, not the best of each family"
    parser.add_argument("--top", type=positive_integer, metavar="NUMBER", help=text)
    add_threads(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Rank, and print the result."""
    if not arguments.json:
        require_rich()
    schedule = build_schedule(arguments.schedule, arguments.schedule_option)
    spectrum = read_spectrum(arguments.spectrum, arguments.floor)
    check_finite(arguments.spectrum, spectrum, arguments.metric)
    report = ranked(arguments, schedule, spectrum)
    print_json(report) if arguments.json else print_report(report)
    return 0


def ranked(arguments: argparse.Namespace, schedule: NoiseSchedule, spectrum: Spectrum) -> dict[str, Any]:
    """Make the candidates, score them, and return all that is printed."""
    steps, metric, prior = arguments.steps, arguments.metric, arguments.prior or schedule.prior
    candidates = all_candidates(schedule, spectrum, steps, arguments.candidates_per_family, arguments.snap)
    values, seconds = score(
        spectrum, candidates.levels, metric, prior, arguments.threads, quiet=arguments.json
    )
    return {
        "fastkl": __version__,
        "spectrum": {"name": arguments.spectrum, "dim": spectrum.dim, "floor": arguments.floor},
        "schedule": repr(schedule),
        "steps": steps,
        "metric": metric,
        "prior": prior,
        "snapped": bool(arguments.snap and schedule.is_discrete),
        "generated": candidates.generated,
        "outside_schedule": candidates.outside,
        "duplicates": candidates.duplicates,
        "candidates": len(values),
        "seconds": seconds,
        "candidates_per_second": len(values) / seconds,
        "ranking": ranking(candidates, values, arguments.top),
        "winner": winner(schedule, candidates, values, arguments.snap),
        "uniform": uniform(arguments, schedule, spectrum, prior, float(values.min())),
    }


def score(
    spectrum: Spectrum, levels: Array, metric: str, prior: str, threads: int | None, quiet: bool
) -> tuple[Array, float]:
    """Return every candidate's divergence, and the seconds it took once the kernels were loaded."""
    values = np.empty(len(levels))
    length = max(1, BATCH_STEPS // (len(spectrum) * (levels.shape[1] - 1)))
    with progress(len(levels), quiet) as advance:
        divergence(spectrum, levels[0], metric, prior=prior, num_threads=threads)
        began = time.perf_counter()
        advance(0)
        for begin in range(0, len(levels), length):
            part = slice(begin, begin + length)
            values[part] = divergence(spectrum, levels[part], metric, prior=prior, num_threads=threads)
            advance(len(values[part]))
    return values, time.perf_counter() - began


def times(value: float, best: float) -> float:
    """Return how many times `best` the value is."""
    if value == best:
        return 1.0
    return value / best if best > 0.0 else float("inf")


def ranking(candidates: Candidates, values: Array, top: int | None) -> list[dict[str, Any]]:
    """Return the best of each family, or the `top` best of all; equal values keep the candidates' order."""
    order = np.argsort(values, kind="stable").tolist()
    if top is None:
        best: dict[str, int] = {}
        for i in order:
            best.setdefault(candidates.labels[i][0], i)
        order = list(best.values())
    else:
        order = order[:top]
    least = float(values.min())
    rows = []
    for rank, i in enumerate(order, 1):
        family, function, parameters = candidates.labels[i]
        value = float(values[i])
        rows.append({
            "rank": rank, "family": family, "function": function, "parameters": parameters,
            "value": value, "times_best": times(value, least),
        })  # fmt: skip
    return rows


def winner(schedule: NoiseSchedule, candidates: Candidates, values: Array, snap: bool) -> dict[str, Any]:
    """Return the best candidate's value, timesteps (None where there are none), times and sigmas."""
    best = int(np.argmin(values))
    family, function, parameters = candidates.labels[best]
    levels = candidates.levels[best]
    timesteps = schedule.timesteps(levels[:-1]).tolist() if snap and schedule.is_discrete else None
    return {
        "family": family, "function": function, "parameters": parameters, "value": float(values[best]),
        "timesteps": timesteps, "times": schedule.times(levels[:-1]).tolist(), "sigmas": levels.tolist(),
    }  # fmt: skip


def uniform(
    arguments: argparse.Namespace, schedule: NoiseSchedule, spectrum: Spectrum, prior: str, least: float
) -> dict[str, dict[str, float]]:
    """Return the divergence of each uniform spacing, and how many times the winner's it is."""
    result = {}
    for spacing, levels in uniform_levels(schedule, arguments.steps).items():
        if can_be_scored(levels):
            value = divergence(spectrum, levels, arguments.metric, prior=prior, num_threads=arguments.threads)
            result[spacing] = {"value": value, "times_best": times(value, least)}
    return result
