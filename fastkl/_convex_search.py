"""The best path through a grid of levels under a convex divergence, and the proof that it is the best.

For any y' the tangent F(y) >= F(y') + F'(y') (y - y') bounds every path's value from below, and its least value over
all paths is a shortest path with N edges. Frank-Wolfe's method moves y' to the minimiser of F over the convex hull of
all paths, which lifts the bound; after each step F is minimised over the hull of the paths found so far. Every path
that could still be better than the best one has a linearised cost below a known threshold, and these are enumerated.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

from fastkl._grid import Grid, Linearised
from fastkl._objective import FORGOTTEN, Objective
from fastkl._refinement import refined_levels

__all__ = ["ConvexSearch", "Outcome"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

MOST_ITERATIONS = 40
CLOSED = 1e-12  # relative gap that is rounding
GOOD = 5e-4  # relative gap that is good enough without a proof
MOVES = np.array([1, 3])  # of a level, in places on the grid
MOST_MOVES = 20
BLOCK = 1 << 12  # paths evaluated together
STALLED = 0.7  # an iteration that leaves more of the gap than this counts as one without progress
PATIENCE = 3
ROUNDING = 1e-11  # in linearised costs, relative to their terms
EDGE_ROUNDING = 4e-15  # in the cost of a step, relative to the logarithms that cancel in it
FULL_TABLE = 4000  # levels up to which negative weights are worth the quadratic table
MOST_PATHS = 1 << 20
FIRST_EFFORT, MOST_EFFORT = 1 << 22, 1 << 32  # steps looked at in an enumeration
SUM_WEIGHT = 1e4  # of the row that makes convex weights add up to 1


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
        return min(self.values)

    @property
    def gap(self) -> float:
        """How far the best value may be above the optimum, relative to it."""
        return (self.best - self.bound) / self.best if self.best > 0.0 else 0.0


@dataclass(frozen=True)
class Tangent:
    """constant + weights @ y, below F everywhere, its least costs of paths, and the bound that it gives."""

    weights: Array
    constant: float
    rounding: float
    linear: Linearised
    bound: float = -math.inf


class ConvexSearch:
    """A grid, an objective and the starts that are allowed; searches for any number of steps."""

    def __init__(self, grid: Grid, objective: Objective, starts: Integers) -> None:
        self.grid, self.objective = grid, objective
        self.starts = starts
        self.offsets = objective.offsets(grid.levels[starts])
        self.constants = objective.constants(grid.levels[starts])
        x = grid.x[np.isfinite(grid.x)]
        self._logarithms = np.maximum(np.abs(np.log(objective.eigenvalues)), np.abs(x).max())

    def run(self, steps: int, deadline: float, prove: bool, slack: float, target: float = 0.0) -> Outcome:
        """Search for the best path of `steps` steps, and with a proof for all with values up to `target`.

        `slack` is the relative error of the objective itself.
        """
        outcome = Outcome([], [])
        ones = self.objective.weights.copy()
        ones[self.objective.directions :] = 0.0
        _, path = self._shortest(self.grid.linearised(ones, steps), ones, steps)
        self.take_in(outcome, path[None])
        tangent = self.lift(outcome, self.objective, path, steps, deadline, prove)
        if outcome.gap > GOOD:
            self.improve(outcome)
        if prove and tangent is not None:
            self.enumerate(outcome, tangent, steps, deadline, slack, target)
        return outcome

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

    def lift(
        self, outcome: Outcome, convex: Objective, path: Integers, steps: int, deadline: float, prove: bool
    ) -> Tangent | None:
        """Lift the outcome's bound by Frank-Wolfe's method on a convex function below F; return the best tangent."""
        vertices, constants = self.points(path[None])
        shares, best, without_progress = np.ones(1), None, 0
        for _ in range(MOST_ITERATIONS):
            before = outcome.gap
            tangent = self._tangent(convex, shares @ vertices, steps, prove)
            least, path = self._shortest(tangent.linear, tangent.weights, steps)
            outcome.iterations += 1
            bound = tangent.constant + least - tangent.rounding
            if best is None or bound > best.bound:
                best = replace(tangent, bound=bound)
                outcome.bound = max(outcome.bound, bound)
            point, constant = self.take_in(outcome, path[None])
            without_progress = without_progress + 1 if outcome.gap > STALLED * before else 0
            repeated = bool((np.abs(vertices - point[0]).max(axis=1) == 0.0).any())
            enough = CLOSED if prove else GOOD
            if (
                outcome.gap <= enough
                or repeated
                or without_progress >= PATIENCE
                or time.monotonic() > deadline
            ):
                break
            vertices, constants = np.concatenate([vertices, point]), np.append(constants, constant)
            shares = corrected(convex, vertices, constants, np.append(shares, 0.0))
        return best

    def _tangent(self, convex: Objective, y: Array, steps: int, prove: bool) -> Tangent:
        """Return the tangent at y; where negative weights cost too much, at a point near it that has none."""
        weights = convex.gradient(y)
        if weights.min() < 0.0 and (len(self.grid.levels) > FULL_TABLE or not prove):
            y = y.copy()
            y[: convex.directions] = np.maximum(y[: convex.directions], 0.0)
            y[convex.directions :] = FORGOTTEN  # the mean's share has no slope there, and is bounded by 0
            weights = np.maximum(convex.gradient(y), 0.0)
        value = float(convex.value(y))
        linear = self.grid.linearised(weights, steps)
        return Tangent(weights, value - float(weights @ y), self.rounding(weights, y, value, steps), linear)

    def rounding(self, weights: Array, y: Array, value: float, steps: int) -> float:
        """Bound the rounding error of a linearised value."""
        size = np.abs(weights)
        edges = steps * EDGE_ROUNDING * float(size @ self._logarithms)
        return ROUNDING * (float(size @ np.abs(y)) + abs(value)) + edges

    def _shortest(self, linear: Linearised, weights: Array, steps: int) -> tuple[float, Integers]:
        """Return the least linearised value of a path, offsets and constants included, and the path."""
        totals = linear.costs[self.starts, steps - 1] + self.offsets @ weights + self.constants
        start = int(np.argmin(totals))
        if np.isinf(totals[start]):
            raise ValueError(f"steps = {steps}: no choice of levels keeps to visit and min_spacing")
        return float(totals[start]), linear.path(int(self.starts[start]), steps)

    def improve(self, outcome: Outcome) -> None:
        """Move the best path's levels to a local optimum off the grid, back to the nearest levels, then one by one."""
        best = outcome.paths[int(np.argmin(outcome.values))]
        snapped = self._snapped(best)
        if snapped is not None:
            self.take_in(outcome, snapped[None])
        path, value = outcome.paths[int(np.argmin(outcome.values))], outcome.best
        for _ in range(MOST_MOVES):
            moved = self._neighbours(path)
            if len(moved) == 0:
                return
            points, constants = self.points(moved)
            values = self.objective.value(points) + constants
            best = int(np.argmin(values))
            if not values[best] < value:
                return
            path, value = moved[best], float(values[best])
            outcome.add(path, value)

    def _snapped(self, path: Integers) -> Integers | None:
        """Return the path next to the local optimum beside a path, if it is allowed."""
        sigmas = np.append(self.grid.levels[path], 0.0)
        moved = refined_levels(self.objective, sigmas, float(self.grid.levels[-1]))
        x = -self.grid.x
        wanted = -2.0 * np.log(moved[1:-1])
        right = np.clip(np.searchsorted(x, wanted), 1, len(x) - 1)
        nearest = right - (wanted - x[right - 1] < x[right] - wanted)
        snapped = np.append(path[:1], nearest)
        return snapped if self._allowed(snapped[None])[0] else None

    def _allowed(self, paths: Integers) -> NDArray[np.bool_]:
        """Return which paths keep to the grid's steps, starts and ends."""
        reach = self.grid.reach
        inside = ((paths >= 0) & (paths < len(self.grid.levels))).all(axis=1)
        paths = np.where(inside[:, None], paths, 0)
        here, there = paths[:, :-1], paths[:, 1:]
        steps = (there >= reach[here, 0]) & (there < reach[here, 1])
        return (
            inside & steps.all(axis=1) & self.grid.may_end[paths[:, -1]] & np.isin(paths[:, 0], self.starts)
        )

    def _neighbours(self, path: Integers) -> Integers:
        """Return the allowed paths that differ from a path in one level, by a few places."""
        changed = np.repeat(path[None], 2 * len(MOVES) * len(path), axis=0)
        rows = np.arange(len(changed))
        changed[rows, rows % len(path)] += np.repeat(np.concatenate([MOVES, -MOVES]), len(path))
        return np.ascontiguousarray(changed[self._allowed(changed)])

    def enumerate(
        self,
        outcome: Outcome,
        tangent: Tangent,
        steps: int,
        deadline: float,
        slack: float,
        target: float = 0.0,
        most_effort: int | None = None,
    ) -> None:
        """Take in every path that the tangent does not exclude from being best on the uncompressed spectrum."""
        allowed = max(outcome.best, target) * (1.0 + slack) - tangent.constant + tangent.rounding
        rest = allowed - self.offsets @ tangent.weights - self.constants  # for the steps after each start
        effort = FIRST_EFFORT
        while effort <= (most_effort or MOST_EFFORT):
            found, began = [], time.monotonic()
            for start in np.flatnonzero(tangent.linear.costs[self.starts, steps - 1] <= rest):
                most = min(effort >> 6, MOST_PATHS)
                paths = tangent.linear.below(int(self.starts[start]), steps, float(rest[start]), effort, most)
                if paths is None or time.monotonic() > deadline:
                    break
                found.append(paths)
            else:
                for paths in found:
                    for begin in range(0, len(paths), BLOCK):
                        self.take_in(outcome, paths[begin : begin + BLOCK])
                outcome.complete = True
                return
            now = time.monotonic()
            if now + (now - began) > deadline:
                return
            effort = int(
                effort * min(8.0, (deadline - now) / max(now - began, 1e-3))
            )  # what time is left for


def corrected(objective: Objective, vertices: Array, constants: Array, shares: Array) -> Array:
    """Return the convex weights of the vertices that minimise F of their mixture: Newton steps by least squares."""
    value = float(objective.value(shares @ vertices) + shares @ constants)
    for _ in range(20):
        y = shares @ vertices
        root = np.sqrt(np.maximum(objective.curvature(y), 1e-300))
        target = root * y - objective.gradient(y) / root
        rows, aims = vertices * root, target
        scale = float(np.abs(rows).max())
        if constants.any():  # the constants are linear in the shares: a coordinate of next to no curvature
            small = 1e-3 * scale / float(constants.max())
            rows = np.append(rows, small * constants[:, None], axis=1)
            aims = np.append(aims, small * float(shares @ constants) - 1.0 / small)
        rows = np.append(rows, np.full((len(vertices), 1), SUM_WEIGHT * scale), axis=1)
        found, _ = scipy.optimize.nnls(rows.T, np.append(aims, SUM_WEIGHT * scale))
        if not found.sum() > 0.0:
            break
        direction, step = found / found.sum() - shares, 1.0
        for _ in range(30):
            trial = shares + step * direction
            trial_value = float(objective.value(trial @ vertices) + trial @ constants)
            if trial_value < value:
                break
            step *= 0.5
        else:
            break
        fallen, value, shares = value - trial_value, trial_value, trial
        if fallen <= 1e-13 * value:
            break
    return shares
