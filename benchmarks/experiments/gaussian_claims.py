"""What results/gaussian.json says about the paper's claims: counts and ratios, computed from its rows, and a text.

Run as `python benchmarks/experiments/gaussian_claims.py [--check]`: writes results/gaussian.md from
results/gaussian.json; with `--check` it fails if the text, or the verdicts in the result file, are not what the rows
give.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

RESULTS = Path(__file__).resolve().parent / "results"
RIVALS = (
    "linear",
    "cosine",
    "sigmoid",
    "logistic betas",
    "EDM",
    "EDM to sigma_min",
    "flow",
)  # fixed schedules
POWERED = (*RIVALS, "tangent")  # schedules with times, which a power can warp
CONDITIONS = (
    1.0,
    30.0,
    300.0,
    3000.0,
    1e12,
)  # limits of groups of spectra, by largest over smallest eigenvalue
NEAR = 0.01  # "as good as the best": within that much of it
SETTINGS = {
    "same": "the same levels 80 to 0, exact first variance",
    "own": "own first level and prior, with the data's mean",
    "exact": "own first level, exact first variance",
}

Row = dict[str, Any]


def word(won: int, of: int) -> str:
    """Return the verdict on a claim that held in `won` cases."""
    if won == of:
        return "holds"
    return "mostly holds" if won >= 0.9 * of else "holds in part" if won >= 0.5 * of else "fails"


def spread(values: Iterable[float]) -> list[float]:
    """Return least, median and largest."""
    array = np.array(list(values), dtype=float)
    return [float(f"{value:.4g}") for value in (array.min(), np.median(array), array.max())]


def share(flags: Iterable[bool]) -> list[int]:
    """Return how many are true, and of how many."""
    array = list(flags)
    return [sum(bool(flag) for flag in array), len(array)]


def rank_correlation(first: Iterable[float], second: Iterable[float]) -> float | None:
    """Return Spearman's coefficient, None where one of the two does not vary."""
    pair = list(first), list(second)
    if min(len(set(values)) for values in pair) == 1:
        return None
    return float(f"{spearmanr(*pair).statistic:.3g}")


def spectrum_values(result: Row) -> dict[str, Row]:
    """Return gamma*, least eigenvalue and condition number by spectrum."""
    return {
        row["name"]: {
            "gamma_star": row["gamma_star"],
            "smallest": row["smallest"],
            "condition": row["largest"] / row["smallest"],
        }
        for row in result["spectra"]
    }


class Cases:
    """kl of each schedule, by spectrum: arrays over N and powers."""

    def __init__(self, result: Row, setting: str) -> None:
        self.steps: list[int] = result["plan"]["steps"]
        powers = result["plan"]["powers"]
        self.one = 0 if setting == "exact" else powers.index(1.0)
        self.kl: dict[str, dict[str, Any]] = {}
        for row in result["curves"]:
            if row["setting"] == setting:
                self.kl.setdefault(row["spectrum"], {})[row["schedule"]] = np.array(row["kl"])

    def uniform(self, spectrum: str, schedule: str) -> Any:
        """Return kl of uniform times, over N."""
        values = self.kl[spectrum][schedule]
        return values[:, self.one if values.shape[1] > 1 else 0]

    def best(self, spectrum: str, schedule: str) -> Any:
        """Return the least kl of all powers, over N."""
        return self.kl[spectrum][schedule].min(axis=1)


def fastest(result: Row, setting: str) -> Row:
    """Claim (a) in one setting: the tangent law against the fixed schedules, uniform times."""
    cases, kinds = Cases(result, setting), {row["name"]: row["kind"] for row in result["spectra"]}
    wins: dict[tuple[str, int], bool] = {}
    beaten: Counter[str] = Counter()
    for spectrum in cases.kl:
        rivals = np.array([cases.uniform(spectrum, name) for name in RIVALS])
        for i, n in enumerate(cases.steps):
            wins[spectrum, n] = bool(cases.uniform(spectrum, "tangent")[i] <= rivals[:, i].min())
            if not wins[spectrum, n]:
                beaten[RIVALS[int(rivals[:, i].argmin())]] += 1
    values = spectrum_values(result)
    groups = itertools.pairwise(CONDITIONS)
    won, of = share(wins.values())
    found = {"verdict": word(won, of), "won": [won, of], "beaten_by": dict(beaten.most_common())}
    for kind in ("low", "high"):
        found[kind] = share(flag for (name, _), flag in wins.items() if kinds[name] == kind)
    found["by_N"] = {str(n): share(flag for (_, m), flag in wins.items() if m == n) for n in cases.steps}
    found["by_condition"] = [
        {
            "from": low,
            "to": high,
            "won": share(flag for (s, _), flag in wins.items() if low <= values[s]["condition"] < high),
        }
        for low, high in groups
    ]
    found["rivals"] = {name: against(cases, name) for name in RIVALS}
    return found


def against(cases: Cases, rival: str) -> Row:
    """Return how the tangent law does against one schedule, over all spectra and N."""
    ratios = np.array([cases.uniform(s, rival) / cases.uniform(s, "tangent") for s in cases.kl])
    return {"won": share((ratios >= 1.0).ravel()), "rival_over_tangent": spread(ratios.ravel())}


def beside(result: Row, setting: str) -> Row:
    """Compare with the geodesic, and let every schedule have its best power."""
    cases = Cases(result, setting)
    ratios = np.array([cases.uniform(s, "tangent") / cases.uniform(s, "geodesic") for s in cases.kl])
    rivals = {s: np.array([cases.best(s, name) for name in RIVALS]).min(axis=0) for s in cases.kl}
    powered = [share(cases.best(s, "tangent") <= rivals[s]) for s in cases.kl]
    lower = [share(cases.uniform(s, "geodesic") <= rivals[s]) for s in cases.kl]
    won, of = (sum(column) for column in zip(*powered, strict=True))
    last = cases.steps.index(max(cases.steps)), cases.steps.index(max(cases.steps) // 2)
    return {
        "tangent_over_geodesic": {str(n): spread(ratios[:, i]) for i, n in enumerate(cases.steps)},
        "geodesic_not_above_tangent": {str(n): share(ratios[:, i] >= 1.0) for i, n in enumerate(cases.steps)},
        "tangent_best_with_best_powers": {"verdict": word(won, of), "won": [won, of]},
        "geodesic_not_above_rivals_with_best_powers": [sum(column) for column in zip(*lower, strict=True)],
        "fall_when_last_N_doubles": {
            name: spread(cases.uniform(s, name)[last[1]] / cases.uniform(s, name)[last[0]] for s in cases.kl)
            for name in (*POWERED, "geodesic")
        },
    }


def best_gammas(result: Row) -> Row:
    """Claim (b): what gamma* costs over the best gamma, by strategy and N."""
    kinds, found = {row["name"]: row["kind"] for row in result["spectra"]}, {}
    for strategy in dict.fromkeys(row["strategy"] for row in result["sweeps"]):
        rows = [row for row in result["sweeps"] if row["strategy"] == strategy]
        excess = np.array([row["excess"] for row in rows])
        ratio = np.array([row["best_over_star"] for row in rows])
        within = share((excess <= NEAR).ravel())
        found[strategy] = {
            "verdict": word(*within),
            "within_1_percent": within,
            **{
                kind: share(
                    e <= NEAR for row in rows if kinds[row["spectrum"]] == kind for e in row["excess"]
                )
                for kind in ("low", "high")
            },
            "best_above_star": share((ratio > 1.0).ravel()),
            "furthest": rows[int(np.abs(np.log(ratio)).max(axis=1).argmax())]["spectrum"],
            "by_N": {},
        }
        for i, n in enumerate(rows[0]["N"]):
            found[strategy]["by_N"][str(n)] = {
                "within_1_percent": share(excess[:, i] <= NEAR),
                "excess": spread(excess[:, i]),
                "best_over_star": spread(ratio[:, i]),
                "at_edge": share((ratio[:, i] < 1.001 / 30.0) | (ratio[:, i] > 29.97)),
            }
    return found


def power_gains(result: Row, setting: str) -> Row:
    """Claim (c): what the best power gains over power 1, by schedule and N, and where powers above 1 do not help."""
    cases, powers = Cases(result, setting), np.array(result["plan"]["powers"])
    above, two, found = powers > 1.0, int(np.flatnonzero(powers == 2.0)[0]), {}
    values = spectrum_values(result)
    smallest, middle = [values[s]["smallest"] for s in cases.kl], len(cases.steps) // 2
    for name in POWERED:
        kl = np.array([cases.kl[s][name] for s in cases.kl])  # spectrum, N, power
        flat = kl[:, :, cases.one]
        best, higher = kl.min(axis=2), kl[:, :, above].min(axis=2)
        helps = share((higher < flat).ravel())
        kept = (higher >= flat).all(axis=1)
        never = [s for s, none in zip(cases.kl, kept, strict=True) if none]
        gain = flat[:, middle] / best[:, middle]
        found[name] = {
            "verdict": word(*helps),
            "helps": helps,
            "gain_and_least_eigenvalue": rank_correlation(gain, smallest),
            "power_2_hurts": share((kl[:, :, two] > flat).ravel()),
            "power_2_over_1": spread((kl[:, :, two] / flat).ravel()),
            "never_helps_on": never,
            "their_gamma_star": spread(values[s]["gamma_star"] for s in never) if never else None,
            "by_N": {
                str(n): {
                    "gain": spread(flat[:, i] / best[:, i]),
                    "best_power": spread(
                        np.where(flat[:, i] == best[:, i], 1.0, powers[kl[:, i].argmin(axis=1)])
                    ),
                    "helps": share(higher[:, i] < flat[:, i]),
                }
                for i, n in enumerate(cases.steps)
            },
        }
    return found


def predictions(result: Row) -> Row:
    """Claim (d): from which N on the expansion is within 10 and 1 percent; rule: order 2 errs by a_3/(a_2 N)."""
    found: Row = {}
    values = spectrum_values(result)
    for schedule in dict.fromkeys(row["schedule"] for row in result["expansions"]):
        rows = [row for row in result["expansions"] if row["schedule"] == schedule]
        orders = rows[0]["from"]
        found[schedule] = {order: {limit: {} for limit in orders[order]} for order in orders}
        for order, limits in orders.items():
            for limit in limits:
                numbers = [row["from"][order][limit] for row in rows]
                known = [n for n in numbers if n is not None]
                found[schedule][order][limit] = {
                    "from_N": spread(known) if known else None,
                    "by_200": share(n is not None and n <= 200 for n in numbers),
                    "not_reached": numbers.count(None),
                }
        rule = [
            (row["from"]["2"]["0.1"], 10.0 * row["coefficients"][3] / row["coefficients"][2]) for row in rows
        ]
        found[schedule]["order_2_N_over_rule"] = spread(n / guess for n, guess in rule if n is not None)
        numbers = [row["from"]["2"]["0.1"] or np.inf for row in rows]
        conditions = [values[row["spectrum"]]["condition"] for row in rows]
        found[schedule]["order_2_N_and_condition"] = rank_correlation(numbers, conditions)
        for limit in ("0.1", "0.01"):
            pairs = [(row["from"]["4"][limit] or np.inf, row["from"]["6"][limit] or np.inf) for row in rows]
            found[schedule][f"order_6_sooner_{limit}"] = share(six < four for four, six in pairs)
            found[schedule][f"order_6_later_{limit}"] = share(six > four for four, six in pairs)
    return found


def table_ratios(result: Row) -> Row:
    """Return kl of the tables of 1000 timesteps over that of the continuous forms, own prior, uniform times."""
    cases, found = Cases(result, "own"), {}
    for name in dict.fromkeys(row["schedule"] for row in result["tables"]):
        rows = {row["spectrum"]: np.array(row["kl"]) for row in result["tables"] if row["schedule"] == name}
        ratios = np.array([kl / cases.uniform(s, name) for s, kl in rows.items()])
        found[name] = {str(n): spread(ratios[:, i]) for i, n in enumerate(cases.steps)}
    return found


def verdicts(result: Row) -> Row:
    """Return the verdict on every claim, from the rows alone."""
    return {
        "fastest": {name: fastest(result, name) for name in SETTINGS},
        "beside": {name: beside(result, name) for name in ("same", "own")},
        "gamma": best_gammas(result),
        "power": {name: power_gains(result, name) for name in ("same", "own")},
        "expansion": predictions(result),
        "tables": table_ratios(result),
    }


def main() -> int:
    """Write or check the text."""
    from gaussian_text import report

    result = json.loads((RESULTS / "gaussian.json").read_text(encoding="utf-8"))
    text, path = report(result), RESULTS / "gaussian.md"
    if "--check" not in sys.argv[1:]:
        path.write_text(text, encoding="utf-8")
        return 0
    current = result["verdicts"] == json.loads(json.dumps(verdicts(result)))
    if current and path.read_text(encoding="utf-8") == text:
        return 0
    print("gaussian.md or the verdicts are not what gaussian.json gives", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
