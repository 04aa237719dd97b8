"""Write the README's benchmark tables from the committed result files; with --check, fail if they differ.

Run as `python benchmarks/report.py [--check]`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- benchmarks: begin, written by benchmarks/report.py -->", "<!-- benchmarks: end -->"


def rate_table(result: dict) -> list[str]:
    """Return the table of evaluation rates."""
    lines = [
        "| steps N | threads | eigenvalue-steps/s | share of the machine's FMA rate | times vectorised NumPy |",
        "|---|---|---|---|---|",
    ]
    return lines + [
        f"| {row['N']} | {row['threads']} | {row['eigenvalue_steps_per_s'] / 1e9:.1f}e9 "
        f"| {row['share_of_fma_rate']:.0%} | {row['times_numpy']:.0f} |"
        for row in result["rates"]
    ]


def sampler_table(result: dict) -> list[str]:
    """Return the table of the samplers' rates, and what stands below it."""
    lines = [
        f"Other samplers, {result['N']} steps of {result['M']} candidates on {result['d']:,} eigenvalues, one thread;"
        " an evaluation counts as one",
        "division, the least of the recursions, and an output as four.",
        "",
        "| sampler | evaluations | eigenvalue-evaluations/s | share of the machine's division rate "
        "| times vectorised NumPy |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['sampler']} | {row['nfe']} | {row['eigenvalue_evaluations_per_s'] / 1e9:.2f}e9 "
        f"| {row['share_of_division_rate']:.0%} | {row['times_numpy']:.1f} |"
        for row in result["rates"]
        if row["threads"] == 1
    ]
    plain, noisy = result["precise_eigenvalue_evaluations_per_s"].values()
    return [
        *lines,
        "",
        f"On schedules so fine that the divergence needs more digits: {plain / 1e9:.2f}e9 without noise, "
        f"{noisy / 1e9:.2f}e9 with.",
        f"Measured {result['date']} at commit {result['commit'][:12]}.",
    ]


def report(result: dict, samplers: dict) -> str:
    """Return the text between the markers."""
    first, startup, growth = result["rates"][0], result["startup"], result["growth"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    exponents = ", ".join(f"{name}^{growth[name]['exponent']:.2f}" for name in ("d", "M", "N"))
    lines = [
        f"Exact `kl` of {first['M']} candidates on {first['d']:,} eigenvalues, medians of rounds in which all rivals",
        "are timed one after the other; a step counts as two fused multiply-adds (FMA), the least of the exact form.",
        "",
        *rate_table(result),
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
        *sampler_table(samplers),
        "",
        f"Machine: {result['cpu']}, {result['cpus']} CPUs, {result['system']}, Python {result['python']}; {versions}.",
        f"Measured {result['date']} at commit {result['commit'][:12]}. GPU: not measured (no GPU kernels yet).",
    ]
    return "\n".join(lines)


def main() -> int:
    """Rewrite or check README.md."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    read = []
    for name, script in (("cpu.json", "side_by_side.py"), ("samplers.json", "samplers.py")):
        results = ROOT / "benchmarks" / "results" / name
        if not results.exists():
            print(f"{results} is missing: run python benchmarks/{script}", file=sys.stderr)
            return 1
        read.append(json.loads(results.read_text(encoding="utf-8")))
    updated = f"{before}{BEGIN}\n{report(*read)}\n{END}{after}"
    if "--check" not in sys.argv[1:]:
        path.write_text(updated, encoding="utf-8")
    elif updated != text:
        print(
            "README.md differs from benchmarks/results: run python benchmarks/report.py",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
