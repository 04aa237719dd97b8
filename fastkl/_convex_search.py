"""The best path through a grid of levels under a convex divergence, and the proof that it is the best.

For any y' the tangent F(y) >= F(y') + F'(y') (y - y') bounds every path's value from below, and its least value over
all paths is a shortest path with N edges. Frank-Wolfe's method moves y' to the minimiser of F over the convex hull of
all paths, which lifts the bound; after each step F is minimised over the hull of the paths found so far. Every path
that could still be better than the best one has a linearised cost below a known threshold, and these are enumerated.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

from fastkl._grid import Grid, Linearised
from fastkl._objective import FORGOTTEN, Objective

__all__ = ["ConvexSearch", "Outcome"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

MOST_ITERATIONS = 40
CLOSED = 1e-12  # relative gap that is rounding
STALLED = 0.7  # an iteration that leaves more of the gap than this counts as one without progress
PATIENCE = 3
ROUNDING = 1e-11  # in linearised costs, relative to their terms
EDGE_ROUNDING = 4e-15  # in the cost of a step, relative to the logarithms that cancel in it
FULL_TABLE = 4000  # levels up to which negative weights are worth the quadratic table
MOST_PATHS = 1 << 16
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


class ConvexSearch:
    """A grid, an objective and the starts that are allowed; searches for any number of steps."""

    def __init__(self, grid: Grid, objective: Objective, starts: Integers) -> None:
        self.grid, self.objective = grid, objective
        self.starts = starts
        self.offsets = objective.offsets(grid.levels[starts])
        self.constants = objective.constants(grid.levels[starts])
        x = grid.x[np.isfinite(grid.x)]
        self._logarithms = np.maximum(np.abs(np.log(objective.eigenvalues)), np.abs(x).max())

    def _levels(self, paths: Integers) -> Array:
        return np.concatenate([self.grid.levels[paths], np.zeros((len(paths), 1))], axis=1)

    def points(self, paths: Integers) -> tuple[Array, Array]:
        """Return y and the constants of paths (P, N)."""
        place = np.searchsorted(self.starts, paths[:, 0])
        return self.objective.losses(self._levels(paths)) + self.offsets[place], self.constants[place]

    def _linearised(self, weights: Array, steps: int) -> Linearised:
        monge = bool(weights.min() >= 0.0)
        return Linearised(self.grid, self.objective.eigenvalues, weights, steps, monge)

    def _shortest(self, linear: Linearised, weights: Array, steps: int) -> tuple[float, Integers]:
        """Return the least linearised value of a path, offsets and constants included, and the path."""
        totals = linear.costs[self.starts, steps - 1] + self.offsets @ weights + self.constants
        start = int(np.argmin(totals))
        if np.isinf(totals[start]):
            raise ValueError(f"steps = {steps}: no choice of levels keeps to visit and min_spacing")
        return float(totals[start]), linear.path(int(self.starts[start]), steps)

    def _tangent(self, y: Array) -> tuple[Array, Array]:
        """Return a point and F's gradient there; on long grids the point is moved until no weight is negative."""
        weights = self.objective.gradient(y)
        if weights.min() < 0.0 and len(self.grid.levels) > FULL_TABLE:
            y = y.copy()
            y[: self.objective.directions] = np.maximum(y[: self.objective.directions], 0.0)
            y[self.objective.directions :] = (
                FORGOTTEN  # the mean's share has no slope there, and is bounded by 0
            )
            weights = np.maximum(self.objective.gradient(y), 0.0)
        return y, weights

    def _bound(self, y: Array, weights: Array, least: float, steps: int) -> float:
        """Return the tangent's least value over all paths, less what rounding may have added."""
        value = float(self.objective.value(y))
        return value - float(weights @ y) + least - self._rounding(y, weights, value, steps)

    def _rounding(self, y: Array, weights: Array, value: float, steps: int) -> float:
        size = np.abs(weights)
        edges = steps * EDGE_ROUNDING * float(size @ self._logarithms)
        return ROUNDING * (float(size @ np.abs(y)) + value) + edges

    def run(self, steps: int, deadline: float, prove: bool, slack: float) -> Outcome:
        """Search for the best path of `steps` steps; `slack` is the relative error of the objective itself."""
        outcome = Outcome([], [])
        ones = self.objective.weights.copy()
        ones[self.objective.directions :] = 0.0
        _, path = self._shortest(self._linearised(ones, steps), ones, steps)
        vertices, constants = self.points(path[None])
        outcome.add(path, float(self.objective.value(vertices[0])) + float(constants[0]))
        shares = np.ones(1)
        tangent, without_progress = None, 0
        for _ in range(MOST_ITERATIONS if prove else 4):
            before = outcome.gap
            y, weights = self._tangent(shares @ vertices)
            linear = self._linearised(weights, steps)
            least, path = self._shortest(linear, weights, steps)
            outcome.iterations += 1
            bound = self._bound(y, weights, least, steps)
            if bound > outcome.bound:
                outcome.bound = bound
                tangent = (y, weights, linear)
            point, constant = self.points(path[None])
            outcome.add(path, float(self.objective.value(point[0])) + float(constant[0]))
            without_progress = without_progress + 1 if outcome.gap > STALLED * before else 0
            repeated = bool((np.abs(vertices - point[0]).max(axis=1) == 0.0).any())
            if (
                outcome.gap <= CLOSED
                or repeated
                or without_progress >= PATIENCE
                or time.monotonic() > deadline
            ):
                break
            vertices, constants = np.concatenate([vertices, point]), np.append(constants, constant)
            shares = self._corrected(vertices, constants, np.append(shares, 0.0))
        if prove and tangent is not None:
            self._enumerate(outcome, tangent, steps, deadline, slack)
        return outcome

    def _corrected(self, vertices: Array, constants: Array, shares: Array) -> Array:
        """Return the convex weights of the vertices that minimise F of their mixture: Newton steps by least squares."""
        objective = self.objective
        value = float(objective.value(shares @ vertices) + shares @ constants)
        for _ in range(20):
            y = shares @ vertices
            root = np.sqrt(np.maximum(objective.curvature(y), 1e-300))
            target = root * y - objective.gradient(y) / root
            rows, aims = vertices * root, target
            scale = float(np.abs(rows).max())
            if (
                constants.any()
            ):  # the constants are linear in the shares: a coordinate of next to no curvature
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

    def _enumerate(
        self,
        outcome: Outcome,
        tangent: tuple[Array, Array, Linearised],
        steps: int,
        deadline: float,
        slack: float,
    ) -> None:
        """Take in every path that the tangent does not exclude from being best on the uncompressed spectrum."""
        y, weights, linear = tangent
        value = float(self.objective.value(y))
        allowed = (
            outcome.best * (1.0 + slack)
            - value
            + float(weights @ y)
            + self._rounding(y, weights, value, steps)
        )
        rest = allowed - self.offsets @ weights - self.constants  # for the steps after each start
        effort = FIRST_EFFORT
        while effort <= MOST_EFFORT:
            began = time.monotonic()
            found = []
            for start in np.flatnonzero(linear.costs[self.starts, steps - 1] <= rest):
                paths = linear.below(int(self.starts[start]), steps, float(rest[start]), effort, MOST_PATHS)
                if paths is None or time.monotonic() > deadline:
                    break
                found.append(paths)
            else:
                points, constants = self.points(np.concatenate(found))
                values = self.objective.value(points) + constants
                for path, worth in zip(np.concatenate(found), values.tolist(), strict=True):
                    outcome.add(path, worth)
                outcome.complete = True
                return
            now = time.monotonic()
            if now + (now - began) > deadline:
                return
            effort = int(
                effort * min(8.0, (deadline - now) / max(now - began, 1e-3))
            )  # what time is left for
