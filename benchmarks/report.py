"""Write the README's benchmark tables from the committed result files; with --check, fail if they differ.

Run as `python benchmarks/report.py [--check]`. A section of the README belongs to each result file in SECTIONS and is
written by the function beside it.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def machine(result: dict) -> list[str]:
    """Return where and when a file was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return [
        f"Machine: {result['cpu']}, {result['cpus']} CPUs, {result['system']}, Python {result['python']}; {versions}.",
        f"Measured {result['date']} at commit {result['commit'][:12]}.",
    ]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return a table in Markdown."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def evaluation(result: dict) -> list[str]:
    """Return the rates of exact evaluation."""
    first, startup, growth = result["rates"][0], result["startup"], result["growth"]
    exponents = ", ".join(f"{name}^{growth[name]['exponent']:.2f}" for name in ("d", "M", "N"))
    return [
        f"Exact `kl` of {first['M']} candidates on {first['d']:,} eigenvalues, medians of rounds in which all rivals",
        "are timed one after the other; a step counts as two fused multiply-adds (FMA), the least of the exact form.",
        "",
        *table(
            [
                "steps N",
                "threads",
                "eigenvalue-steps/s",
                "share of the machine's FMA rate",
                "times vectorised NumPy",
            ],
            [
                [
                    str(row["N"]),
                    str(row["threads"]),
                    f"{row['eigenvalue_steps_per_s'] / 1e9:.1f}e9",
                    f"{row['share_of_fma_rate']:.0%}",
                    f"{row['times_numpy']:.0f}",
                ]
                for row in result["rates"]
            ],
        ),
        "",
        f"Time grows as {exponents} (fitted over ranges of 30 to 64 times, one thread). Schedules so fine that the",
        f"divergence needs more digits (N = 1000 here) run at {result['fine_eigenvalue_steps_per_s'] / 1e9:.1f}e9 "
        "eigenvalue-steps/s a thread.",
        "",
        f"`import fastkl` takes {startup['import_s'] * 1e3:.0f} ms; the first `divergence` in a process "
        f"{startup['first_call_warm_cache_s']:.2f} s with compiled kernels",
        f"on disk and {startup['first_call_cold_cache_s']:.0f} s without (once per installation); a later small call "
        f"{startup['later_call_s'] * 1e6:.0f} us.",
        "",
        *machine(result),
    ]


def gpu(results: list[dict]) -> list[str]:
    """Return what was measured on each card, or that nothing was."""
    if not results:
        return [
            "GPU: not measured. The kernels have been compiled for sm_80, sm_90, sm_100 and sm_120 and run on a host",
            "in a GPU's place, never on a GPU; `benchmarks/gpu.py` holds the predictions and measures all in one go.",
        ]
    return list(itertools.chain.from_iterable(card(result) for result in results))


def card(result: dict) -> list[str]:
    """Return the times on one card."""
    rows = [
        [
            *(f"{row[name]:,}" for name in ("d", "M", "N")),
            f"{row['seconds'] * 1e3:.3g} ms",
            f"{row['share_of_fma_rate']:.0%}",
            f"{row['times_elementwise']:.0f}",
            f"{row['float32_seconds'] * 1e3:.3g} ms",
        ]
        for row in result["rows"]
    ]
    head = ["d", "M", "N", "time", "share of the card's FMA rate", "times CuPy elementwise", "float32"]
    checks = "; ".join(f"{name}: {found}" for name, found in result["sanitizer"].items())
    return [
        f"{result['card']}, arrays on the card, `kl`, medians; its own float64 FMA rate is "
        f"{result['fma_per_s'] / 1e12:.3g}e12/s, its copies move {result['copied_bytes_per_s'] / 1e12:.3g}e12 bytes/s.",
        "",
        *table(head, rows),
        "",
        f"Largest difference from the CPU over the case table: {max(result['agreement'].values()):.1g}. "
        f"compute-sanitizer: {checks}.",
        f"Driver {result['driver']}, CUDA {result['cuda_runtime']}, CuPy {result['cupy']}.",
        f"Kernels {result['kernels']}.",
        f"Measured {result['date']} at commit {result['commit'][:12]}.",
        "",
    ]


def compression(result: dict) -> list[str]:
    """Return nodes and errors of compressed spectra, and what they gain."""
    gain, disk = result["gain"], result["from_disk"]
    spectra = list(dict.fromkeys(row["spectrum"] for row in result["accuracy"]))
    rtols = list(dict.fromkeys(row["rtol"] for row in result["accuracy"]))
    cells = {
        (row["spectrum"], row["rtol"]): f"{row['nodes']} ({row['worst_found']:.0e})"
        for row in result["accuracy"]
    }
    decades = {row["spectrum"]: f"{row['decades']:.1f}" for row in result["accuracy"]}
    growth = ", ".join(
        f"{r['seconds']:.2g} s for {r['d']:.0e}" for r in result["growth"] if r["threads"] == 2
    )
    return [
        f"A million log-normal eigenvalues (standard deviation of the logarithm 2) become {gain['nodes']} nodes in "
        f"{gain['compression_s'] * 1e3:.0f} ms for `rtol=1e-10`;",
        f"exact evaluation of 32 candidates of 10 steps takes {gain['exact_32_candidates_s'] * 1e3:.0f} ms. After that "
        f"100,000 candidates take {gain['candidates_100000_s'] * 1e3:.0f} ms,",
        f"{gain['times_exact_rate']:,.0f} times the rate of exact evaluation.",
        "",
        "Nodes, and in brackets the worst relative error found over",
        "absurd, near-optimal and worst-case schedules and all metrics, against the `rtol` asked for:",
        "",
        *table(
            ["spectrum", "decades", *(f"rtol {rtol:.0e}" for rtol in rtols)],
            [[name, decades[name], *(cells[name, rtol] for rtol in rtols)] for name in spectra],
        ),
        "",
        f"The pass over the eigenvalues takes, from memory on two threads, {growth}; {disk['d']:.0e} from a",
        f"memory map on disk take {disk['seconds']:.1f} s and {disk['peak_memory_MB']:.0f} MB of memory, where reading "
        f"the file alone takes {disk['reading_alone_s']:.1f} s.",
        "",
        *machine(result),
    ]


def samplers(result: dict) -> list[str]:
    """Return the samplers' rates."""
    plain, noisy = result["precise_eigenvalue_evaluations_per_s"].values()
    return [
        f"Samplers other than `ddim`, {result['N']} steps of {result['M']} candidates on {result['d']:,} eigenvalues,",
        "one thread; an evaluation counts as one division, the least of the recursions, and an output as four.",
        "",
        *table(
            [
                "sampler",
                "evaluations",
                "eigenvalue-evaluations/s",
                "share of the machine's division rate",
                "times vectorised NumPy",
            ],
            [
                [
                    row["sampler"],
                    str(row["nfe"]),
                    f"{row['eigenvalue_evaluations_per_s'] / 1e9:.2f}e9",
                    f"{row['share_of_division_rate']:.0%}",
                    f"{row['times_numpy']:.1f}",
                ]
                for row in result["rates"]
                if row["threads"] == 1
            ],
        ),
        "",
        f"On schedules so fine that the divergence needs more digits: {plain / 1e9:.2f}e9 without noise, "
        f"{noisy / 1e9:.2f}e9 with.",
        "",
        *machine(result),
    ]


def search(result: dict) -> list[str]:
    """Return times and proofs of the search, and what others reach."""
    spectra = list(dict.fromkeys(row["spectrum"] for row in result["cases"]))
    return [
        f"All of {', '.join(spectra)} (d = 3072), T = 1000 timesteps or grid times, warm; in brackets the worst case.",
        "",
        *proofs(result["cases"]),
        "",
        "Under `kl`, over these spectra; the best of uniform (trailing or linspace), quadratic, Karras (rho 7),",
        "exponential, tangent (gamma* and 1), tan/arctan and geodesic levels, moved to timesteps where there are any:",
        "",
        *search_times([row for row in result["cases"] if row["metric"] == "kl"]),
        "",
        *search_growth(result["growth"]),
        "",
        "Ratios below 1: on continuous schedules a standard schedule need not keep to the grid of even times, which",
        "is coarse at small levels for flow and EDM.",
        "",
        "Rivals with the formula, at N = 5, 10, 20 on mnist and 1/i, linear and EDM; SciPy has the gradient; CMA-ES",
        f"{'was not measured' if result['cma'] is None else '1000 evaluations a level'}. Excess over the proved "
        "optimum of the grid (below 0: EDM levels may lie off it).",
        "",
        *search_rivals(result["rivals"]),
        "",
        *machine(result),
    ]


def milliseconds(seconds: list[float]) -> str:
    """Return the median and the largest of some times."""
    return f"{1e3 * statistics.median(seconds):,.0f} ms ({1e3 * max(seconds):,.0f})"


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


def search_times(rows: list[dict]) -> list[str]:
    """Return a table with a row for each schedule and N."""
    lines = []
    for schedule, steps in dict.fromkeys((row["schedule"], row["N"]) for row in rows):
        some = [row for row in rows if (row["schedule"], row["N"]) == (schedule, steps)]
        known = [{name: x for name, x in row["times_best"].items() if x is not None} for row in some]
        names = Counter(min(ratios, key=ratios.__getitem__) for ratios in known)
        least = [min(ratios.values()) for ratios in known]
        lines.append(
            [
                schedule,
                str(steps),
                milliseconds([row["seconds"] for row in some]),
                " or ".join(name for name, _ in names.most_common()),
                f"{min(least):.3g} to {max(least):.3g}",
                milliseconds([row["fast_seconds"] for row in some]),
                percent(max(row["fast_excess"] for row in some)),
            ]
        )
    head = ["schedule", "N", "time with proof", "best standard schedule", "times the optimum", "`prove=False`",
            "its largest excess"]  # fmt: skip
    return table(head, lines)


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


SECTIONS: dict[str, Callable[[dict], list[str]]] = {
    "cpu": evaluation,
    "compression": compression,
    "samplers": samplers,
    "search": search,
}


def updated(text: str, name: str) -> str:
    """Return the README with the section of one result file rewritten."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"benchmarks/results/{name}.json is missing: run its script in benchmarks/")
    return rewritten(text, name, SECTIONS[name](json.loads(path.read_text(encoding="utf-8"))))


def rewritten(text: str, name: str, lines: list[str]) -> str:
    """Return the README with other lines in one section."""
    begin, end = f"<!-- {name}.json: written by benchmarks/report.py -->", f"<!-- {name}.json: end -->"
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    return "\n".join([before + begin, *lines, end + after])


def main() -> int:
    """Rewrite or check README.md."""
    path = ROOT / "README.md"
    old = new = path.read_text(encoding="utf-8")
    for name in SECTIONS:
        new = updated(new, name)
    cards = sorted((ROOT / "benchmarks" / "results").glob("gpu-*.json"))
    new = rewritten(new, "gpu", gpu([json.loads(path.read_text(encoding="utf-8")) for path in cards]))
    if "--check" not in sys.argv[1:]:
        path.write_text(new, encoding="utf-8")
    elif new != old:
        print("README.md differs from benchmarks/results: run python benchmarks/report.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
