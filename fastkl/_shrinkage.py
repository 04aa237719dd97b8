"""Shrinkage of covariances from few samples: how far eigenvalues are drawn to their mean, and the drawing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl._batches import ArraySamples, BatchSamples
from fastkl._validation import choice, real_number

__all__ = ["check_shrinkage", "ledoit_wolf", "oas", "shrunk"]

_NAMES = ("ledoit_wolf", "oas")

_Array = NDArray[np.float64]


def check_shrinkage(shrinkage: Any, samples: ArraySamples | BatchSamples, method: str) -> str | float | None:
    """Return a name, a coefficient or None, or raise unless the samples and the method have what it needs."""
    if shrinkage is None:
        return None
    if not isinstance(shrinkage, str):
        return real_number("shrinkage", shrinkage, at_least=0.0, at_most=1.0)
    choice("shrinkage", shrinkage, _NAMES)
    if shrinkage == "oas" and method == "lanczos":
        raise ValueError(
            "shrinkage = 'oas': needs all eigenvalues, which method 'lanczos' does not compute; take a number "
            "within [0, 1], or 'ledoit_wolf' for an array in memory"
        )
    if shrinkage == "ledoit_wolf":
        if not (isinstance(samples, ArraySamples) and samples.in_memory):
            raise ValueError(
                f"shrinkage = 'ledoit_wolf': needs all samples in memory, and {samples.name} is "
                f"{'a memory map' if isinstance(samples, ArraySamples) else 'an iterable of batches'}; take 'oas', "
                f"which needs their covariance only, a number within [0, 1], or load the samples"
            )
        _import_scikit_learn()
    return shrinkage


def ledoit_wolf(samples: ArraySamples) -> float:
    """Coefficient of Ledoit and Wolf, by scikit-learn, which makes float64 copies of the samples."""
    matrix = np.empty((len(samples.array), samples.d))
    start = 0
    for block in samples.blocks(lambda _: None):
        matrix[start : start + len(block)] = block
        start += len(block)
    matrix -= matrix[0].copy()  # scikit-learn centres, too, but a large mean would cost it digits
    return float(_import_scikit_learn().ledoit_wolf_shrinkage(matrix))


def oas(eigenvalues: _Array, n: int) -> float:
    """Coefficient of the oracle-approximating shrinkage, from the d eigenvalues of the covariance of n samples.

    scikit-learn's formula, which leaves out the term 2/d of equation 23 of Chen, Wiesel, Eldar and Hero,
    "Shrinkage algorithms for MMSE covariance estimation", IEEE Transactions on Signal Processing 58 (2010). Its
    function takes samples only; the formula needs no more than the covariance, which a stream has.
    """
    d = len(eigenvalues)
    square = float(np.mean(eigenvalues)) ** 2
    mean_square = float(np.mean(np.square(eigenvalues))) / d
    spread = (n + 1) * (mean_square - square / d)
    return min((mean_square + square) / spread, 1.0) if spread > 0.0 else 1.0


def shrunk(eigenvalues: _Array, counts: _Array | None, coefficient: float) -> _Array:
    """Draw eigenvalues to their mean: (1 - a) lambda + a mean(lambda)."""
    mean = float(np.average(eigenvalues, weights=counts))
    return np.asarray((1.0 - coefficient) * eigenvalues + coefficient * mean)


def _import_scikit_learn() -> Any:
    try:
        import sklearn.covariance
    except ImportError:
        raise ImportError(
            "shrinkage='ledoit_wolf' takes its coefficient from scikit-learn: pip install 'fastkl[shrinkage]'"
        ) from None
    return sklearn.covariance
