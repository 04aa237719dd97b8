"""The report of `fastkl rank` for people."""

from __future__ import annotations

from typing import Any

from fastkl.cli.printing import digits, line, table

__all__ = ["print_report"]


def print_report(report: dict[str, Any]) -> None:
    """Print the headline, the ranked table, the winner's levels and the comparison with uniform ones."""
    spectrum, best = report["spectrum"], report["winner"]
    several = len(report["samplers"]) > 1
    line(
        f"{report['metric']} on {spectrum['name']} (dim {digits(spectrum['dim'])}), prior {report['prior']}, "
        f"{budget(report)}"
    )
    line(report["schedule"])
    line(
        f"{plural(report['candidates'], 'candidate')}{left_out(report)}, scored in {report['seconds']:.3g} s "
        f"({report['candidates_per_second']:,.0f} candidates/s)"
    )
    line()
    who = [("sampler", "left"), ("steps", "right")] if several else []
    columns = [("rank", "right"), *who, ("family", "left"), ("parameters", "left"),
               (report["metric"], "right"), ("times best", "right")]  # fmt: skip
    rows = [
        (
            str(row["rank"]),
            *((row["sampler"], str(row["steps"])) if several else ()),
            row["family"],
            named(row["parameters"]),
            digits(row["value"]),
            f"{row['times_best']:.4g}",
        )
        for row in report["ranking"]
    ]
    table("Ranking", columns, rows)
    line()
    sampler = f"{best['sampler']} on " if several else ""
    line(f"Winner: {sampler}{best['family']} {named(best['parameters'])}".rstrip())
    if best["timesteps"] is not None:
        line(f"timesteps = {best['timesteps']}")
    else:
        line(f"times = [{', '.join(f'{t:.6g}' for t in best['times'])}]")
    line(f"sigmas = [{', '.join(f'{level:.6g}' for level in best['sigmas'])}]")
    line()
    for spacing, uniform in report["uniform"].items():
        line(comparison(report["metric"], spacing, uniform))


def budget(report: dict[str, Any]) -> str:
    """Say which samplers ran how far."""
    (name, facts), *others = report["samplers"].items()
    if others:
        return plural(report["nfe"], "evaluation") if report["nfe"] else plural(report["steps"], "step")
    steps = plural(facts["steps"], "step")
    return steps if name == "ddim" else f"{name}, {steps} ({plural(facts['nfe'], 'evaluation')})"


def plural(number: int, noun: str) -> str:
    """Return a count with its noun."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def left_out(report: dict[str, Any]) -> str:
    """Say how many of the generated candidates are not among the scored ones, and why."""
    reasons = []
    if report["duplicates"]:
        reasons.append(plural(report["duplicates"], "duplicate"))
    if report["outside_schedule"]:
        reasons.append(f"{report['outside_schedule']:,} out of range")
    return f" ({report['generated']:,} generated, less {' and '.join(reasons)})" if reasons else ""


def named(parameters: dict[str, Any]) -> str:
    """Return parameters as name=value, short enough for a table."""
    return " ".join(
        f"{name}={value if isinstance(value, str) else format(value, '.4g')}"
        for name, value in parameters.items()
        if name != "snap"
    )


def comparison(metric: str, spacing: str, uniform: dict[str, float]) -> str:
    """Say how much lower than a uniform spacing the winner is."""
    value, ratio = digits(uniform["value"]), uniform["times_best"]
    if ratio == 1.0:
        return f"uniform {spacing}: {metric} {value}, no higher than the winner"
    many = f"{ratio:,.0f}" if 1e3 <= ratio < 1e9 else f"{ratio:.3g}"
    return f"uniform {spacing}: {metric} {value}, the winner is {many} times lower"
