"""Samples from arrays, memory maps and iterables of batches, read in blocks of float64 rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl._mapped import let_go, map_below, read_only_map
from fastkl._progress import Advance
from fastkl._validation import real_array

__all__ = ["ArraySamples", "BatchSamples", "open_samples"]

_BLOCK = 1 << 21  # elements of the float64 working copy of samples: 16 MiB
_FEW = 8
_LARGEST = 1e15
_RULE = "must be finite and at most 1e15 in magnitude"

_Array = NDArray[np.float64]
_Part = tuple[str, int, NDArray[Any]]  # what to call it, index of its first sample under that name, samples


class ArraySamples:
    """Samples along the first axis of an array: in memory, or of a memory map whose pages are let go once read."""

    def __init__(self, name: str, array: NDArray[Any]) -> None:
        self.name = name
        self.array = array
        self.shape = array.shape[1:]
        self.d = math.prod(self.shape)
        self.n: int | None = len(array)
        self._map = read_only_map(array)

    @property
    def repeatable(self) -> bool:
        """Whether the samples can be read more than once."""
        return True

    @property
    def in_memory(self) -> bool:
        """Whether no file backs the array."""
        return map_below(self.array) is None

    def blocks(self, advance: Advance, least_rows: int = 1) -> Iterator[_Array]:
        """Yield all samples as (k, d) float64 blocks, which the next block overwrites; `advance` takes each k."""
        step = _rows_of_block(self.d, least_rows)
        parts = (
            (self.name, start, self.array[start : start + step]) for start in range(0, len(self.array), step)
        )
        for block in _blocks(parts, self.d, step):
            yield block
            self._let_go()
            advance(len(block))

    def column_blocks(self) -> Iterator[tuple[slice, _Array]]:
        """Yield all samples as (n, w) float64 blocks, which the next overwrites, and which features they are."""
        n = len(self.array)
        width = min(self.d, max(1, _BLOCK // n))
        buffer = np.empty(n * width)
        rows = (
            n if self._map is None else _FEW
        )  # what the system reads around a few features of a row adds up
        start = 0
        for index in _feature_blocks(self.shape, width):
            part = self.array[(slice(None), *index)]
            block = buffer[: part.size].reshape(n, -1)
            for row in range(0, n, rows):
                _copy(self._named(index), row, part[row : row + rows], block[row : row + rows])
                self._let_go()
            yield slice(start, start + block.shape[1]), block
            start += block.shape[1]

    def _named(self, index: tuple[slice, ...]) -> str:
        """What to call a part of the array in an error message."""
        inner = [f"{cut.start}:{cut.stop}" if cut != slice(None) else ":" for cut in index]
        return self.name if all(cut == ":" for cut in inner) else f"{self.name}[:, {', '.join(inner)}]"

    def _let_go(self) -> None:
        """Give back the memory of a map's pages; what is read again comes from the file."""
        let_go(self._map)


class BatchSamples:
    """Samples in batches (k, ...) of any lengths, from an iterator (one pass) or an iterable (any number)."""

    def __init__(self, name: str, batches: Iterable[Any]) -> None:
        self.name = name
        self.n: int | None = None  # known after a whole pass
        self._batches = batches
        ahead = iter(batches)
        self.repeatable = ahead is not batches
        try:
            first = next(ahead)
        except StopIteration:
            raise ValueError(f"{name}: must hold at least 2 samples, got no batch") from None
        self._next: Iterator[Any] | None = chain((first,), ahead)
        first = _batch_array(f"batch 0 of {name}", first)
        self.shape = first.shape[1:]
        self.d = math.prod(self.shape)
        _check_features(f"batch 0 of {name}", first)

    def blocks(self, advance: Advance, least_rows: int = 1) -> Iterator[_Array]:
        """Yield all samples as (k, d) float64 blocks, which the next block overwrites; `advance` takes each k.

        The rows of blocks do not depend on how the samples are cut into batches.
        """
        batches, self._next = self._next or iter(self._batches), None
        step = _rows_of_block(self.d, least_rows)
        count = 0
        for block in _blocks(self._parts(batches), self.d, step):
            yield block
            count += len(block)
            advance(len(block))
        if count < 2:
            raise ValueError(f"{self.name}: must hold at least 2 samples, got {count} in all batches")
        if self.n not in (None, count):
            raise ValueError(
                f"{self.name}: must give the same samples each time, got {self.n} and then {count}"
            )
        self.n = count

    def _parts(self, batches: Iterator[Any]) -> Iterator[_Part]:
        for k, item in enumerate(batches):
            name = f"batch {k} of {self.name}"
            batch = _batch_array(name, item)
            if batch.shape[1:] != self.shape:
                raise ValueError(
                    f"{name}: must hold samples of shape {self.shape} like batch 0, got shape {batch.shape}"
                )
            yield name, 0, batch


def open_samples(name: str, x: Any) -> ArraySamples | BatchSamples:
    """Return array_like `x` of shape (n, ...), or an iterable of such batches, as samples to read; or raise."""
    if _is_batches(x):
        return BatchSamples(name, x)
    array = _as_array(name, x)
    if len(array) < 2:
        raise ValueError(f"{name}: must hold at least 2 samples, got shape {array.shape}")
    _check_features(name, array)
    return ArraySamples(name, array)


def _is_batches(x: Any) -> bool:
    if isinstance(x, Sequence | Mapping | Set) or hasattr(x, "__array__"):
        return False
    try:
        memoryview(x)  # what has a buffer is an array
    except TypeError:
        return isinstance(x, Iterable)
    return False


def _as_array(name: str, value: Any) -> NDArray[Any]:
    """Return `value` as an array of real numbers, in its own dtype if it has one, with at least two axes."""
    if isinstance(value, np.ndarray):
        array = value
    elif hasattr(value, "__array__"):
        try:
            array = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:  # a tensor on a device, or one with a gradient
            raise TypeError(
                f"{name}: must be an array of real numbers, got {type(value).__name__} ({error})"
            ) from None
    else:
        array = real_array(name, value, ndim=range(65), min_size=0)
    if array.ndim < 2:
        raise ValueError(f"{name}: must have shape (n, ...) with at least two axes, got shape {array.shape}")
    real_array(name, array[:1], ndim=array.ndim, min_size=0)  # checks the kind of element
    return array


def _batch_array(name: str, item: Any) -> NDArray[Any]:
    if isinstance(item, list | tuple) and any(hasattr(part, "__array__") for part in item):
        raise TypeError(
            f"{name}: must be an array, got a {type(item).__name__} of {len(item)}; where batches come with "
            f"labels, pass the samples alone: (batch[0] for batch in loader)"
        )
    return _as_array(name, item)


def _check_features(name: str, array: NDArray[Any]) -> None:
    if 0 in array.shape[1:]:
        raise ValueError(f"{name}: must have at least one feature, got shape {array.shape}")


def _rows_of_block(d: int, least: int) -> int:
    return max(least, _BLOCK // d)


def _blocks(parts: Iterable[_Part], d: int, step: int) -> Iterator[_Array]:
    """Copy parts of any lengths into blocks of `step` rows (the last may have fewer)."""
    buffer: _Array | None = None  # of untouched memory, so that few samples cost little
    used = 0
    for name, start, part in parts:
        taken = 0
        while taken < len(part):
            if buffer is None:
                buffer = np.empty((step, d))
            piece = part[taken : taken + step - used]
            _copy(name, start + taken, piece, buffer[used : used + len(piece)])
            taken += len(piece)
            used += len(piece)
            if used == step:
                yield buffer
                used = 0
    if buffer is not None and used:
        yield buffer[:used]


def _copy(name: str, start: int, part: NDArray[Any], block: _Array) -> None:
    """Copy samples into the rows of a block, or raise if one of them is not finite or too large."""
    with np.errstate(over="ignore"):  # a long double may become inf, which is refused
        block.reshape(part.shape)[...] = part
    if block.min() >= -_LARGEST and block.max() <= _LARGEST:  # False for NaN
        return
    valid = (block >= -_LARGEST) & (block <= _LARGEST)
    index = np.unravel_index(int(np.argmin(valid)), part.shape)
    where = ", ".join(str(int(i)) for i in (index[0] + start, *index[1:]))
    raise ValueError(f"{name}[{where}] = {part[index].item()!r}: {_RULE}")


def _feature_blocks(shape: tuple[int, ...], width: int) -> Iterator[tuple[slice, ...]]:
    """Cut samples of a shape into pieces of at most `width` features, in C order, each a rectangle."""
    if math.prod(shape) <= width:
        yield (slice(None),) * len(shape)
        return
    inner = math.prod(shape[1:])
    if inner <= width:
        step = width // inner
        for start in range(0, shape[0], step):
            yield (slice(start, min(start + step, shape[0])), *(slice(None),) * (len(shape) - 1))
        return
    for row in range(shape[0]):
        for rest in _feature_blocks(shape[1:], width):
            yield (slice(row, row + 1), *rest)
