"""The section on `fastkl.search` of the benchmark tables that report.py writes."""

from __future__ import annotations

import statistics

from markdown_parts import machine, milliseconds, table


def search(result: dict) -> list[str]:
    """Return times and proofs of the search, and what others reach."""
    spectra = list(dict.fromkeys(row["spectrum"] for row in result["cases"]))
    schedules = list(dict.fromkeys(row["schedule"] for row in result["cases"]))
    return [
        f"Spectra {', '.join(spectra)} (d = 3072), schedules {', '.join(schedules)}, N = 3 to 50; 1000 timesteps or",
        "levels, warm; in brackets the worst case.",
        "",
        *proofs(result["cases"]),
        "",
        "The divergence of standard schedules, moved to timesteps where there are any, as a multiple of the optimum:",
        "medians over spectra and schedules, and the largest in brackets.",
        "",
        *search_standards(result["cases"]),
        "",
        *search_growth(result["growth"]),
        "",
        "Rivals with the formula, at N = 5, 10, 20 on mnist and 1/i, linear and EDM; SciPy has the gradient, CMA-ES",
        f"{'was not measured' if result['cma'] is None else '1000 evaluations a level'}. Excess over the proved "
        "optimum of the grid (below 0: EDM levels may lie off it).",
        "",
        *search_rivals(result["rivals"]),
        "",
        *machine(result),
    ]


def percent(excess: float) -> str:
    """Return an excess in percent, two digits of it; what rounding leaves is 0."""
    return f"{100 * excess:.2g} %" if abs(excess) > 1e-9 else "0"


def proofs(rows: list[dict]) -> list[str]:
    """Return a table with a row for each metric."""
    lines = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        some = [row for row in rows if row["metric"] == metric]
        lines.append(
            [
                f"`{metric}`",
                f"{sum(row['proved'] for row in some)} of {len(some)}",
                percent(max(row["gap"] for row in some)),
                milliseconds([row["seconds"] for row in some]),
                milliseconds([row["fast_seconds"] for row in some]),
                percent(max(row["fast_excess"] for row in some)),
            ]
        )
    head = [
        "metric",
        "proved optimal",
        "largest gap",
        "time with proof",
        "`prove=False`",
        "its largest excess",
    ]
    return table(head, lines)


STANDARDS = {
    "uniform": ("uniform trailing", "uniform linspace"),  # continuous schedules have the second only
    "quadratic": ("quadratic",),
    "Karras": ("karras",),
    "exponential": ("exponential",),
    "tan/arctan": ("tan/arctan", "tangent gamma 1"),  # the second where the schedule goes on to 0
    "tangent gamma*": ("tangent gamma*",),
    "geodesic": ("geodesic",),
}


def search_standards(rows: list[dict]) -> list[str]:
    """Return a table with a row for each metric and N."""
    lines = []
    for metric, steps in dict.fromkeys((row["metric"], row["N"]) for row in rows):
        some = [row for row in rows if (row["metric"], row["N"]) == (metric, steps)]
        cells = []
        for names in STANDARDS.values():
            ratios = [multiple(row["times_best"], names) for row in some]
            known = [ratio for ratio in ratios if ratio is not None]
            cells.append(f"{statistics.median(known):.3g} ({max(known):.2g})" if known else "none")
        times = [milliseconds([row[key] for row in some]) for key in ("seconds", "fast_seconds")]
        lines.append([f"`{metric}`", str(steps), *times, *cells])
    return table(["metric", "N", "time with proof", "`prove=False`", *STANDARDS], lines)


def multiple(ratios: dict, names: tuple[str, ...]) -> float | None:
    """Return the ratio of the first of some names that is there."""
    return next((ratios[name] for name in names if ratios.get(name) is not None), None)


def search_growth(growth: dict) -> list[str]:
    """Return the times on fine grids and the exponents."""
    points, exponents = [], []
    for schedule in (name for name in growth if name not in ("metric", "spectrum")):
        by_size = growth[schedule]["T"]["rows"]
        times = [
            f"{row['seconds']:.2g} s for T = {row['T']:,}" for row in by_size if row["T"] in (10**4, 10**5)
        ]
        points.append(f"{schedule} {' and '.join(times)}")
        single = [growth[schedule][by]["exponent_of_an_iteration"] for by in ("T", "N")]
        exponents.append(f"T^{single[0]:.2f} N^{single[1]:.2f} ({schedule})")
    return [
        f"N = 10 on finer grids of the same levels, proved, 1/i: {'; '.join(points)}. An iteration takes",
        f"a time that grows as {' and '.join(exponents)}.",
    ]


def search_rivals(rows: list[dict]) -> list[str]:
    """Return a table with a row for each metric and rival."""
    lines = []
    for metric, rival in dict.fromkeys((row["metric"], row["rival"]) for row in rows):
        some = [row for row in rows if (row["metric"], row["rival"]) == (metric, rival)]
        excess = [row["excess"] for row in some]
        lines.append(
            [
                f"`{metric}`",
                rival,
                milliseconds([row["seconds"] for row in some]),
                percent(statistics.median(excess)),
                percent(max(excess)),
            ]
        )
    return table(["metric", "rival", "time", "median excess", "largest excess"], lines)
