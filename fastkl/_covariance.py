"""Eigenvalues, and the mean along the eigenvectors, of a covariance matrix or of samples held in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from fastkl._validation import check_all, real_array

__all__ = ["eigenvalues_of_matrix", "eigenvalues_of_samples"]

_EPS = float(np.finfo(np.float64).eps)
_BLOCK = 1 << 21  # elements of the float64 working copy of samples: 16 MiB
_LARGEST_AMPLITUDE = np.float64(1e15)  # of a type that float16 samples are promoted to

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


def eigenvalues_of_samples(x: ArrayLike) -> tuple[_Array, _Array]:
    """Eigenvalues (largest first) of the covariance of samples, and mean; see `Spectrum.from_samples`."""
    samples = _sample_matrix(x)
    n, d = samples.shape
    return _from_covariance(samples) if n > d else _from_gram(samples)


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


def _sample_matrix(x: ArrayLike) -> NDArray[Any]:
    """Return samples as (n, d) in their own dtype, without a copy where the memory layout allows it."""
    array = x if isinstance(x, np.ndarray) else real_array("x", x, ndim=range(65), min_size=0)
    if array.ndim < 2:
        raise ValueError(f"x: must have shape (n, ...) with at least two axes, got shape {array.shape}")
    real_array("x", array[:1], ndim=array.ndim, min_size=0)  # checks the kind of element
    if len(array) < 2:
        raise ValueError(f"x: must hold at least 2 samples, got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"x: must have at least one feature, got shape {array.shape}")
    if not (array.min() >= -_LARGEST_AMPLITUDE and array.max() <= _LARGEST_AMPLITUDE):  # NaN compares False
        valid = (array >= -_LARGEST_AMPLITUDE) & (array <= _LARGEST_AMPLITUDE)
        check_all("x", array, valid, "must be finite and at most 1e15 in magnitude")
    return np.asarray(array).reshape(len(array), -1)


def _blocks(length: int, width: int) -> Iterator[slice]:
    """Cut range(length) into slices short enough for a float64 copy of `width` elements each."""
    step = max(1, _BLOCK // width)
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _from_covariance(samples: NDArray[Any]) -> tuple[_Array, _Array]:
    """Eigenvalues and mean from the d x d covariance."""
    n, d = samples.shape
    origin = samples[0].astype(np.float64)  # differences from a sample make constant features exactly 0
    shift = np.zeros(d)
    for rows in _blocks(n, d):
        block = samples[rows].astype(np.float64)
        block -= origin
        shift += block.sum(axis=0)
    shift /= n
    covariance = np.zeros((d, d))
    for rows in _blocks(n, d):
        block = samples[rows].astype(np.float64)
        block -= origin
        block -= shift
        covariance += block.T @ block
    covariance /= n
    values, vectors = scipy.linalg.eigh(covariance, overwrite_a=True, check_finite=False)
    values = _without_rounding(values[::-1], _EPS)
    rank = int(np.count_nonzero(values))
    projections = (origin + shift) @ vectors[:, ::-1]
    mean = np.zeros(d)
    mean[:rank] = np.abs(projections[:rank])
    mean[rank : rank + 1] = np.linalg.norm(projections[rank:])
    return values, mean


def _from_gram(samples: NDArray[Any]) -> tuple[_Array, _Array]:
    """Eigenvalues and mean from the n x n Gram matrix, whose non-zero eigenvalues are the covariance's."""
    n, d = samples.shape
    gram, overlap, centre = np.zeros((n, n)), np.zeros(n), np.empty(d)
    for columns in _blocks(d, n):
        block = samples[:, columns].astype(np.float64)
        centre[columns] = _centred(block)
        gram += block @ block.T
        overlap += block @ centre[columns]
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
    for columns in _blocks(d, n):
        block = samples[:, columns].astype(np.float64)
        _centred(block)
        rest[columns] -= weights @ block
    mean[rank] = np.linalg.norm(rest)
    return eigenvalues, mean


def _centred(block: _Array) -> _Array:
    """Subtract the mean over rows in place and return it; constant columns become exactly 0."""
    origin = block[0].copy()
    block -= origin
    shift = block.mean(axis=0)
    block -= shift
    return np.asarray(origin + shift)
