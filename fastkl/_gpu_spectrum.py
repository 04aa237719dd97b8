"""A spectrum as the GPU's kernels see it: pieces of whole tiles, and sums of rows in an order that no cut changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl.kernels.ddim_horner import TILE

__all__ = ["DeviceSpectrum", "Piece", "column_sums", "group_sums", "stacked_sum"]

Array = NDArray[np.float64]

STRIPES, COLUMNS = 32, 5  # of a spectrum's totals
GROUP = 64  # rows added by one thread
PREPARED = 1 << 14  # tiles whose totals are made at a time: 16 MiB


@dataclass(frozen=True)
class Piece:
    """Tiles `first` and following of a spectrum, on the device; eigenvalues from number `begin` on."""

    first: int
    tiles: int
    begin: int
    size: int
    eigenvalues: Any
    weights: Any | None
    mean: Any | None

    @property
    def rows(self) -> slice:
        """Return where the piece's tiles are among all."""
        return slice(self.first, self.first + self.tiles)


class DeviceSpectrum:
    """Eigenvalues, weights and mean, and the totals of each tile.

    The arrays are on the device, or all on the host: then each piece is copied whenever it is asked for.
    """

    def __init__(self, device: Any, eigenvalues: Any, weights: Any | None) -> None:
        self._device, self._arrays = device, (eigenvalues, weights, None)
        self.resident = not isinstance(eigenvalues, np.ndarray)
        self.has_mean = False
        self.size = int(eigenvalues.shape[0])
        self.tiles = math.ceil(self.size / TILE)
        self.totals = device.empty((self.tiles, COLUMNS))
        for piece in self.pieces(PREPARED):
            striped = device.empty((piece.tiles * STRIPES, COLUMNS))
            device.launch("spectrum_totals", piece.tiles * STRIPES, piece.eigenvalues, piece.weights,
                          np.int64(piece.size), striped)  # fmt: skip
            group_sums(device, striped, STRIPES, self.totals[piece.rows])
        self.whole = column_sums(device, self.totals)
        self._least: tuple[Any, Any] | None = None

    def pieces(self, length: int) -> Iterator[Piece]:
        """Yield all tiles, `length` at a time."""
        for first in range(0, self.tiles, length):
            end = min(first + length, self.tiles)
            begin, stop = first * TILE, min(end * TILE, self.size)
            arrays = [None if array is None else array[begin:stop] for array in self._arrays]
            if not self.resident:
                arrays = [None if array is None else self._device.upload(array) for array in arrays]
            yield Piece(first, end - first, begin, stop - begin, *arrays)

    def tile_sums(
        self, candidates: int, slices: int, length: int, evaluate: Callable[[Piece, Any], None]
    ) -> Any:
        """Return sums (tiles, M) of what evaluate(piece, partial) writes to rows (tiles of the piece * slices, M)."""
        out = self._device.empty((self.tiles, candidates))
        for piece in self.pieces(length):
            partial = self._device.empty((piece.tiles * slices, candidates))
            evaluate(piece, partial)
            group_sums(self._device, partial, slices, out[piece.rows])
        return out

    def with_mean(self, mean: Any) -> DeviceSpectrum:
        """Return the same spectrum with a mean, which is where the other arrays are."""
        result = copy(self)
        result._arrays, result.has_mean = (*self._arrays[:2], mean), True
        return result

    @property
    def streamed_bytes(self) -> int:
        """Bytes on the device of each tile of a piece."""
        return 0 if self.resident else 8 * TILE * sum(array is not None for array in self._arrays)

    def least(self) -> Any:
        """Return the least eigenvalue of each tile, (tiles,)."""
        if self._least is None:
            least = self._device.empty(self.tiles)
            for piece in self.pieces(PREPARED):
                self._device.launch("tile_least", piece.tiles, piece.eigenvalues, np.int64(piece.size),
                                    least[piece.rows])  # fmt: skip
            self._least = least, self._device.mark()
        least, made = self._least  # at once, for another thread may replace it
        self._device.wait(made)  # a stream of the same number may have made it
        return least


def group_sums(device: Any, array: Any, length: int, out: Any | None = None) -> Any:
    """Return the sums of `length` rows at a time, written to `out` if it is given."""
    rows, columns = array.shape
    if out is None:
        out = device.empty((math.ceil(rows / length), columns))
    device.launch("group_sums", math.ceil(rows / length) * columns, array, np.int64(rows), np.int64(columns),
                  np.int64(length), out)  # fmt: skip
    return out


def column_sums(device: Any, array: Any) -> Any:
    """Return the sum of all rows, (columns,), in a fixed order."""
    while array.shape[0] > 1:
        array = group_sums(device, array, GROUP)
    return array.reshape(-1)


def stacked_sum(device: Any, arrays: list[Any]) -> Any:
    """Return the sum of arrays (M,)."""
    rows = device.empty((len(arrays), int(arrays[0].shape[0])))
    for i, array in enumerate(arrays):
        group_sums(device, array.reshape(1, -1), 1, rows[i])
    return column_sums(device, rows)
