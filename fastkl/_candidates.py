"""Checks of candidate schedules of noise levels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl._validation import check_all, decreasing, real_array

__all__ = ["candidate_levels"]

LEAST, LARGEST = 1e-15, 1e15
BLOCK = 1 << 20  # elements checked at a time, so that the checks need little memory


def candidate_levels(name: str, value: Any) -> tuple[NDArray[np.float64], bool]:
    """Return candidates as (M, N+1) float64, and whether there was only one of shape (N+1,); or raise.

    Levels fall strictly; the first may be inf, the last may be 0, all others lie within [1e-15, 1e15], the range in
    which the kernels can neither overflow nor underflow.
    """
    array = real_array(name, value, ndim=(1, 2))
    if array.shape[-1] < 2:
        raise ValueError(
            f"{name}: must hold at least two levels a candidate (N+1 for N steps), got shape {array.shape}"
        )
    if array.ndim == 1:
        check_levels(name, array)
        return array[None, :], True
    rows = max(1, BLOCK // array.shape[1])
    for begin in range(0, array.shape[0], rows):
        try:
            check_levels(name, array[begin : begin + rows])
        except ValueError:
            if begin == 0:
                raise
            check_levels(name, array)  # again, for the index in the whole array
            raise
    return array, False


def check_levels(name: str, levels: NDArray[np.float64]) -> None:
    """Raise unless every level is in range and below the one before it."""
    check_all(name, levels, levels >= 0.0, "a noise level must be a number >= 0")
    valid = (levels >= LEAST) & (levels <= LARGEST)
    valid[..., 0] |= np.isinf(levels[..., 0])
    valid[..., -1] |= levels[..., -1] == 0.0
    check_all(
        name,
        levels,
        valid,
        f"must lie within [{LEAST:g}, {LARGEST:g}]; only the first may be inf, only the last 0",
    )
    decreasing(name, levels)
