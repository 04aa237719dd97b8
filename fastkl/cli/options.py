"""Options that several commands share."""

from __future__ import annotations

import argparse

from fastkl.evaluate import METRICS, PRIORS

__all__ = [
    "add_floor",
    "add_json",
    "add_metric",
    "add_prior",
    "add_spectrum",
    "add_threads",
    "positive_integer",
]


def positive_integer(text: str) -> int:
    """Return an argument as an integer above 0."""
    try:
        number = 0 if "_" in text else int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be an integer above 0, got {text!r}")
    return number


def add_spectrum(parser: argparse.ArgumentParser) -> None:
    """Add --spectrum and --floor."""
    text = "a preset's name, or a file of eigenvalues: .npy, .npz, .csv, .txt (default: %(default)s)"
    parser.add_argument("--spectrum", default="mnist", metavar="NAME_OR_FILE", help=text)
    add_floor(parser)


def add_floor(parser: argparse.ArgumentParser) -> None:
    """Add --floor."""
    text = "variance added to every eigenvalue (default: the preset's own, 0 for files)"
    parser.add_argument("--floor", type=float, metavar="VARIANCE", help=text)


def add_metric(parser: argparse.ArgumentParser) -> None:
    """Add --metric, one of the divergences.

    Its default is not the library's, which is the theory's `kl`: `w2` orders choices of levels as the samples of
    trained networks do, and `kl` hardly (benchmarks/experiments/results/answer.md).
    """
    text = "divergence; w2 chooses best for real networks, kl is the paper's (default: %(default)s)"
    parser.add_argument("--metric", choices=METRICS, default="w2", help=text)


def add_prior(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add --prior; a `default` of None stands for the schedule's own."""
    shown = default or "the schedule's own"
    text = f"what sampling starts from (default: {shown})"
    parser.add_argument("--prior", choices=PRIORS, default=default, help=text)


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add --threads."""
    text = "threads to use (default: FASTKL_NUM_THREADS, else all CPUs)"
    parser.add_argument("--threads", type=positive_integer, metavar="NUMBER", help=text)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    text = 'print one JSON document instead of tables; infinite numbers are the string "inf"'
    parser.add_argument("--json", action="store_true", help=text)
