"""``fastkl spectrum``: the covariance spectrum of data, to a file and in a summary."""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl import __version__
from fastkl._validation import real_number
from fastkl.cli.files import check_output, number, write_spectrum
from fastkl.cli.options import add_json, positive_integer
from fastkl.cli.pictures import add_plot, check_picture, draw_spectrum
from fastkl.cli.printing import digits, line, print_json, require_rich, table
from fastkl.cli.spectra import Data, Reading, read_data
from fastkl.spectrum import Spectrum

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run", "summary"]

SUMMARY = "make a spectrum of samples or images, or summarise one"
DESCRIPTION = (
    "Makes the covariance spectrum of data, prints a summary, and with --out writes it to a file that rank and score "
    "take as --spectrum. DATA is a preset; a folder of images (8-bit greyscale or RGB; png, jpg, bmp, webp, tif; "
    "subfolders too, hidden files not; values are scaled to [-1, 1]); a .npy file of samples along the first axis, "
    "which need not fit in memory, or of eigenvalues (1-D); a .npz file with one array of samples, or with "
    "eigenvalues, and counts, mean and rtol if it has them; .csv or .txt with eigenvalues (one row or column). Arrays "
    "are taken as they are."
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
    "rtol": "relative error that it adds",
}
SHARES = (0.5, 0.9, 0.99)

Array = NDArray[np.float64]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `spectrum`."""
    parser.add_argument("data", metavar="DATA", help="a preset's name, a file or a folder of images")
    parser.add_argument("--out", metavar="FILE.npz", help="write the spectrum to this file")
    parser.add_argument("--force", action="store_true", help="let --out overwrite a file")
    text = (
        "variance added to every eigenvalue (default: the preset's own; for images that of rounding to 8 bits, "
        "(2/255)^2/12; else 0)"
    )
    parser.add_argument("--floor", type=float, metavar="VARIANCE", help=text)
    text = "replace the spectrum by few nodes with the same divergences to this relative error"
    parser.add_argument("--compress", type=float, metavar="RTOL", help=text)
    kind = parser.add_mutually_exclusive_group()
    text = "the file holds samples: rows of text, or numbers of a 1-D array"
    kind.add_argument("--samples", dest="kind", action="store_const", const="samples", help=text)
    text = "the file holds eigenvalues"
    kind.add_argument("--eigenvalues", dest="kind", action="store_const", const="eigenvalues", help=text)
    text = "model of images (n, H, W) or (n, H, W, C) whose covariance is the same everywhere: the power spectrum"
    parser.add_argument("--stationary", action="store_true", help=text)
    text = "shrink the covariance: ledoit_wolf (which holds all samples in memory), oas or a number in [0, 1]"
    parser.add_argument("--shrinkage", type=coefficient, metavar="NAME", help=text)
    text = "cut images to their middle square and scale it to NxN pixels"
    parser.add_argument("--size", type=positive_integer, metavar="N", help=text)
    add_plot(parser, "the spectrum and its compression (to 1e-10 unless --compress says otherwise)")
    add_json(parser)


def coefficient(text: str) -> str | float:
    """Return an argument as a number if it is one, else as the name that it is."""
    try:
        return number(text)
    except ValueError:
        return text


def run(arguments: argparse.Namespace) -> int:
    """Make the spectrum, write it, and print the summary."""
    if not arguments.json:
        require_rich()
    check_picture(arguments.plot)
    if arguments.floor is not None:
        real_number("--floor", arguments.floor, at_least=0.0)
    if arguments.compress is not None:
        real_number("--compress", arguments.compress, at_least=1e-12, below=1.0)
    if arguments.out is not None:
        check_output(arguments.out, arguments.force)
    with warnings_in_lines():
        data, spectrum = made(arguments)
    if arguments.out is not None:
        write_spectrum(arguments.out, spectrum, arguments.force)
    if arguments.plot is not None:
        draw_spectrum(arguments.plot, data.spectrum, arguments.compress or 1e-10)
    report = {
        "fastkl": __version__,
        "spectrum": arguments.data,
        "source": data.source,
        "shape": data.shape,
        "floor": data.floor,
        "out": arguments.out,
        **summary(spectrum),
    }
    print_json(report) if arguments.json else print_summary(report)
    return 0


def made(arguments: argparse.Namespace) -> tuple[Data, Spectrum]:
    """Return what was read, and its spectrum or the compressed one."""
    options = (arguments.kind, arguments.stationary, arguments.shrinkage, arguments.size)
    data = read_data(arguments.data, arguments.floor, Reading(*options, progress=not arguments.json))
    if arguments.compress is None:
        return data, data.spectrum
    return data, data.spectrum.compress(arguments.compress)


@contextmanager
def warnings_in_lines() -> Iterator[None]:
    """Print what the library warns of as this program prints errors."""

    def show(message: Warning | str, *where: Any) -> None:
        print("fastkl: warning:", " ".join(str(message).split()), file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def print_summary(report: dict[str, Any]) -> None:
    """Print a table, and where the spectrum was written."""
    rows = [(label, digits(report[key])) for key, label in LABELS.items()]
    if report["shape"]:
        rows.insert(0, (report["source"], " x ".join(f"{length:,}" for length in report["shape"])))
    for share in SHARES:
        label = f"eigenvalues with {100 * share:g} % of the variance"
        rows.append((label, digits(report["variance_quantiles"][str(share)])))
    table(f"Spectrum {report['spectrum']}", [("quantity", "left"), ("value", "right")], rows)
    if report["out"] is not None:
        line(f"written to {report['out']}")


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
        "rtol": spectrum.rtol,
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
