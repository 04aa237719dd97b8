"""Samplers of two evaluations a step: Heun, DPM-2, DPM-Solver++(2S) and its SDE. A step to level 0 is DDIM's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastkl._sampler_base import Sampler
from fastkl._sampler_math import one_minus_power
from fastkl._sampler_tape import Point, Tape

__all__ = ["dpm_2", "dpmpp_2s", "dpmpp_sde", "flow_heun", "heun"]

Array = NDArray[np.float64]


def heun() -> Sampler:
    """Heun's second-order method in sigma; 2N - 1 evaluations.

    p = q y + (1-q) D_0; y' = q y + (1-q) (D_0 + w (D(p, s') - D_0)), w = s/(2 s'), q = s'/s.

    Returns
    -------
    Sampler
        The sampler; it needs a finite first level, and a huge first step makes its gain explode.

    References
    ----------
    Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (arXiv 2206.00364), algorithm 1.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.output_variance([1.0], [3.0, 1.0, 0.0], sampler="heun").round(4)
    array([0.625])
    """
    return Sampler("heun", draw_heun, order=2, finite_start=True, one_step=True)


def flow_heun() -> Sampler:
    """Heun's method in the flow's own time: as `heun`, with w = g/(2 g'), g = s/(1 + s); 2N - 1 evaluations.

    Returns
    -------
    Sampler
        The sampler; unlike Euler's, Heun's step depends on the variable that it is taken in.

    References
    ----------
    Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis"
    (arXiv 2403.03206): the flow.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.samplers.flow_heun().nfe(10)
    19
    """
    return Sampler("flow_heun", draw_flow_heun, order=2, one_step=True)


def draw_heun(tape: Tape) -> list[Point]:
    """Write Heun's method in sigma."""
    return trapezium(tape, lambda here, there: 0.5 * here / there)


def draw_flow_heun(tape: Tape) -> list[Point]:
    """Write Heun's method in the flow's time."""

    def weight(here: Array, there: Array) -> Array:
        time = np.where(np.isinf(here), 1.0, here / (1.0 + here))
        return np.asarray(0.5 * time * (1.0 + there) / there)

    return trapezium(tape, weight)


def trapezium(tape: Tape, weight: Callable[[Array, Array], Array]) -> list[Point]:
    """Write the step whose second value has the given weight."""
    points = [tape.start]
    for k, (here, there) in enumerate(tape.pairs()):
        base = points[-1]
        point = tape.step(base, there)
        if not (tape.to_zero and k == tape.count - 1):
            rest = one_minus_power(here, there, 1.0)
            point = tape.step(base, there, [(point, rest * weight(here, there))])
        points.append(point)
    return points


def dpm_2() -> Sampler:
    """DPM-Solver-2 as in Karras et al.: the slope at the geometric middle m = sqrt(s s'); 2N - 1 evaluations.

    y_m = y + (m-s) e_0; y' = y + (s'-s) e(y_m, m).

    Returns
    -------
    Sampler
        The sampler; it needs a finite first level.

    References
    ----------
    Lu et al., "DPM-Solver" (arXiv 2206.00927), algorithm 1; Karras et al. (arXiv 2206.00364), appendix E.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.samplers.dpm_2().nfe(10)
    19
    """
    return Sampler("dpm_2", draw_dpm_2, order=2, finite_start=True, one_step=True)


def dpmpp_2s() -> Sampler:
    """DPM-Solver++(2S) with the geometric middle m = sqrt(s s'): y' = q y + (1-q) D(y_m, m); 2N - 1 evaluations.

    Returns
    -------
    Sampler
        The sampler; it needs a finite first level.

    References
    ----------
    Lu et al., "DPM-Solver++" (arXiv 2211.01095), algorithm 1.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.samplers.dpmpp_2s().steps_for(10)
    5
    """
    return Sampler("dpmpp_2s", draw_dpmpp_2s, order=2, finite_start=True, one_step=True)


def draw_dpm_2(tape: Tape) -> list[Point]:
    """Write DPM-Solver-2: e_m - e_0 = (D_0 - D_m)/m, because y_m is on the line from y along e_0."""
    return by_the_middle(tape, lambda _, middle: middle)


def draw_dpmpp_2s(tape: Tape) -> list[Point]:
    """Write DPM-Solver++(2S)."""
    return by_the_middle(tape, lambda here, _: here)


def by_the_middle(tape: Tape, scale: Callable[[Array, Array], Array]) -> list[Point]:
    """Write a step by way of the geometric middle m, with (s-s')/scale(s, m) as weight of the value there."""
    points = [tape.start]
    for k, (here, there) in enumerate(tape.pairs()):
        base = points[-1]
        if tape.to_zero and k == tape.count - 1:
            points.append(tape.step(base, there))
            continue
        middle = np.sqrt(here) * np.sqrt(there)
        inner = tape.step(base, middle)
        points.append(tape.step(base, there, [(inner, (here - there) / scale(here, middle))]))
    return points


def dpmpp_sde(brownian: bool = True) -> Sampler:
    """DPM-Solver++ (SDE) with two evaluations a step and the geometric middle m; 2N - 1 evaluations.

    y_m = p y + (1-p) D_0 + m sqrt(1-p) z1, p = (m/s)^2; y' = q^2 y + (1-q^2) D(y_m, m) + s' sqrt(1-q^2) z2.

    Parameters
    ----------
    brownian : bool
        Whether z1 and z2 come from one Brownian path in sigma, corr(z1, z2) = sqrt((s-m)/(s-s')), as k-diffusion's
        default noise sampler has it; else they are independent.

    Returns
    -------
    Sampler
        The sampler; it needs a finite first level.

    Raises
    ------
    TypeError
        If `brownian` is not a boolean.

    References
    ----------
    Lu et al., "DPM-Solver++" (arXiv 2211.01095), section 4.3 and appendix; k-diffusion's sample_dpmpp_sde.

    Examples
    --------
    >>> import fastkl
    >>> path = [80.0, 5.0, 1.0, 0.1, 0.0]
    >>> fastkl.output_variance([1.0], path, sampler="dpmpp_sde", prior="ve").round(3)
    array([0.561])
    """
    if not isinstance(brownian, bool):
        raise TypeError(f"brownian: must be True or False, got {brownian!r} ({type(brownian).__name__})")
    options = (("brownian", brownian),)
    return Sampler("dpmpp_sde", draw_dpmpp_sde, options, order=2, stochastic=True, finite_start=True)


def draw_dpmpp_sde(tape: Tape, brownian: bool) -> list[Point]:
    """Write the SDE step; `shared` is the part of the second noise that repeats the first."""
    points = [tape.start]
    for k, (here, there) in enumerate(tape.pairs()):
        base = points[-1]
        if tape.to_zero and k == tape.count - 1:
            points.append(tape.step(base, there))
            continue
        middle = np.sqrt(here) * np.sqrt(there)
        near, far = one_minus_power(here, middle, 2.0), one_minus_power(here, there, 2.0)
        square = (here - middle) / (here - there) if brownian else np.zeros_like(here)
        inner = tape.step(base, middle, keep=middle * middle / here, rest=near, noise=middle * np.sqrt(near))
        whole = there * np.sqrt(far)
        points.append(
            tape.step(
                base, there, [(inner, far)], keep=there * there / here, rest=far,
                noise=whole * np.sqrt((middle - there) / (here - there)) if brownian else whole,
                shared=whole * np.sqrt(square),
            )
        )  # fmt: skip
    return points
