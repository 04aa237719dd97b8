"""Write the benchmark tables from the committed result files; with --check, fail if they differ.

Run as `python benchmarks/report.py [--check]`. A section belongs to each result file in SECTIONS and is written by the
function beside it, in whichever of FILES has its marks. The README's headlines are made of several result files.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

from markdown_parts import machine, milliseconds, table
from report_search import search

ROOT = Path(__file__).resolve().parents[1]


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
            row["kind"],
        ]
        for row in result["rows"]
    ]
    head = [
        "d",
        "M",
        "N",
        "time",
        "share of the card's FMA rate",
        "times CuPy elementwise",
        "float32",
        "problem",
    ]
    checks = "; ".join(f"{name}: {found}" for name, found in result["sanitizer"].items())
    worst = f"{max(result['agreement'].values()):.1g}" if result["agreement"] else "not known"
    failures = f"Failed: {'; '.join(result['failures'])}." if result["failures"] else "Nothing failed."
    return [
        f"{result['card']}, arrays on the card, `kl`, medians; its own float64 FMA rate is "
        f"{result['fma_per_s'] / 1e12:.3g}e12/s, its copies move {result['copied_bytes_per_s'] / 1e12:.3g}e12 bytes/s.",
        "",
        *table(head, rows),
        "",
        f"Largest difference from the CPU over the case table: {worst}. {failures} "
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


def growth(points: list[dict]) -> tuple[float, float, float]:
    """Return a and b of the least squares of a + b M, in seconds, relative to the times, and the largest misfit."""
    sizes, seconds = ([p[key] for p in points] for key in ("candidates", "seconds"))
    weights = [1.0 / t**2 for t in seconds]
    w = sum(weights)
    x = sum(a * m for a, m in zip(weights, sizes, strict=True)) / w
    y = sum(a * t for a, t in zip(weights, seconds, strict=True)) / w
    rows = list(zip(weights, sizes, seconds, strict=True))
    slope = sum(a * (m - x) * (t - y) for a, m, t in rows) / sum(a * (m - x) ** 2 for a, m, _ in rows)
    start = y - slope * x
    return start, slope, max(abs((start + slope * m) / t - 1.0) for _, m, t in rows)


def sweeps(result: dict) -> list[str]:
    """Return the rates of sweeps, and what a cluster costs."""
    start, slope, misfit = growth(result["points"])
    full, dask, difference = result["full"], result["dask"], result["right"]["largest_relative_difference"]
    return [
        "Candidates of 10 steps on MNIST (784 eigenvalues), Karras' levels for EDM, screened to "
        f"`rtol={result['rtol']:.0e}` on two",
        f"threads, the top {result['top']} exact, files included:",
        "",
        *table(
            ["candidates", "time", "candidates/s", "peak memory"],
            [
                [
                    f"{row['candidates']:,}",
                    f"{row['seconds']:.1f} s",
                    f"{row['candidates'] / row['seconds']:,.0f}",
                    f"{row['peak_memory_MB']:.0f} MB",
                ]
                for row in result["points"]
            ],
        ),
        "",
        f"Time is {start:.1f} s and {1e6 * slope:.2f} s a million candidates, which fits the rows to "
        f"{100 * misfit:.0f} %.",
        f"The top {result['top']} of the most are those of exact evaluation without sweeps, with the",
        f"same values {f'to {difference:.0e}' if difference else 'to the last bit'}. {full['candidates']:,} candidates "
        f"with all rows to disk take {full['seconds']:.1f} s and {full['bytes_per_row']:.1f} bytes a",
        f"row. Two Dask workers take {dask['workers_s']:.1f} s for {dask['candidates']:,} candidates where two threads "
        f"take {dask['local_s']:.1f} s ({100 * dask['overhead']:+.0f} %).",
        f"Load of the machine, with whatever else ran: {result['largest_load_average']:.1f} at most.",
        "",
        *machine(result),
    ]


SECTIONS: dict[str, Callable[[dict], list[str]]] = {
    "cpu": evaluation,
    "compression": compression,
    "samplers": samplers,
    "search": search,
    "sweeps": sweeps,
}


def headlines(results: dict[str, dict]) -> list[str]:
    """Return the README's few numbers."""
    cpu, small, found = results["cpu"], results["compression"]["gain"], results["search"]["cases"]
    rate = next(row for row in cpu["rates"] if (row["N"], row["threads"]) == (10, 1))
    noisy = next(
        row for row in results["samplers"]["rates"] if (row["sampler"], row["threads"]) == ("dpmpp_2m", 1)
    )
    kl = [row for row in found if row["metric"] == "kl"]
    rows = [
        ["exact `kl`, 10 steps, one thread", f"{rate['eigenvalue_steps_per_s'] / 1e9:.1f}e9 eigenvalue-steps/s, "
         f"{rate['times_numpy']:.0f} times vectorised NumPy"],
        ["DPM-Solver++(2M), the same", f"{noisy['eigenvalue_evaluations_per_s'] / 1e9:.2f}e9 "
         f"eigenvalue-evaluations/s, {noisy['times_numpy']:.0f} times"],
        [f"a million eigenvalues, compressed to {small['nodes']} nodes",
         f"100,000 candidates in {small['candidates_100000_s'] * 1e3:.0f} ms"],
        ["best of all choices of T = 1000 timesteps, `kl`",
         f"{sum(row['proved'] for row in kl)} of {len(kl)} proved, median and worst time "
         f"{milliseconds([row['seconds'] for row in kl])}"],
    ]  # fmt: skip
    cores = f"{cpu['cpu']}, {cpu['cpus']} CPUs"
    return table([f"on {cores}", "measured"], rows)


FILES = ("README.md", "benchmarks/RESULTS.md")


def result_of(name: str) -> dict:
    """Return the contents of a result file."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"benchmarks/results/{name}.json is missing: run its script in benchmarks/")
    return json.loads(path.read_text(encoding="utf-8"))


def updated(texts: dict[str, str], mark: str, lines: list[str]) -> None:
    """Rewrite the section of a mark in the one file that has it."""
    begin, end = f"<!-- {mark}: written by benchmarks/report.py -->", f"<!-- {mark}: end -->"
    homes = [file for file, text in texts.items() if begin in text]
    if len(homes) != 1:
        raise SystemExit(f"{begin} must be in one of {', '.join(FILES)}, is in {', '.join(homes) or 'none'}")
    before, rest = texts[homes[0]].split(begin)
    texts[homes[0]] = "\n".join([before + begin, *lines, end + rest.split(end)[1]])


def main() -> int:
    """Rewrite or check the files."""
    old = {file: (ROOT / file).read_text(encoding="utf-8") for file in FILES}
    new = dict(old)
    results = {name: result_of(name) for name in SECTIONS}
    for name, section in SECTIONS.items():
        updated(new, f"{name}.json", section(results[name]))
    updated(new, "headlines", headlines(results))
    cards = sorted((ROOT / "benchmarks" / "results").glob("gpu-*.json"))
    updated(new, "gpu.json", gpu([json.loads(path.read_text(encoding="utf-8")) for path in cards]))
    changed = [file for file in FILES if new[file] != old[file]]
    if "--check" not in sys.argv[1:]:
        for file in changed:
            (ROOT / file).write_text(new[file], encoding="utf-8")
    elif changed:
        print(
            f"{', '.join(changed)}: not benchmarks/results; run python benchmarks/report.py", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
