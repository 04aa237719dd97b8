"""Checks of what callers pass in: every message names the argument, the index, the value and the rule.

A wrong kind of object is a TypeError, a wrong value or shape a ValueError. Nothing is clipped, sorted or cast from
a kind that is not a real number.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.ma import MaskedArray
from numpy.typing import NDArray

__all__ = [
    "boolean",
    "check_all",
    "choice",
    "decreasing",
    "integer",
    "read_only",
    "real_array",
    "real_number",
]

MOST = 10**12  # bound of integers that have no other: no array is longer, and int64 and float64 hold them


def real_array(
    name: str, value: Any, *, ndim: int | Sequence[int] = 1, min_size: int = 1
) -> NDArray[np.float64]:
    """Return `value` as a C-contiguous float64 array of one of the allowed ranks, or raise.

    Integers and floats of any width and byte order are taken (a cast to float64 is exact up to 2**53); booleans,
    complex numbers, strings, objects, ragged lists and masked arrays are not.
    """
    if isinstance(value, MaskedArray):
        raise TypeError(
            f"{name}: must be a plain array of real numbers, got a masked array; fill or drop the mask"
        )
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name}: must be a rectangular array of real numbers ({error})") from None
    except TypeError as error:
        raise TypeError(
            f"{name}: must be an array of real numbers, got {type(value).__name__} ({error})"
        ) from None
    if array.dtype.kind not in "iuf":
        raise TypeError(
            f"{name}: must be an array of real numbers, got dtype {array.dtype} ({type(value).__name__})"
        )
    _refuse_booleans(name, value)
    allowed = (ndim,) if isinstance(ndim, int) else tuple(ndim)
    if array.ndim not in allowed:
        ranks = " or ".join(f"{rank}-D" for rank in allowed)
        raise ValueError(f"{name}: must be {ranks}, got shape {array.shape}")
    if array.size < min_size:
        raise ValueError(f"{name}: must have at least {min_size} element(s), got shape {array.shape}")
    with np.errstate(over="ignore", under="ignore"):
        numbers64 = np.require(array, dtype=np.float64, requirements=["C_CONTIGUOUS", "ALIGNED"])
    if array.dtype.itemsize > 8:  # a long double may have become inf or 0
        kept = (np.isfinite(numbers64) == np.isfinite(array)) & ((numbers64 == 0.0) == (array == 0))
        check_all(name, array, kept, "is out of the range of float64")
    return numbers64


def _refuse_booleans(name: str, value: Any, index: tuple[int, ...] = ()) -> None:
    """Raise if nested lists and tuples hold a boolean, which NumPy takes for a number where it stands beside one."""
    if isinstance(value, bool | np.bool_) or (isinstance(value, np.ndarray) and value.dtype == np.bool_):
        where = ", ".join(map(str, index))
        raise TypeError(f"{name}[{where}] = {value!r}: must be a real number, not a boolean")
    if not isinstance(value, list | tuple):
        return
    if any(issubclass(kind, list | tuple | bool | np.bool_ | np.ndarray) for kind in set(map(type, value))):
        for i, item in enumerate(value):
            _refuse_booleans(name, item, (*index, i))


def read_only(array: NDArray[np.float64]) -> NDArray[np.float64]:
    """Make an array that owns its data read-only, and return a view of it that cannot be made writeable again."""
    array.flags.writeable = False
    return array.view()


def check_all(name: str, array: NDArray[Any], valid: NDArray[np.bool_], rule: str, first: int = 0) -> None:
    """Raise a ValueError about the first element of `array` where `valid` is False; `first` is array[0]'s index."""
    if valid.all():
        return
    index = np.unravel_index(int(np.argmin(valid)), array.shape)
    where = ", ".join(str(int(i)) for i in (index[0] + first, *index[1:]))
    raise ValueError(f"{name}[{where}] = {array[index].item()!r}: {rule}")


def decreasing(name: str, array: NDArray[np.float64]) -> None:
    """Raise unless the last axis is strictly decreasing."""
    falls = np.ones(array.shape, dtype=np.bool_)
    falls[..., 1:] = array[..., 1:] < array[..., :-1]
    if falls.all():
        return
    index = np.unravel_index(int(np.argmin(falls)), array.shape)
    where = ", ".join(str(int(i)) for i in index)
    before = array[(*index[:-1], index[-1] - 1)].item()
    raise ValueError(
        f"{name}[{where}] = {array[index].item()!r}: must be below the element before it ({before!r}); "
        f"{name} must be strictly decreasing"
    )


def real_number(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
    at_most: float = math.inf,
) -> float:
    """Return `value` as a finite float within the bounds, or raise."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: must be a real number, got {value!r} ({type(value).__name__})")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(
            f"{name}: must be within the range of float64, got a larger {type(value).__name__}"
        ) from None
    rules = [
        (math.isfinite(number), "must be finite"),
        (number > above, f"must be above {above:g}"),
        (number >= at_least, f"must be at least {at_least:g}"),
        (number < below, f"must be below {below:g}"),
        (number <= at_most, f"must be at most {at_most:g}"),
    ]
    for holds, rule in rules:
        if not holds:
            raise ValueError(f"{name} = {number!r}: {rule}")
    return number


def boolean(name: str, value: Any) -> bool:
    """Return `value` as a bool, or raise."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: must be True or False, got {value!r} ({type(value).__name__})")
    return bool(value)


def integer(name: str, value: Any, *, minimum: int = 1, maximum: int | None = None) -> int:
    """Return `value` as an int within the bounds (at most 10**12 in any case), or raise."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: must be an integer, got {value!r} ({type(value).__name__})")
    number = int(value)
    most = MOST if maximum is None else maximum
    # Python refuses to print integers of thousands of digits
    shown = str(number) if abs(number) < 10**40 else "an integer of more than 40 digits"
    if number < minimum:
        raise ValueError(f"{name} = {shown}: must be at least {minimum}")
    if number > most:
        raise ValueError(f"{name} = {shown}: must be at most {most}")
    return number


def choice(name: str, value: Any, options: Sequence[str]) -> str:
    """Return `value` if it is one of `options`, or raise."""
    if not isinstance(value, str):
        raise TypeError(
            f"{name}: must be one of {', '.join(map(repr, options))}, got {value!r} ({type(value).__name__})"
        )
    if value not in options:
        raise ValueError(f"{name} = {value!r}: must be one of {', '.join(map(repr, options))}")
    return value
