"""Multistep samplers on the history of e = (y - D)/s: LMS, PLMS, PRK, DEIS."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastkl._sampler_base import Sampler
from fastkl._sampler_math import gamma_integral, log_ratio
from fastkl._sampler_tape import Point, Tape
from fastkl._validation import check_all, decreasing, integer, real_array

__all__ = ["deis", "lms", "plms", "prk", "solver_order"]

Array = NDArray[np.float64]
FEW = 15  # published schedulers lower the order of the last steps below this number of steps
# Adams-Bashforth's weights for equal steps; the newest is what is left to 1.
OLDER = {1: (), 2: (-1 / 2,), 3: (-16 / 12, 5 / 12), 4: (-59 / 24, 37 / 24, -9 / 24)}


def solver_order(k: int, steps: int, order: int, lower: bool, last_is_one: bool) -> int:
    """Return the order of step k: it rises from 1, and falls to 1 where `lower` or `last_is_one` says so."""
    if k == steps - 1 and (lower or last_is_one):
        return 1
    return min(k + 1, order, 2 if lower and k == steps - 2 else order)


def lms(order: int = 4) -> Sampler:
    """Linear multistep (Adams-Bashforth for the levels as they are): y' = y + sum_j e_j int_s^s' L_j(t) dt.

    Parameters
    ----------
    order : int
        Number of values of e that a step combines, 1 to 4; the first steps have fewer.

    Returns
    -------
    Sampler
        The sampler; it needs a finite first level.

    Raises
    ------
    TypeError, ValueError
        If `order` is not an integer from 1 to 4.

    References
    ----------
    k-diffusion's sample_lms; Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", III.5.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.samplers.lms(order=2)
    fastkl.samplers.lms(order=2)
    """
    order = integer("order", order, minimum=1, maximum=4)
    return Sampler("lms", draw_lms, (("order", order),), order=min(order, 2), finite_start=True)


def draw_lms(tape: Tape, order: int) -> list[Point]:
    """Write LMS; two Gauss points integrate cubic polynomials exactly."""
    tape.kind = "noise"
    points = [tape.start]
    for k, (here, there) in enumerate(tape.pairs()):
        past = points[::-1][: min(k + 1, order)]
        middle, half = 0.5 * (here + there), 0.5 * (here - there)
        terms = []
        for j, point in enumerate(past[1:], 1):
            weight = np.zeros_like(half)
            for node in (middle - half / math.sqrt(3.0), middle + half / math.sqrt(3.0)):
                value = -half
                for i, other in enumerate(past):
                    if i != j:
                        value = value * (node - other.level) / (point.level - other.level)
                weight += value
            terms.append((point, weight))
        points.append(tape.step(points[-1], there, terms))
    return points


def adams_bashforth(tape: Tape, past: Sequence[Point], target: Array) -> Point:
    """Write a step with the coefficients of equal steps; past[0] is the newest point."""
    past = past[:4]
    length = target - past[0].level
    older = zip(past[1:], OLDER[len(past)], strict=True)
    return tape.step(past[0], target, [(point, length * weight) for point, weight in older])


def plms() -> Sampler:
    """PNDM without Runge-Kutta steps: Euler and trapezium, then Adams-Bashforth; N + 1 evaluations.

    y' = y + (s'-s) sum_j c_j e_j with the coefficients of equal steps, although the steps in s are not.

    Returns
    -------
    Sampler
        The sampler, for a network that predicts the noise (with v-prediction published schedulers run another map); it
        needs a finite first level and at least 2 steps.

    References
    ----------
    Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds" (arXiv 2202.09778), equation 12.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.samplers.plms().nfe(10)
    11
    """
    return Sampler("plms", draw_plms, order=2, finite_start=True, least_steps=2)


def draw_plms(tape: Tape) -> list[Point]:
    """Write PLMS; what is evaluated at the predicted point leaves the history."""
    tape.kind = "noise"
    here, there = tape.levels[:, 0], tape.levels[:, 1]
    predicted = tape.step(tape.start, there)
    points = [tape.start, tape.step(tape.start, there, [(predicted, 0.5 * (there - here))])]
    for k in range(1, tape.count):
        points.append(adams_bashforth(tape, points[::-1], tape.levels[:, k + 1]))
    return points


def prk(middles: Sequence[float] | None = None) -> Sampler:
    """PNDM: three Runge-Kutta steps, then Adams-Bashforth as in `plms`; N + 9 evaluations.

    e2 = e(y + (m-s) e1, m), e3 = e(y + (m-s) e2, m), e4 = e(y + (s'-s) e3, s'); y' = y + (s'-s)(e1 + 2 e2 + 2 e3 +
    e4)/6.

    Parameters
    ----------
    middles : three floats, optional
        Levels m of the first three steps. Published schedulers take that of the timestep half-way between; without it,
        which levels alone do not tell, m is sqrt(s s').

    Returns
    -------
    Sampler
        The sampler, for a network that predicts the noise; it needs a finite first level and at least 4 steps.

    Raises
    ------
    TypeError, ValueError
        If `middles` are not three falling levels above 0, or, on use, not between the levels of their steps.

    References
    ----------
    Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds" (arXiv 2202.09778), equation 11.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.samplers.prk().nfe(10)
    19
    """
    if middles is not None:
        values = real_array("middles", middles)
        if values.size != 3:
            raise ValueError(f"middles: must be three levels, got {values.size}")
        check_all("middles", values, (values > 0.0) & (values < np.inf), "must be finite and above 0")
        decreasing("middles", values)
        middles = tuple(values.tolist())
    options = (("middles", middles),)
    return Sampler("prk", draw_prk, options, order=2, finite_start=True, least_steps=4, check=check_middles,
                   allowed=middles_within)  # fmt: skip


def middles_within(levels: Array, middles: tuple[float, ...] | None) -> list[Array]:
    """Return, for each of the middles, whether it lies within its step, (M,)."""
    return [(levels[:, k] > m) & (levels[:, k + 1] < m) for k, m in enumerate(middles or ())]


def check_middles(levels: Array, middles: tuple[float, ...] | None) -> None:
    """Raise unless each of the middles lies within its step in every candidate."""
    if middles is not None:
        within = np.array([inside.all() for inside in middles_within(levels, middles)])
        rule = "must lie between the levels before and after its step in every candidate"
        check_all("middles", np.array(middles), within, rule)


def draw_prk(tape: Tape, middles: tuple[float, ...] | None) -> list[Point]:
    """Write three Runge-Kutta steps, then Adams-Bashforth on the first slopes."""
    tape.kind = "noise"
    points = [tape.start]
    for k, (here, there) in enumerate(tape.pairs()):
        if k >= 3:
            points.append(adams_bashforth(tape, points[::-1], there))
            continue
        base = points[-1]
        middle = np.sqrt(here) * np.sqrt(there) if middles is None else np.full_like(here, middles[k])
        second = tape.step(base, middle)
        third = tape.step(base, middle, [(second, middle - here)])
        fourth = tape.step(base, there, [(third, there - here)])
        share = (there - here) / 6.0
        points.append(tape.step(base, there, [(second, 2.0 * share), (third, 2.0 * share), (fourth, share)]))
    return points


def deis(order: int = 2, lower_order_final: bool = True) -> Sampler:
    """DEIS in log sigma: y' = y + sum_j e_j int_s^s' L_j(log t) dt.

    Parameters
    ----------
    order : int
        1 to 3; the first steps have less. Order 1 is DDIM, order 2 is `multistep` of the noise form with ``heun``.
    lower_order_final : bool
        Whether, below 15 steps, the last step has order 1 and the one before at most 2.

    Returns
    -------
    Sampler
        The sampler; it needs a finite first level if its order is above 1.

    Raises
    ------
    TypeError, ValueError
        If an option is of the wrong kind or out of range.

    References
    ----------
    Zhang and Chen, "Fast Sampling of Diffusion Models with Exponential Integrator" (arXiv 2204.13902), equation 14.

    Examples
    --------
    >>> import fastkl
    >>> sampler = fastkl.samplers.deis(order=3)
    >>> fastkl.output_variance([1.0], [9.0, 3.0, 1.0, 0.3, 0.0], sampler=sampler).round(3)
    array([0.722])
    """
    order = integer("order", order, minimum=1, maximum=3)
    if not isinstance(lower_order_final, bool):
        raise TypeError(f"lower_order_final: must be True or False, got {lower_order_final!r}")
    options = (("order", order), ("lower_order_final", lower_order_final))
    return Sampler("deis", draw_deis, options, order=min(order, 2), finite_start=order > 1)


def draw_deis(tape: Tape, order: int, lower_order_final: bool) -> list[Point]:
    """Write DEIS; with t = s exp(-u) the integrals are incomplete gamma functions."""
    tape.kind = "noise"
    points = [tape.start]
    for k, (here, there) in enumerate(tape.pairs()):
        p = solver_order(k, tape.count, order, lower_order_final and tape.count < FEW, False)
        h = log_ratio(here, there)
        terms = []
        if p == 2:
            back = log_ratio(points[-2].level, here)
            terms = [(points[-2], here * gamma_integral(1, h) / back)]
        elif p == 3:
            first = log_ratio(points[-2].level, here)
            second = log_ratio(points[-3].level, points[-2].level)
            one, two = gamma_integral(1, h), gamma_integral(2, h)
            terms = [
                (points[-2], here * (two + (first + second) * one) / (first * second)),
                (points[-3], -here * (two + first * one) / ((first + second) * second)),
            ]
        points.append(tape.step(points[-1], there, terms))
    return points
