"""What the comparison says: which divergence predicts the samples, which choice of levels to recommend.

    python benchmarks/experiments/answer.py [--check]

Reads results/samples-*.json and measured-*.json, writes results/answer.json, answer.md and the table in the README
(--check: only tells whether they are current). Two parts of the data: the survey, every strategy with the same few
samples of one seed, for rank correlations and ratios to the best; the final runs, more samples and seeds, for figures
with error bars.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections import defaultdict
from typing import Any

import answer_text
import measured
import numpy as np
import sampling
import strategies
from numpy.typing import NDArray
from scipy.stats import spearmanr
from store import RESULTS, rows_in

import fastkl

README = pathlib.Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- experiments: written by benchmarks/experiments/answer.py -->", "<!-- experiments: end -->"
Floats = NDArray[np.float64]
Row = dict[str, Any]
DISTANCES = ("fd_features", "fd_pixels", "fd_teacher", "to_teacher")
COMPLETE = 0.5  # share of the strategies that a number of evaluations must have, so as to be shown
NEAR = 1.3  # "near the best": at most so many times the least distance
PREDICTORS = [
    (spectrum, metric, floor)
    for spectrum in ("cov", "eff")
    for metric, floors in (
        ("kl", strategies.FLOORS),
        ("reverse_kl", strategies.FLOORS),
        ("jeffreys", strategies.FLOORS),
        ("w2", (0.0, 1e-2, 1e-1)),
    )
    for floor in floors
]


def rows_of(name: str) -> list[Row]:
    """All cells of a setup."""
    return rows_in(RESULTS / f"samples-{name}.json")


def searched_costs(name: str) -> dict[str, dict[str, int]]:
    """Network evaluations that levels searched on samples cost, by strategy and number of evaluations."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for row in rows_in(RESULTS / f"found-{name}.json"):
        found[row["strategy"]][str(row["nfe"])] = row["evaluations"]
    return dict(found)


def survey(rows: list[Row]) -> dict[int, dict[str, Row]]:
    """By number of evaluations and strategy: of each number the cells of the seed and count that has most.

    Cells that failed count as there, but are left out.
    """
    groups: dict[int, dict[tuple[int, int], dict[str, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        groups[row["nfe"]][row["count"], row["seed"]][row["strategy"]] = row
    found = {nfe: max(groups[nfe].values(), key=len) for nfe in sorted(groups)}
    most = max(map(len, found.values()), default=0)
    finite = {nfe: without_failed(table) for nfe, table in found.items() if len(table) >= COMPLETE * most}
    return {nfe: table for nfe, table in finite.items() if table}


def without_failed(table: dict[str, Row]) -> dict[str, Row]:
    """The strategies whose samples could be scored."""
    return {name: row for name, row in table.items() if "failed" not in row}


def failures(rows: list[Row]) -> Row:
    """Strategies whose samples were not finite, with their cells; nothing where there are none."""
    found: dict[str, list[list[int]]] = defaultdict(list)
    for row in rows:
        if "failed" in row:
            found[row["strategy"]].append([row["nfe"], row["seed"], row["count"]])
    return {"failed": dict(sorted(found.items()))} if found else {}


def finals(rows: list[Row]) -> list[Row]:
    """Mean and standard deviation over the seeds of the most samples, where there are 2 seeds or more."""
    groups: dict[tuple[int, str, int], list[Row]] = defaultdict(list)
    most = max((row["count"] for row in rows), default=0)
    for row in rows:
        if row["count"] == most and "failed" not in row:
            groups[row["count"], row["strategy"], row["nfe"]].append(row)
    found = []
    for (count, strategy, nfe), cells in sorted(groups.items()):
        if len(cells) < 2:
            continue
        line: Row = {"strategy": strategy, "nfe": nfe, "count": count, "seeds": len(cells)}
        for score in (*DISTANCES, "precision", "coverage", "recall", "confidence", "class_shift"):
            values = np.array([cell[score] for cell in cells])
            line[score] = [float(values.mean()), float(values.std(ddof=1))]
        found.append(line)
    return found


def predictions(setup: sampling.Setup, s: strategies.Situation, table: dict[str, Row]) -> dict[str, Floats]:
    """Value of every predictor for all strategies at one number of evaluations."""
    levels = np.array([row["sigmas"] for row in table.values()])
    prior = setup.schedule.prior

    def values(spectrum: str, metric: str, floor: float, sampler: str) -> Floats:
        return np.asarray(
            fastkl.divergence(s.spectrum(spectrum, floor), levels, metric, sampler, prior, rtol=1e-6)
        )

    found = {
        f"{metric}-{spectrum}-{floor:g}": values(spectrum, metric, floor, setup.sampler)
        for spectrum, metric, floor in PREDICTORS
        if spectrum in s.spectra
    }
    if setup.sampler != "ddim":
        found |= {f"w2-{spectrum}-0-as-ddim": values(spectrum, "w2", 0.0, "ddim") for spectrum in s.spectra}
    return found


def rank_correlation(values: Floats, distances: Floats) -> float | None:
    """Spearman's; None for fewer than 5 strategies."""
    if len(values) < 5 or np.ptp(values) == 0 or np.ptp(distances) == 0:
        return None
    return round(float(spearmanr(values, distances).statistic), 4)


def is_law(name: str) -> bool:
    """Whether no divergence and no sample chose the levels, so that no predictor is judged on its own optima."""
    chosen = ("search-", "tangent-", "geodesic-", "cma-", "trajectory-")
    return not name.startswith(chosen) and not name.endswith("-start")


def correlations(predicted: dict[str, Floats], distances: dict[str, Floats], names: list[str]) -> Row:
    """Of every predictor: rank correlation with the distances, also among laws and near the best; its favourite."""
    found: Row = {}
    features = distances["fd_features"]
    near = features <= NEAR * features.min()
    laws = np.array([is_law(name) for name in names])
    for name, values in predicted.items():
        first = int(np.argmin(values))
        found[name] = {score: rank_correlation(values, d) for score, d in distances.items()}
        found[name]["laws"] = rank_correlation(values[laws], features[laws])
        found[name]["near"] = rank_correlation(values[near], features[near])
        found[name]["favourite"] = names[first]
        found[name]["ratio"] = round(float(features[first] / features.min()), 4)
        found[name]["value"] = round(float(values[first]), 6)
    return found


def misled(values: Floats, distances: Floats, names: list[str]) -> list[Any]:
    """The strategy whose rank by the prediction is most too good, and the one whose rank is most too bad."""
    gap = np.argsort(np.argsort(distances)) - np.argsort(np.argsort(values))
    return [[names[int(k)], int(gap[k])] for k in (np.argmax(gap), np.argmin(gap))]


def surveyed(setup: sampling.Setup, s: strategies.Situation, table: dict[str, Row]) -> Row:
    """Figures of one setup at one number of evaluations."""
    names = list(table)
    distances = {score: np.array([row[score] for row in table.values()]) for score in DISTANCES}
    values = predictions(setup, s, table)
    one = next(iter(table.values()))
    forecasts = {key: values[name] for key in ("cov", "eff") if (name := f"w2-{key}-0") in values}
    return {
        "count": one["count"],
        "seed": one["seed"],
        "distances": {
            score: dict(zip(names, found.round(4).tolist(), strict=True))
            for score, found in distances.items()
        },
        "correlation": correlations(values, distances, names),
        "w2": {key: forecast.round(6).tolist() for key, forecast in forecasts.items()},
        "misled": {
            key: misled(forecast, distances["fd_features"], names) for key, forecast in forecasts.items()
        },
    }


def summary(setup: sampling.Setup) -> Row:
    """All figures of one setup."""
    rows = rows_of(setup.name)
    s = measured.situation(setup, RESULTS)
    return {
        "data": setup.data,
        "sampler": setup.sampler,
        "searched": searched_costs(setup.name),
        "final": finals(rows),
        "survey": {str(nfe): surveyed(setup, s, table) for nfe, table in survey(rows).items()},
    } | failures(rows)


def regrets(setups: dict[str, Row], score: str) -> dict[str, Row]:
    """Of every strategy that all setups have: the distance over the best one's, worst case and geometric mean."""
    cases = [
        (f"{name} NFE {nfe}", answer_text.ratios(part, score))
        for name, setup in setups.items()
        for nfe, part in setup["survey"].items()
    ]
    found = {}
    for strategy in cases[0][1] if cases else ():
        values = [(part[strategy], where) for where, part in cases if strategy in part]
        if len(values) == len(cases):
            mean = float(np.exp(np.mean([np.log(value) for value, _ in values])))
            worst, where = max(values)
            found[strategy] = {"mean": round(mean, 4), "worst": round(worst, 4), "where": where}
    return dict(sorted(found.items(), key=lambda item: item[1]["mean"]))


def samplers(setups: dict[str, Row]) -> list[str]:
    """Samplers in the order of the setups."""
    return list(dict.fromkeys(setup["sampler"] for setup in setups.values()))


def of_sampler(setups: dict[str, Row], sampler: str) -> Row:
    """Regrets over the setups of one sampler, by score."""
    own = {name: setup for name, setup in setups.items() if setup["sampler"] == sampler}
    return {score: regrets(own, score) for score in DISTANCES}


def with_headline(readme: str, lines: str) -> str:
    """The README with the table between its marks."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{lines}\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    setups = {name: summary(setup) for name, setup in sampling.SETUPS.items() if rows_of(name)}
    setups = {name: setup for name, setup in setups.items() if setup["survey"]}
    result = {
        "setups": setups,
        "regret": {sampler: of_sampler(setups, sampler) for sampler in samplers(setups)},
    }
    texts = {
        RESULTS / "answer.json": json.dumps(result) + "\n",
        RESULTS / "answer.md": answer_text.written(result),
        README: with_headline(README.read_text(encoding="utf-8"), answer_text.headline(result)),
    }
    for path, text in texts.items():
        if not arguments.check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.exit(
                f"{path.name} is not that of the committed results: run benchmarks/experiments/answer.py"
            )


if __name__ == "__main__":
    main()
