"""Eigenvalues, and the mean along the eigenvectors, of a covariance matrix, of samples, or of their Gram matrix."""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray
from scipy.linalg.blas import dsyr, dsyrk

from fastkl._batches import ArraySamples, BatchSamples
from fastkl._progress import Advance
from fastkl._validation import check_all, real_array

__all__ = ["Scatter", "eigenvalues_of_matrix", "from_covariance", "from_gram"]

_EPS = float(np.finfo(np.float64).eps)

_Array = NDArray[np.float64]


def eigenvalues_of_matrix(c: ArrayLike) -> _Array:
    """Eigenvalues of a positive semi-definite matrix, largest first; see `Spectrum.from_covariance`."""
    matrix = real_array("c", c, ndim=2)
    eps = _relative_rounding(c)
    _check_symmetric(matrix, math.sqrt(eps))
    values = scipy.linalg.eigh(matrix, eigvals_only=True, check_finite=False)[::-1]
    largest = max(values[0], -values[-1])
    if values[-1] < -len(values) * eps * largest:
        raise ValueError(
            f"c: must be positive semi-definite, but its least eigenvalue is {values[-1]:.6g} "
            f"(the largest is {values[0]:.6g})"
        )
    return _without_rounding(values, eps)


def _without_rounding(values: _Array, eps: float) -> _Array:
    """Set eigenvalues (largest first) that the solver's rounding cannot tell from 0 to exactly 0."""
    return np.where(values > len(values) * eps * values[0], values, 0.0)


def _relative_rounding(value: ArrayLike) -> float:
    """Relative rounding error of the numbers in `value`: that of its float dtype, of float64 for all else."""
    dtype = getattr(value, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind == "f":
        return max(_EPS, float(np.finfo(dtype).eps))
    return _EPS


def _check_symmetric(c: _Array, tolerance: float) -> None:
    if c.shape[0] != c.shape[1]:
        raise ValueError(f"c: must be square, got shape {c.shape}")
    check_all("c", c, np.abs(c) <= 1e30, "must be finite and at most 1e30 in magnitude")
    difference = c - c.T
    allowed = tolerance * np.abs(c).max()
    if difference.max() > allowed:
        i, j = sorted(int(k) for k in np.unravel_index(int(difference.argmax()), c.shape))
        raise ValueError(
            f"c[{i}, {j}] = {c[i, j].item()!r}: must equal c[{j}, {i}] = {c[j, i].item()!r} "
            f"to within {allowed:.3g}; c must be symmetric"
        )


class Scatter:
    """Mean of rows and sum of their centred products, updated block by block (Chan, Golub and LeVeque).

    Differences are taken from the first row, so that a large mean costs no digits and constant features are
    exactly 0.
    """

    def __init__(self, d: int) -> None:
        self.count = 0
        self._origin = np.zeros(d)
        self._shift = np.zeros(d)  # mean of the rows so far, less the origin
        self._products = np.zeros((d, d), order="F")  # lower triangle; BLAS updates it in place

    @property
    def mean(self) -> _Array:
        """Mean of the rows added, shape (d,)."""
        return np.asarray(self._origin + self._shift)

    def add(self, block: _Array) -> None:
        """Add rows, shape (k, d); they are overwritten."""
        if self.count == 0:
            self._origin = block[0].copy()
        block -= self._origin
        mean = block.mean(axis=0)
        block -= mean
        before, self.count = self.count, self.count + len(block)
        self._products = dsyrk(1.0, block.T, beta=1.0, c=self._products, lower=1, overwrite_c=1)
        mean -= self._shift
        if before:
            weight = before * (len(block) / self.count)
            self._products = dsyr(weight, mean, a=self._products, lower=1, overwrite_a=1)
        self._shift += mean * (len(block) / self.count)

    def take_covariance(self) -> _Array:
        """Covariance with the factor 1/n, lower triangle; the sums are given away, so this is the last call."""
        covariance = self._products
        del self._products
        covariance /= self.count
        return covariance


def from_covariance(samples: ArraySamples | BatchSamples, advance: Advance) -> tuple[_Array, _Array]:
    """Eigenvalues (largest first) and mean of samples, in one pass, from the d x d covariance."""
    scatter = Scatter(samples.d)
    for block in samples.blocks(advance):
        scatter.add(block)
    covariance = scatter.take_covariance()
    values, vectors = scipy.linalg.eigh(covariance, overwrite_a=True, check_finite=False)
    values = _without_rounding(values[::-1], _EPS)
    values[scatter.count - 1 :] = 0.0  # centring leaves n - 1 dimensions: the rest is rounding
    rank = int(np.count_nonzero(values))
    projections = scatter.mean @ vectors[:, ::-1]
    mean = np.zeros(samples.d)
    mean[:rank] = np.abs(projections[:rank])
    mean[rank : rank + 1] = np.linalg.norm(projections[rank:])
    return values, mean


def from_gram(samples: ArraySamples, advance: Advance) -> tuple[_Array, _Array]:
    """Eigenvalues (largest first) and mean of n <= d samples, in two passes, from the n x n Gram matrix.

    Its non-zero eigenvalues are the covariance's.
    """
    n, d = len(samples.array), samples.d
    gram, overlap, centre = np.zeros((n, n), order="F"), np.zeros(n), np.empty(d)
    for columns, block in samples.column_blocks():
        centre[columns] = _centred(block)
        gram = dsyrk(1.0, block.T, beta=1.0, c=gram, trans=1, lower=1, overwrite_c=1)
        overlap += block @ centre[columns]
        advance(block.shape[1])
    gram /= n
    values, vectors = scipy.linalg.eigh(gram, overwrite_a=True, check_finite=False)
    values = _without_rounding(values[::-1], _EPS)
    rank = min(int(np.count_nonzero(values)), n - 1)  # centring takes one dimension away
    eigenvalues, mean = np.zeros(d), np.zeros(d)
    eigenvalues[:rank] = values[:rank]
    kept = vectors[:, ::-1][:, :rank]
    projections = kept.T @ overlap / np.sqrt(n * values[:rank])
    mean[:rank] = np.abs(projections)
    # The covariance's eigenvectors are block.T @ kept / sqrt(n * values); `rest` is the mean outside them.
    weights = kept @ (projections / np.sqrt(n * values[:rank]))
    rest = centre.copy()
    for columns, block in samples.column_blocks():
        _centred(block)
        rest[columns] -= weights @ block
        advance(block.shape[1])
    mean[rank] = np.linalg.norm(rest)
    return eigenvalues, mean


def _centred(block: _Array) -> _Array:
    """Subtract the mean over rows in place and return it; constant columns become exactly 0."""
    origin = block[0].copy()
    block -= origin
    shift = block.mean(axis=0)
    block -= shift
    return np.asarray(origin + shift)
