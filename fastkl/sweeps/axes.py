"""Axes of parameter grids: their values at any indices, by arithmetic, so that no grid is ever held in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Axis", "Listed", "Ranged"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Listed:
    """Values that were written down one by one."""

    numbers: tuple[float, ...]

    @property
    def size(self) -> int:
        """How many values there are."""
        return len(self.numbers)

    def at(self, indices: Integers) -> Floats:
        """Return the values at indices."""
        return np.asarray(self.numbers)[indices]

    def bounds(self) -> tuple[float, float]:
        """Return the least and the largest value."""
        return min(self.numbers), max(self.numbers)

    def canonical(self) -> Any:
        """Return what the configuration's hash sees."""
        return list(self.numbers)


@dataclass(frozen=True)
class Ranged:
    """`num` values from `start` to `stop`, both included, in equal steps or in equal ratios.

    A value depends on its index alone, to the last bit, not on the others that are asked for with it.
    """

    start: float
    stop: float
    num: int
    spacing: str

    @property
    def size(self) -> int:
        """How many values there are."""
        return self.num

    def at(self, indices: Integers) -> Floats:
        """Return the values at indices; the ends are exact and rounding leads to none beyond them."""
        share = indices / max(self.num - 1, 1)
        if self.spacing == "log":
            span = math.log(self.stop) - math.log(self.start)
            near = share <= 0.5  # each half from its own end, so that no ratio overflows
            values = np.where(near, self.start, self.stop) * np.exp(np.where(near, share, share - 1.0) * span)
        else:
            values = self.start + share * (self.stop - self.start)
        values = np.clip(values, *self.bounds())
        last = self.stop if self.num > 1 else self.start
        return np.where(indices == self.num - 1, last, np.where(indices == 0, self.start, values))

    def bounds(self) -> tuple[float, float]:
        """Return the least and the largest value."""
        return min(self.start, self.stop), max(self.start, self.stop)

    def canonical(self) -> Any:
        """Return what the configuration's hash sees."""
        return {"start": self.start, "stop": self.stop, "num": self.num, "spacing": self.spacing}


Axis = Listed | Ranged
