"""``fastkl rank``: score thousands of discretizations of a noise schedule and show the best."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl import __version__, samplers
from fastkl.cli.candidates import can_be_scored, uniform_levels
from fastkl.cli.contest import Entry, entries, sampler_names
from fastkl.cli.options import (
    add_json,
    add_metric,
    add_prior,
    add_spectrum,
    add_threads,
    positive_integer,
)
from fastkl.cli.pictures import add_plot, check_picture, draw_levels
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
    "Scores the known families of discretizations over ranges of their parameters by the exact divergence of a "
    "sampler's output from Gaussian data of the given spectrum, and prints the best of each family and the "
    "winner's levels. With several samplers it prints the best of each; --nfe gives each as many steps as "
    "that many evaluations allow."
)

Array = NDArray[np.float64]
BATCH_STEPS = 1 << 23  # (eigenvalue, step) pairs between two moves of the progress bar: some milliseconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `rank`."""
    add_spectrum(parser)
    add_schedule(parser)
    budget = parser.add_mutually_exclusive_group()
    text = "steps, for DDIM and most others evaluations of the network (default: 10)"
    budget.add_argument("--steps", type=positive_integer, metavar="N", help=text)
    text = "evaluations of the network that each sampler may use, in place of --steps"
    budget.add_argument("--nfe", type=positive_integer, metavar="NUMBER", help=text)
    text = "samplers to compare, with commas between, such as ddim,heun,dpmpp_2m (default: ddim)"
    parser.add_argument("--samplers", type=sampler_names, default=["ddim"], metavar="NAMES", help=text)
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
    add_plot(parser, "the winner's levels and uniform ones, and what they return of each eigenvalue")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Rank, and print the result."""
    if not arguments.json:
        require_rich()
    check_picture(arguments.plot)
    schedule = build_schedule(arguments.schedule, arguments.schedule_option)
    spectrum = read_spectrum(arguments.spectrum, arguments.floor)
    check_finite(arguments.spectrum, spectrum, arguments.metric)
    report = ranked(arguments, schedule, spectrum)
    if arguments.plot is not None:
        first = report["winner"]
        named = {f"winner, {first['family']}": first["sigmas"]}
        named |= {
            f"uniform {spacing}": levels
            for spacing, levels in uniform_levels(schedule, report["steps"]).items()
            if spacing in report["uniform"]
        }
        draw_levels(arguments.plot, spectrum, named, first["sampler"], report["prior"])
    print_json(report) if arguments.json else print_report(report)
    return 0


def ranked(arguments: argparse.Namespace, schedule: NoiseSchedule, spectrum: Spectrum) -> dict[str, Any]:
    """Make the candidates, score them, and return all that is printed."""
    metric, prior = arguments.metric, arguments.prior or schedule.prior
    contest = entries(arguments, schedule, spectrum)
    seconds = score(spectrum, contest, metric, prior, arguments.threads, quiet=arguments.json)
    total = sum(len(entry.values) for entry in contest)
    best = min(contest, key=lambda entry: float(entry.values.min()))
    least = float(best.values.min())
    return {
        "fastkl": __version__,
        "spectrum": {"name": arguments.spectrum, "dim": spectrum.dim, "floor": arguments.floor},
        "schedule": repr(schedule),
        "nfe": arguments.nfe,
        "samplers": {entry.sampler: {"steps": entry.steps, "nfe": samplers.nfe(entry.sampler, entry.steps)}
                     for entry in contest},
        "steps": best.steps,
        "metric": metric,
        "prior": prior,
        "snapped": bool(arguments.snap and schedule.is_discrete),
        "generated": sum(entry.candidates.generated for entry in contest),
        "outside_schedule": sum(entry.candidates.outside for entry in contest),
        "duplicates": sum(entry.candidates.duplicates for entry in contest),
        "candidates": total,
        "seconds": seconds,
        "candidates_per_second": total / seconds,
        "ranking": ranking(contest, least, arguments.top),
        "winner": winner(schedule, best, arguments.snap),
        "uniform": uniform(arguments, schedule, spectrum, prior, best),
    }  # fmt: skip


def score(
    spectrum: Spectrum, contest: list[Entry], metric: str, prior: str, threads: int | None, quiet: bool
) -> float:
    """Fill in every candidate's divergence, and return the seconds it took once the kernels were loaded."""
    with progress(sum(len(entry.values) for entry in contest), quiet) as advance:
        for entry in contest:
            divergence(
                spectrum, entry.candidates.levels[0], metric, entry.sampler, prior, num_threads=threads
            )
        began = time.perf_counter()
        advance(0)
        for entry in contest:
            levels, values = entry.candidates.levels, entry.values
            length = max(1, BATCH_STEPS // (len(spectrum) * entry.steps))
            for begin in range(0, len(levels), length):
                part = slice(begin, begin + length)
                values[part] = divergence(
                    spectrum, levels[part], metric, entry.sampler, prior, num_threads=threads
                )
                advance(len(values[part]))
    return time.perf_counter() - began


def times(value: float, best: float) -> float:
    """Return how many times `best` the value is."""
    if value == best:
        return 1.0
    return value / best if best > 0.0 else float("inf")


def ranking(contest: list[Entry], least: float, top: int | None) -> list[dict[str, Any]]:
    """Return the `top` best of all, or the best of each sampler, of each family if there is one sampler.

    Equal values keep the candidates' order.
    """
    places = [(n, i) for n, entry in enumerate(contest) for i in range(len(entry.values))]
    order = np.argsort(np.concatenate([entry.values for entry in contest]), kind="stable").tolist()
    if top is None:
        best: dict[Any, int] = {}
        for k in order:
            n, i = places[k]
            best.setdefault(n if len(contest) > 1 else contest[n].candidates.labels[i][0], k)
        order = list(best.values())
    else:
        order = order[:top]
    rows = []
    for rank, k in enumerate(order, 1):
        n, i = places[k]
        entry = contest[n]
        family, function, parameters = entry.candidates.labels[i]
        value = float(entry.values[i])
        rows.append({
            "rank": rank, "sampler": entry.sampler, "steps": entry.steps, "family": family, "function": function,
            "parameters": parameters, "value": value, "times_best": times(value, least),
        })  # fmt: skip
    return rows


def winner(schedule: NoiseSchedule, entry: Entry, snap: bool) -> dict[str, Any]:
    """Return the best candidate's value, timesteps (None where there are none), times and sigmas."""
    best = int(np.argmin(entry.values))
    family, function, parameters = entry.candidates.labels[best]
    levels = entry.candidates.levels[best]
    timesteps = schedule.timesteps(levels[:-1]).tolist() if snap and schedule.is_discrete else None
    return {
        "sampler": entry.sampler, "family": family, "function": function, "parameters": parameters,
        "value": float(entry.values[best]), "timesteps": timesteps,
        "times": schedule.times(levels[:-1]).tolist(), "sigmas": levels.tolist(),
    }  # fmt: skip


def uniform(
    arguments: argparse.Namespace, schedule: NoiseSchedule, spectrum: Spectrum, prior: str, best: Entry
) -> dict[str, dict[str, float]]:
    """Return the divergence of the best sampler on each uniform spacing, and how many times the winner's it is."""
    result = {}
    for spacing, levels in uniform_levels(schedule, best.steps).items():
        possible = np.isfinite(levels[0]) or not samplers.get(best.sampler).finite_start
        if possible and can_be_scored(levels):
            value = divergence(
                spectrum, levels, arguments.metric, best.sampler, prior, num_threads=arguments.threads
            )
            result[spacing] = {"value": value, "times_best": times(value, float(best.values.min()))}
    return result
