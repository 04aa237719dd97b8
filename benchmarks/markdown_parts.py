"""Parts of the Markdown that the scripts write from result files."""

from __future__ import annotations

import statistics


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


def milliseconds(seconds: list[float]) -> str:
    """Return the median and the largest of some times."""
    return f"{1e3 * statistics.median(seconds):,.0f} ms ({1e3 * max(seconds):,.0f})"
