"""Levels moved downhill off the grid, for any sampler: quasi-Newton steps in the logarithms of the gaps.

A sampler is known here only by its values, so that slopes are central differences. The probes of all starts go to the
kernels together, as do the points along their directions: two calls an iteration, whatever the number of starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Descent", "descend"]

Array = NDArray[np.float64]

PROBE = 1e-4  # of central differences, in the logarithm of a gap: h^2 and 1e-11/h are alike
SHARES = np.array([2.0, 1.0, 0.5, 0.25, 0.1, 0.03, 0.01, 1e-3])  # of a step that are tried together
LONGEST = 1.5  # step in the logarithm of a gap
SMALL = 1e-3  # share of its stretch's mean gap that a gap has above the least at the start
FLAT = 1e-9  # slope of the logarithm of the value below which nothing is left to gain


class Descent:
    """One start: levels x = log sigma (L,), of which some are held, between two ends.

    The held levels, and the ends where the outermost level is free, cut the range into stretches. Within each, what
    the gaps have above the least one allowed is shared out as the softmax of the variables z, so that any z is a
    sequence that falls by `least_gap` at least. (Adding a constant to a stretch's z changes nothing; the slope has no
    such part, so that no step has one.) Without a least gap, multistep samplers are best with two levels that agree to
    nine digits: a derivative by finite differences, which only an exact denoiser has digits for.
    """

    def __init__(
        self, x: Array, held: NDArray[np.bool_], ends: tuple[float, float], least_gap: float
    ) -> None:
        self.x, self.free = x.copy(), np.flatnonzero(~held)
        first, last = ([] if held[0] else [-1]), ([] if held[-1] else [len(x)])
        self._anchors = np.concatenate([first, np.flatnonzero(held), last]).astype(np.int64)
        self._padded = np.concatenate([[ends[0]], x, [ends[1]]])
        self._stretches = self._cut(least_gap)
        self.z = np.concatenate([self._logarithms(*stretch) for stretch in self._stretches] or [np.empty(0)])
        self.value = np.inf
        self._slope = np.zeros(len(self.z))
        self._inverse = np.eye(len(self.z))
        self._fresh = True  # the inverse Hessian knows nothing yet
        self._step: Array | None = None
        self.done = len(self.free) == 0

    def _cut(self, least_gap: float) -> list[tuple[int, int, Array]]:
        """Return the pairs of anchors that have free levels between them, and the least gaps there."""
        found = []
        for left, right in zip(self._anchors[:-1].tolist(), self._anchors[1:].tolist(), strict=True):
            gaps = right - left
            if gaps == 1:
                continue
            room = float(self._padded[left + 1] - self._padded[right + 1])
            least = np.full(gaps, min(least_gap, 0.5 * room / gaps))
            if left < 0:
                least[0] = 0.0  # to the range's end, where no level is
            if right == len(self.x):
                least[-1] = 0.0
            found.append((left, right, least))
        return found

    def _logarithms(self, left: int, right: int, least: Array) -> Array:
        gaps = -np.diff(self._padded[left + 1 : right + 2])
        mean = float(gaps.mean())
        return np.log(np.maximum(gaps - least, SMALL * mean) / mean)

    def levels(self, z: Array) -> Array:
        """Return log sigma (M, L) for variables (M, n)."""
        x = np.repeat(self.x[None], len(z), axis=0)
        at = 0
        for left, right, least in self._stretches:
            part = z[:, at : at + right - left]
            at += right - left
            shares = np.exp(part - part.max(axis=1, keepdims=True))
            covered = np.cumsum(shares, axis=1)
            start = self._padded[left + 1]
            room = start - self._padded[right + 1] - least.sum()
            x[:, left + 1 : right] = start - np.cumsum(least)[:-1] - room * covered[:, :-1] / covered[:, -1:]
        return x

    @property
    def best(self) -> Array:
        """The levels reached, log sigma (L,)."""
        return self.levels(self.z[None])[0]

    def probes(self) -> Array:
        """Return the points from whose values the slope is known."""
        shift = PROBE * np.eye(len(self.z))
        return self.z + np.concatenate([shift, -shift])

    def take_slope(self, values: Array) -> None:
        """Take in the values of the probes, and update the inverse Hessian (BFGS)."""
        ahead, behind = values.reshape(2, -1)
        if not (np.isfinite(ahead).all() and np.isfinite(behind).all()):
            self.done = True  # at the edge of where the divergence is finite
            return
        slope = (ahead - behind) / (2.0 * PROBE)
        if self._step is not None:
            self._update(self._step, slope - self._slope)
        self._slope = slope
        self.done = bool(np.abs(slope).max() <= FLAT)

    def _update(self, step: Array, change: Array) -> None:
        bend = float(step @ change)
        if not bend > 1e-10 * float(np.linalg.norm(step) * np.linalg.norm(change)):
            return
        if self._fresh:
            self._inverse = np.eye(len(step)) * (bend / float(change @ change))
            self._fresh = False
        moved = np.eye(len(step)) - np.outer(step, change) / bend
        self._inverse = moved @ self._inverse @ moved.T + np.outer(step, step) / bend

    def trials(self) -> Array:
        """Return points along the direction of descent."""
        direction = -self._inverse @ self._slope
        if not direction @ self._slope < 0.0:
            self._inverse, self._fresh = np.eye(len(self.z)), True
            direction = -self._slope
        direction *= min(1.0, LONGEST / float(np.abs(direction).max()))
        return self.z + SHARES[:, None] * direction

    def take_trials(self, points: Array, values: Array, enough: float) -> None:
        """Go to the best point, if it is better."""
        best = int(np.argmin(values))
        fallen = self.value - float(values[best])
        if fallen > 0.0:
            self._step = points[best] - self.z
            self.z, self.value = points[best], float(values[best])
        if fallen <= enough:
            if self._fresh:
                self.done = True
            else:  # once more, straight downhill
                self._inverse, self._fresh, self._step = np.eye(len(self.z)), True, None


def descend(
    starts: list[Descent],
    logarithm: Callable[[Array], Array],
    iterations: int,
    enough: float,
    deadline: float,
) -> None:
    """Move all starts downhill together; `logarithm` gives log(divergence) of levels (M, L), in log sigma.

    A start is done when an iteration gains no more than `enough`.
    """
    new = [start for start in starts if not np.isfinite(start.value)]
    if new:
        for start, value in zip(new, logarithm(np.stack([s.best for s in new])).tolist(), strict=True):
            start.value = value
            start.done |= not np.isfinite(value)
    for _ in range(iterations):
        active = [start for start in starts if not start.done]
        if not active or time.monotonic() > deadline:
            return
        for start, _, values in evaluated(active, [start.probes() for start in active], logarithm):
            start.take_slope(values)
        active = [start for start in active if not start.done]
        for start, points, values in evaluated(active, [start.trials() for start in active], logarithm):
            start.take_trials(points, values, enough)


def evaluated(
    starts: list[Descent], points: list[Array], logarithm: Callable[[Array], Array]
) -> list[tuple[Descent, Array, Array]]:
    """Return every start with its points and their values, found in one call."""
    if not starts:
        return []
    levels = [start.levels(z) for start, z in zip(starts, points, strict=True)]
    values = np.split(logarithm(np.concatenate(levels)), np.cumsum([len(rows) for rows in levels])[:-1])
    return list(zip(starts, points, values, strict=True))
