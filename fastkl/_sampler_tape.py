"""How a sampler is written down: a tape of steps whose coefficients depend on the levels alone.

In the coordinates y = x/alpha, with s = sigma/alpha, D = y lam/(lam + s^2) and e = (y - D)/s, every step of every
sampler is

    y' = a y_b + (1 - a) D_b + sum_j c_j (f_j - f_b) + w z,        f = D or f = e,

b an earlier point, j points evaluated since, z fresh noise; without noise a = s'/s, which is DDIM. The differences
f_j - f_b vanish with the step, so that what a step loses against the true solution is a sum of small terms that need
no cancellation. Where f_b was evaluated at another point Y_b of the same level than the one to go on from (UniPC's
corrector moves the state after the evaluation), the step is that from Y_b plus a (y_b - Y_b) for f = D, or plus (y_b
- Y_b) for f = e.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_TERMS", "Point", "Step", "Tape"]

Array = NDArray[np.float64]
MOST_TERMS = 4  # function values that one step combines, the base's among them


@dataclass(eq=False)
class Point:
    """A state y at the levels `level` (M,), the result of step number `index` (0 is the start)."""

    index: int
    level: Array


@dataclass(eq=False)
class Step:
    """One step of a tape: from `base`, with the function value at `function`, to a new point."""

    base: Point
    function: Point
    point: Point
    keep: Array  # a s_b, which is finite also for s_b = inf
    rest: Array  # 1 - a
    terms: list[tuple[Point, Array]] = field(default_factory=list)
    noise: Array | None = None  # weight of fresh noise
    shared: Array | None = None  # weight of the noise of the step before
    excess: Array | None = None  # variance of the noises beyond s'^2 - a^2 s^2, which keeps y's noise at s'


class Tape:
    """The levels (M, N+1) of the candidates, and the steps written so far; `kind` says which f the steps combine."""

    def __init__(self, levels: Array) -> None:
        self.levels = levels
        self.count = levels.shape[1] - 1
        self.to_zero = bool(levels[0, -1] == 0.0)  # all candidates of a tape agree in this
        self.kind = "data"
        self.start = Point(0, levels[:, 0])
        self.steps: list[Step] = []

    def pairs(self) -> Iterator[tuple[Array, Array]]:
        """Yield the levels before and after each of the N steps."""
        for k in range(self.count):
            yield self.levels[:, k], self.levels[:, k + 1]

    def step(
        self,
        base: Point,
        target: Array,
        terms: Sequence[tuple[Point, Array]] = (),
        *,
        function: Point | None = None,
        keep: Array | None = None,
        rest: Array | None = None,
        noise: Array | None = None,
        shared: Array | None = None,
        excess: Array | None = None,
    ) -> Point:
        """Write a step to the levels `target` and return the new point; without `keep` and `rest` it is DDIM's."""
        here = base.level
        if keep is None or rest is None:
            keep = target
            rest = np.where(np.isinf(here), 1.0, (here - target) / here)
        point = Point(len(self.steps) + 1, target)
        self.steps.append(Step(base, function or base, point, keep, rest, list(terms), noise, shared, excess))
        return point
