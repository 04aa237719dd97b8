r"""The divergence of one-step paths as a separable convex function of what the steps lose along each direction.

With S_j = sum over the steps of S_j(a, b) and the mismatch P_j of the first level's prior, log(1/r_j) = y_j = S_j +
P_j, and

    F = sum_j w_j h(y_j) + sum_j m_j exp(-(S_j + log(lambda_j + s_0^2))) + constant(s_0):

h = (exp(y) - 1 - y)/2 for kl, (exp(-y) - 1 + y)/2 for reverse_kl, their sum for jeffreys, all convex; for w2 it is
lambda (1 - exp(-y/2))^2, which is not (see _bounded_search.py). The second sum
is the mean's share where the steps matter to it, the constant where they do not. Every y is a sum over the path: the
first level counts as an edge that costs P.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastkl.spectrum import Spectrum

__all__ = ["Objective"]

Array = NDArray[np.float64]

FORGOTTEN = (
    700.0  # stands for the logarithm of an infinite first level's variance: exp(-700) is 0 beside anything
)


class Objective:
    """F of a compressed spectrum, its gradient and curvature in y; the mean's entries follow those of the counts."""

    def __init__(self, spectrum: Spectrum, metric: str, prior: str) -> None:
        used = spectrum.eigenvalues > 0.0
        self.metric, self.prior = metric, prior
        eigenvalues = spectrum.eigenvalues[used]
        counts = np.ones(len(eigenvalues)) if spectrum.counts is None else spectrum.counts[used]
        mean = np.zeros(len(eigenvalues)) if spectrum.mean is None else spectrum.mean[used]
        energy = counts * np.square(mean)
        shrinks = (energy > 0.0) & (metric != "kl")
        scale = eigenvalues if metric == "w2" else np.full(len(eigenvalues), 0.5)
        self.directions = len(eigenvalues)
        self.eigenvalues = np.append(eigenvalues, eigenvalues[shrinks])
        self.weights = np.append(scale * counts, (scale * energy)[shrinks])
        self._kept = 0.5 * energy if metric in ("kl", "jeffreys") else np.zeros(len(eigenvalues))

    def offsets(self, first: Array) -> Array:
        """Return what first levels add to y, (levels, entries)."""
        square = np.square(np.where(np.isinf(first), 1.0, first))[:, None]
        values = self.eigenvalues[: self.directions]
        missing = {
            "vp": 1.0,
            "ve": 0.0,
            "flow": 1.0 + 2.0 * np.sqrt(square),
            "exact": values,
        }[self.prior]  # v_0 - s_0^2
        mismatch = np.log1p((values - missing) / (square + missing))
        mismatch[np.isinf(first)] = 0.0
        forgotten = np.log(self.eigenvalues[self.directions :] + square)
        forgotten[np.isinf(first)] = FORGOTTEN
        return np.concatenate([mismatch, forgotten], axis=1)

    def constants(self, first: Array) -> Array:
        """Return the mean's share of kl, which only the first level decides, (levels,)."""
        if not self._kept.any():
            return np.zeros(len(first))
        finite = np.where(np.isinf(first), 1.0, first)
        if self.prior == "exact":
            share = self._kept @ (1.0 / (self.eigenvalues[: self.directions, None] + np.square(finite)))
        else:
            deviation = {"vp": np.hypot(1.0, finite), "ve": finite, "flow": 1.0 + finite}[self.prior]
            share = self._kept.sum() / np.square(deviation)
        return np.where(np.isinf(first), 0.0, share)

    def _parts(self, y: Array) -> tuple[Array, Array]:
        return y[..., : self.directions], np.exp(-y[..., self.directions :])

    def value(self, y: Array) -> Array:
        """Return F without the constant, for y of shape (..., entries)."""
        y, shrunk = self._parts(y)
        terms = {
            "kl": lambda: excess(y),
            "reverse_kl": lambda: excess(-y),
            "jeffreys": lambda: 4.0 * np.square(np.sinh(0.5 * y)),
            "w2": lambda: np.square(np.expm1(-0.5 * y)),
        }[self.metric]()
        return np.asarray(terms @ self.weights[: self.directions] + shrunk @ self.weights[self.directions :])

    def gradient(self, y: Array) -> Array:
        """Return the derivatives of F, (entries,)."""
        y, shrunk = self._parts(y)
        slope = {
            "kl": lambda: np.expm1(y),
            "reverse_kl": lambda: -np.expm1(-y),
            "jeffreys": lambda: 2.0 * np.sinh(y),
            "w2": lambda: -np.expm1(-0.5 * y) * np.exp(-0.5 * y),
        }[self.metric]()
        return self.weights * np.append(slope, -shrunk)

    def curvature(self, y: Array) -> Array:
        """Return the second derivatives of F, (entries,)."""
        y, shrunk = self._parts(y)
        bend = {
            "kl": lambda: np.exp(y),
            "reverse_kl": lambda: np.exp(-y),
            "jeffreys": lambda: 2.0 * np.cosh(y),
            "w2": lambda: np.exp(-y) - 0.5 * np.exp(-0.5 * y),
        }[self.metric]()
        return self.weights * np.append(bend, shrunk)

    def losses(self, levels: Array) -> Array:
        """Return S of paths of levels (paths, N+1) that end at 0, (paths, entries), without cancellation."""
        return np.asarray(self.step_losses(levels[:, :-1], levels[:, 1:]).sum(axis=1))

    def step_losses(self, here: Array, there: Array) -> Array:
        """Return S of single steps, shaped like the levels with the entries as a last axis."""
        here, there = here[..., None], there[..., None]
        values = self.eigenvalues
        infinite = np.isinf(here)
        gap = np.where(infinite, 1.0, here) - np.where(infinite, 0.0, there)
        # 1/(1 - e) - 1 = lambda (s - s')^2/(lambda + s s')^2
        lost = values * np.square(gap / (values + np.where(infinite, 1.0, here) * there))
        if infinite.any():
            lost = np.where(infinite, values / np.square(np.where(infinite, there, 1.0)), lost)
        return np.asarray(np.log1p(lost))


def excess(y: Array) -> Array:
    """Return exp(y) - 1 - y without cancellation."""
    near = np.abs(y) < 0.05
    z = np.where(near, y, 0.0)
    series = z * z * (0.5 + z * (1 / 6 + z * (1 / 24 + z * (1 / 120 + z * (1 / 720 + z / 5040)))))
    with np.errstate(over="ignore"):
        return np.asarray(np.where(near, series, np.expm1(y) - y))
