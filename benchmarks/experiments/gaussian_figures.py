"""Draw the figures of the Gaussian sources from results/gaussian.json alone.

Run as `python benchmarks/experiments/gaussian_figures.py [--result FILE] [--figures DIR]`; writes
gaussian_convergence.png, gaussian_gamma.png and gaussian_power_expansion.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from gaussian_claims import POWERED, Cases
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

HERE = Path(__file__).resolve().parent
Row = dict[str, Any]

STYLES: dict[str, Row] = {  # colours of Okabe and Ito; the geodesic thick, below the tangent law
    "linear": {"color": "#0072B2", "marker": "o"},
    "cosine": {"color": "#56B4E9", "marker": "s", "linestyle": (0, (5, 1.5))},
    "sigmoid": {"color": "#CC79A7", "marker": "D", "linestyle": (0, (1, 1))},
    "logistic betas": {"color": "#CC79A7", "marker": "v", "linestyle": (0, (5, 1.5, 1, 1.5))},
    "EDM": {"color": "#D55E00", "marker": "^"},
    "EDM to sigma_min": {"color": "#D55E00", "marker": "<", "linestyle": (0, (5, 1.5))},
    "flow": {"color": "#E69F00", "marker": "P", "linestyle": (0, (3, 1))},
    "tangent": {"color": "#000000", "marker": "X", "linewidth": 1.8, "zorder": 4},
    "geodesic": {"color": "#009E73", "marker": "*", "linewidth": 3.2, "markersize": 9.0},
}
NAMES = {"tangent": "tangent, gamma*"}
TICKS = (2, 3, 5, 10, 20, 50, 100, 200, 1000, 5000)
CROWDED = (1.25,)  # powers whose label would touch the next
SMALL_TEXT: Row = {"fontsize": "small"}
SMALL: Row = {**SMALL_TEXT, "handlelength": 3.6}


def style(schedule: str) -> Row:
    """Return the looks of a schedule's line."""
    return {"linewidth": 1.3, "markersize": 4.5, "label": NAMES.get(schedule, schedule)} | STYLES[schedule]


def counted(ax: Axes, numbers: list[int]) -> None:
    """Make a logarithmic axis of N with plain ticks."""
    ax.set_xscale("log")
    shown = [n for n in TICKS if min(numbers) <= n <= max(numbers)]
    ax.xaxis.set_major_locator(FixedLocator(shown))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels([str(n) for n in shown])
    ax.set_xlabel("steps N")
    ax.grid(alpha=0.25, linewidth=0.6)


def chosen(result: Row) -> list[str]:
    """Return the random spectra of the least and the largest condition number, and up to four of high dimension."""
    low = [row for row in result["spectra"] if row["name"].startswith("random")]
    low.sort(key=lambda row: row["largest"] / row["smallest"])
    high = [row["name"] for row in result["spectra"] if row["kind"] == "high"]
    return [low[0]["name"], low[-1]["name"], high[0], *high[-3:]]


def titled(result: Row, name: str) -> str:
    """Return a spectrum's name with dimension and condition number."""
    row = next(row for row in result["spectra"] if row["name"] == name)
    start = name if "d=" in name else f"{name}, d={row['dim']}"
    return f"{start}, condition {row['largest'] / row['smallest']:.2g}"


def convergence(result: Row) -> Figure:
    """Draw kl of a direction against N for every schedule with uniform times, in the setting "same"."""
    cases, dims = Cases(result, "same"), {row["name"]: row["dim"] for row in result["spectra"]}
    figure = Figure(figsize=(13.0, 8.2), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    for i, (ax, name) in enumerate(zip(axes, chosen(result), strict=True)):
        for schedule in STYLES:
            ax.plot(cases.steps, cases.uniform(name, schedule) / dims[name], **style(schedule))
        ax.set_yscale("log")
        counted(ax, cases.steps)
        if i % 3 == 0:
            ax.set_ylabel("kl per dimension (nats)")
        ax.set_title(titled(result, name), fontsize="medium")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(STYLES), columnspacing=1.2, **SMALL)
    figure.suptitle("Uniform times, levels from 80 to 0, exact first variance", fontsize="medium")
    return figure


def looks(strategies: list[str]) -> dict[str, Row]:
    """Return the looks of strategies: powers from blue over black to red, the others dashed."""
    powers = [name for name in strategies if name.startswith("power")]
    shades = {"power 0.5": "#08519C", "power 0.75": "#6BAED6", "power 1.5": "#FCBBA1", "power 2": "#FB6A4A",
              "power 3": "#CB181D", "power 5": "#67000D"}  # fmt: skip
    found = {name: {"color": shades[name], "linewidth": 1.5} for name in powers}
    found["uniform"] = {"color": "#000000", "linewidth": 2.4}
    found["uniform from 80"] = {"color": "#009E73", "linewidth": 1.5, "linestyle": (0, (5, 1.5))}
    found["on the linear table"] = {"color": "#E69F00", "linewidth": 1.5, "linestyle": (0, (1, 1))}
    return {name: found[name] for name in strategies}


def gamma(result: Row) -> Figure:
    """Draw kl against gamma at N = 10 on one spectrum, and the best gamma of all against N."""
    figure = Figure(figsize=(10.0, 4.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    name = chosen(result)[2]
    rows = [row for row in result["sweeps"] if row["spectrum"] == name]
    kinds = looks([row["strategy"] for row in rows])
    for row in rows:
        grid = np.geomspace(1.0 / 30.0, 30.0, len(row["kl_over_star"]))
        left.plot(grid, row["kl_over_star"], label=row["strategy"], **kinds[row["strategy"]])
        same = [other for other in result["sweeps"] if other["strategy"] == row["strategy"]]
        ratios = np.array([other["best_over_star"] for other in same])
        right.plot(row["N"], np.median(ratios, axis=0), marker="o", markersize=3.5, **kinds[row["strategy"]])
        if row["strategy"] == "uniform":
            right.fill_between(
                row["N"], ratios.min(axis=0), ratios.max(axis=0), color="0.5", alpha=0.3, linewidth=0.0
            )
    left.set_title(f"N = 10, {name}", fontsize="medium")
    left.set_xlabel("gamma / gamma*")
    left.set_ylabel("kl / kl at gamma*")
    left.set_xscale("log")
    left.grid(alpha=0.25, linewidth=0.6)
    left.axvline(1.0, color="0.4", linewidth=0.8, zorder=0)
    right.set_title("Median over all spectra; grey: range of uniform", fontsize="medium")
    right.text(2.0, 1.1 / 30.0, "dotted: no gamma beyond was tried", va="bottom", color="0.3", **SMALL_TEXT)
    counted(right, result["plan"]["sweep_steps"])
    right.set_ylabel("best gamma / gamma*")
    for edge in (1.0 / 30.0, 30.0):
        right.axhline(edge, color="0.4", linewidth=0.8, linestyle=":", zorder=0)
    for ax in (left, right):
        ax.set_yscale("log")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=5, title="times of the tangent law", **SMALL
    )
    return figure


def power(ax: Axes, result: Row) -> None:
    """Draw the median of kl over that of uniform times against the power, at N = 10."""
    cases, powers = Cases(result, "same"), result["plan"]["powers"]
    i = cases.steps.index(10)
    for schedule in POWERED:
        ratios = [cases.kl[name][schedule][i] / cases.uniform(name, schedule)[i] for name in cases.kl]
        ax.plot(powers, np.median(ratios, axis=0), **style(schedule))
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(FixedLocator(powers))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels(["" if value in CROWDED else f"{value:g}" for value in powers])
    ax.axhline(1.0, color="0.4", linewidth=0.8, zorder=0)
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.set_xlabel("power (rho)")
    ax.set_ylabel("kl / kl of power 1")
    ax.set_title("N = 10, levels from 80 to 0, median over all spectra", fontsize="medium")


def expansion(ax: Axes, result: Row) -> None:
    """Draw the error of the expansion against N, for the tangent law on two spectra."""
    names = chosen(result)
    dashes = ((0, (1, 1)), (0, (5, 1.5)), "-")
    for name, marker, colour in ((names[0], "o", "#0072B2"), (names[-2], "^", "#D55E00")):
        row = next(r for r in result["expansions"] if r["spectrum"] == name and r["schedule"] == "tangent")
        for (order, errors), dash in zip(row["error"].items(), dashes, strict=True):
            label = f"{name}: order {order}"
            ax.plot(
                row["N"],
                np.abs(errors),
                marker=marker,
                markersize=3.5,
                linestyle=dash,
                color=colour,
                label=label,
            )
    for limit in (0.1, 0.01):
        ax.axhline(limit, color="0.4", linewidth=0.8, zorder=0)
        ax.text(
            max(row["N"]),
            1.2 * limit,
            f"{100 * limit:g} %",
            ha="right",
            va="bottom",
            color="0.3",
            fontsize="small",
        )
    ax.set_yscale("log")
    ax.set_ylim(1e-9, 1e3)
    counted(ax, row["N"])
    ax.set_ylabel("|expansion / kl - 1|")
    ax.set_title("Expansion in 1/N, tangent law with gamma*", fontsize="medium")


def power_expansion(result: Row) -> Figure:
    """Draw what a power gains beside the error of the expansion."""
    figure = Figure(figsize=(10.0, 5.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    power(left, result)
    expansion(right, result)
    for ax, ncols in ((left, 3), (right, 2)):
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=ncols, **SMALL)
    return figure


def draw(result: Row, directory: Path) -> None:
    """Write all figures."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, make in (("convergence", convergence), ("gamma", gamma), ("power_expansion", power_expansion)):
        make(result).savefig(directory / f"gaussian_{name}.png", dpi=110)


def main() -> None:
    """Read the result file and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--result", type=Path, default=HERE / "results" / "gaussian.json")
    parser.add_argument("--figures", type=Path, default=HERE / "figures")
    arguments = parser.parse_args()
    draw(json.loads(arguments.result.read_text(encoding="utf-8")), arguments.figures)


if __name__ == "__main__":
    main()
