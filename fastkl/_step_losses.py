r"""What one step of a deterministic two-stage sampler loses, in closed form, and the divergence of paths made of them.

With s, s' the levels of a step, d = s - s', u the level of the second evaluation and c its weight, the step multiplies
y by (B + K)/(lambda + s^2),

    B = lambda + s s',    K = c lambda u (s - u)/(lambda + u^2),    c > 0:

DDIM's gain and something positive, so that no gain is 0. Relative to the true marginals a step loses

    S = log((lambda + s^2)(lambda + s'^2)/(B + K)^2) = log(1 + X/(B + K)^2),    X = lambda d^2 - 2 B K - K^2.

| sampler   | u         | c                     | K                        | X                                    |
|-----------|-----------|-----------------------|--------------------------|--------------------------------------|
| heun      | s'        | d/(2 s')              | lambda d^2/(2 M)         | -lambda d^3 s'/M - K^2               |
| flow_heun | s'        | d (1+s')/(2 (1+s) s') | f lambda d^2/(2 M)       | lambda d^3 (lambda-s')/((1+s)M) - K^2 |
| dpm_2     | sqrt(ss') | d/sqrt(s s')          | lambda d^2 sqrt(s)/(R B) | -lambda d^3/R^2 - K^2                |
| dpmpp_2s  | sqrt(ss') | d/s                   | lambda d^2 sqrt(s')/(R B) | lambda d^3/R^2 - K^2                |

M = lambda + s'^2, f = (1 + s')/(1 + s), R = sqrt(s) + sqrt(s'). In X what cancels has been taken out: it is of third
order in d. S is below 0 for heun and dpm_2, above 0 for dpmpp_2s, and of either sign for flow_heun. Steps to 0 are
Euler's, S = log(1 + s^2/lambda).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastkl._objective import Objective
from fastkl.spectrum import Spectrum

__all__ = ["STEP_KINDS", "StepObjective", "step_losses"]

Array = NDArray[np.float64]
Parts = tuple[Array, Array, Array]

DEEP = -0.5  # X/(B+K)^2 below which 1 + X/(B+K)^2 has lost digits, and the logarithm is taken of its factors
CHUNK = 1 << 16  # (path, level, entry) triples evaluated together


def trapezium(values: Array, here: Array, there: Array, fraction: Array, rest: Array) -> Parts:
    """Return B, K and X of the samplers whose second evaluation is at s'; `rest` is X's share of lambda d^3/M."""
    gap, marginal = here - there, values + there * there
    base = values + here * there
    added = fraction * (0.5 * values * gap * gap / marginal)
    return base, added, values * gap * gap * gap * rest / marginal - added * added


def heun_parts(values: Array, here: Array, there: Array) -> Parts:
    """Return B, K and X of heun."""
    return trapezium(values, here, there, np.ones_like(there), -there)


def flow_heun_parts(values: Array, here: Array, there: Array) -> Parts:
    """Return B, K and X of flow_heun."""
    fraction = (1.0 + there) / (1.0 + here)
    return trapezium(values, here, there, fraction, (values - there) / (1.0 + here))


def middle(values: Array, here: Array, there: Array, root: Array, sign: float) -> Parts:
    """Return B, K and X of the samplers whose second evaluation is at the geometric middle."""
    gap, roots = here - there, np.sqrt(here) + np.sqrt(there)
    base = values + here * there
    added = values * gap * gap * root / (roots * base)
    return base, added, sign * (values * gap * gap * gap / (roots * roots)) - added * added


def dpm_2_parts(values: Array, here: Array, there: Array) -> Parts:
    """Return B, K and X of dpm_2."""
    return middle(values, here, there, np.sqrt(here), -1.0)


def dpmpp_2s_parts(values: Array, here: Array, there: Array) -> Parts:
    """Return B, K and X of dpmpp_2s."""
    return middle(values, here, there, np.sqrt(there), 1.0)


PARTS: dict[str, Callable[[Array, Array, Array], Parts]] = {
    "heun": heun_parts,
    "flow_heun": flow_heun_parts,
    "dpm_2": dpm_2_parts,
    "dpmpp_2s": dpmpp_2s_parts,
}
STEP_KINDS = tuple(PARTS)  # in the order of the kernels' numbers


def from_infinity(values: Array, there: Array) -> Array:
    """Return what a step of flow_heun from inf loses: the limit of S."""
    marginal = values + there * there
    added = 0.5 * values * (1.0 + there) / marginal
    excess = values * (values - there) / marginal - added * added
    return logarithm(excess, there + added, marginal, np.ones_like(there))


def logarithm(excess: Array, gain: Array, first: Array, second: Array) -> Array:
    """Return log(1 + excess/gain^2), where that is first * second/gain^2; complex arguments may be given."""
    share = excess / (gain * gain)
    deep = share.real < DEEP
    factors = np.log(np.where(deep, first / gain, 1.0)) + np.log(np.where(deep, second / gain, 1.0))
    return np.asarray(np.where(deep, factors, np.log1p(np.where(deep, 0.0, share))))


def step_losses(name: str, values: Array, here: Array, there: Array) -> Array:
    """Return S of steps between levels above 0, the first perhaps inf; the arguments are broadcast."""
    infinite = np.isinf(here)
    finite = np.where(infinite, there + 1.0, here)
    base, added, excess = PARTS[name](values, finite, there)
    lost = logarithm(excess, base + added, values + finite * finite, values + there * there)
    if infinite.any():
        lost = np.where(infinite, from_infinity(values, there), lost)
    return lost


class StepObjective(Objective):
    """The divergence of paths of a two-stage sampler."""

    def __init__(self, spectrum: Spectrum, metric: str, prior: str, sampler: str) -> None:
        super().__init__(spectrum, metric, prior)
        self.sampler = sampler

    def losses(self, levels: Array) -> Array:
        """Return S of paths of levels (paths, N+1) that end at 0, (paths, entries)."""
        values = self.eigenvalues
        out = np.empty((len(levels), len(values)))
        rows = max(1, CHUNK // (levels.shape[1] * len(values)))
        for begin in range(0, len(levels), rows):
            part = levels[begin : begin + rows, :, None]
            with np.errstate(over="ignore", divide="ignore"):  # a step from inf to 0 loses everything
                total = np.log1p(np.square(part[:, -2]) / values)
            if part.shape[1] > 2:
                total += step_losses(self.sampler, values, part[:, :-2], part[:, 1:-1]).sum(axis=1)
            out[begin : begin + rows] = total
        return out
