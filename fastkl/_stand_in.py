"""When a compressed spectrum may stand in for the whole one, and for which candidates it may not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastkl.spectrum import Spectrum

__all__ = ["doubtful", "stand_in"]

Array = NDArray[np.float64]

SHARE = 4.0  # of the error allowed, what goes to the compression
COMPRESSION = 2e8  # (eigenvalue, step) pairs that could be evaluated while a rule of nodes is sought
PASS = 50.0  # (eigenvalue, step) pairs an eigenvalue, while its moments are formed
NODES = 64  # that a compression has, about
CANCELLED = 10.0  # times its value that a candidate's prior alone may cost
BLOCK = 1 << 14  # first levels looked at together


def stand_in(data: Spectrum, levels: Array, rtol: float) -> Spectrum | None:
    """Return the compressed spectrum to evaluate in place of `data`, or None where that does not pay."""
    from fastkl._compression import LEAST_RTOL

    if rtol < SHARE * LEAST_RTOL or len(data) < 2 * NODES:
        return None
    allowed = rtol / SHARE
    if allowed not in data._compressed:
        saved = (len(data) - NODES) * levels.shape[0] * (levels.shape[1] - 1)
        if saved < COMPRESSION + PASS * len(data):
            return None
    small = data.compress(allowed)
    return small if 2 * len(small) <= len(data) and small.rtol <= allowed + data.rtol else None


def doubtful(small: Spectrum, levels: Array, values: Array, metric: str, prior: str) -> NDArray[np.bool_]:
    """Return for which candidates the prior's mismatch and the losses of the steps cancel too far.

    With P = log((lambda + s_0^2)/v_0) < 0 and S >= 0 what the steps lose, the error is relative to the sums of S^2 and
    P^2, and S^2 + P^2 <= 2 (S + P)^2 + 3 P^2: it matters where the value is far below what |P| alone would cost.
    """
    if prior not in ("vp", "flow"):  # `ve` adds to the losses, `exact` has no mismatch
        return np.zeros(len(values), dtype=np.bool_)
    first, place = np.unique(levels[:, 0], return_inverse=True)
    costs = [prior_cost(small, first[i : i + BLOCK], metric, prior) for i in range(0, len(first), BLOCK)]
    cost, cost_of_noise = np.concatenate(costs, axis=1)[:, place]
    if metric == "w2":
        cost = cost + np.square(levels[:, -1]) * cost_of_noise
    return np.asarray(cost > CANCELLED * values)


def prior_cost(small: Spectrum, first: Array, metric: str, prior: str) -> Array:
    """Return what first levels would cost if log(1/r) were |P| wherever P < 0; for w2 the parts of lambda and s_N^2."""
    values = small.eigenvalues[:, None]
    weights = np.ones(len(small)) if small.counts is None else small.counts
    finite = np.where(np.isinf(first), 1.0, first)
    missing = 1.0 if prior == "vp" else 1.0 + 2.0 * finite  # v_0 - s_0^2
    mismatch = np.minimum((values - missing) / (finite * finite + missing), 0.0)
    x = np.where(np.isinf(first), 0.0, -np.log1p(mismatch))
    if metric == "w2":
        share = np.square(np.expm1(-0.5 * x))
        return np.stack([(weights * small.eigenvalues) @ share, weights @ share])
    forward, backward = np.expm1(x) - x, np.expm1(-x) + x
    cost = {"kl": forward, "reverse_kl": backward, "jeffreys": forward + backward}[metric]
    return np.stack([0.5 * weights @ cost, np.zeros(len(first))])
