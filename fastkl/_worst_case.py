r"""The functions of lambda that a compressed spectrum must sum up rightly, and how far it is from doing so.

What the steps of DDIM lose is, along the direction of variance lambda = exp(u),

    S = E[ distance of u + xi to the nearest of the levels log s_k^2 ],   xi standard logistic,

because S is a sum of second differences of log(exp(u) + exp(x)) in x, whose second derivative is the logistic density
K(u - x). So S is a mixture, with weights >= 0, of the functions K_x(u) = K(u - x), and of every schedule's S as S -> 0
the products K_x K_x' are the extreme cases of S^2: an error of at most eps for each of them, relative to its own sum,
is one of at most eps for their mixtures, hence for kl, reverse_kl and jeffreys, and with the factor lambda for w2.
Beyond the spectrum K_x tends to a multiple of lambda or of 1/lambda. The family below has these products, on a grid of
x, with factors 1, lambda and 1/lambda, which stand for what larger S adds: exp(S) has slopes within [-1, 1] in u.

Where a prior's mismatch cancels what the steps lose, S + P has zeros among the eigenvalues. For these the family has
Z_x^2, Z_x = tanh((u - x)/2), and the products of two of them.

The mean enters with the factors 1/(lambda + s_0^2), (lambda + s_N^2) and exp(-S), products of logistic functions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["CountFamily", "MeanFamily", "Reference"]

Array = NDArray[np.float64]

MARGIN = 8.0  # how far beyond the spectrum K_x is tried; it is a power of lambda to 1e-3 from there on
SPACING = 0.25  # of x; nodes are further apart than that
FEWEST = 9  # of the x within the spectrum


def logistic(x: Array) -> Array:
    """Return 1/(1 + exp(-x))."""
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


class CountFamily:
    """The functions that the counts are summed against, for a spectrum within [low, high] of log lambda."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        inside = max(FEWEST, int((high - low) / SPACING) + 2)
        spacing = (high - low) / (inside - 1)
        beyond = np.arange(SPACING, MARGIN + SPACING, SPACING)
        self.zeros = low + spacing * np.arange(inside)
        self.centres = np.concatenate([low - beyond[::-1], self.zeros, high + beyond])

    def factors(self, u: Array) -> list[Array]:
        """Return the functions whose products with pairs of `values` make the family."""
        return [np.ones_like(u), np.exp(u - self.high), np.exp(self.low - u)]

    def values(self, u: Array) -> Array:
        """Return the functions that are multiplied in pairs, (functions, u.size)."""
        falling = logistic(self.centres[:, None] - u)
        rising = logistic(u - self.centres[:, None])
        zeros = np.square(np.tanh(0.5 * (u - self.zeros[:, None])))
        return np.concatenate([falling * rising, zeros, self.factors(u)])


class MeanFamily(CountFamily):
    """The functions that the squared mean is summed against."""

    def factors(self, u: Array) -> list[Array]:
        """Return the constant: powers of lambda are limits of the logistic functions."""
        return [np.ones_like(u)]

    def values(self, u: Array) -> Array:
        """Return the functions that are multiplied in pairs, (functions, u.size)."""
        falling = logistic(self.centres[:, None] - u)
        rising = logistic(u - self.centres[:, None])
        return np.concatenate([falling, rising, self.factors(u)])


class Reference:
    """A family's sums over a measure, which rules of fewer points are compared with."""

    def __init__(self, family: CountFamily, u: Array, weights: Array) -> None:
        self.family = family
        self.sums = self.of(u, weights)

    def of(self, u: Array, weights: Array) -> Array:
        """Return the sums of all functions of the family over a measure."""
        values = self.family.values(u)
        return np.stack([(values * (weights * factor)) @ values.T for factor in self.family.factors(u)])

    def error(self, u: Array, weights: Array) -> float:
        """Return the largest error of a sum of the family over a rule, relative to the sum."""
        some = self.sums > 0.0  # squares with their zero at the only eigenvalue there is have no sum
        return float(np.max(np.abs(self.of(u, weights) - self.sums)[some] / self.sums[some], initial=0.0))
