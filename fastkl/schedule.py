"""Noise schedules: the map from a model's timesteps or times to its noise levels, and back.

`sigma` is always the noise-to-signal ratio sigma_t/alpha_t = sqrt((1 - abar_t)/abar_t).
"""

from __future__ import annotations

import math
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastkl._candidates import LARGEST, LEAST
from fastkl._schedule_base import ScheduleBase
from fastkl._schedule_maps import cosine_betas, sigmas_from_betas
from fastkl._validation import check_all, decreasing, integer, real_array, real_number

__all__ = ["NoiseSchedule"]

Floats = NDArray[np.float64]


class NoiseSchedule(ScheduleBase):
    """A model's noise levels: sigma(t) = sqrt((1 - abar_t)/abar_t), strictly increasing in t.

    Build one with a classmethod. A discrete schedule has timesteps 0..T-1 (0 the cleanest); a continuous one
    has times t in [0, 1]. Objects are immutable, hashable and picklable; two are equal when they were built by
    the same classmethod and have the same parameters and levels.

    Attributes
    ----------
    name : str
        The classmethod that built it.
    prior : {"vp", "ve", "flow"}
        The distribution that the model's sampler starts from.
    is_discrete : bool
        Whether it is a table over timesteps.
    num_train_timesteps : int or None
        T; None for a continuous schedule.
    sigma_min, sigma_max : float
        The levels at the two ends of t.

    Notes
    -----
    sigma = 0 is the clean end that samplers append to their levels. A discrete schedule and `edm` have no
    time for it and refuse it; `flow` and `tangent` reach it at t = 0. A table whose last abar is 0 (zero
    terminal SNR) has sigma = inf at its last timestep.

    Examples
    --------
    >>> schedule = NoiseSchedule.ddpm_linear()
    >>> schedule.sigmas([999, 0]).round(3).tolist()
    [157.407, 0.01]
    >>> schedule.timesteps([100.0, 1.0]).tolist()
    [953, 258]
    """

    __slots__ = ()

    def __init__(self) -> None:
        raise TypeError(
            "NoiseSchedule: build one with a classmethod, for example NoiseSchedule.ddpm_linear() or "
            "NoiseSchedule.from_alphas_cumprod(alphas_cumprod)"
        )

    @classmethod
    def _from_betas(cls, name: str, betas: Floats, **parameters: float) -> Self:
        sigmas, alphas_cumprod = sigmas_from_betas(betas)
        _check_table("betas", sigmas)
        return cls._build(name, "vp", tuple(parameters.items()), sigmas, alphas_cumprod)

    @classmethod
    def ddpm_linear(
        cls, num_train_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> Self:
        """Betas in equal steps: beta_t = linspace(beta_start, beta_end, T).

        Parameters
        ----------
        num_train_timesteps : int
            T, at least 1.
        beta_start, beta_end : float
            First and last beta, in (0, 1).

        Returns
        -------
        NoiseSchedule

        Raises
        ------
        ValueError
            If an argument is out of range.

        References
        ----------
        Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239), section 4.
        """
        steps, start, end = _beta_range(num_train_timesteps, beta_start, beta_end)
        betas = np.linspace(start, end, steps)
        return cls._from_betas(
            "ddpm_linear", betas, num_train_timesteps=steps, beta_start=start, beta_end=end
        )

    @classmethod
    def scaled_linear(
        cls, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> Self:
        """Square roots of the betas in equal steps, as in Stable Diffusion: beta_t = linspace(.., ..)**2.

        Parameters
        ----------
        num_train_timesteps : int
            T, at least 1.
        beta_start, beta_end : float
            First and last beta, in (0, 1).

        Returns
        -------
        NoiseSchedule

        Raises
        ------
        ValueError
            If an argument is out of range.

        References
        ----------
        Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv 2112.10752).
        """
        steps, start, end = _beta_range(num_train_timesteps, beta_start, beta_end)
        betas = np.linspace(math.sqrt(start), math.sqrt(end), steps) ** 2
        return cls._from_betas(
            "scaled_linear", betas, num_train_timesteps=steps, beta_start=start, beta_end=end
        )

    @classmethod
    def cosine(cls, num_train_timesteps: int = 1000) -> Self:
        """Cosine curve (squaredcos_cap_v2): abar ~ cos((t/T + 0.008)/1.008 pi/2)**2, betas at most 0.999.

        Parameters
        ----------
        num_train_timesteps : int
            T, at least 1.

        Returns
        -------
        NoiseSchedule

        Raises
        ------
        ValueError
            If `num_train_timesteps` is below 1.

        References
        ----------
        Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (arXiv 2102.09672),
        equation 17.
        """
        steps = integer("num_train_timesteps", num_train_timesteps)
        return cls._from_betas("cosine", cosine_betas(steps), num_train_timesteps=steps)

    @classmethod
    def sigmoid(
        cls, num_train_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> Self:
        """Betas on a logistic curve: beta_t = start + (end - start)/(1 + exp(-x_t)), x = linspace(-6, 6, T).

        Parameters
        ----------
        num_train_timesteps : int
            T, at least 1.
        beta_start, beta_end : float
            Limits of the curve, in (0, 1).

        Returns
        -------
        NoiseSchedule

        Raises
        ------
        ValueError
            If an argument is out of range.

        References
        ----------
        Xu et al., "GeoDiff" (arXiv 2203.02923); diffusers' DDPMScheduler with beta_schedule="sigmoid".
        """
        steps, start, end = _beta_range(num_train_timesteps, beta_start, beta_end)
        betas = start + (end - start) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, steps)))
        return cls._from_betas("sigmoid", betas, num_train_timesteps=steps, beta_start=start, beta_end=end)

    @classmethod
    def from_betas(cls, betas: ArrayLike) -> Self:
        """A discrete schedule from its betas: abar_t = prod_{s<=t} (1 - beta_s).

        Parameters
        ----------
        betas : (T,) array_like of real numbers
            In (0, 1); the last one may be 1 (zero terminal SNR).

        Returns
        -------
        NoiseSchedule

        Raises
        ------
        ValueError
            If a beta is out of range or too small to raise the noise level in float64.
        """
        table = real_array("betas", betas)
        check_all("betas", table, (table > 0.0) & (table <= 1.0), "must be above 0 and at most 1")
        valid = np.append(table[:-1] < 1.0, True)
        check_all("betas", table, valid, "only the last beta may be 1 (zero terminal SNR)")
        return cls._from_betas("from_betas", table)

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: ArrayLike) -> Self:
        """A discrete schedule from abar_t: sigma_t = sqrt((1 - abar_t)/abar_t).

        Parameters
        ----------
        alphas_cumprod : (T,) array_like of real numbers
            Strictly decreasing, in [0, 1); only the last one may be 0 (zero terminal SNR, sigma = inf).

        Returns
        -------
        NoiseSchedule

        Raises
        ------
        ValueError
            If an element is out of range or not below the one before it.

        Notes
        -----
        Near data 1 - abar has few digits: a float32 table gives sigma(0) to about 4. Where the betas are
        known, `from_betas` is more accurate.

        References
        ----------
        Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv 2305.08891), on zero
        terminal SNR.
        """
        table = real_array("alphas_cumprod", alphas_cumprod).copy()
        check_all("alphas_cumprod", table, (table >= 0.0) & (table < 1.0), "must be in [0, 1)")
        decreasing("alphas_cumprod", table)
        with np.errstate(divide="ignore"):
            sigmas = np.sqrt(1.0 - table) / np.sqrt(table)
        _check_table("alphas_cumprod", sigmas)
        return cls._build("from_alphas_cumprod", "vp", (), sigmas, table)

    @classmethod
    def edm(cls, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Self:
        """Continuous: sigma(t) = (sigma_min**(1/rho) + t (sigma_max**(1/rho) - sigma_min**(1/rho)))**rho.

        Parameters
        ----------
        sigma_min, sigma_max : float
            Levels at t = 0 and t = 1, within [1e-15, 1e15]; sigma_min < sigma_max.
        rho : float
            Warp, above 0.

        Returns
        -------
        NoiseSchedule

        Raises
        ------
        ValueError
            If an argument is out of range, or `rho` so small that the formula overflows.

        References
        ----------
        Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (arXiv 2206.00364),
        equation 5.
        """
        low = real_number("sigma_min", sigma_min, at_least=LEAST)
        high = real_number("sigma_max", sigma_max, above=low, at_most=LARGEST)
        rho = real_number("rho", rho, above=0.0)
        if math.log(high / low) > 700.0 * rho:
            raise ValueError(
                f"rho = {rho!r}: must be at least {math.log(high / low) / 700.0:.3g} for these levels"
            )
        return cls._build("edm", "ve", (("sigma_min", low), ("sigma_max", high), ("rho", rho)))

    @classmethod
    def flow(cls, shift: float = 1.0) -> Self:
        """Continuous flow matching: alpha = 1 - t', sigma_t = t', t' = shift t/(1 + (shift - 1) t).

        So sigma(t) = t'/(1 - t') = shift t/(1 - t): 0 at t = 0 and inf at t = 1.

        Parameters
        ----------
        shift : float
            Above 0; more than 1 spends more of the time at high noise.

        Returns
        -------
        NoiseSchedule

        Raises
        ------
        ValueError
            If `shift` is not finite and above 0.

        References
        ----------
        Lipman et al., "Flow Matching for Generative Modeling" (arXiv 2210.02747). For the shift: Esser et
        al., "Scaling Rectified Flow Transformers" (arXiv 2403.03206), equation 23.
        """
        return cls._build("flow", "flow", (("shift", real_number("shift", shift, above=0.0)),))

    @classmethod
    def tangent(cls, gamma: float) -> Self:
        """Continuous: sigma(t) = sqrt(gamma) tan(pi t/2): 0 at t = 0 and inf at t = 1.

        It starts from pure noise, where all priors agree; `prior` is "vp".

        Parameters
        ----------
        gamma : float
            Above 0, in units of variance; optimal for an eigenvalue equal to it.

        Returns
        -------
        NoiseSchedule

        Raises
        ------
        ValueError
            If `gamma` is not finite and above 0.

        References
        ----------
        Sun, Poor and Zhang, "An Elementary Approach to Scheduling in Generative Diffusion Models"
        (arXiv 2601.13602).
        """
        return cls._build("tangent", "vp", (("gamma", real_number("gamma", gamma, above=0.0)),))


def _beta_range(num_train_timesteps: int, beta_start: float, beta_end: float) -> tuple[int, float, float]:
    """The checked arguments of the schedules that run from one beta to another."""
    steps = integer("num_train_timesteps", num_train_timesteps)
    start = real_number("beta_start", beta_start, above=0.0, below=1.0)
    return steps, start, real_number("beta_end", beta_end, above=0.0, below=1.0)


def _check_table(argument: str, sigmas: Floats) -> None:
    """Raise unless the levels rise strictly and only the last is infinite."""
    valid = np.append(np.isfinite(sigmas[:-1]), True)
    check_all(f"sigma of {argument}", sigmas, valid, "only the last noise level may be infinite")
    valid = np.append(True, sigmas[1:] > sigmas[:-1])
    check_all(
        f"sigma of {argument}", sigmas, valid, "must be above the level before it; the two are too close"
    )
