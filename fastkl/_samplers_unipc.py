"""UniPC: a predictor and a corrector that share each evaluation."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fastkl._sampler_base import Sampler
from fastkl._sampler_math import log_ratio, phi, vandermonde_weights
from fastkl._sampler_tape import Point, Tape
from fastkl._validation import choice, integer

__all__ = ["unipc"]

Array = NDArray[np.float64]


def unipc(order: int = 2, variant: str = "bh2", prediction: str = "data") -> Sampler:
    """UniPC of orders 1 to 3; N evaluations.

    Predict y' from the corrected state, evaluate there, correct y' with that value, which is not evaluated again.
    `fastkl.trajectory` gives the predicted states, which is what schedulers return.

    Parameters
    ----------
    order : int
        1 to 3: the order p of the predictor. The corrected path converges with p + 1, the output, because the last step
        always has order 1, with 2.
    variant : {"bh2", "bh1"}
        B(h) = exp(h) - 1, or h.
    prediction : {"data", "noise"}
        Which values are combined: D (published default) or e.

    Returns
    -------
    Sampler
        The sampler; it needs a finite first level.

    Raises
    ------
    TypeError, ValueError
        If an option is of the wrong kind or does not exist.

    Notes
    -----
    diffusers' bh1 returns NaN for a last level of 0; here the last step, of order 1, is DDIM's.

    References
    ----------
    Zhao et al., "UniPC" (arXiv 2302.04867), algorithms 5 to 8.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.output_variance([1.0], [9.0, 3.0, 1.0, 0.3, 0.0], sampler=fastkl.samplers.unipc(order=3)).round(4)
    array([0.8692])
    """
    order = integer("order", order, minimum=1, maximum=3)
    choice("variant", variant, ("bh2", "bh1"))
    choice("prediction", prediction, ("data", "noise"))
    options = (("order", order), ("variant", variant), ("prediction", prediction))
    return Sampler("unipc", draw_unipc, options, order=2, finite_start=True)


def unipc_terms(
    past: list[Point], there: Array, order: int, variant: str, data: bool, new: Point | None
) -> list[tuple[Point, Array]]:
    """Return the residual terms of the predictor, or of the corrector if the point `new` is given.

    With z = -h (data) or h, the weights rho solve sum_j rho_j r_j^(i-1) = i! phi_{i+1}(z) z/B.
    """
    if order == 1 and new is None:
        return []
    here = past[0].level
    h = log_ratio(here, there)
    z = -h if data else h
    scale = z * phi(1, z) if variant == "bh2" else z
    moments = [math.factorial(i) * phi(i + 1, z) * z / scale for i in range(1, order + 1)]
    nodes = [-log_ratio(point.level, here) / h for point in past[1:order]]
    used = list(past[1:order])
    if new is not None:
        nodes.append(np.ones_like(h))
        used.append(new)
    if len(used) == 1 and order <= 2 and not (new is not None and order == 2):
        weights = [np.full_like(h, 0.5)]  # fixed in published code
    else:
        weights = vandermonde_weights(nodes, moments[: len(used)])
    scale = scale if data else there * scale
    return [(point, -scale * rho / r) for point, rho, r in zip(used, weights, nodes, strict=True)]


def draw_unipc(tape: Tape, order: int, variant: str, prediction: str) -> list[Point]:
    """Write UniPC."""
    data = prediction == "data"
    tape.kind = prediction
    points, past, state = [tape.start], [], tape.start
    taken = 1
    for k, (_, there) in enumerate(tape.pairs()):
        predicted = points[-1]
        if k > 0:
            terms = unipc_terms(past, predicted.level, taken, variant, data, predicted)
            state = tape.step(state, predicted.level, terms, function=past[0])
        past.insert(0, predicted)
        taken = min(order, tape.count - k, k + 1)
        terms = unipc_terms(past, there, taken, variant, data, None)
        points.append(tape.step(state, there, terms, function=predicted))
    return points
