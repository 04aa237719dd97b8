"""The answer in words and tables, from the figures that answer.py computes."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterable
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
    "search-w2-eff-free-useful",
    "search-w2-eff-free-ddim-low",
    "search-w2-cov-free-ddim-low",
    "tangent-w2-eff-free-ddim-low",
    "karras-3-from20",
    "karras-7-from20",
    "tan-2-to0-from20",
    "search-kl-cov-0.01-free",
    "cma-fd-free-plain",
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
SHARES = ("precision", "coverage", "recall", "confidence", "class_shift")
FIRST = ("from5", "from10", "from20", "from40")
KARRAS = tuple(f"karras-{rho}{end}" for rho in (3, 7) for end in ("", *(f"-{first}" for first in FIRST)))
EXPONENTIAL = ("exponential-min0.1", *(f"exponential-min0.1-{first}" for first in FIRST))
TAN = tuple(f"tan-{g}-to0{end}" for g in (1, 2) for end in ("", *(f"-{first}" for first in FIRST)))
# A line of the README's table: what it is called, and the strategies, of which the best is taken in every case.
HEADLINE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("fastkl, least `w2`, effective spectrum, first level chosen too", ("search-w2-eff-free",)),
    ("the same, no higher than the network is of use", ("search-w2-eff-free-useful",)),
    ("fastkl, least `w2`, covariance spectrum, first level chosen too", ("search-w2-cov-free",)),
    ("tangent law, gamma and first level of least `w2`, effective spectrum", ("tangent-w2-eff-free",)),
    ("tangent law, gamma and first level of least `w2`, covariance spectrum", ("tangent-w2-cov-free",)),
    ("fastkl, least `w2`, effective spectrum, first level of the model", ("search-w2-eff-0",)),
    ("fastkl, least `w2`, covariance spectrum, first level of the model", ("search-w2-cov-0",)),
    (
        "fastkl's levels for DDIM, one fewer, then the least level; effective spectrum",
        ("search-w2-eff-free-ddim-low",),
    ),
    (
        "fastkl's levels for DDIM, one fewer, then the least level; covariance spectrum",
        ("search-w2-cov-free-ddim-low",),
    ),
    ("CMA-ES on the measured distance, first level too, from fastkl's levels", ("cma-fd-free",)),
    ("the same from a start that knows nothing of the data", ("cma-fd-free-plain",)),
    ("CMA-ES on the measured distance, first level of the model", ("cma-fd",)),
    (
        "in hindsight: the best of Karras' laws, rho 3 or 7, first level 5 (where run), 10, 20, 40 or the model's",
        KARRAS,
    ),
    ("in hindsight: the best of exponential laws to 0.1 with those first levels", EXPONENTIAL),
    ("in hindsight: the best of tangent laws, gamma 1 or 2, with those first levels", TAN),
    ("Karras, rho = 7, from fastkl's first level", ("karras-7-start",)),
    ("tangent law, gamma = 1, from fastkl's first level", ("tan-1-to0-start",)),
    ("dynamic programming on sampled trajectories", ("trajectory-dp",)),
    ("tangent law, gamma = 1, carried to 0", ("tan-1-to0",)),
    ("tangent law, gamma = 1, stopped at sigma_min", ("tan-1-min",)),
    ("Karras, rho = 7", ("karras-7",)),
    ("uniform timesteps, leading", ("uniform-leading",)),
    ("uniform timesteps, trailing", ("uniform-trailing",)),
    ("exponential", ("exponential",)),
    ("beta", ("beta",)),
    ("fastkl, least `kl`, floor 0.01", ("search-kl-cov-0.01",)),
    ("fastkl, least `kl`, floor 0.01, first level chosen too", ("search-kl-cov-0.01-free",)),
    ("geodesic of `kl`, floor 0.01", ("geodesic-0.01",)),
)
HINDSIGHT = (
    "in hindsight, the best of 25 choices without a spectrum (5 laws, first level 5 where run, 10, 20, 40 or the "
    "model's)"
)
EVIDENCE = {
    "ddim": (
        (
            "least `w2`, effective spectrum, first level chosen too, no higher than the network is of use",
            ("search-w2-eff-free-useful",),
        ),
        ("least `w2`, effective spectrum, first level chosen too", ("search-w2-eff-free",)),
        ("least `w2`, covariance spectrum, first level chosen too", ("search-w2-cov-free",)),
        (
            "tangent law with gamma and first level of least `w2`, effective spectrum",
            ("tangent-w2-eff-free",),
        ),
        ("least `w2`, effective spectrum, from the model's first level", ("search-w2-eff-0",)),
        (
            HINDSIGHT,
            KARRAS + EXPONENTIAL + TAN,
        ),
        ("Karras", ("karras-7",)),
        ("least `kl`, floor 0.01", ("search-kl-cov-0.01",)),
    ),
    "dpmpp_2m": (
        (
            "levels of least `w2` for DDIM with one evaluation fewer, then the least level; effective spectrum, first "
            "level chosen too",
            ("search-w2-eff-free-ddim-low",),
        ),
        (
            "levels of least `w2` for DDIM with one evaluation fewer, then the least level; covariance spectrum, first "
            "level chosen too",
            ("search-w2-cov-free-ddim-low",),
        ),
        (
            "least `w2` of DPM-Solver++ 2M itself, effective spectrum, first level chosen too",
            ("search-w2-eff-free",),
        ),
        (
            HINDSIGHT,
            KARRAS + EXPONENTIAL + TAN,
        ),
        ("Karras", ("karras-7",)),
        ("least `kl`, floor 0.01", ("search-kl-cov-0.01",)),
    ),
}


def ratios(part: Row, score: str = "fd_features") -> dict[str, float]:
    """Distance of every strategy over the least one."""
    distances = part["distances"][score]
    least = min(distances.values())
    return {name: distance / least for name, distance in distances.items()}


def table(head: list[str], lines: list[list[str]]) -> str:
    """Markdown, without the blank lines around it."""
    return "\n".join(markdown_parts.table(head, lines))


def mean_of(values: Iterable[float | None]) -> str:
    """Mean of those that are there."""
    found = [value for value in values if value is not None]
    return f"{np.mean(found):.2f}" if found else ""


def correlation_table(setup: Row) -> str:
    """Rank correlation with the features' distance, a line for each predictor, a column for each NFE."""
    survey = setup["survey"]
    lines = []
    for name in next(iter(survey.values()))["correlation"]:
        parts = [part["correlation"][name] for part in survey.values()]
        values = [f"{mean_of([part['fd_features']])} ({part['ratio']:.2f})" for part in parts]
        means = [mean_of(part[key] for part in parts) for key in ("laws", "fd_features", "near")]
        lines.append([name, *means, *values])
    lines.sort(key=lambda line: -float(line[2] or "-2"))
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


def least_ratios(parts: list[dict[str, float]], strategies: tuple[str, ...]) -> list[float]:
    """The best ratio of some strategies in every case that has them all; first level 5 may lack."""
    needed = [name for name in strategies if not name.endswith("-from5")]
    cases = [part for part in parts if all(name in part for name in needed)]
    return [min(part[name] for name in strategies if name in part) for part in cases]


def over_cases(parts: list[dict[str, float]], strategies: tuple[str, ...], unit: str) -> str:
    """Mean and worst of the best ratio, and of how many cases where not of all; empty where of none."""
    values = least_ratios(parts, strategies)
    some = f", {len(values)} of {len(parts)} {unit}" if len(values) < len(parts) else ""
    return mean_and_worst(values) + some if values else ""


def headline(result: Row) -> str:
    """The README's table: distance over the least one of all choices, a column for each setup."""
    setups = result["setups"]
    cases = [[ratios(part) for part in setup["survey"].values()] for setup in setups.values()]
    lines = [
        [label, *(over_cases(parts, strategies, "NFE") for parts in cases)] for label, strategies in HEADLINE
    ]
    return evidence(result) + "\n\n" + table(["choice of levels", *map(heading, setups.items())], lines)


def heading(setup: tuple[str, Row]) -> str:
    """A setup's name and its numbers of evaluations."""
    name, part = setup
    return f"{name}, NFE {', '.join(part['survey'])}"


def evidence(result: Row) -> str:
    """How far recommended levels are from the best, and others: a sentence for each sampler."""
    sentences = []
    for sampler in result["regret"]:
        cases = [
            ratios(part)
            for setup in result["setups"].values()
            if setup["sampler"] == sampler
            for part in setup["survey"].values()
        ]
        found = [(label, over_cases(cases, strategies, "cases")) for label, strategies in EVIDENCE[sampler]]
        parts = [f"{label} {value}" for label, value in found if value]
        sentences.append(f"`{sampler}`, {len(cases)} cases (a network at one NFE each): {'; '.join(parts)}.")
    return "\n\n".join(sentences)


def failed_text(failed: Row) -> str:
    """How many cells have samples that are not finite, and which."""
    parts = [
        f"{name} ({', '.join(f'NFE {nfe} seed {seed}' for nfe, seed, _ in cells)})"
        for name, cells in failed.items()
    ]
    count = sum(map(len, failed.values()))
    return f"Not finite, and in no table: the samples of {count} cells, {'; '.join(parts)}."


def listed(numbers: Iterable[int]) -> str:
    """The different ones of some numbers."""
    return " or ".join(f"{number:,}" for number in sorted(set(numbers)))


def setup_text(name: str, setup: Row) -> str:
    """One setup."""
    counts = [len(ratios(part)) for part in setup["survey"].values()]
    drawn = ", ".join(f"{part['count']:,} (NFE {nfe})" for nfe, part in setup["survey"].items())
    seeds = listed(part["seed"] for part in setup["survey"].values())
    parts = [
        f"## {name}",
        f"{min(counts)} to {max(counts)} choices of levels, of each so many samples of seed {seeds}: {drawn}. "
        "Frechet distance of the features over the least one at that NFE:",
        ratio_table(setup),
        *([cost_text(setup)] if setup["searched"] else []),
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
        seeds, count = (listed(line[key] for line in setup["final"]) for key in ("seeds", "count"))
        parts += [
            f"Mean over {seeds} other seeds, {count} samples each (±: deviation between seeds; class_shift: half the "
            "sum of what the classes' shares differ by):",
            final_table(setup),
        ]
    if "failed" in setup:
        parts.append(failed_text(setup["failed"]))
    return "\n\n".join(parts)


def regret_table(regret: Row) -> str:
    """The best strategies of a sampler over all its cases."""
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
    return table(["strategy", "mean", "worst", "where", "pixels", "network", "samples"], lines)


def written(result: Row) -> str:
    """The whole text."""
    parts = [
        "# Do better numbers make better samples?",
        "Written by `benchmarks/experiments/answer.py` from the committed results. A predictor is named "
        "metric-spectrum-floor; cov is the covariance spectrum of the training images, eff the effective spectrum of "
        "the model's denoising errors; as-ddim: the w2 that DDIM would have. "
        "to0: carried to sigma = 0; min: stopped at sigma_min, then 0; free: first level "
        "chosen too; useful: no higher than the network is of use; from20: first level 20; start: the first level of "
        "search-w2-eff-free; ddim: chosen for DDIM; low: one level fewer, then the schedule's least.",
        "## All setups",
        "Distance of a strategy over the least one of all strategies, over every setup and NFE that the survey has: "
        "geometric mean, worst case. Strategies that all setups of a sampler share, best first by the features; then "
        "the same of the pixels, of the features to the samples of the same network in 64 steps, and of the mean "
        "square distance to them:",
        *(f"`{sampler}`:\n\n{regret_table(regret)}" for sampler, regret in result["regret"].items()),
        *(setup_text(name, setup) for name, setup in result["setups"].items()),
    ]
    return "\n\n".join(parts) + "\n"
