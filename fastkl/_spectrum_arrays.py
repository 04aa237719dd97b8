"""Checks of the arrays a spectrum is made of, each of which returns a float64 copy, and their comparison."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastkl._validation import check_all, real_array

__all__ = [
    "check_counts",
    "check_mean",
    "check_range",
    "count_array",
    "eigenvalue_array",
    "mean_array",
    "same",
    "whole",
]

_LEAST, _LARGEST = 1e-30, 1e30  # of variances and of counts

_Array = NDArray[np.float64]


def check_range(name: str, array: _Array, first: int = 0) -> None:
    """Raise unless every element is 0 or within [1e-30, 1e30]; `first` is the index of array[0]."""
    if array.min() >= _LEAST and array.max() <= _LARGEST:  # two passes and no temporary; False for NaN
        return
    valid = array >= _LEAST
    valid &= array <= _LARGEST
    valid |= array == 0.0
    check_all(name, array, valid, "a variance must be 0 or within [1e-30, 1e30]", first)


def eigenvalue_array(name: str, value: ArrayLike) -> _Array:
    """Return a copy of a 1-D array of variances, or raise."""
    array = real_array(name, value, ndim=1)
    check_range(name, array)
    return array + 0.0  # always a copy; -0.0 becomes 0.0


def _of_length(name: str, value: ArrayLike, length: int) -> _Array:
    array = real_array(name, value, ndim=1)
    if len(array) != length:
        raise ValueError(f"{name}: must have shape ({length},) like eigenvalues, got shape {array.shape}")
    return array


def count_array(value: ArrayLike, length: int) -> _Array:
    """Return a copy of `length` counts within [1e-30, 1e30], or raise."""
    array = _of_length("counts", value, length)
    check_counts("counts", array)
    return array + 0.0


def check_counts(name: str, array: _Array, first: int = 0) -> None:
    """Raise unless every element is within [1e-30, 1e30], so that its products with variances stay in range."""
    if not (array.min() >= _LEAST and array.max() <= _LARGEST):
        valid = (array >= _LEAST) & (array <= _LARGEST)
        check_all(name, array, valid, "a count must be within [1e-30, 1e30]", first)


def mean_array(value: ArrayLike, length: int) -> _Array:
    """Return a copy of `length` means, squares of which stay in the range of a variance, or raise."""
    array = _of_length("mean", value, length)
    check_mean("mean", array)
    return array + 0.0


def check_mean(name: str, array: _Array, first: int = 0) -> None:
    """Raise unless every element is at most 1e15 in magnitude."""
    check_all(name, array, np.abs(array) <= 1e15, "must be finite and at most 1e15 in magnitude", first)


def same(a: _Array | None, b: _Array | None, default: float) -> bool:
    """Whether two arrays of one length are equal, where None stands for an array of `default`."""
    return a is b or bool(np.all((default if a is None else a) == (default if b is None else b)))


def whole(total: float) -> int | float:
    """Return a sum of counts, as an int if it is one up to the rounding of a sum."""
    return round(total) if abs(total - round(total)) <= 1e-13 * total else total
