"""The best path of a deterministic sampler of two evaluations a step, and the proof, by branch and bound.

What makes `fastkl._convex_search` work holds for these samplers too: what is lost is a sum over the steps, and the
divergence is convex in it, so that a tangent's least value over all paths is a bound, and a shortest path. But losses
have either sign: Heun's steps gain what the last step, Euler's, loses, and mixtures of paths that end at different
levels cancel both, which no path does. The convex hull of all paths then says nothing. That of the paths in a box, the
level at each place within bounds, does. A box whose bound does not exclude it, with too many paths below it to be
enumerated, is cut at the place where the paths of its best mixture disagree most.

Mixtures are found on a compressed spectrum, the guide. Tangents, bounds and values are about the spectrum as given:
compression is proved for DDIM's divergences only.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fastkl._convex_search import ConvexSearch
from fastkl._hull import corrected
from fastkl._search_bounds import Outcome
from fastkl._step_grid import StepLinearised, TableGrid
from fastkl._step_guesses import descended, guesses
from fastkl._step_losses import StepObjective

__all__ = ["StepSearch"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

EDGE_ROUNDING = 1.2e-14  # in the cost of a step, relative to the largest logarithm
LOSS_ROUNDING = (
    1e-15  # in what a step loses, relative to 1, and in the mismatch, relative to the largest logarithm
)
ROUNDING = 1e-11  # in linearised costs, relative to their terms
MOST_TANGENTS = 40  # of a box
QUICK_TANGENTS = 3  # where nothing is to be proved
STALLED, PATIENCE = 0.7, 4  # tangents in a row that may leave more of the gap than this before a box is cut
HOPELESS = (
    5e-3  # how far below the best value, relative to it, a mixture makes a box not worth another tangent
)
FEW_PATHS = 256  # of a box that are enumerated rather than cut apart
PAIRS = 1 << 20  # (path, entry) pairs evaluated together
EFFORT = 1 << 18  # steps looked at in an enumeration
NEGLIGIBLE = 1e-9  # share of a path in a mixture
SAME_PLACE = 1e-6  # deviation in log s^2
BESIDE_INFINITY = 4.0  # in log s^2 above the highest finite level: stands for an infinite first level


@dataclass(frozen=True)
class Tangent:
    """constant + weights @ y, below F everywhere, its least costs of paths, and the bound that it gives."""

    weights: Array
    constant: float
    rounding: float
    linear: StepLinearised
    bound: float = -math.inf


@dataclass
class Box:
    """Bounds of the level at each place of a path, (2, steps), some paths within them, and what is known of all.

    `tangent` is the best one, with the costs of the box's own paths, `parent` that of the box that it was cut from.
    """

    bounds: Integers
    paths: list[Integers] = field(default_factory=list)
    bound: float = -math.inf
    parent: Tangent | None = None
    tangent: Tangent | None = None
    shares: Array = field(default_factory=lambda: np.empty(0))


class StepSearch(ConvexSearch):
    """A grid, an objective and the starts that are allowed; searches for any number of steps."""

    grid: TableGrid

    def __init__(
        self, grid: TableGrid, objective: StepObjective, starts: Integers, guide: StepObjective | None = None
    ) -> None:
        super().__init__(grid, objective, starts)
        self.guide = self if guide is None else ConvexSearch(grid, guide, starts)
        self._largest = grid.table.largest + 1.0

    def run(self, steps: int, deadline: float, prove: bool, slack: float, target: float = 0.0) -> Outcome:
        """Search for the best path of `steps` steps, and with a proof for all with values up to `target`.

        `slack` is the relative error of the objective itself.
        """
        outcome = Outcome([], [])
        if steps == 1:
            self.take_in_all(outcome, self.starts[self.grid.may_end[self.starts]][:, None])
            if not outcome.paths:
                raise ValueError("steps = 1: no choice of levels keeps to visit and min_spacing")
            outcome.bound, outcome.complete = outcome.best, prove
            return outcome
        root = Box(self.widest(steps), self.first_paths(steps, deadline))
        self.take_in_all(outcome, np.stack(root.paths))

        def allowed() -> float:
            return self.allowed(max(outcome.best, target), slack, steps)

        if prove:
            self.branch(outcome, root, deadline, allowed)
        else:
            self.examine(outcome, root, deadline, allowed, QUICK_TANGENTS)
            outcome.bound = min(root.bound, outcome.best)
        return outcome

    def allowed(self, value: float, slack: float, steps: int) -> float:
        """Return up to where another value may be the better one, but for the errors of both."""
        return value * (1.0 + slack) + self.blur(value, steps)

    def first_paths(self, steps: int, deadline: float) -> list[Integers]:
        """Return the path that loses least, the one that gains least, and some good ones."""
        paths = []
        for sign in (1.0, -1.0):
            weights = sign * self.objective.weights
            weights[self.objective.directions :] = 0.0
            linear = self.grid.linearised(weights, steps, box=self.widest(steps))
            start, least = self.cheapest(linear, weights, steps)
            if math.isinf(least):
                raise ValueError(f"steps = {steps}: no choice of levels keeps to visit and min_spacing")
            paths.append(linear.path(start, steps))
        moved = [descended(self.guide, path, deadline) for path in paths]
        return paths + moved + guesses(self.guide, steps, deadline)

    def widest(self, steps: int) -> Integers:
        """Return the box of all paths."""
        size = len(self.grid.levels)
        bounds = np.repeat([[0], [size]], steps, axis=1)
        bounds[:, 0] = self.starts[0], self.starts[-1] + 1
        bounds[0, -1] = np.argmax(self.grid.may_end)
        return tightened(bounds, self.grid.min_spacing)

    def branch(self, outcome: Outcome, root: Box, deadline: float, allowed: Callable[[], float]) -> None:
        """Examine boxes, the one with the least bound first, until no path is left whose value is allowed."""
        count = itertools.count()
        heap = [(root.bound, next(count), root)]
        while heap and heap[0][0] <= allowed():
            box = heapq.heappop(heap)[2]
            self.examine(outcome, box, deadline, allowed, MOST_TANGENTS)
            if time.monotonic() > deadline:
                outcome.bound = min([box.bound, outcome.best, *(bound for bound, _, _ in heap[:1])])
                return
            if box.bound > allowed() or self.enumerated(outcome, box, allowed()):
                continue
            for part in self.parts(box):
                heapq.heappush(heap, (part.bound, next(count), part))
        outcome.bound, outcome.complete = outcome.best, True

    def examine(
        self, outcome: Outcome, box: Box, deadline: float, allowed: Callable[[], float], most: int
    ) -> None:
        """Lift the bound of a box by Frank-Wolfe's method, until it excludes the box or little is gained."""
        steps, idle = box.bounds.shape[1], 0
        for _ in range(most):
            tangent = self.next_tangent(outcome, box)
            if tangent is None:
                return
            start, least = self.cheapest(tangent.linear, tangent.weights, steps)
            if math.isinf(least):
                box.bound = math.inf  # no path keeps to the constraints
                return
            outcome.iterations += 1
            bound = tangent.constant + least - tangent.rounding
            before = math.inf if box.tangent is None else outcome.best - box.tangent.bound
            if box.tangent is None or bound > box.tangent.bound:
                box.tangent = replace(tangent, bound=bound)
            box.bound = max(box.bound, bound)
            path = tangent.linear.path(start, steps)
            self.take_in_better(outcome, path, deadline)
            known = any(np.array_equal(path, other) for other in box.paths)
            idle = idle + 1 if outcome.best - box.tangent.bound > STALLED * before else 0
            if known or idle >= PATIENCE or box.bound > allowed() or time.monotonic() > deadline:
                return
            box.paths.append(path)

    def next_tangent(self, outcome: Outcome, box: Box) -> Tangent | None:
        """Return the tangent at the best mixture of a box's paths; None if its value says that the box must be cut."""
        steps = box.bounds.shape[1]
        if not box.paths:
            assert box.parent is not None
            return replace(box.parent, linear=self.grid.linearised(box.parent.weights, steps, box=box.bounds))
        guide, paths = self.guide, np.stack(box.paths)
        vertices, constants = guide.points(paths)
        shares = np.append(box.shares, np.zeros(len(paths) - len(box.shares)))
        if len(box.shares) == 0:
            shares[int(np.argmin(guide.objective.value(vertices) + constants))] = 1.0
        box.shares = shares = corrected(guide.objective, vertices, constants, shares)
        value = float(guide.objective.value(shares @ vertices) + shares @ constants)
        if value < outcome.best * (1.0 - HOPELESS) and (box.tangent or box.parent) is not None:
            return None
        kept = np.flatnonzero(shares > NEGLIGIBLE)
        y = shares[kept] / shares[kept].sum() @ self.points(paths[kept])[0]
        return self.tangent(y, box.bounds)

    def tangent(self, y: Array, bounds: Integers) -> Tangent:
        """Return the tangent at y, with the costs of the paths in a box."""
        weights, value = self.objective.gradient(y), float(self.objective.value(y))
        steps = bounds.shape[1]
        linear = self.grid.linearised(weights, steps, box=bounds)
        return Tangent(weights, value - float(weights @ y), self.rounding(weights, y, value, steps), linear)

    def cheapest(self, linear: StepLinearised, weights: Array, steps: int) -> tuple[int, float]:
        """Return the start of the cheapest path and its cost, offsets and constants included; inf if there is none."""
        totals = linear.costs[self.starts, steps - 1] + self.offsets @ weights + self.constants
        best = int(np.argmin(totals))
        return int(self.starts[best]), float(totals[best])

    def take_in_better(self, outcome: Outcome, path: Integers, deadline: float) -> None:
        """Take in a path, and if it is the best so far what moves of its levels lead to."""
        before = outcome.best
        self.take_in(outcome, path[None])
        if outcome.best < before:
            self.take_in(outcome, descended(self.guide, path, deadline)[None])

    def take_in_all(self, outcome: Outcome, paths: Integers) -> None:
        """Take in any number of paths, some at a time: what is evaluated together must not need too much memory."""
        rows = max(1, PAIRS // len(self.objective.eigenvalues))
        for begin in range(0, len(paths), rows):
            self.take_in(outcome, paths[begin : begin + rows])

    def enumerated(self, outcome: Outcome, box: Box, allowed: float) -> bool:
        """Take in all paths of a box that its tangent lets be allowed; False, and nothing, if they are many."""
        tangent, steps = box.tangent, box.bounds.shape[1]
        if tangent is None:
            return False
        rest = allowed - tangent.constant + tangent.rounding - self.offsets @ tangent.weights - self.constants
        found: list[Integers] = []
        for start in np.flatnonzero(tangent.linear.costs[self.starts, steps - 1] <= rest):
            place, most = int(self.starts[start]), FEW_PATHS - sum(map(len, found))
            paths = tangent.linear.below(place, steps, float(rest[start]), EFFORT, most)
            if paths is None:
                return False
            found.append(paths)
        if found:
            self.take_in_all(outcome, np.concatenate(found))
        return True

    def parts(self, box: Box) -> list[Box]:
        """Return the two halves of a box, cut where the paths of its best mixture disagree most, or else in the middle.

        A path has as many levels as places, so that a cut at one place moves the bounds at others.
        """
        width = box.bounds[1] - box.bounds[0]
        place = int(np.argmax(width))
        cut = int(box.bounds[0, place] + width[place] // 2)
        if len(box.shares) > 1:
            x = np.where(np.isinf(self.grid.x), self.grid.x[1] + BESIDE_INFINITY, self.grid.x)
            y = x[np.stack(box.paths[: len(box.shares)])]
            mean = box.shares @ y
            spread = np.sqrt(box.shares @ np.square(y - mean)) * (width > 1)
            if spread.max() > SAME_PLACE:
                place = int(np.argmax(spread))
                wanted = int(np.searchsorted(-x, -mean[place]))
                cut = min(max(wanted, box.bounds[0, place] + 1), box.bounds[1, place] - 1)
        halves = []
        for side in (0, 1):
            bounds = box.bounds.copy()
            bounds[1 - side, place] = cut
            bounds = tightened(bounds, self.grid.min_spacing)
            if (bounds[0] < bounds[1]).all():
                inside = [p for p in box.paths if ((p >= bounds[0]) & (p < bounds[1])).all()]
                halves.append(Box(bounds, inside, box.bound, box.tangent or box.parent))
        return halves

    def rounding(self, weights: Array, y: Array, value: float, steps: int) -> float:
        """Bound the rounding error of a linearised value."""
        size = np.abs(weights)
        edges = steps * EDGE_ROUNDING * self._largest * float(size.sum())
        return ROUNDING * (float(size @ np.abs(y)) + abs(value)) + edges

    def blur(self, value: float, steps: int) -> float:
        """Bound what the rounding errors of S add to a value, where S and the prior's mismatch cancel.

        |h'| <= sqrt(2 h) + h for all divergences that are convex, and Cauchy and Schwarz have the sum.
        """
        delta = LOSS_ROUNDING * (steps + self._largest)
        total = float(self.objective.weights[: self.objective.directions].sum())
        return 2.0 * (delta * (math.sqrt(4.0 * total * value) + 4.0 * value) + delta * delta * total)


def tightened(bounds: Integers, spacing: int) -> Integers:
    """Return a box without the levels that no path can be at, because of the order of its levels."""
    away = spacing * np.arange(bounds.shape[1])
    low = np.maximum.accumulate(bounds[0] - away) + away
    high = np.minimum.accumulate((bounds[1] - away)[::-1])[::-1] + away
    return np.stack([low, high])
