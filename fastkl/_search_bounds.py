"""What a search has found: paths and their values, tangents, and the bounds that these give."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastkl._grid import Linearised

__all__ = ["Bounds", "Outcome", "Tangent"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass
class Outcome:
    """Paths that may be best (level indices), their values, a lower bound, and whether all others are excluded."""

    paths: list[Integers]
    values: list[float]
    bound: float = -math.inf
    complete: bool = False
    iterations: int = 0
    seen: set[bytes] = field(default_factory=set)

    def add(self, path: Integers, value: float) -> None:
        """Take in a path, once."""
        key = path.tobytes()
        if key not in self.seen:
            self.seen.add(key)
            self.paths.append(path)
            self.values.append(value)

    @property
    def best(self) -> float:
        """The least value found."""
        return min(self.values, default=math.inf)

    @property
    def best_path(self) -> Integers:
        """A path of that value."""
        return self.paths[int(np.argmin(self.values))]

    @property
    def gap(self) -> float:
        """How far the best value may be above the optimum, relative to it."""
        return (self.best - self.bound) / self.best if self.best > 0.0 else 0.0


@dataclass(frozen=True)
class Tangent:
    """constant + weights @ y, below F everywhere, its least costs of paths, and its bounds for every start.

    One that is `beside` was asked for at a point where weights are negative: its bounds cannot close the gap.
    """

    weights: Array
    constant: float
    rounding: float
    linear: Linearised
    bounds: Array
    beside: bool = False


class Bounds:
    """For every start the best lower bound of its paths, and the tangent that gives it."""

    def __init__(self, starts: int) -> None:
        self.least = np.full(starts, -math.inf)
        self.by = np.full(starts, -1)
        self.tangents: list[Tangent] = []

    def add(self, tangent: Tangent) -> None:
        """Keep a tangent if it is the best for some start."""
        better = tangent.bounds > self.least
        if better.any() or not self.tangents:
            self.least[better] = tangent.bounds[better]
            self.by[better] = len(self.tangents)
            self.tangents.append(tangent)
            for i in set(range(len(self.tangents))) - set(self.by.tolist()):
                self.tangents[i] = self.tangents[-1]  # of no use any more: let its table go
