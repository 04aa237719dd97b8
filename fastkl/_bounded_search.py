"""The best path under w2, and the proof, although w2 is not convex in what the steps lose.

h(y) = (1 - exp(-y/2))^2 is convex up to y = 2 log 2 and bounded beyond. Every path that beats the best one found has
each y_j within a box [L_j, U_j], on which the convex envelope of h takes its place: h up to the point where the chord
to (U, h(U)) touches it, then the chord. What the envelope's bound does not exclude tightens the box: the least and the
largest y_j over all paths whose linearised cost stays below the best value, bounded by a shortest path with the cost
mu * linearised cost -+ S_j for a few mu. A smaller box has a tighter envelope, and so on.
"""

from __future__ import annotations

import math
import time

import numpy as np
from numpy.typing import NDArray

from fastkl._convex_search import ConvexSearch
from fastkl._objective import Objective
from fastkl._search_bounds import Bounds, Outcome, Tangent
from fastkl._threads import run_all, thread_count

__all__ = ["BoundedSearch"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

INFLECTION = 2.0 * math.log(2.0)
MOST_ROUNDS = 12
FEWEST_CHANGE = 0.02  # of a box's width that a round must take away to be worth another
CUTS = 3  # shortest paths for each side of an entry's interval
NEGLIGIBLE = 1e-3  # share of the gap that an entry's envelope may make up and still be left alone
FLAT = 1e-3  # curvature, relative to the weight, that stands for that of a chord
WORTH_RESTRICTING = 0.7  # share of the levels that may be left for the others to be left out
QUICK_EFFORT = 1 << 24  # steps looked at in an enumeration before another round
ROUNDING = 1e-11  # in bounds of the box


class Envelope(Objective):
    """The convex envelope of w2 on a box of y, continued by straight lines beyond it, so that it is convex everywhere.

    Equal to w2 where the box lies below the inflection. Tangents may be taken anywhere: they are below w2 in the box.
    """

    def __init__(self, whole: Objective, low: Array, high: Array) -> None:
        self.__dict__.update(whole.__dict__)
        low, high = low[: self.directions], high[: self.directions]
        chord = high > INFLECTION
        self.start = np.where(chord, np.maximum(touching(high), low), high)
        width = np.where(chord, np.maximum(high - self.start, 1e-300), 1.0)
        self.height = distance(self.start)
        q = np.exp(-0.5 * np.minimum(high, INFLECTION))
        self.slope = np.where(chord, (distance(high) - self.height) / width, (1.0 - q) * q)
        straight = chord & (low >= self.start)  # the chord is all of it
        self.height = np.where(straight, self.height - self.slope * self.start, self.height)
        self.origin = np.where(straight, 0.0, self.start)
        self.start = np.where(straight, -np.inf, self.start)

    def value(self, y: Array) -> Array:
        """Return the envelope's sum."""
        y, shrunk = self._parts(y)
        terms = self.terms(y)
        return np.asarray(terms @ self.weights[: self.directions] + shrunk @ self.weights[self.directions :])

    def terms(self, y: Array) -> Array:
        """Return the terms of the directions, without weights."""
        beyond = y > self.start
        chord = self.height + self.slope * (y - self.origin)
        return np.where(beyond, chord, distance(np.where(beyond, 0.0, y)))

    def gradient(self, y: Array) -> Array:
        """Return the envelope's derivatives."""
        y, shrunk = self._parts(y)
        beyond = y > self.start
        q = np.exp(-0.5 * np.where(beyond, 0.0, y))
        return self.weights * np.append(np.where(beyond, self.slope, (1.0 - q) * q), -shrunk)

    def curvature(self, y: Array) -> Array:
        """Return the envelope's second derivatives, on chords a small number instead."""
        y, shrunk = self._parts(y)
        beyond = y > self.start
        q = np.exp(-0.5 * np.where(beyond, 0.0, y))
        return self.weights * np.append(np.where(beyond, FLAT, np.maximum(q * (q - 0.5), FLAT)), shrunk)


def distance(y: Array) -> Array:
    """Return h(y)."""
    return np.asarray(np.square(np.expm1(-0.5 * y)))


def touching(high: Array) -> Array:
    """Return where the chord to (U, h(U)) touches h from above, by bisection; the chord is above h beyond it.

    Returned is the left end of the last interval: the chord from there lies below h as well.
    """
    left, right = np.zeros_like(high), np.full_like(high, INFLECTION)
    top = np.maximum(high, INFLECTION)
    for _ in range(60):
        middle = 0.5 * (left + right)
        q = np.exp(-0.5 * middle)
        below = (1.0 - q) * q * (top - middle) < distance(top) - distance(middle)
        left, right = np.where(below, middle, left), np.where(below, right, middle)
    return left


class BoundedSearch(ConvexSearch):
    """Search under w2."""

    iterations_without_proof = 1  # an envelope of the widest box is loose, lifted or not

    def run(self, steps: int, deadline: float, prove: bool, slack: float, target: float = 0.0) -> Outcome:
        """Search for the best path of `steps` steps, and with a proof for all with values up to `target`.

        `slack` is the relative error of the objective itself.
        """
        outcome = Outcome([], [])
        if self.few(outcome, steps, prove):
            return outcome
        self.begin(outcome, steps, self.likely_start(steps))
        low, high = self.widest_box()
        self.rounds(outcome, low, high, steps, deadline, prove, slack, target)
        return outcome

    def rounds(
        self,
        outcome: Outcome,
        low: Array,
        high: Array,
        steps: int,
        deadline: float,
        prove: bool,
        slack: float,
        target: float,
    ) -> None:
        """Bound, enumerate and tighten the box [low, high] in turn, until everything is excluded or nothing helps."""
        bounds = Bounds(len(self.starts))
        for _ in range(MOST_ROUNDS if prove else 1):
            high[:] = np.minimum(high, self.worth(self.limit(outcome, slack, target)))
            envelope = Envelope(self.objective, low, high)
            self.explore(outcome, bounds, envelope, steps, deadline, prove)
            for path in self.best_of_starts(outcome):
                self.improve(outcome, path)
            if not prove or time.monotonic() > deadline:
                return
            self.enumerate(outcome, bounds, steps, deadline, slack, target, QUICK_EFFORT)
            if outcome.complete:
                return
            limit = self.limit(outcome, slack, target)
            tangent = bounds.tangents[bounds.by[self.place_of(outcome.best_path)]]
            kept = self.levels_left(tangent, limit, steps, outcome.best_path)
            if len(kept) < WORTH_RESTRICTING * len(self.grid.levels):
                self.on_fewer_levels(kept, outcome, low, high, steps, deadline, slack, target)
                return
            change = self.tighten(outcome, envelope, tangent, low, high, steps, deadline, limit)
            if change < FEWEST_CHANGE:
                break
        self.enumerate(outcome, bounds, steps, deadline, slack, target)

    def levels_left(self, tangent: Tangent, limit: float, steps: int, best: Integers) -> Integers:
        """Return the levels that some path worth up to `limit` may visit, as far as a tangent tells."""
        if len(self.starts) > 1 or self.grid.min_spacing > 1 or steps == 1:
            return np.arange(len(self.grid.levels))
        start = int(self.starts[0])
        costs = tangent.linear.through(start, steps) + float(self.offsets[0] @ tangent.weights)
        left = tangent.constant + costs + float(self.constants[0]) - tangent.rounding <= limit
        left[np.concatenate([self.starts, best, self.grid.visit])] = True
        return np.flatnonzero(left)

    def on_fewer_levels(
        self,
        kept: Integers,
        outcome: Outcome,
        low: Array,
        high: Array,
        steps: int,
        deadline: float,
        slack: float,
        target: float,
    ) -> None:
        """Go on with the levels that are left, by which all paths go that matter."""
        starts = np.searchsorted(kept, self.starts)
        inner = BoundedSearch(self.grid.restricted(kept), self.objective, starts, self.margins)
        found = Outcome([], [], iterations=outcome.iterations)
        known = np.stack(outcome.paths)
        inner.take_in(found, np.searchsorted(kept, known[np.isin(known, kept).all(axis=1)]))
        inner.rounds(found, low, high, steps, deadline, True, slack, target)
        for path, value in zip(found.paths, found.values, strict=True):
            outcome.add(kept[path], value)
        outcome.complete, outcome.iterations = found.complete, found.iterations
        outcome.bound = max(outcome.bound, min(found.bound, outcome.best))

    def begin(self, outcome: Outcome, steps: int, place: int) -> Array:
        """Take in as well the path that is best under w2's own slopes at the optimum off the grid."""
        y = super().begin(outcome, steps, place)
        linear = self.grid.linearised(np.maximum(self.objective.gradient(y), 0.0), steps)
        start = int(self.starts[place])
        if np.isfinite(linear.costs[start, steps - 1]):
            self.take_in(outcome, linear.path(start, steps)[None])
        return y

    def limit(self, outcome: Outcome, slack: float, target: float) -> float:
        """Return above which value of the objective no path matters."""
        return max(outcome.best, target) * (1.0 + slack) + 2.0 * float(self.margins.max())

    def widest_box(self) -> tuple[Array, Array]:
        """Return bounds of y over all paths: no loss at all, and the losses of the coarsest paths."""
        values = self.objective.eigenvalues
        low, high = self.offsets.min(axis=0) - ROUNDING, np.full(len(values), -np.inf)
        levels = np.square(self.grid.levels)
        for start, offset in zip(self.starts, self.offsets, strict=True):  # fewer levels lose more
            if np.isinf(levels[start]):
                finite = levels[np.isfinite(levels)][:, None]
                loss = (np.log1p(values / finite) + np.log1p(finite / values)).max(axis=0)
            else:
                loss = np.log1p(levels[start] / values)
            high = np.maximum(high, loss + offset + ROUNDING)
        return low, high

    def worth(self, best: float) -> Array:
        """Return above which y an entry alone costs more than the best value."""
        share = np.sqrt(np.minimum(best / self.objective.weights, 1.0))
        with np.errstate(divide="ignore"):
            limit = -2.0 * np.log1p(-share) + ROUNDING
        limit[self.objective.directions :] = np.inf
        return np.asarray(limit)

    def tighten(
        self,
        outcome: Outcome,
        envelope: Envelope,
        tangent: Tangent,
        low: Array,
        high: Array,
        steps: int,
        deadline: float,
        limit: float,
    ) -> float:
        """Shrink the box in place where the envelope loses most, for paths with values up to `limit`.

        Return the largest relative change.
        """
        y = self.points(outcome.best_path[None])[0][0]
        spread = self.objective.directions
        loss = envelope.weights[:spread] * (distance(y[:spread]) - envelope.terms(y[:spread]))
        entries = np.flatnonzero(loss > NEGLIGIBLE * (outcome.best - outcome.bound))
        widths = high[entries] - low[entries]

        def task(entry: int) -> None:
            if time.monotonic() > deadline:
                return
            for sign, side in ((1.0, high), (-1.0, low)):
                bound = sign * self.extreme(entry, sign, tangent, float(y[entry]), steps, limit, deadline)
                side[entry] = min(side[entry], bound) if sign > 0.0 else max(side[entry], bound)

        run_all(task, ((int(entry),) for entry in entries), thread_count(None))
        return float(np.max(1.0 - (high[entries] - low[entries]) / widths, initial=0.0))

    def extreme(
        self,
        entry: int,
        sign: float,
        tangent: Tangent,
        known: float,
        steps: int,
        limit: float,
        deadline: float = math.inf,
    ) -> float:
        """Return a bound of sign * y[entry] over all paths whose value the tangent lets be `limit` or less.

        For any mu >= 0 it is mu * allowed - min over paths (mu * linearised cost - sign * y): convex in mu, and every
        path found gives a line below it. The next mu is where a rising and a falling line meet.
        """
        allowed = limit - tangent.constant + tangent.rounding
        least = float(tangent.bounds.min()) - tangent.constant + tangent.rounding
        unit = np.zeros(len(tangent.weights))
        unit[entry] = sign
        mu = 1.0 / max(allowed - least, 1e-300)
        rising, falling, best = (sign * known, allowed - least), None, math.inf
        for _ in range(CUTS):
            if time.monotonic() > deadline:
                return best
            weights = mu * tangent.weights - unit
            linear = self.grid.linearised(weights, steps)
            totals = linear.costs[self.starts, steps - 1] + self.offsets @ weights + mu * self.constants
            start = int(np.argmin(totals))
            point, constant = self.points(linear.path(int(self.starts[start]), steps)[None])
            cost = float(point[0] @ tangent.weights + constant[0])
            rounding = self.rounding(weights, point[0], mu * allowed, steps)
            best = min(best, mu * allowed - float(totals[start]) + rounding)
            line = (sign * float(point[0, entry]), allowed - cost)
            if line[1] > 0.0:
                rising = line
            else:
                falling = line
            if falling is None:
                mu *= 0.25
            else:
                mu = max((falling[0] - rising[0]) / (rising[1] - falling[1]), 0.0)
        return best
