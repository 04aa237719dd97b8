"""How samples become a spectrum: which method computes it, and what is said of samples that are too few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl import _covariance
from fastkl._batches import ArraySamples, BatchSamples, open_samples
from fastkl._progress import ProgressOption, check_progress, reporting
from fastkl._validation import choice

__all__ = ["LARGEST_DENSE", "METHODS", "SampleSpectrum", "spectrum_of_samples"]

METHODS = ("auto", "covariance", "gram")
LARGEST_DENSE = (
    12_000  # dimension up to which "auto" takes a matrix: 1.2 GB, and about as much for eigenvectors
)

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class SampleSpectrum:
    """What samples say: eigenvalues with counts (None: one each), the mean along each, and how many they were."""

    eigenvalues: _Array
    counts: _Array | None
    mean: _Array
    n: int
    d: int

    @property
    def missing(self) -> int:
        """How many eigenvalues are 0 for lack of samples."""
        return max(0, self.d - self.n + 1)


def spectrum_of_samples(x: Any, method: str, progress: ProgressOption) -> SampleSpectrum:
    """Compute the spectrum of samples by a method; see `Spectrum.from_samples`."""
    choice("method", method, METHODS)
    check_progress(progress)
    samples = open_samples("x", x)
    chosen = _method(samples) if method == "auto" else method
    if chosen == "gram":
        with reporting(progress, "features, twice", 2 * samples.d) as advance:
            values, mean = _covariance.from_gram(_array_for_gram(samples), advance)
    else:
        with reporting(progress, "samples", samples.n) as advance:
            values, mean = _covariance.from_covariance(samples, advance)
    assert samples.n is not None
    return SampleSpectrum(values, None, mean, samples.n, samples.d)


def _method(samples: ArraySamples | BatchSamples) -> str:
    """Return what `auto` means for these samples."""
    if isinstance(samples, ArraySamples) and len(samples.array) <= min(samples.d, LARGEST_DENSE):
        return "gram"
    return "covariance"


def _array_for_gram(samples: ArraySamples | BatchSamples) -> ArraySamples:
    if not isinstance(samples, ArraySamples):
        raise ValueError("method = 'gram': needs all samples at hand: pass x as an array or a memory map")
    if len(samples.array) > samples.d:
        raise ValueError(
            f"method = 'gram': needs no more samples than dimensions, got n = {len(samples.array)} and "
            f"d = {samples.d}; take 'covariance'"
        )
    return samples
