"""The best path of a deterministic sampler of two evaluations a step, and the proof, by branch and bound.

What makes `fastkl._convex_search` work holds for these samplers too: what is lost is a sum over the steps, and the
divergence is convex in it, so that a tangent's least value over all paths is a bound and a shortest path. But losses
have either sign: Heun's steps gain what the last step, Euler's, loses, and mixtures of paths that end at different
levels cancel both, which no path does. The convex hull of all paths then says nothing. That of paths in a box, with the
level at each place within bounds, does: where a box's bound does not exclude it, and too many paths are below it to be
enumerated, the box is cut at the place where the paths of the best mixture disagree most.

Mixtures are found on a compressed spectrum, the guide. Tangents, bounds and values are of the spectrum as given:
compression is proved for DDIM's divergences only.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastkl._convex_search import ConvexSearch, Outcome, Tangent, corrected
from fastkl._objective import Objective
from fastkl._step_grid import TableGrid
from fastkl._step_losses import StepObjective

__all__ = ["StepSearch"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

EDGE_ROUNDING = 1.2e-14  # in the cost of a step, relative to the logarithms that cancel in it
ROUNDING = 1e-11  # in linearised costs, relative to their terms
HOPELESS = 5e-3
MOST_TANGENTS = 40  # of a box
STALLED = 0.7  # a tangent that leaves more of the gap than this counts as one without progress
PATIENCE = 4
FEW_PATHS = 64  # of a box that are enumerated rather than cut apart
EFFORT = 1 << 18  # steps looked at in an enumeration
NEGLIGIBLE = 1e-9  # share of a path in a mixture
MOVES = (1, 3, 10, 30, 100)  # of a level, in places on the grid
MOST_MOVES = 200


@dataclass
class Box:
    """Bounds of the levels at each place of a path, (2, steps), paths within them, and what is known of all."""

    bounds: Integers
    paths: list[Integers] = field(default_factory=list)
    bound: float = -math.inf
    tangent: Tangent | None = None
    spread: Integers | None = None
    fresh: bool = True


class StepSearch(ConvexSearch):
    """A grid, an objective and the starts that are allowed; searches for any number of steps."""

    grid: TableGrid

    def __init__(
        self, grid: TableGrid, objective: StepObjective, starts: Integers, guide: StepObjective | None = None
    ) -> None:
        super().__init__(grid, objective, starts)
        self.guide = self if guide is None else ConvexSearch(grid, guide, starts)
        self._logarithms = np.full(len(objective.eigenvalues), grid.table.largest + 1.0)

    def run(self, steps: int, deadline: float, prove: bool, slack: float, target: float = 0.0) -> Outcome:
        """Search for the best path of `steps` steps, and with a proof for all with values up to `target`.

        `slack` is the relative error of the objective itself.
        """
        outcome = Outcome([], [])
        root = Box(self.widest(steps))
        for sign in (1.0, -1.0):  # the path that loses least, and the one that gains least
            weights = sign * self.objective.weights
            weights[self.objective.directions :] = 0.0
            linear = self.grid.linearised(weights, steps, box=root.bounds)
            root.paths.append(self._shortest(linear, weights, steps)[1])
            root.paths.append(self.descend(root.paths[-1]))
        self.take_in(outcome, np.stack(root.paths))
        self.branch(outcome, root, steps, deadline, slack, target, prove)
        print("nodes", self.nodes, "depth..")
        return outcome

    def widest(self, steps: int) -> Integers:
        """Return the box of all paths."""
        size, place = len(self.grid.levels), np.arange(steps)
        bounds = np.stack([place, size - (steps - 1 - place)])
        bounds[:, 0] = self.starts[0], min(self.starts[-1] + 1, bounds[1, 0])
        bounds[0, -1] = max(bounds[0, -1], int(np.argmax(self.grid.may_end)))
        return bounds

    def branch(
        self, outcome: Outcome, root: Box, steps: int, deadline: float, slack: float, target: float, prove: bool
    ) -> None:
        """Examine boxes, the one with the least bound first, until no path is left that could be better."""
        count = itertools.count(); self.nodes = 0
        heap = [(root.bound, next(count), root)]
        while heap:
            outcome.bound = heap[0][0]
            allowed = max(outcome.best, target) * (1.0 + slack)
            if outcome.bound > allowed:
                break
            if time.monotonic() > deadline:
                return
            box = heapq.heappop(heap)[2]; self.nodes += 1
            self.examine(outcome, box, steps, allowed)
            allowed = max(outcome.best, target) * (1.0 + slack)
            if box.bound > allowed or self.enumerated(outcome, box, steps, allowed):
                continue
            for part in self.halves(box):
                heapq.heappush(heap, (part.bound, next(count), part))
        outcome.bound, outcome.complete = outcome.best, True

    def examine(self, outcome: Outcome, box: Box, steps: int, allowed: float) -> None:
        guide = self.guide
        idle, shares = 0, np.empty(0)
        for _ in range(MOST_TANGENTS):
            if box.paths:
                paths = np.stack(box.paths)
                vertices, constants = guide.points(paths)
                if len(shares) < len(paths):
                    values = guide.objective.value(vertices) + constants
                    if len(shares) == 0:
                        shares = (np.arange(len(paths)) == int(np.argmin(values))) * 1.0
                    shares = np.append(shares, np.zeros(len(paths) - len(shares)))
                shares = corrected(guide.objective, vertices, constants, shares)
                mixval = float(guide.objective.value(shares @ vertices) + shares @ constants)
                if mixval < outcome.best * (1 - HOPELESS) and len(paths) > 1 and box.tangent is not None:
                    break
                y = self.mixed(paths, shares)
                tangent = self._tangent(self.objective, y, steps, True, box.bounds)
            else:
                weights = box.tangent.weights
                tangent = Tangent(weights, box.tangent.constant, box.tangent.rounding,
                                  self.grid.linearised(weights, steps, box=box.bounds))
            start, least = self.cheapest(tangent, steps)
            if math.isinf(least):
                box.bound = math.inf
                return
            outcome.iterations += 1
            bound = tangent.constant + least - tangent.rounding
            path = tangent.linear.path(start, steps)
            before = outcome.best - box.bound
            box.tangent = tangent if bound > box.bound or box.fresh else box.tangent
            box.fresh = False
            box.bound = max(box.bound, bound)
            old = outcome.best
            self.take_in(outcome, path[None])
            if outcome.best < old:
                self.take_in(outcome, self.descend(path)[None])
            repeated = any(np.array_equal(path, other) for other in box.paths)
            idle = idle + 1 if outcome.best - box.bound > STALLED * before else 0
            if box.bound > allowed or repeated or idle >= PATIENCE:
                break
            box.paths.append(path)
        if box.paths and len(shares):
            k = len(shares)
            P = self.grid.x[np.stack(box.paths[:k])]
            mean = shares @ P
            box.spread = np.stack([mean, np.sqrt(np.maximum(shares @ np.square(P) - mean * mean, 0))])

    def mixed(self, paths, shares):
        kept = np.flatnonzero(shares > NEGLIGIBLE)
        return shares[kept] @ self.points(paths[kept])[0]

    def cheapest(self, tangent, steps):
        totals = tangent.linear.costs[self.starts, steps - 1] + self.offsets @ tangent.weights + self.constants
        i = int(np.argmin(totals))
        return int(self.starts[i]), float(totals[i])

    def enumerated(self, outcome, box, steps, allowed):
        tangent = box.tangent
        rest = allowed - tangent.constant + tangent.rounding - self.offsets @ tangent.weights - self.constants
        found = []
        total = 0
        for i in np.flatnonzero(tangent.linear.costs[self.starts, steps - 1] <= rest):
            paths = tangent.linear.below(int(self.starts[i]), steps, float(rest[i]), EFFORT, FEW_PATHS)
            if paths is None:
                return False
            total += len(paths)
            if total > FEW_PATHS:
                return False
            found.append(paths)
        for p in found:
            if len(p): self.take_in(outcome, p)
        self.leaves = getattr(self, "leaves", 0) + total
        return True

    def halves(self, box):
        width = box.bounds[1] - box.bounds[0]
        spread = np.where(width > 1, box.spread[1] if box.spread is not None else 0, -1)
        if spread.max() <= 1e-6:
            p = int(np.argmax(width)); cut = int(box.bounds[0,p] + width[p]//2)
        else:
            p = int(np.argmax(spread)); cut = int(np.clip(np.searchsorted(-self.grid.x, -box.spread[0,p]), box.bounds[0,p]+1, box.bounds[1,p]-1))
        out = []
        for side in (0, 1):
            b = box.bounds.copy()
            b[1 - side, p] = cut
            # order
            for k in range(p+1, b.shape[1]): b[0,k] = max(b[0,k], b[0,k-1]+1)
            for k in range(p-1, -1, -1): b[1,k] = min(b[1,k], b[1,k+1]-1)
            if (b[0] >= b[1]).any(): continue
            inside = [q for q in box.paths if ((q >= b[0]) & (q < b[1])).all()]
            out.append(Box(b, inside, box.bound, box.tangent))
        return out

    def descend(self, path: Integers) -> Integers:
        """Return the path that moves of single levels lead to, downhill on the guide."""
        guide = self.guide
        pts, c = guide.points(path[None]); value = float(guide.objective.value(pts)[0] + c[0])
        for _ in range(MOST_MOVES):
            moves = np.concatenate([MOVES, np.negative(MOVES)])
            n = len(path)
            changed = np.repeat(path[None], len(moves) * n, axis=0)
            rows = np.arange(len(changed))
            changed[rows, rows % n] += np.repeat(moves, n)
            changed = np.ascontiguousarray(changed[self._allowed(changed)])
            if not len(changed): break
            pts, c = guide.points(changed)
            v = guide.objective.value(pts) + c
            k = int(np.argmin(v))
            if not v[k] < value: break
            path, value = changed[k], float(v[k])
        return path

    def _tangent(self, convex: Objective, y: Array, steps: int, prove: bool, box=None) -> Tangent:
        """Return the tangent at y."""
        weights, value = convex.gradient(y), float(convex.value(y))
        linear = self.grid.linearised(weights, steps, box=box)
        return Tangent(weights, value - float(weights @ y), self.rounding(weights, y, value, steps), linear)

    def rounding(self, weights: Array, y: Array, value: float, steps: int) -> float:
        """Bound the rounding error of a linearised value."""
        size = np.abs(weights)
        edges = steps * EDGE_ROUNDING * float(size @ self._logarithms)
        return ROUNDING * (float(size @ np.abs(y)) + abs(value)) + edges

    def _snapped(self, path: Integers) -> Integers | None:
        """Return None: there is no local optimum off the grid to go to."""
        return None
