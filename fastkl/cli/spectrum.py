"""``fastkl spectrum``: what a covariance spectrum looks like."""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl import __version__
from fastkl.cli.options import add_floor, add_json
from fastkl.cli.printing import digits, print_json, require_rich, table
from fastkl.cli.spectra import read_spectrum
from fastkl.spectrum import Spectrum

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run", "summary"]

SUMMARY = "summarise a covariance spectrum"
DESCRIPTION = (
    "Prints a summary of a preset or of a file of eigenvalues: .npy (1-D), .npz (eigenvalues, and counts and mean if "
    "it has them), .csv or .txt (one row or column)."
)

LABELS = {
    "entries": "entries",
    "dim": "dimension",
    "total_variance": "total variance",
    "largest": "largest eigenvalue",
    "smallest": "smallest eigenvalue",
    "zeros": "zero eigenvalues",
    "condition_number": "condition number",
    "participation_ratio": "effective rank (participation ratio)",
    "entropy_rank": "effective rank (entropy)",
    "tangent_gamma": "gamma* of the tangent law",
    "mean_norm": "norm of the mean",
}
SHARES = (0.5, 0.9, 0.99)

Array = NDArray[np.float64]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `spectrum`."""
    parser.add_argument("spectrum", metavar="NAME_OR_FILE", help="a preset's name or a file")
    add_floor(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the summary."""
    if not arguments.json:
        require_rich()
    result = summary(read_spectrum(arguments.spectrum, arguments.floor))
    if arguments.json:
        print_json(
            {"fastkl": __version__, "spectrum": arguments.spectrum, "floor": arguments.floor, **result}
        )
        return 0
    rows = [(label, digits(result[key])) for key, label in LABELS.items()]
    rows += [
        (
            f"eigenvalues with {100 * share:g} % of the variance",
            digits(result["variance_quantiles"][str(share)]),
        )
        for share in SHARES
    ]
    table(f"Spectrum {arguments.spectrum}", [("quantity", "left"), ("value", "right")], rows)
    return 0


def summary(spectrum: Spectrum) -> dict[str, Any]:
    """Return the numbers; an eigenvalue counts as often as its count says, None stands for "not defined"."""
    from fastkl.theory import tangent_gamma

    values = spectrum.eigenvalues
    counts = np.ones(len(values)) if spectrum.counts is None else spectrum.counts
    mean = np.zeros(len(values)) if spectrum.mean is None else spectrum.mean
    largest, smallest = float(values.max()), float(values.min())
    zeros = float(counts[values == 0.0].sum())
    return {
        "entries": len(spectrum),
        "dim": spectrum.dim,
        "total_variance": spectrum.total_variance,
        "largest": largest,
        "smallest": smallest,
        "zeros": int(zeros) if zeros.is_integer() else zeros,
        "condition_number": largest / smallest if smallest > 0.0 else None,
        **effective_ranks(values, counts),
        "tangent_gamma": tangent_gamma(spectrum) if smallest > 0.0 else None,
        "mean_norm": math.sqrt(float((counts * mean * mean).sum())),
        "variance_quantiles": {str(share): holding(values, counts, share) for share in SHARES},
    }


def effective_ranks(values: Array, counts: Array) -> dict[str, float | None]:
    """Return (sum)^2/(sum of squares) and the exponential of the entropy of the eigenvalues' shares."""
    total = float((counts * values).sum())
    if total == 0.0:
        return {"participation_ratio": None, "entropy_rank": None}
    shares, weights = values[values > 0.0] / total, counts[values > 0.0]
    entropy = -float((weights * shares * np.log(shares)).sum())
    return {
        "participation_ratio": 1.0 / float((weights * shares * shares).sum()),
        "entropy_rank": math.exp(entropy),
    }


def holding(values: Array, counts: Array, share: float) -> int | None:
    """Return how many of the largest eigenvalues hold `share` of the variance."""
    order = np.argsort(-values, kind="stable")
    values, counts = values[order], counts[order]
    held = np.cumsum(counts * values)
    if held[-1] == 0.0:
        return None
    wanted = share * held[-1]
    k = int(np.searchsorted(held, wanted))
    rest = wanted - (float(held[k - 1]) if k else 0.0)
    number: float = float(counts[:k].sum()) + min(rest / float(values[k]), float(counts[k]))
    return math.ceil(number)
