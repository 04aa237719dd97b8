"""The text that goes with results/gaussian.json: a verdict on each claim, with the numbers that decide it."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterable
from typing import Any

sys.path.append(str(pathlib.Path(__file__).parents[1]))

import markdown_parts
from gaussian_claims import CONDITIONS, NEAR, POWERED, RIVALS, SETTINGS, Cases, word

Row = dict[str, Any]
SHOWN = (2, 3, 5, 10, 20, 50, 100, 200, 1000)  # N in the tables, as far as they were evaluated


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return a table in Markdown between blank lines."""
    return ["", *markdown_parts.table(head, rows), ""]


def of(pair: list[int]) -> str:
    """Return "3 of 4"."""
    return f"{pair[0]} of {pair[1]}"


def percent(pair: list[int]) -> str:
    """Return "75.0 %"."""
    return f"{100 * pair[0] / pair[1]:.1f} %"


def number(value: float) -> str:
    """Return three significant digits, without an exponent up to 100,000."""
    return f"{value:,.0f}" if abs(value) >= 100.0 else f"{value:.3g}"


def middle(values: list[float]) -> str:
    """Return the median, with least and largest in brackets."""
    return f"{number(values[1])} ({number(values[0])} to {number(values[2])})"


def columns(by_n: Row) -> list[str]:
    """Return the N of a table's columns."""
    return [n for n in by_n if int(n) in SHOWN]


def head(result: Row) -> list[str]:
    """Return what was evaluated."""
    kinds = [row["kind"] for row in result["spectra"]]
    dims = [row["dim"] for row in result["spectra"] if row["kind"] == "low"]
    high = ", ".join(
        row["name"] if " d=" in row["name"] else f"{row['name']} (d={row['dim']}, its own floor)"
        for row in result["spectra"]
        if row["kind"] == "high"
    )
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return [
        "# Gaussian sources: which claims hold",
        "",
        f"`kl` of DDIM in closed form, {kinds.count('low')} spectra of low dimension (d = {min(dims)} to {max(dims)}; "
        f"random ones log-uniform between 0.001 and 10, seed {result['seed']}) and {kinds.count('high')} of high "
        f"dimension: {high}; N = {', '.join(map(str, result['plan']['steps']))}. A case is a spectrum and an N. "
        f'Setting "same": {SETTINGS["same"]}; it compares discretizations alone. Setting "own": {SETTINGS["own"]}; '
        "it is what a user meets. The claims are worded here, after arXiv 2601.13602. Ranges in brackets are least and "
        "largest over the spectra. Written by "
        "`benchmarks/experiments/gaussian_claims.py` from `gaussian.json`.",
        "",
        f"Machine: {result['cpu']}, {result['cpus']} CPUs, {result['system']}, Python {result['python']}; {versions}. "
        f"Computed {result['date']} at commit {result['commit'][:12]} in {result['total_s']:.0f} s.",
        "",
    ]


def fastest(result: Row) -> list[str]:
    """Return the text on claim (a)."""
    same, own = (result["verdicts"]["fastest"][name] for name in ("same", "own"))
    beaten = ", ".join(f"{name} {count}" for name, count in same["beaten_by"].items())
    groups = "; ".join(
        f"{group['from']:g} to {group['to']:g}: {of(group['won'])}"
        if group["to"] < CONDITIONS[-1]
        else f"above {group['from']:g}: {of(group['won'])}"
        for group in same["by_condition"]
        if group["won"][1]
    )
    numbers = columns(same["by_N"])
    rows = [[name, *(of(part["by_N"][n]) for n in numbers)] for name, part in (("same", same), ("own", own))]
    rivals = [
        [name, *(cell for part in (same, own) for cell in (of(part["rivals"][name]["won"]),
                                                          middle(part["rivals"][name]["rival_over_tangent"])))]
        for name in RIVALS
    ]  # fmt: skip
    return [
        f"## (a) The tangent law with gamma* converges fastest among the fixed schedules: {same['verdict']}",
        "",
        f'With uniform times it has the least `kl` of all in {of(same["won"])} cases of "same" (low dimension '
        f'{of(same["low"])}, high {of(same["high"])}) and in {of(own["won"])} of "own" (low {of(own["low"])}, high '
        f'{of(own["high"])}). In "same" it was beaten by {beaten or "none"} (cases in which that schedule was best). '
        f'By condition number, largest over smallest eigenvalue, it won in "same": {groups}. Theory promises '
        "less than the claim: the tangent law is the best of all laws for one eigenvalue, and with gamma* the best "
        "tangent law as N grows.",
        *table(["won, uniform times", *(f"N={n}" for n in numbers)], rows),
        "One rival at a time, over all cases: how often the tangent law is at least as good, and `kl` of the rival "
        "over that of the tangent law.",
        *table(["rival", "same: won", "same: ratio", "own: won", "own: ratio"], rivals),
        *examples(result),
        *geodesic(result),
    ]


def examples(result: Row) -> list[str]:
    """Return kl on the spectra of high dimension at one N."""
    names = [row["name"] for row in result["spectra"] if row["kind"] == "high"]
    n = 10
    own = Cases(result, "own")
    i = own.steps.index(n)
    rows = [
        [schedule, *(number(own.uniform(name, schedule)[i]) for name in names)]
        for schedule in (*POWERED, "geodesic")
    ]
    return [f'`kl` in nats at N = {n}, uniform times, "own":', *table(["schedule", *names], rows)]


def geodesic(result: Row) -> list[str]:
    """Return the text on the geodesic, on best powers and on the speed of convergence."""
    same, own = (result["verdicts"]["beside"][name] for name in ("same", "own"))
    numbers = columns(same["tangent_over_geodesic"])
    rows = [
        [name, *(middle(part["tangent_over_geodesic"][n]) for n in numbers)]
        for name, part in (("same", same), ("own", own))
    ]
    falls = ", ".join(f"{name} {middle(values)}" for name, values in same["fall_when_last_N_doubles"].items())
    powered = same["tangent_best_with_best_powers"]
    last = max(result["plan"]["steps"])
    return [
        "The geodesic, best of all laws to leading order, is not above the tangent law in "
        f'{total(same["geodesic_not_above_tangent"])} cases of "same" and '
        f'{total(own["geodesic_not_above_tangent"])} of "own". `kl` of the tangent law over that of the geodesic:',
        *table(["tangent / geodesic", *(f"N={n}" for n in numbers)], rows),
        f'When every schedule may have its best power, the tangent law is best in {of(powered["won"])} cases of "same" '
        f"({powered['verdict']}); the geodesic without any power is as good as or better than all fixed schedules with "
        f"their best powers in {of(same['geodesic_not_above_rivals_with_best_powers'])}.",
        "",
        f'From N = {last // 2} to {last} `kl` falls, in "same", by a factor of (4 is 1/N^2; near 1 it has '
        f"stopped falling, as EDM does where the last step, from 0.002 to 0, counts): {falls}.",
        "",
    ]


def total(by_n: Row) -> str:
    """Return the sum of shares."""
    return of(added(by_n.values()))


def added(pairs: Iterable[list[int]]) -> list[int]:
    """Return the sum of shares."""
    return [sum(column) for column in zip(*pairs, strict=True)]


def gamma_tables(found: Row) -> list[str]:
    """Return where the best gamma lies, and what gamma* costs, by strategy and N."""
    numbers = columns(found["uniform"]["by_N"])
    ratios, costs = [], []
    for name, part in found.items():
        cells = [part["by_N"].get(n) for n in numbers]
        ratios.append([name, *("" if x is None else middle(x["best_over_star"]) for x in cells)])
        factors = ("" if x is None else middle([1.0 + e for e in x["excess"]]) for x in cells)
        costs.append([name, of(part["within_1_percent"]), *factors])
    names = [f"N={n}" for n in numbers]
    return [
        *table(["best gamma / gamma*", *names], ratios),
        *table(["kl at gamma* / kl at best", "within 1 %", *names], costs),
    ]


def directions(found: Row, others: list[str]) -> tuple[str, str]:
    """Return in how many cases powers above 1 want more than gamma*, and powers below 1 less."""
    powers = {name: float(name.removeprefix("power ")) for name in others}
    above = added(found[name]["best_above_star"] for name in others if powers[name] > 1.0)
    below = added(found[name]["best_above_star"] for name in others if powers[name] < 1.0)
    return of(above), of([below[1] - below[0], below[1]])


def gammas(result: Row) -> list[str]:
    """Return the text on claim (b)."""
    found = result["verdicts"]["gamma"]
    uniform = found["uniform"]
    worst = max(part["excess"][2] for part in uniform["by_N"].values())
    verdicts = ", ".join(f"{name} {part['verdict']}" for name, part in found.items())
    others = [name for name in found if name.startswith("power")]
    up, down = directions(found, others)
    last = list(uniform["by_N"])[-1]
    ends = uniform["by_N"][last]["best_over_star"]
    return [
        "## (b) gamma* is the best gamma under each discretization strategy: uniform "
        f"{uniform['verdict']}, power-uniform {word(*added(found[name]['within_1_percent'] for name in others))}",
        "",
        f"Verdict by strategy: {verdicts}.",
        "",
        f"Under uniform times from infinity `kl` at gamma* is within {100 * NEAR:g} % of that at the best gamma in "
        f"{of(uniform['within_1_percent'])} cases (low dimension {of(uniform['low'])}, high {of(uniform['high'])}) and "
        f"at worst {100 * worst:.3g} % above it; at N = {last} the best gamma is {ends[0]:.3f} to {ends[2]:.3f} "
        "gamma*. "
        f"Under power-uniform times ({', '.join(name.removeprefix('power ') for name in others)}) it is within 1 % in "
        f"{of(added(found[name]['within_1_percent'] for name in others))}: the best gamma is above gamma* in {up} "
        f"cases of powers above 1 and below it in {down} of powers below 1. "
        f'"uniform from 80" cuts the path at 80 (exact first variance); the best gamma is furthest from gamma* on '
        f"{found['uniform from 80']['furthest']}. "
        '"on the linear table" are tangent levels moved to distinct whole timesteps of the DDPM linear table, '
        "`vp` prior. Gammas from gamma*/30 to 30 gamma* were tried; 0.033 or 30 means that the best lies there or "
        "beyond.",
        *gamma_tables(found),
    ]


def by_steps(title: str, key: str, found: Row) -> list[str]:
    """Return a table of one quantity, schedules by N."""
    numbers = columns(found["tangent"]["by_N"])
    rows = [[name, *(middle(found[name]["by_N"][n][key]) for n in numbers)] for name in POWERED]
    return table([title, *(f"N={n}" for n in numbers)], rows)


def powers(result: Row) -> list[str]:
    """Return the text on claim (c)."""
    same, own = (result["verdicts"]["power"][name] for name in ("same", "own"))
    rows = [
        [name, same[name]["verdict"], of(same[name]["helps"]), of(own[name]["helps"]), of(same[name]["power_2_hurts"]),
         number(same[name]["power_2_over_1"][2])]
        for name in POWERED
    ]  # fmt: skip
    middle_n = result["plan"]["steps"][len(result["plan"]["steps"]) // 2]
    correlations = ", ".join(
        f"{name} {same[name]['gain_and_least_eigenvalue']:.2f}"
        for name in POWERED
        if same[name]["gain_and_least_eigenvalue"] is not None
    )
    never = "; ".join(
        f"{name}: {len(same[name]['never_helps_on'])} of {len(result['spectra'])}, of gamma* "
        f"{number(same[name]['their_gamma_star'][0])} to {number(same[name]['their_gamma_star'][2])}"
        for name in POWERED
        if same[name]["never_helps_on"]
    )
    return [
        "## (c) Power-uniform times with a power above 1 help: "
        + ", ".join(f"{x} {same[x]['verdict']}" for x in POWERED),
        "",
        "Cases in which some power above 1 is better than uniform times; cases in which power 2 is worse than uniform "
        f'times, and the largest ratio of the two. In "same", spectra on which no power above 1 helps at any N: '
        f"{never or 'none'}.",
        *table(
            ["schedule", "verdict", "helps, same", "helps, own", "power 2 hurts, same", "worst factor"], rows
        ),
        'Factor gained in "same" by the best of the powers '
        f"{', '.join(f'{power:g}' for power in result['plan']['powers'])} (the last means that or more), "
        "and that power:",
        *by_steps("gain", "gain", same),
        *by_steps("best power", "best_power", same),
        f"Rank correlation of the gain at N = {middle_n} with the least eigenvalue (-1: the smaller that is, the more "
        f"is gained): {correlations}.",
        "",
    ]


def reached(cell: Row) -> str:
    """Return from which N on the expansion is good enough."""
    return middle(cell["from_N"]) if cell["from_N"] else "none"


def expansion(result: Row) -> list[str]:
    """Return the text on claim (d)."""
    found = result["verdicts"]["expansion"]
    rows = []
    for schedule, part in found.items():
        for order in (key for key in part if key.isdigit()):
            cells = (part[order][limit] for limit in ("0.1", "0.01"))
            rows.append(
                [schedule, order, *(x for cell in cells for x in (reached(cell), of(cell["by_200"])))]
            )
    ranks = ", ".join(f"{name} {part['order_2_N_and_condition']}" for name, part in found.items())
    six = "Order 6 against order 4: " + "; ".join(
        f"{100 * float(limit):g} % sooner in {of(added(part[f'order_6_sooner_{limit}'] for part in found.values()))}, "
        f"later in {of(added(part[f'order_6_later_{limit}'] for part in found.values()))}"
        for limit in ("0.1", "0.01")
    ) + "."  # fmt: skip
    rules = ", ".join(f"{name} {middle(part['order_2_N_over_rule'])}" for name, part in found.items())
    return [
        "## (d) The expansion in 1/N predicts `kl` for N at least: "
        + ", ".join(f"{name} {reached(part['4']['0.1'])}" for name, part in found.items())
        + " (order 4, 10 %, median)",
        "",
        "Smooth schedules visited at t = 1 - k/N to their own end (0.002 for EDM), exact first variance. The first N "
        "from which on the relative error stays within 10 % or 1 %, where it was reached by N = "
        f"{max(result['plan']['expansion_steps'])}, and on how many spectra by N = 200:",
        *table(["schedule", "order", "10 % from N", "by 200", "1 % from N", "by 200"], rows),
        "The leading term errs by about a_3/(a_2 N), which the coefficients of `fastkl.expansion` tell beforehand: N "
        f"for 10 % over 10 a_3/a_2 is {rules}. Rank correlation of that N with the condition number: {ranks}. {six}",
        "",
    ]


def tables(result: Row) -> list[str]:
    """Return what the tables change."""
    found = result["verdicts"]["tables"]
    numbers = columns(next(iter(found.values())))
    rows = [[name, *(middle(part[n]) for n in numbers)] for name, part in found.items()]
    return [
        "## What a table of 1000 timesteps changes",
        "",
        '`kl` at the nearest whole timesteps of the shipped tables over that of the continuous form, "own", power 1:',
        *table(["table", *(f"N={n}" for n in numbers)], rows),
    ]


def summary(result: Row) -> list[str]:
    """Return one sentence or two for each claim."""
    same, own = (result["verdicts"]["fastest"][name] for name in ("same", "own"))
    rivals = ", ".join(f"{name} {percent(part['won'])}" for name, part in same["rivals"].items())
    over = result["verdicts"]["beside"]["same"]["tangent_over_geodesic"]["10"]
    gamma = result["verdicts"]["gamma"]
    powered = added(part["within_1_percent"] for name, part in gamma.items() if name.startswith("power"))
    power = result["verdicts"]["power"]["same"]
    helps = ", ".join(f"{name} {percent(part['helps'])}" for name, part in power.items())
    expansion = result["verdicts"]["expansion"]
    first = ", ".join(f"{name} {reached(part['4']['0.1'])}" for name, part in expansion.items())
    return [
        f"- (a) The tangent law with gamma* is the best of the fixed schedules in {of(same['won'])} cases with the "
        f"same first and last level ({same['verdict']}) and in {of(own['won'])} with each schedule's own "
        f"({own['verdict']}). With the same levels it is at least as good as each of them in: {rivals}. At N = 10 its "
        f"`kl` is {middle(over)} times that of the geodesic.",
        f"- (b) gamma* costs at most 1 % more than the best gamma in {of(gamma['uniform']['within_1_percent'])} cases "
        f"under uniform times, {of(powered)} under power-uniform ones, "
        f"{of(gamma['on the linear table']['within_1_percent'])} on the timesteps of a DDPM model.",
        f"- (c) A power above 1 beats uniform times in this share of cases, from the same first level: {helps}.",
        f"- (d) The expansion to 1/N^4 is within 10 % of `kl` from N = {first} on.",
        "",
    ]


def report(result: Row) -> str:
    """Return the whole text."""
    parts = (head, summary, fastest, gammas, powers, expansion, tables)
    lines = [line for part in parts for line in part(result)]
    formulas = [f"- {name}: {formula}." for name, formula in result["formulas"].items()]
    lines += ["## Noise schedules", "", *formulas]
    return "\n".join(line for i, line in enumerate(lines) if line or lines[i - 1]) + "\n"
