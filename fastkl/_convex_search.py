"""The best path through a grid of levels under a convex divergence, and the proof that it is the best.

For any y' the tangent F(y) >= F(y') + F'(y') (y - y') bounds every path's value from below, and its least value over
all paths is a shortest path with N edges. Frank-Wolfe's method moves y' to the minimiser of F over the convex hull of
all paths, which lifts the bound; after each step F is minimised over the hull of the paths found so far. Every path
that could still be better than the best one has a linearised cost below a known threshold, and these are enumerated.

Where the first level is free, F is convex for each start on its own, and mixtures of starts would look better than any
path. So every start has a bound of its own, the method runs for the start whose bound is least until no bound is below
the best value, and each tangent serves all starts at once.
"""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
from numpy.typing import NDArray

from fastkl._first_levels import first_levels
from fastkl._grid import Grid
from fastkl._hull import corrected
from fastkl._objective import FORGOTTEN, Objective
from fastkl._path_moves import PathMoves
from fastkl._refinement import refined_levels, value_of
from fastkl._search_bounds import Bounds, Outcome, Tangent

__all__ = ["ConvexSearch"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

MOST_ITERATIONS = 40
CLOSED = 1e-12  # relative gap that is rounding
GOOD = 5e-4  # relative gap that is good enough without a proof
FEW_PATHS = 1 << 12  # that are all evaluated where no proof is asked for
FEW_STARTS = 8  # that are looked at without a proof, and SAMPLED of which the likeliest comes first
SAMPLED = 24
IMPROVED = 4  # starts whose best paths are moved level by level
NEWTON_STEPS = 12  # for the first tangent, which need not be at the optimum itself
BLOCK = 1 << 12  # paths evaluated together
STALLED = 0.7  # an iteration that leaves more of the gap than this counts as one without progress
PATIENCE = 3
ROUNDING = 1e-11  # in linearised costs, relative to their terms
EDGE_ROUNDING = 4e-15  # in the cost of a step, relative to the logarithms that cancel in it
FULL_TABLE = 4000  # levels up to which negative weights are worth the quadratic table
MOST_PATHS = 1 << 20
FIRST_EFFORT, MOST_EFFORT = 1 << 22, 1 << 32  # steps looked at in an enumeration


class ConvexSearch(PathMoves):
    """A grid, an objective and the starts that are allowed; searches for any number of steps.

    Values are those of the objective to a relative error of a quarter of `slack` and an absolute one of `margins`, for
    every start.
    """

    iterations_without_proof = MOST_ITERATIONS

    def __init__(
        self, grid: Grid, objective: Objective, starts: Integers, margins: Array | None = None
    ) -> None:
        self.grid, self.objective = grid, objective
        self.starts = starts
        self.margins = np.zeros(len(starts)) if margins is None else margins
        self.offsets = objective.offsets(grid.levels[starts])
        self.constants = objective.constants(grid.levels[starts])
        x = grid.x[np.isfinite(grid.x)]
        self._logarithms = np.maximum(np.abs(np.log(objective.eigenvalues)), np.abs(x).max())

    def run(self, steps: int, deadline: float, prove: bool, slack: float, target: float = 0.0) -> Outcome:
        """Search for the best path of `steps` steps, and with a proof for all with values up to `target`."""
        outcome, bounds = Outcome([], []), Bounds(len(self.starts))
        if self.few(outcome, steps, prove):
            return outcome
        self.explore(outcome, bounds, self.objective, steps, deadline, prove)
        if outcome.gap > GOOD:
            for path in self.best_of_starts(outcome):
                self.improve(outcome, path)
        if prove:
            self.enumerate(outcome, bounds, steps, deadline, slack, target)
        return outcome

    def few(self, outcome: Outcome, steps: int, prove: bool) -> bool:
        """Take in all paths of a single step, or without a proof all there are if they are few."""
        levels = np.arange(self.starts[0] + 1, len(self.grid.levels))
        if steps == 1:
            paths = self.starts[self.grid.may_end[self.starts]][:, None]
        elif not prove and len(self.starts) == 1 and math.comb(len(levels), steps - 1) <= FEW_PATHS:
            rest = np.array(list(itertools.combinations(levels, steps - 1)), dtype=np.int64)
            paths = np.insert(rest.reshape(-1, steps - 1), 0, self.starts[0], axis=1)
            paths = paths[self.allowed(paths)]
        else:
            return False
        if len(paths) == 0:
            raise ValueError(f"steps = {steps}: no choice of levels keeps to visit and min_spacing")
        with np.errstate(
            divide="ignore", invalid="ignore", over="ignore"
        ):  # a step from inf to 0 loses everything
            points, constants = self.points(paths)
            values = self.objective.value(points) + constants
        values[np.isnan(values)] = math.inf
        for path, value in zip(paths, values.tolist(), strict=True):
            outcome.add(path, value)
        outcome.bound, outcome.complete, outcome.iterations = outcome.best, prove, 1
        return True

    def explore(
        self,
        outcome: Outcome,
        bounds: Bounds,
        convex: Objective,
        steps: int,
        deadline: float,
        prove: bool,
    ) -> None:
        """Lift the bounds of one start after the other, until none is below the best value."""
        unexplored = np.ones(len(self.starts), dtype=np.bool_)
        place: int | None = self.place_of(outcome.best_path) if outcome.paths else self.likely_start(steps)
        while place is not None:
            unexplored[place] = False
            known = self.best_point(outcome, place)
            y = self.begin(outcome, steps, place) if known is None else known
            self.lift(outcome, bounds, convex, y, steps, deadline, prove, place)
            enough = not prove and (~unexplored).sum() >= FEW_STARTS
            if outcome.paths and (enough or time.monotonic() > deadline):
                return
            place = self.next_start(outcome, bounds, unexplored, prove)

    def best_point(self, outcome: Outcome, place: int) -> Array | None:
        """Return y of the best path found from a start, None if there is none."""
        known = [i for i, path in enumerate(outcome.paths) if path[0] == self.starts[place]]
        if not known:
            return None
        best = min(known, key=lambda i: outcome.values[i])
        return self.points(outcome.paths[best][None])[0][0]

    def best_of_starts(self, outcome: Outcome) -> list[Integers]:
        """Return the best paths of the few starts that have the best ones."""
        best: dict[int, Integers] = {}
        for i in np.argsort(outcome.values, kind="stable").tolist():
            best.setdefault(int(outcome.paths[i][0]), outcome.paths[i])
        return list(best.values())[:IMPROVED]

    def place_of(self, path: Integers) -> int:
        """Return the place of a path's start among the starts."""
        return int(np.searchsorted(self.starts, path[0]))

    def likely_start(self, steps: int) -> int:
        """Return the place of a start whose best paths are likely good: the best of some, then of those beside it."""
        places = np.unique(np.linspace(0, len(self.starts) - 1, SAMPLED).astype(np.int64))
        if len(self.starts) == 1:
            return 0
        best = int(np.argmin([self.value_off_grid(place, steps, 0) for place in places.tolist()]))
        low, high = int(places[max(best - 1, 0)]), int(places[min(best + 1, len(places) - 1)])
        values: dict[int, float] = {}
        while high - low > 2:
            third = max((high - low) // 3, 1)
            for place in (low + third, high - third):
                if place not in values:
                    values[place] = self.value_off_grid(place, steps, NEWTON_STEPS)
            if values[low + third] <= values[high - third]:
                high -= third
            else:
                low += third
        return min(
            (*values, int(places[best])), key=lambda place: self.value_off_grid(place, steps, NEWTON_STEPS)
        )

    def value_off_grid(self, place: int, steps: int, newton_steps: int) -> float:
        """Return the value that Newton's method reaches for one start in a number of steps."""
        return value_of(self.objective, self.levels_off_grid(place, steps, newton_steps))

    def levels_off_grid(self, place: int, steps: int, newton_steps: int) -> Array:
        """Return the levels that Newton's method reaches for one start."""
        start = int(self.starts[place])
        levels = first_levels(self.grid, self.objective, self.offsets[place], start, steps)
        if newton_steps == 0:
            return levels
        least = float(self.grid.levels[-1])
        most = float(self.grid.levels[1]) if np.isinf(levels[0]) else math.inf
        return refined_levels(self.objective, levels, least, most=most, most_steps=newton_steps)

    def next_start(
        self, outcome: Outcome, bounds: Bounds, unexplored: NDArray[np.bool_], prove: bool
    ) -> int | None:
        """Return the place of the start with the least bound, None if none below the best value is left."""
        least = np.where(unexplored, bounds.least, math.inf)
        place = int(np.argmin(least))
        worth = outcome.best * (1.0 - (CLOSED if prove else GOOD))
        return place if least[place] < worth else None

    def begin(self, outcome: Outcome, steps: int, place: int) -> Array:
        """Return y of a local optimum off the grid for one start; take in the path beside it if it is allowed."""
        levels = self.levels_off_grid(place, steps, NEWTON_STEPS)
        nearest = self.nearest(int(self.starts[place]), levels)
        if nearest is not None:
            self.take_in(outcome, nearest[None])
        return np.asarray(self.objective.losses(levels[None])[0] + self.offsets[place])

    def points(self, paths: Integers) -> tuple[Array, Array]:
        """Return y and the constants of paths (P, N)."""
        levels = np.concatenate([self.grid.levels[paths], np.zeros((len(paths), 1))], axis=1)
        place = np.searchsorted(self.starts, paths[:, 0])
        return self.objective.losses(levels) + self.offsets[place], self.constants[place]

    def take_in(self, outcome: Outcome, paths: Integers) -> tuple[Array, Array]:
        """Add paths and their values to the outcome; return y and the constants."""
        points, constants = self.points(paths)
        for path, value in zip(paths, (self.objective.value(points) + constants).tolist(), strict=True):
            outcome.add(path, value)
        return points, constants

    def take_in_near(self, outcome: Outcome, paths: Integers, slack: float, target: float) -> None:
        """Add those paths that may be best, or worth up to `target`, on the uncompressed spectrum."""
        points, constants = self.points(paths)
        values = self.objective.value(points) + constants
        margins = self.margins[np.searchsorted(self.starts, paths[:, 0])]
        best = min(outcome.best + self.margins.max(), float((values + margins).min()))
        near = values - margins <= max(best, target) * (1.0 + slack)
        for path, value in zip(paths[near], values[near].tolist(), strict=True):
            outcome.add(path, value)

    def lift(
        self,
        outcome: Outcome,
        bounds: Bounds,
        convex: Objective,
        y: Array,
        steps: int,
        deadline: float,
        prove: bool,
        place: int,
    ) -> None:
        """Lift the bound of one start by Frank-Wolfe's method on a convex function below F, from its tangent at y."""
        known = self.best_point(outcome, place)
        vertices = np.empty((0, len(y))) if known is None else known[None]
        constants, shares = np.full(len(vertices), self.constants[place]), np.ones(len(vertices))
        without_progress = 0
        for _ in range(MOST_ITERATIONS if prove else self.iterations_without_proof):
            gap = outcome.best - bounds.least[place]
            tangent = self._tangent(convex, y, steps, prove)
            if np.isinf(tangent.bounds[place]):
                bounds.least[place] = math.inf  # no choice of levels begins there
                return
            bounds.add(tangent)
            outcome.iterations += 1
            outcome.bound = max(outcome.bound, float((bounds.least - self.margins).min()))
            path = tangent.linear.path(int(self.starts[place]), steps)
            point, constant = self.take_in(outcome, path[None])
            left = outcome.best - bounds.least[place]
            without_progress = without_progress + 1 if left > STALLED * gap else 0
            if left <= (CLOSED if prove else GOOD) * outcome.best or without_progress >= PATIENCE:
                return
            if tangent.beside and not prove:
                return
            if (vertices == point).all(axis=1).any() or time.monotonic() > deadline:
                return
            vertices, constants = np.concatenate([vertices, point]), np.append(constants, constant)
            shares = corrected(convex, vertices, constants, np.append(shares, 0.0 if len(shares) else 1.0))
            y = shares @ vertices

    def _tangent(self, convex: Objective, y: Array, steps: int, prove: bool) -> Tangent:
        """Return the tangent at y; where negative weights cost too much, at a point near it that has none."""
        weights = convex.gradient(y)
        beside = weights.min() < 0.0 and (len(self.grid.levels) > FULL_TABLE or not prove)
        if beside:
            y = y.copy()
            y[: convex.directions] = np.maximum(y[: convex.directions], 0.0)
            y[convex.directions :] = FORGOTTEN  # the mean's share has no slope there, and is bounded by 0
            weights = np.maximum(convex.gradient(y), 0.0)
        value = float(convex.value(y))
        linear = self.grid.linearised(weights, steps)
        totals = linear.costs[self.starts, steps - 1] + self.offsets @ weights + self.constants
        if np.isinf(totals).all():
            raise ValueError(f"steps = {steps}: no choice of levels keeps to visit and min_spacing")
        constant, rounding = value - float(weights @ y), self.rounding(weights, y, value, steps)
        return Tangent(weights, constant, rounding, linear, constant + totals - rounding, bool(beside))

    def rounding(self, weights: Array, y: Array, value: float, steps: int) -> float:
        """Bound the rounding error of a linearised value."""
        size = np.abs(weights)
        edges = steps * EDGE_ROUNDING * float(size @ self._logarithms)
        return ROUNDING * (float(size @ np.abs(y)) + abs(value)) + edges

    def enumerate(
        self,
        outcome: Outcome,
        bounds: Bounds,
        steps: int,
        deadline: float,
        slack: float,
        target: float = 0.0,
        most_effort: int | None = None,
    ) -> None:
        """Take in every path that no tangent excludes from being best on the uncompressed spectrum."""
        effort = FIRST_EFFORT
        while effort <= (most_effort or MOST_EFFORT):
            began = time.monotonic()
            found = self.paths_left(outcome, bounds, steps, slack, target, effort, deadline)
            if found is not None:
                for paths in found:
                    for begin in range(0, len(paths), BLOCK):
                        self.take_in_near(outcome, paths[begin : begin + BLOCK], slack, target)
                outcome.complete = True
                return
            left, spent = deadline - time.monotonic(), time.monotonic() - began
            if left < spent:
                return
            effort = int(effort * min(8.0, left / max(spent, 1e-3)))  # what time is left for

    def paths_left(
        self,
        outcome: Outcome,
        bounds: Bounds,
        steps: int,
        slack: float,
        target: float,
        effort: int,
        deadline: float,
    ) -> list[Integers] | None:
        """Return the paths that no tangent excludes, None if that is too much work or takes too long."""
        places, found = self.thresholds(outcome, bounds, slack, target), []
        share = max(effort // max(len(places), 1), 1)
        for place, rest in places:
            linear = bounds.tangents[bounds.by[place]].linear
            paths = linear.below(int(self.starts[place]), steps, rest, share, min(effort >> 6, MOST_PATHS))
            if paths is None or time.monotonic() > deadline:
                return None
            found.append(paths)
        return found

    def thresholds(
        self, outcome: Outcome, bounds: Bounds, slack: float, target: float
    ) -> list[tuple[int, float]]:
        """Return the places of the starts that are not excluded, and below which costs of their steps they are not."""
        known = float(self.margins[self.place_of(outcome.best_path)])
        allowed = max(outcome.best, target) * (1.0 + slack) + known + self.margins
        places = []
        for place in np.flatnonzero(bounds.least <= allowed).tolist():
            tangent = bounds.tangents[bounds.by[place]]
            rest = allowed[place] - tangent.constant + tangent.rounding
            rest -= float(self.offsets[place] @ tangent.weights) + self.constants[place]
            places.append((place, float(rest)))
        return places
