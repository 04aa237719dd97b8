"""The answer in words and tables, from the figures that answer.py computes."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[1]))

import markdown_parts

Row = dict[str, Any]
SHOWN = 14  # strategies in the table of ratios
ALWAYS = (
    "karras-7",
    "exponential",
    "beta",
    "tan-1-min",
    "tan-1-to0",
    "tangent-w2-cov",
    "tangent-w2-eff",
    "search-w2-cov-0",
    "search-w2-eff-0",
    "search-w2-cov-free",
    "search-w2-eff-free",
    "tangent-w2-cov-free",
    "tangent-w2-eff-free",
    "uniform-leading",
    "karras-7-start",
    "tan-1-to0-start",
    "cma-fd",
    "cma-fd-free",
    "search-kl-cov-0.01",
    "search-kl-eff-0.1",
    "geodesic-0.01",
    "trajectory-dp",
    "uniform-trailing",
)
OTHERS = ("fd_pixels", "fd_teacher", "to_teacher")
SHARES = ("precision", "coverage", "recall", "confidence")
HEADLINE = {
    "search-w2-eff-free": "fastkl, least `w2`, effective spectrum, first level chosen too",
    "search-w2-cov-free": "fastkl, least `w2`, covariance spectrum, first level chosen too",
    "tangent-w2-eff-free": "tangent law, gamma and first level of least `w2`, effective spectrum",
    "tangent-w2-cov-free": "tangent law, gamma and first level of least `w2`, covariance spectrum",
    "search-w2-eff-0": "fastkl, least `w2`, effective spectrum",
    "search-w2-cov-0": "fastkl, least `w2`, covariance spectrum",
    "tangent-w2-eff": "tangent law, gamma of least `w2`, effective spectrum",
    "tangent-w2-cov": "tangent law, gamma of least `w2`, covariance spectrum",
    "karras-7-start": "Karras, rho = 7, from that first level",
    "tan-1-to0-start": "tangent law, gamma = 1, from that first level",
    "cma-fd-free": "CMA-ES on the measured distance, first level too (where run)",
    "cma-fd": "CMA-ES on the measured distance (where run)",
    "trajectory-dp": "dynamic programming on sampled trajectories",
    "tan-1-to0": "tangent law, gamma = 1, carried to 0",
    "tan-1-min": "tangent law, gamma = 1, stopped at sigma_min",
    "karras-7": "Karras, rho = 7",
    "uniform-leading": "uniform timesteps, leading",
    "uniform-trailing": "uniform timesteps, trailing",
    "exponential": "exponential",
    "beta": "beta",
    "search-kl-cov-0.01": "fastkl, least `kl`, floor 0.01",
    "geodesic-0.01": "geodesic of `kl`, floor 0.01",
}


def ratios(part: Row, score: str = "fd_features") -> dict[str, float]:
    """Distance of every strategy over the least one."""
    distances = part["distances"][score]
    least = min(distances.values())
    return {name: distance / least for name, distance in distances.items()}


def table(head: list[str], lines: list[list[str]]) -> str:
    """Markdown, without the blank lines around it."""
    return "\n".join(markdown_parts.table(head, lines))


def correlation_table(setup: Row) -> str:
    """Rank correlation with the features' distance, a line for each predictor, a column for each NFE."""
    survey = setup["survey"]
    names = list(next(iter(survey.values()))["correlation"])
    means = {
        name: float(np.mean([part["correlation"][name]["fd_features"] for part in survey.values()]))
        for name in names
    }
    lines = []
    for name in sorted(names, key=lambda name: -means[name]):
        parts = [part["correlation"][name] for part in survey.values()]
        values = [f"{part['fd_features']:.2f} ({part['ratio']:.2f})" for part in parts]
        laws = np.mean([part["laws"] for part in parts])
        near = [part["near"] for part in parts if part["near"] is not None]
        lines.append(
            [name, f"{laws:.2f}", f"{means[name]:.2f}", f"{np.mean(near):.2f}" if near else "", *values]
        )
    return table(["predictor", "laws", "all", "near the best", *(f"NFE {nfe}" for nfe in survey)], lines)


def ratio_table(setup: Row) -> str:
    """Distance over the best one's: the strategies that are best on average, and those that people know."""
    survey = setup["survey"]
    parts = [ratios(part) for part in survey.values()]
    values = {
        name: [part[name] for part in parts if name in part]
        for name in dict.fromkeys(n for p in parts for n in p)
    }
    order = sorted(values, key=lambda name: float(np.mean(np.log(values[name]))))
    complete = [name for name in order if len(values[name]) == len(parts)]
    chosen = [name for name in order if name in complete[:SHOWN] or name in ALWAYS]
    best = [
        f"{min(part['distances']['fd_features'].values()):.2f}, {min(found, key=found.__getitem__)}"
        for part, found in zip(survey.values(), parts, strict=True)
    ]
    cells = [[name, *(f"{part[name]:.2f}" if name in part else "" for part in parts)] for name in chosen]
    lines = [["least distance", *best], *cells]
    return table(["strategy", *(f"NFE {nfe}" for nfe in survey)], lines)


def final_table(setup: Row) -> str:
    """Mean and standard deviation over seeds, at every number of evaluations the least distance first."""
    lines = []
    for nfe in sorted({cell["nfe"] for cell in setup["final"]}):
        cells = [cell for cell in setup["final"] if cell["nfe"] == nfe]
        for cell in sorted(cells, key=lambda cell: cell["fd_features"][0]):
            distance = "{:.2f} ± {:.2f}".format(*cell["fd_features"])
            others = [f"{cell[score][0]:.2f}" for score in OTHERS]
            shares = [f"{cell[score][0]:.3f}" for score in SHARES]
            lines.append([str(nfe), cell["strategy"], distance, *others, *shares])
    return table(["NFE", "strategy", "features", "pixels", "network", "samples", *SHARES], lines)


def cost_text(setup: Row) -> str:
    """What levels searched on samples cost."""
    parts = [
        f"{strategy} "
        + ", ".join(f"{count:,} (NFE {nfe})" for nfe, count in sorted(costs.items(), key=lambda c: int(c[0])))
        if not strategy.startswith("trajectory")
        else f"{strategy} {next(iter(costs.values())):,} (any NFE)"
        for strategy, costs in sorted(setup["searched"].items())
    ]
    return "Network evaluations that levels searched on samples cost: " + "; ".join(parts) + "."


def mean_and_worst(values: list[float]) -> str:
    """Geometric mean, in brackets the largest."""
    return f"{np.exp(np.mean(np.log(values))):.2f} ({max(values):.2f})"


def headline(result: Row) -> str:
    """The README's table: distance over the least one of all choices, a column for each setup."""
    setups = result["setups"]
    lines = []
    for strategy, label in HEADLINE.items():
        line = [label]
        for setup in setups.values():
            parts = [ratios(part) for part in setup["survey"].values()]
            values = [part[strategy] for part in parts if strategy in part]
            cell = mean_and_worst(values) if values else ""
            missing = f", {len(values)} of {len(parts)} NFE" if 0 < len(values) < len(parts) else ""
            line.append(cell + missing)
        lines.append(line)
    return evidence(result) + "\n\n" + table(["choice of levels", *map(heading, setups.items())], lines)


def heading(setup: tuple[str, Row]) -> str:
    """A setup's name and its numbers of evaluations."""
    name, part = setup
    return f"{name}, NFE {', '.join(part['survey'])}"


def evidence(result: Row) -> str:
    """How far recommended levels are from the best, and others: a sentence for each sampler."""
    names = {
        "search-w2-eff-free": "least `w2`, effective spectrum, first level chosen too",
        "search-w2-cov-free": "the same, covariance spectrum",
        "tangent-w2-eff-free": "tangent law with gamma and first level of least `w2`, effective spectrum",
        "search-w2-eff-0": "least `w2`, effective spectrum, from the model's first level",
        "karras-7": "Karras",
        "search-kl-cov-0.01": "least `kl`, floor 0.01",
    }
    sentences = []
    for sampler in dict.fromkeys(setup["sampler"] for setup in result["setups"].values()):
        cases = [
            ratios(part)
            for setup in result["setups"].values()
            if setup["sampler"] == sampler
            for part in setup["survey"].values()
        ]
        parts = []
        for key, label in names.items():
            values = [case[key] for case in cases if key in case]
            if len(values) == len(cases):
                parts.append(f"{label} {mean_and_worst(values)}")
        sentences.append(f"`{sampler}`, {len(cases)} cases (a network at one NFE each): {'; '.join(parts)}.")
    return " ".join(sentences)


def setup_text(name: str, setup: Row) -> str:
    """One setup."""
    counts = [len(ratios(part)) for part in setup["survey"].values()]
    drawn = ", ".join(f"{part['count']:,} (NFE {nfe})" for nfe, part in setup["survey"].items())
    parts = [
        f"## {name}",
        f"{min(counts)} to {max(counts)} choices of levels, of each so many samples of seed 0: {drawn}. "
        "Frechet distance of the features over the least one at that NFE:",
        ratio_table(setup),
        cost_text(setup),
        "Spearman's rank correlation between a prediction and the distance; in brackets the distance of the choice "
        "that the prediction likes best, over the least distance. First the means over the NFE: among the laws that no "
        "divergence and no sample chose, which judges a predictor without its own optima; among all choices; among "
        "those within 1.3 times the least distance, where there are 5 or more:",
        correlation_table(setup),
    ]
    misled = [
        f"NFE {nfe}: {good} {gap:+d}, {bad} {less:+d}"
        for nfe, part in setup["survey"].items()
        for (good, gap), (bad, less) in [part["misled"]["cov"]]
    ]
    parts.append(
        "Where w2 on the covariance spectrum misleads most, in ranks (+: the samples are worse than predicted): "
        + "; ".join(misled)
        + "."
    )
    if setup["final"]:
        one = setup["final"][-1]
        parts += [
            f"Mean over {one['seeds']} other seeds, {one['count']:,} samples each (±: deviation between seeds):",
            final_table(setup),
        ]
    return "\n\n".join(parts)


def written(result: Row) -> str:
    """The whole text."""
    regret = result["regret"]
    lines = [
        [
            name,
            f"{line['mean']:.2f}",
            f"{line['worst']:.2f}",
            line["where"],
            *(f"{part['mean']:.2f} ({part['worst']:.2f})" for part in (regret[s][name] for s in OTHERS)),
        ]
        for name, line in list(regret["fd_features"].items())[:25]
    ]
    parts = [
        "# Do better numbers make better samples?",
        "Written by `benchmarks/experiments/answer.py` from the committed results. A predictor is named "
        "metric-spectrum-floor; cov is the covariance spectrum of the training images, eff the effective spectrum of "
        "the model's denoising errors. to0: carried to sigma = 0; min: stopped at sigma_min, then 0.",
        "## All setups",
        "Distance of a strategy over the least one of all strategies, over every setup and NFE that the survey has: "
        "geometric mean, worst case. Strategies that all setups share, best first by the features; then the same of "
        "the pixels, of the features to the samples of the same network in 64 steps, and of the mean square distance "
        "to them:",
        table(["strategy", "mean", "worst", "where", "pixels", "network", "samples"], lines),
        *(setup_text(name, setup) for name, setup in result["setups"].items()),
    ]
    return "\n\n".join(parts) + "\n"
