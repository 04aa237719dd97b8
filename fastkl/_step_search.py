"""The best path of a deterministic sampler of two evaluations a step, and the proof, on the spectrum as it is given.

What makes `fastkl._convex_search` work holds for these samplers too: what is lost is a sum over the steps, and the
divergence is convex in it. Losses have either sign, so have the weights of tangents, and costs are not Monge.

Compression is proved for DDIM's divergences only. Frank-Wolfe's method therefore runs on a compressed spectrum, and
what it finds is taken over to the spectrum as given: tangents at mixtures of the paths found, bounds and enumeration
are about that one.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from fastkl._convex_search import CLOSED, GOOD, ConvexSearch, Outcome, Tangent, corrected
from fastkl._objective import Objective
from fastkl._step_grid import TableGrid
from fastkl._step_losses import StepObjective

__all__ = ["StepSearch"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

EDGE_ROUNDING = 1.2e-14  # in the cost of a step, relative to the logarithms that cancel in it
ROUNDING = 1e-11  # in linearised costs, relative to their terms
MOST_TANGENTS = 12  # on the spectrum as given
NEGLIGIBLE = 1e-9  # share of a path in a mixture


class StepSearch(ConvexSearch):
    """A grid, an objective and the starts that are allowed; searches for any number of steps."""

    grid: TableGrid
    objective: StepObjective

    def __init__(self, grid: TableGrid, objective: StepObjective, starts: Integers) -> None:
        super().__init__(grid, objective, starts)
        farthest = max(abs(grid.places[0]), abs(grid.places[-1]))
        self._logarithms = np.maximum(np.abs(np.log(objective.eigenvalues)), farthest) + 1.0

    def run(self, steps: int, deadline: float, prove: bool, slack: float, target: float = 0.0) -> Outcome:
        """Search for the best path of `steps` steps, and with a proof for all with values up to `target`.

        `slack` is the relative error of the objective itself.
        """
        outcome, tangent = self.approach(steps, deadline, prove)
        if prove and tangent is not None:
            self.enumerate(outcome, tangent, steps, deadline, slack, target)
        return outcome

    def approach(self, steps: int, deadline: float, prove: bool) -> tuple[Outcome, Tangent | None]:
        """Return the paths that Frank-Wolfe's method finds, and its best tangent."""
        outcome = Outcome([], [])
        plain = self.objective.weights.copy()
        plain[self.objective.directions :] = 0.0
        for weights in (plain, -plain):  # the path that loses least, and the one that gains least
            _, path = self._shortest(self.grid.linearised(weights, steps), weights, steps)
            self.take_in(outcome, path[None])
        best = outcome.paths[int(np.argmin(outcome.values))]
        tangent = self.lift(outcome, self.objective, best, steps, deadline, prove)
        if outcome.gap > GOOD:
            self.improve(outcome)
        return outcome, tangent

    def certify(
        self, found: Outcome, shares: Array, steps: int, deadline: float, slack: float
    ) -> Outcome:
        """Return the outcome on this spectrum of tangents at mixtures of paths that were found on another."""
        outcome = Outcome([], [])
        kept = np.flatnonzero(shares > NEGLIGIBLE)
        paths = np.stack([found.paths[i] for i in kept])
        vertices, constants = self.take_in(outcome, paths)
        self.take_in(outcome, found.paths[int(np.argmin(found.values))][None])
        shares, best = shares[kept] / shares[kept].sum(), None
        for _ in range(MOST_TANGENTS):
            shares = corrected(self.objective, vertices, constants, shares)
            tangent = self._tangent(self.objective, shares @ vertices, steps, True)
            least, path = self._shortest(tangent.linear, tangent.weights, steps)
            outcome.iterations += 1
            bound = tangent.constant + least - tangent.rounding
            if best is None or bound > outcome.bound:
                best, outcome.bound = tangent, bound
            point, constant = self.take_in(outcome, path[None])
            known = bool((np.abs(vertices - point[0]).max(axis=1) == 0.0).any())
            if known or outcome.gap <= CLOSED or time.monotonic() > deadline:
                break
            vertices, constants = np.concatenate([vertices, point]), np.append(constants, constant)
            shares = np.append(shares, 0.0)
        assert best is not None
        self.enumerate(outcome, best, steps, deadline, slack)
        return outcome

    def mixture(self, outcome: Outcome) -> Array:
        """Return the shares of the outcome's paths that make F of their mixture least."""
        vertices, constants = self.points(np.stack(outcome.paths))
        shares = np.zeros(len(vertices))
        shares[int(np.argmin(outcome.values))] = 1.0
        return corrected(self.objective, vertices, constants, shares)

    def _tangent(self, convex: Objective, y: Array, steps: int, prove: bool) -> Tangent:
        """Return the tangent at y."""
        weights, value = convex.gradient(y), float(convex.value(y))
        linear = self.grid.linearised(weights, steps)
        return Tangent(weights, value - float(weights @ y), self.rounding(weights, y, value, steps), linear)

    def rounding(self, weights: Array, y: Array, value: float, steps: int) -> float:
        """Bound the rounding error of a linearised value."""
        size = np.abs(weights)
        edges = steps * EDGE_ROUNDING * float(size @ self._logarithms)
        return ROUNDING * (float(size @ np.abs(y)) + abs(value)) + edges

    def _snapped(self, path: Integers) -> Integers | None:
        """Return None: there is no local optimum off the grid to go to."""
        return None
