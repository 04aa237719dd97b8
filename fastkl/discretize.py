"""Discretizations: which noise levels of a schedule an N-step sampler visits.

Every function returns sigmas, strictly decreasing: shape (N+1,) when all parameters are scalars, (M, N+1) when one or
more of them are 1-D arrays of length M. `steps` is N, the number of transitions. One step is always [first level, 0].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastkl._families import (
    check_schedule,
    columns,
    ends,
    exponential_law,
    from_law,
    intervals,
    karras_law,
    positive,
    power_levels,
    strict,
    tangent_law,
    uniform_timesteps,
)
from fastkl._nfe import for_nfe
from fastkl._snapping import snap
from fastkl._validation import choice, integer
from fastkl.schedule import NoiseSchedule
from fastkl.spectrum import Spectrum

__all__ = [
    "FAMILIES",
    "exponential",
    "for_nfe",
    "geodesic",
    "karras",
    "power_uniform",
    "quadratic",
    "snap",
    "tangent",
    "uniform",
]

Floats = NDArray[np.float64]


def uniform(schedule: NoiseSchedule, steps: int, spacing: str = "linspace") -> Floats:
    """Levels at equally spaced timesteps or times, then 0.

    Parameters
    ----------
    schedule : NoiseSchedule
        The model's noise levels.
    steps : int
        N, at least 1; at most T for a discrete schedule.
    spacing : {"linspace", "leading", "trailing"}
        Discrete, T = 1000, N = 10: "linspace" is 999, 888, ..., 0 (both ends), "leading" 900, 800, ..., 0 and
        "trailing" 999, 899, ..., 99. Continuous schedules have "linspace" only: t = 1 - k/N where sigma(0) = 0, else
        N times from 1 to 0 and then the level 0.

    Returns
    -------
    (N+1,) ndarray of float64
        The levels of the N timesteps, then 0.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range, or `spacing` does not exist for a continuous schedule.

    Notes
    -----
    The timesteps are those of diffusers' DDIMScheduler with steps_offset = 0 (its Euler classes do not round
    "linspace"), but for two corrections: "linspace" with one step starts at T-1, not at 0, and "trailing" always has
    N timesteps, where diffusers adds a timestep -1 for some N (61 is the first for T = 1000).

    References
    ----------
    Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv 2305.08891), table 2.

    Examples
    --------
    >>> schedule = NoiseSchedule.ddpm_linear()
    >>> uniform(schedule, 3, "leading").round(4).tolist()
    [9.4889, 1.4624, 0.01, 0.0]
    """
    check_schedule(schedule)
    steps = integer("steps", steps, maximum=schedule.num_train_timesteps)
    choice("spacing", spacing, ("linspace", "leading", "trailing"))
    if schedule.num_train_timesteps is not None:
        t = uniform_timesteps(schedule.num_train_timesteps, steps, spacing)
    elif spacing == "linspace":
        parts = intervals(steps, schedule.sigma_min)
        t = (parts - np.arange(steps)) / parts
    else:
        raise ValueError(
            f"spacing = {spacing!r}: counts training timesteps, which {schedule!r} does not have; use 'linspace'"
        )
    return strict(np.append(schedule.sigmas(t), 0.0), steps, "fewer steps")


def power_uniform(
    schedule: NoiseSchedule, steps: int, power: float | ArrayLike, *, snap: bool = True
) -> Floats:
    """Levels at a power of equally spaced times, t_k = (1 - k/N)**power for k = 0..N-1, then 0.

    Parameters
    ----------
    schedule : NoiseSchedule
        The model's noise levels. For a discrete one the timesteps are (T-1) (1 - k/N)**power.
    steps : int
        N, at least 1; at most T when the timesteps are snapped.
    power : float or (M,) array_like
        Above 0; more than 1 crowds the levels near the clean end.
    snap : bool
        Discrete schedules: move the timesteps to distinct integers by the rule of `snap`; else keep the fractions. A
        continuous schedule has no grid and ignores it.

    Returns
    -------
    (N+1,) or (M, N+1) ndarray of float64
        Levels, strictly decreasing, the last one 0.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range, or two levels coincide in float64.

    References
    ----------
    Sun, Poor and Zhang, "An Elementary Approach to Scheduling in Generative Diffusion Models" (arXiv 2601.13602).

    Examples
    --------
    >>> schedule = NoiseSchedule.flow()
    >>> power_uniform(schedule, 2, [1.0, 2.0]).round(4).tolist()
    [[inf, 1.0, 0.0], [inf, 0.3333, 0.0]]
    """
    check_schedule(schedule)
    if not isinstance(snap, bool | np.bool_):
        raise TypeError(f"snap: must be True or False, got {snap!r} ({type(snap).__name__})")
    count = schedule.num_train_timesteps
    steps = integer("steps", steps, maximum=count if snap else None)
    powers, batch = columns(power=positive("power", power))
    levels = power_levels(schedule, steps, powers[0], bool(snap))
    strict(levels, steps, "fewer steps or a power nearer 1")
    return levels if batch else levels[0]


def quadratic(schedule: NoiseSchedule, steps: int, *, snap: bool = True) -> Floats:
    """Levels at quadratically spaced times, t_k = (1 - k/N)**2 for k = 0..N-1, then 0.

    `power_uniform` with power 2. It spans the whole range of the schedule; the DDIM authors' variant stops at 0.8 T.

    Parameters
    ----------
    schedule : NoiseSchedule
        The model's noise levels.
    steps : int
        N, as for `power_uniform`.
    snap : bool
        As for `power_uniform`.

    Returns
    -------
    (N+1,) ndarray of float64
        Levels, strictly decreasing, the last one 0.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range, or two levels coincide in float64.

    References
    ----------
    Song, Meng and Ermon, "Denoising Diffusion Implicit Models" (arXiv 2010.02502), appendix D.2.

    Examples
    --------
    >>> quadratic(NoiseSchedule.flow(), 2).round(4).tolist()
    [inf, 0.3333, 0.0]
    """
    return power_uniform(schedule, steps, 2.0, snap=snap)


def karras(
    schedule: NoiseSchedule,
    steps: int,
    rho: float | ArrayLike = 7.0,
    sigma_min: float | ArrayLike | None = None,
    sigma_max: float | ArrayLike | None = None,
) -> Floats:
    """Equal steps in sigma**(1/rho): sigma_k = (a + k/(N-1) (b - a))**rho, then 0.

    Here a = sigma_max**(1/rho) and b = sigma_min**(1/rho). With sigma_min = 0 the law itself ends at 0: k/N takes the
    place of k/(N-1).

    Parameters
    ----------
    schedule : NoiseSchedule
        Supplies the default ends and the range that they must keep to.
    steps : int
        N, at least 1.
    rho : float or (M,) array_like
        Above 0; larger crowds the levels near sigma_min.
    sigma_min, sigma_max : float or (M,) array_like, optional
        Ends, by default the schedule's. `sigma_min` may be 0; `sigma_max` must be finite.

    Returns
    -------
    (N+1,) or (M, N+1) ndarray of float64
        Levels, strictly decreasing, the last one 0.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range, or two levels coincide in float64.

    References
    ----------
    Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (arXiv 2206.00364), equation 5.

    Examples
    --------
    >>> karras(NoiseSchedule.edm(), 4).round(4).tolist()
    [80.0, 9.7232, 0.47, 0.002, 0.0]
    """
    low, high = ends(schedule, sigma_min, sigma_max, zero=True, infinite=False)
    rho = positive("rho", rho)
    parameters, batch = columns(sigma_min=low, sigma_max=high, rho=rho)
    return from_law(karras_law, steps, parameters, batch, "fewer steps or another rho")


def exponential(
    schedule: NoiseSchedule,
    steps: int,
    sigma_min: float | ArrayLike | None = None,
    sigma_max: float | ArrayLike | None = None,
) -> Floats:
    """Equal steps in log sigma: sigma_k = sigma_max (sigma_min/sigma_max)**(k/(N-1)), then 0.

    Parameters
    ----------
    schedule : NoiseSchedule
        Supplies the default ends and the range that they must keep to.
    steps : int
        N, at least 1.
    sigma_min, sigma_max : float or (M,) array_like, optional
        Ends, by default the schedule's. `sigma_min` must be above 0 and `sigma_max` finite.

    Returns
    -------
    (N+1,) or (M, N+1) ndarray of float64
        Levels, strictly decreasing, the last one 0.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range, or two levels coincide in float64.

    Examples
    --------
    >>> exponential(NoiseSchedule.edm(sigma_min=0.01, sigma_max=100.0), 3).round(6).tolist()
    [100.0, 1.0, 0.01, 0.0]
    """
    low, high = ends(schedule, sigma_min, sigma_max, zero=False, infinite=False)
    parameters, batch = columns(sigma_min=low, sigma_max=high)
    return from_law(exponential_law, steps, parameters, batch, "fewer steps")


def tangent(
    schedule: NoiseSchedule,
    steps: int,
    gamma: float | ArrayLike = 1.0,
    sigma_min: float | ArrayLike | None = None,
    sigma_max: float | ArrayLike | None = None,
) -> Floats:
    """Equal steps in the angle arctan(sigma/sqrt(gamma)): sigma_k = sqrt(gamma) tan(phi_k), then 0.

    phi_k = (1 - f) arctan(sigma_max/sqrt(gamma)) + f arctan(sigma_min/sqrt(gamma)), f = k/(N-1). With sigma_min = 0
    the law itself ends at 0 (f = k/N), which serves samples better than a last jump from sigma_min to 0.

    Parameters
    ----------
    schedule : NoiseSchedule
        Supplies the default ends and the range that they must keep to.
    steps : int
        N, at least 1.
    gamma : float or (M,) array_like
        Above 0, in units of variance; optimal for an eigenvalue equal to it.
    sigma_min, sigma_max : float or (M,) array_like, optional
        Ends, by default the schedule's. `sigma_min` may be 0 and `sigma_max` inf, if the schedule reaches it.

    Returns
    -------
    (N+1,) or (M, N+1) ndarray of float64
        Levels, strictly decreasing, the last one 0.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range, or two levels coincide in float64.

    Notes
    -----
    With gamma = 1 and the default ends this is what tools call "KL optimal" or "align your steps" in closed form.

    References
    ----------
    Sun, Poor and Zhang (arXiv 2601.13602); Sabour, Fidler and Kreis, "Align Your Steps"
    (arXiv 2404.14507), theorem 3.1.

    Examples
    --------
    >>> tangent(NoiseSchedule.flow(), 4).round(4).tolist()
    [inf, 2.4142, 1.0, 0.4142, 0.0]
    """
    low, high = ends(schedule, sigma_min, sigma_max, zero=True, infinite=True)
    gamma = positive("gamma", gamma)
    parameters, batch = columns(sigma_min=low, sigma_max=high, gamma=gamma)
    return from_law(tangent_law, steps, parameters, batch, "fewer steps or another gamma")


def geodesic(
    schedule: NoiseSchedule,
    steps: int,
    spectrum: Spectrum | ArrayLike,
    sigma_min: float = 0.0,
    sigma_max: float | None = None,
) -> Floats:
    r"""Levels that minimise the leading term of `kl` in 1/N for a given spectrum, among all schedules.

    The density of levels is :math:`u(\sigma) \propto (\sum_i c_i A_i \lambda_i / (\lambda_i + \sigma^2)^2)^{1/2}` with
    :math:`A_i = \int \lambda_i (\lambda_i + \sigma^2)^{-2} u^{-1} d\sigma`; see `fastkl.theory.geodesic_levels`.

    Parameters
    ----------
    schedule : NoiseSchedule
        Supplies the first level and the range that the ends must keep to.
    steps : int
        N, at least 1.
    spectrum : Spectrum or (d,) array_like
        Covariance spectrum of the data (squared data units); above 0 if `sigma_min` is 0.
    sigma_min : float
        Last level, 0 by default: the path itself ends there. Above 0 it must lie in the schedule's range, and the
        result ends at `sigma_min`, not at 0.
    sigma_max : float, optional
        First level, by default the schedule's; may be inf if the schedule reaches it.

    Returns
    -------
    (N+1,) ndarray of float64
        Levels, strictly decreasing from `sigma_max` to `sigma_min`.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range, or two levels coincide in float64.

    Notes
    -----
    0.01 to 0.1 s; more than 400 distinct eigenvalues are binned. Levels may lie below the schedule's
    least level (`snap` moves them onto its grid).

    References
    ----------
    Leading term of the Euler-Maclaurin expansion: Sun, Poor and Zhang (arXiv 2601.13602).

    Examples
    --------
    >>> geodesic(NoiseSchedule.flow(), 4, [4.0]).round(4).tolist()
    [inf, 4.8284, 2.0, 0.8284, 0.0]
    """
    from fastkl.theory import geodesic_levels

    low, high = ends(schedule, sigma_min, sigma_max, zero=True, infinite=True)
    for name, end in (("sigma_min", low), ("sigma_max", high)):
        if end.ndim:
            raise TypeError(f"{name}: must be a number, got an array of shape {end.shape}")
    return geodesic_levels(spectrum, steps, float(high), float(low))


FAMILIES: dict[str, Callable[..., Floats]] = {  # those that need no spectrum
    family.__name__: family for family in (uniform, quadratic, power_uniform, karras, exponential, tangent)
}
