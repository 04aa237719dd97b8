"""Samplers of one evaluation a step and no memory: DDIM with any eta, DDPM, and flow matching with fresh noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastkl._sampler_base import Sampler
from fastkl._sampler_math import one_minus_power
from fastkl._sampler_tape import Point, Tape
from fastkl._validation import choice, real_number

__all__ = ["ddim", "ddpm", "flow_stochastic"]

Array = NDArray[np.float64]
LEAST_VARIANCE = 1e-20  # of DDPM's noise, in the coordinates x


def ddim(eta: float = 0.0) -> Sampler:
    """DDIM: Euler's step on the probability-flow ODE (eta = 0) to the ancestral sampler (eta = 1).

    y' = a y + (1 - a) D + w z, w^2 = eta^2 (s'^2/s^2) (s^2 - s'^2), a = sqrt(s'^2 - w^2)/s.

    Parameters
    ----------
    eta : float
        Share of the ancestral sampler's noise, within [0, 1].

    Returns
    -------
    Sampler
        With eta = 0 also known as ``euler``, ``flow_euler``, ``dpmpp_1``, ``dpm_1``, ``deis_1``; with eta = 1 as
        ``euler_ancestral``, ``ddpm_fixed_small`` (but for its clamp) and ``sde_dpmpp_1``.

    Raises
    ------
    TypeError, ValueError
        If `eta` is not a number within [0, 1].

    References
    ----------
    Song, Meng and Ermon, "Denoising Diffusion Implicit Models" (arXiv 2010.02502), equations 12 and 16.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.output_variance([1.0], [3.0, 1.0, 0.0], sampler=fastkl.samplers.ddim(eta=1.0)).round(4)
    array([0.3222])
    """
    eta = real_number("eta", eta, at_least=0.0, at_most=1.0)
    return Sampler("ddim", draw_ddim, (("eta", eta),), order=1, stochastic=eta > 0.0, one_step=eta == 0.0)


def draw_ddim(tape: Tape, eta: float) -> list[Point]:
    """Write DDIM."""
    points = [tape.start]
    for here, there in tape.pairs():
        if eta == 0.0:
            points.append(tape.step(points[-1], there))
            continue
        square, gap = (there / here) ** 2, one_minus_power(here, there, 2.0)
        keep = there * np.sqrt(1.0 - eta * eta * gap)
        rest = gap * (1.0 + eta * eta * square) / (1.0 + keep / here)
        points.append(tape.step(points[-1], there, keep=keep, rest=rest, noise=eta * there * np.sqrt(gap)))
    return points


def ddpm(variance: str = "fixed_small", noise_at_last: bool = False) -> Sampler:
    """DDPM's ancestral step with one of its two variances.

    y' = q^2 y + (1 - q^2) D + w z, q = s'/s; w^2 = s'^2 (1 - q^2) for fixed_small, in the coordinates x at least 1e-20;
    w^2 = (1 + s'^2)(s^2 - s'^2)/(1 + s^2) for fixed_large.

    Parameters
    ----------
    variance : {"fixed_small", "fixed_large"}
        Variance of the true posterior for data without spread, or that of the forward process.
    noise_at_last : bool
        Whether noise is added on a step to level 0. Published schedulers do so unless the last timestep is 0, that is
        with trailing timesteps: fixed_large then adds its variance to every eigenvalue of the output.

    Returns
    -------
    Sampler
        The sampler.

    Raises
    ------
    TypeError, ValueError
        If an option is of the wrong kind or does not exist.

    References
    ----------
    Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239), equations 6 and 7, section 3.2.

    Examples
    --------
    >>> import fastkl
    >>> large = fastkl.samplers.ddpm("fixed_large")
    >>> fastkl.output_variance([1.0], [3.0, 1.0, 0.0], sampler=large).round(4)
    array([0.5])
    """
    choice("variance", variance, ("fixed_small", "fixed_large"))
    if not isinstance(noise_at_last, bool):
        raise TypeError(f"noise_at_last: must be True or False, got {noise_at_last!r}")
    options = (("variance", variance), ("noise_at_last", noise_at_last))
    return Sampler("ddpm", draw_ddpm, options, order=1, stochastic=True)


def draw_ddpm(tape: Tape, variance: str, noise_at_last: bool) -> list[Point]:
    """Write DDPM."""
    points = [tape.start]
    for k, (here, there) in enumerate(tape.pairs()):
        q, gap = there / here, one_minus_power(here, there, 2.0)
        noise, excess = there * np.sqrt(gap), np.zeros_like(there)
        if k < tape.count - 1 or not tape.to_zero or noise_at_last:
            if variance == "fixed_large":
                spread = np.where(np.isinf(here), 1.0, here / np.hypot(1.0, here))  # sigma of the level
                noise, excess = np.hypot(1.0, there) * spread * np.sqrt(gap), np.square(gap * spread)
            else:
                least = LEAST_VARIANCE * (1.0 + there * there)
                excess = np.maximum(least - noise * noise, 0.0)
                noise = np.sqrt(np.maximum(noise * noise, least))
        points.append(tape.step(points[-1], there, keep=q * there, rest=gap, noise=noise, excess=excess))
    return points


def flow_stochastic() -> Sampler:
    """Flow matching with fresh noise at every step: y' = D + s' z.

    Returns
    -------
    Sampler
        The sampler; nothing of a state but its denoised value survives a step.

    References
    ----------
    Song et al., "Consistency Models" (arXiv 2303.01469), algorithm 1: the same alternation of denoising and noising.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.output_variance([1.0], [3.0, 1.0, 0.0], sampler=fastkl.samplers.flow_stochastic(), prior="flow").round(4)
    array([0.29])
    """
    return Sampler("flow_stochastic", draw_flow_stochastic, order=0, stochastic=True)


def draw_flow_stochastic(tape: Tape) -> list[Point]:
    """Write the alternation."""
    points = [tape.start]
    for _, there in tape.pairs():
        nothing, whole = np.zeros_like(there), np.ones_like(there)
        points.append(tape.step(points[-1], there, keep=nothing, rest=whole, noise=there))
    return points
