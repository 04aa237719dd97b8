"""The report of `fastkl search` for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastkl.cli.printing import digits, line, table
from fastkl.cli.rank_tables import named

__all__ = ["print_report"]


def print_report(report: dict[str, Any]) -> None:
    """Print the headline, and for every number of steps its levels, what is known about them and the comparison."""
    spectrum = report["spectrum"]
    where = f"{spectrum['name']} (dim {digits(spectrum['dim'])})"
    line(f"{report['metric']} on {where}, {report['sampler']}, prior {report['prior']}")
    line(report["schedule"])
    line(f"first level: {report['first_level']}")
    for found in report["results"]:
        line()
        print_result(found)
        line()
        print_standards(found, report["free_start"])
    if report["visit"] is not None or report["min_spacing"] > 1:
        line("Standard schedules, and levels moved off the grid, do not keep to --visit and --min-spacing.")
    if report["sampler"] == "dpmpp_2m" and report["metric"] == "w2" and report["prior"] != "flow":
        line(
            "For trained networks the levels of --sampler ddim --free-start, with the schedule's lowest among them"
        )
        line(
            "(--visit), made better images: errors of dpmpp_2m that cancel for Gaussian data do not for images."
        )


def print_result(found: dict[str, Any]) -> None:
    """Print the levels of one number of steps, ready to paste, and what is known about them."""
    line(f"N = {found['steps']}: {found['metric']} {digits(found['value'])}, {verdict(found)}")
    if found["lower_bound"] is not None:
        line(f"lower bound {digits(found['lower_bound'])}")
    line(f"{choices(found['log10_choices'])}, searched in {found['seconds']:.3g} s")
    if found["timesteps"] is not None:
        line(f"timesteps = {found['timesteps']}")
    else:
        line(f"times = {pasted(found['times'])}")
    line(f"sigmas = {pasted(found['sigmas'])}")
    if found["refined_sigmas"] is not None:
        line(f"moved off the grid: {found['metric']} {digits(found['refined_value'])}, a local optimum")
        line(f"refined_times = {pasted(found['refined_times'])}")
        line(f"refined_sigmas = {pasted(found['refined_sigmas'])}")


def print_standards(found: dict[str, Any], free_start: bool) -> None:
    """Print the standard schedules beside the best value."""
    columns = [("schedule", "left"), ("parameters", "left"),
               (found["metric"], "right"), ("times best", "right")]  # fmt: skip
    rows = [
        (row["name"], parameters(row), digits(row["value"]), f"{row['times_best']:.4g}")
        for row in found["standards"]
        if row["left_out"] is None
    ]
    table(f"Standard schedules, N = {found['steps']}", columns, rows)
    for row in found["standards"]:
        if row["left_out"] is not None:
            line(f"{row['name']}: left out, {row['left_out']}")
    if any(row["left_out"] is None and row["times_best"] < 1.0 for row in found["standards"]):
        other = "" if free_start else "another first level (--free-start), "
        line(f"Values below the best are of levels outside the choices: {other}levels off the grid,")
        line("or neighbours closer than --min-spacing.")


def parameters(row: dict[str, Any]) -> str:
    """Return the parameters of a standard schedule, but for the spacing, which its name has."""
    return named({key: value for key, value in row["parameters"].items() if key != "spacing"})


def verdict(found: dict[str, Any]) -> str:
    """Say what is known about how good a result is."""
    if found["proved_optimal"]:
        return "proved optimal"
    if found["gap"] is None:
        return "local search: no bound is known"
    if math.isinf(found["gap"]):
        return "not proved, and no bound is known"
    return f"not proved: at most {100.0 * found['gap']:.3g} % above the optimum"


def choices(log10: float | None) -> str:
    """Say how many choices of levels there are."""
    if log10 is None:
        return "choices that visit the levels asked for"
    if log10 < 6.0:
        return f"{round(10.0**log10):,} choices"
    exponent = math.floor(log10)
    return f"{10.0 ** (log10 - exponent):.2f}e{exponent} choices"


def pasted(levels: Sequence[float]) -> str:
    """Return numbers as a Python list that gives the same numbers back."""
    words = (repr(x) if math.isfinite(x) else f"float('{x}')" for x in levels)
    return f"[{', '.join(words)}]"
