"""``fastkl search``: the best noise levels for a number of steps, with a proof."""

from __future__ import annotations

import argparse
import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from fastkl import __version__, samplers
from fastkl._search import SearchResult, search
from fastkl.cli.errors import InputError
from fastkl.cli.files import number
from fastkl.cli.options import add_json, add_metric, add_prior, add_spectrum, positive_integer
from fastkl.cli.pictures import add_plot, check_picture, draw_search
from fastkl.cli.printing import new_file, plain_json, print_json, require_rich
from fastkl.cli.schedules import add_schedule, build_schedule
from fastkl.cli.search_tables import print_report
from fastkl.cli.spectra import check_finite, read_spectrum
from fastkl.cli.spectrum import warnings_in_lines
from fastkl.cli.standards import Standard, standards
from fastkl.evaluate import divergence
from fastkl.schedule import NoiseSchedule
from fastkl.spectrum import Spectrum

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "find the best noise levels for a number of steps, and prove it where that can be done"
DESCRIPTION = (
    "Finds the N levels of a noise schedule with the least divergence of DDIM's samples from Gaussian data of the "
    "given spectrum, among all choices, and proves it where it can (oftener with --no-free-start); for other samplers, "
    "by a local search that proves nothing. Prints them ready to paste, beside the standard schedules."
)

GRID = 1000
MOST_NUMBERS = 100_000


def step_numbers(text: str) -> list[int]:
    """Return the numbers of steps in "10", "3-12", "4,8,16" or a mixture."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low = positive_integer(first.strip())
        high = positive_integer(last.strip()) if dash else low
        if high < low or high - low >= MOST_NUMBERS:
            rule = f"must ascend and hold at most {MOST_NUMBERS:,} numbers"
            raise argparse.ArgumentTypeError(f"range {part.strip()!r}: {rule}")
        numbers += range(low, high + 1)
    if len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"{text!r}: holds a number twice")
    return numbers


def levels_to_visit(text: str) -> list[float]:
    """Return numbers separated by commas."""
    try:
        return [number(word.strip()) for word in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `search`."""
    add_spectrum(parser)
    add_schedule(parser)
    text = "the sampler's name (default: %(default)s)"
    parser.add_argument("--sampler", choices=samplers.names(), default="ddim", metavar="NAME", help=text)
    text = "steps, for most samplers evaluations of the network: 10, 3-12, or 4,8,16 (default: 10)"
    parser.add_argument("--steps", type=step_numbers, default=[10], metavar="N", help=text)
    add_metric(parser)
    add_prior(parser, None)
    text = (
        "choose the first level too, counting the prior's mismatch and the spectrum's mean, or keep the schedule's "
        "(default: chosen for w2 where the spectrum has a mean)"
    )
    parser.add_argument("--free-start", action=argparse.BooleanOptionalAction, help=text)
    text = "stop at a good choice and a bound, without a proof"
    parser.add_argument("--no-prove", dest="prove", action="store_false", help=text)
    text = "seconds for each number of steps, after which the best choice so far is printed with its bound"
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help=text)
    text = f"levels of a continuous schedule to choose from (default: {GRID})"
    parser.add_argument("--grid", type=positive_integer, metavar="NUMBER", help=text)
    text = "levels that must be visited: timesteps, or sigmas of a continuous schedule, separated by commas"
    parser.add_argument("--visit", type=levels_to_visit, metavar="LEVELS", help=text)
    text = "least distance of neighbouring levels on the grid or in timesteps (default: %(default)s)"
    parser.add_argument("--min-spacing", type=positive_integer, default=1, metavar="NUMBER", help=text)
    parser.add_argument("--out", metavar="FILE.json", help="write the JSON document to a new file")
    parser.add_argument("--force", action="store_true", help="let --out replace a file")
    add_plot(parser, "the levels found and the standard ones, and what they return of each eigenvalue")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Search, and print or write the result."""
    if not arguments.json:
        require_rich()
    check_picture(arguments.plot)
    if arguments.force and arguments.out is None:
        raise InputError("--force: says that --out may replace a file, but there is no --out")
    schedule = build_schedule(arguments.schedule, arguments.schedule_option)
    if arguments.grid is not None and schedule.is_discrete:
        raise InputError(f"--grid: is for continuous schedules; {arguments.schedule} has its timesteps")
    spectrum = read_spectrum(arguments.spectrum, arguments.floor)
    check_finite(arguments.spectrum, spectrum, arguments.metric)
    with new_file(arguments.out, arguments.force) if arguments.out is not None else nullcontext() as file:
        with warnings_in_lines():
            report = searched(arguments, schedule, spectrum)
        if file is not None:
            file.write(plain_json(report) + "\n")
    print_json(report) if arguments.json else print_report(report)
    return 0


def searched(arguments: argparse.Namespace, schedule: NoiseSchedule, spectrum: Spectrum) -> dict[str, Any]:
    """Search for every number of steps, and return all that is printed."""
    free_start, why = first_level(arguments, spectrum)
    options = {
        "prove": arguments.prove,
        "free_start": free_start,
        "time_limit": arguments.time_limit,
        "grid": arguments.grid or GRID,
        "visit": arguments.visit,
        "min_spacing": arguments.min_spacing,
    }
    found = search(
        spectrum, schedule, arguments.steps, arguments.sampler, arguments.metric, arguments.prior, **options
    )
    if arguments.plot is not None:
        others = standards(schedule, spectrum, found[-1].steps, options["grid"])
        draw_search(arguments.plot, spectrum, found, others)
    return {
        "fastkl": __version__,
        "spectrum": {"name": arguments.spectrum, "dim": spectrum.dim, "floor": arguments.floor},
        "schedule": repr(schedule),
        "sampler": arguments.sampler,
        "metric": arguments.metric,
        "prior": arguments.prior or schedule.prior,
        **options,
        "first_level": why,
        "grid": None if schedule.is_discrete else options["grid"],
        "results": [result(best, schedule, spectrum, options["grid"], arguments.sampler) for best in found],
    }


def first_level(arguments: argparse.Namespace, spectrum: Spectrum) -> tuple[bool, str]:
    """Return whether the first level is chosen too, and a line that says so and why."""
    if arguments.free_start is not None:
        said = "chosen too (--free-start)" if arguments.free_start else "the schedule's (--no-free-start)"
        return arguments.free_start, said
    if arguments.metric != "w2":
        return False, f"the schedule's (it is chosen for w2, not for {arguments.metric}, unless --free-start)"
    if arguments.prior == "exact":
        return False, "the schedule's (with --prior exact a lower one costs nothing)"
    if spectrum.mean is None:
        return False, "the schedule's (the spectrum has no mean, so a lower one cannot be judged)"
    return True, "chosen too (of least w2, --no-free-start keeps the schedule's)"


def result(
    best: SearchResult, schedule: NoiseSchedule, spectrum: Spectrum, grid: int, sampler: str
) -> dict[str, Any]:
    """Return what was found for one number of steps, beside the standard schedules."""
    document = best.as_dict()
    choices = document.pop("candidates")
    moved = best.refined_sigmas
    return {
        **document,
        "times": schedule.times(best.sigmas[:-1]).tolist(),
        "refined_times": None if moved is None else schedule.times(moved[:-1]).tolist(),
        "gap": gap(best),
        "log10_choices": None if choices is None else math.log10(choices),  # the number itself has no bound
        "standards": compared(best, standards(schedule, spectrum, best.steps, grid), spectrum, sampler),
    }


def gap(best: SearchResult) -> float | None:
    """Return how far the value may be above the optimum, relative to the optimum; None where no bound is known."""
    return None if best.lower_bound is None else ratio(best.value, best.lower_bound) - 1.0


def compared(
    best: SearchResult, others: list[Standard], spectrum: Spectrum, sampler: str
) -> list[dict[str, Any]]:
    """Return the standard schedules by value, the least first, then those that are left out."""
    others = [runnable(other, sampler) for other in others]
    kept = [other for other in others if other.levels is not None]
    levels = np.array([other.levels for other in kept])
    values = divergence(spectrum, levels, best.metric, sampler, best.prior).tolist() if kept else []
    rows = [
        {"name": other.name, "function": other.function, "parameters": other.parameters, "value": value,
         "times_best": ratio(value, best.value), "left_out": None}
        for value, other in sorted(zip(values, kept, strict=True), key=lambda pair: pair[0])
    ]  # fmt: skip
    rows += [
        {"name": other.name, "function": other.function, "parameters": other.parameters, "value": None,
         "times_best": None, "left_out": other.why_not}
        for other in others
        if other.levels is None
    ]  # fmt: skip
    return rows


def runnable(other: Standard, sampler: str) -> Standard:
    """Return a standard schedule, without its levels if the sampler cannot run on them."""
    rule = samplers.get(sampler)
    if other.levels is None:
        return other
    if rule.finite_start and np.isinf(other.levels[0]):
        return replace(other, levels=None, why_not=f"starts at inf, and {sampler} needs a finite first level")
    if rule.above_zero:
        return replace(other, levels=None, why_not=f"ends at 0, and {sampler} needs a last level above 0")
    return other


def ratio(value: float, other: float) -> float:
    """Return how many times another value a value is."""
    if value == other:
        return 1.0
    return value / other if other > 0.0 else math.inf
