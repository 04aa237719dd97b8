"""How samples become a spectrum: which method computes it, and what becomes of samples that are too few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl import _covariance
from fastkl._batches import ArraySamples, BatchSamples, open_samples
from fastkl._lanczos import Options
from fastkl._products import from_products
from fastkl._progress import ProgressOption, check_progress, reporting
from fastkl._shrinkage import check_shrinkage, ledoit_wolf, oas, shrunk
from fastkl._validation import choice

__all__ = ["SampleSpectrum", "spectrum_of_samples"]

METHODS = ("auto", "covariance", "gram", "lanczos")
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
    rtol: float
    n: int
    d: int

    @property
    def missing(self) -> int:
        """How many eigenvalues are 0 for lack of samples."""
        return max(0, self.d - self.n + 1)


def spectrum_of_samples(
    x: Any, floor: float, method: str, shrinkage: Any, options: Options, progress: ProgressOption
) -> SampleSpectrum:
    """Compute the spectrum of samples, shrunk, without the floor; see `Spectrum.from_samples`."""
    choice("method", method, METHODS)
    check_progress(progress)
    samples = open_samples("x", x)
    method = _method(samples, method)
    shrinkage = check_shrinkage(shrinkage, samples, method)
    if shrinkage == "ledoit_wolf":
        assert isinstance(samples, ArraySamples)
        shrinkage = ledoit_wolf(samples)
    if method == "lanczos":
        drawn = 0.0 if shrinkage is None else shrinkage
        values, counts, mean, rtol = from_products(samples, floor, drawn, options, progress)
    else:
        values, mean = _dense(samples, method, progress)
        counts, rtol = None, 0.0
    assert samples.n is not None
    if shrinkage is not None:
        coefficient = oas(values, samples.n) if shrinkage == "oas" else shrinkage
        values = shrunk(values, counts, coefficient)
    return SampleSpectrum(values, counts, mean, rtol, samples.n, samples.d)


def _dense(
    samples: ArraySamples | BatchSamples, method: str, progress: ProgressOption
) -> tuple[_Array, _Array]:
    if method == "covariance":
        with reporting(progress, "samples", samples.n) as advance:
            return _covariance.from_covariance(samples, advance)
    assert isinstance(samples, ArraySamples)
    with reporting(progress, "features, twice", 2 * samples.d) as advance:
        return _covariance.from_gram(samples, advance)


def _method(samples: ArraySamples | BatchSamples, method: str) -> str:
    """Return the method to use, or raise if the samples do not allow it."""
    n = len(samples.array) if isinstance(samples, ArraySamples) else None
    if method == "auto":
        if n is not None and n <= min(samples.d, LARGEST_DENSE):
            return "gram"
        if samples.d <= LARGEST_DENSE:
            return "covariance"
        method = "lanczos"
    if method == "gram" and n is None:
        raise ValueError("method = 'gram': needs all samples at hand: pass x as an array or a memory map")
    if method == "gram" and n is not None and n > samples.d:
        raise ValueError(
            f"method = 'gram': needs no more samples than dimensions, got n = {n} and d = {samples.d}; take "
            f"'covariance'"
        )
    if method == "lanczos" and not samples.repeatable:
        raise ValueError(
            f"{samples.name}: samples of d = {samples.d} dimensions are read once for each step of method "
            f"'lanczos', and an iterator gives them only once: pass an array, a memory map or an object whose "
            f"iter() starts anew, or take method 'covariance' and {16e-9 * samples.d**2:.3g} GB of memory"
        )
    return method
