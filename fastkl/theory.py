"""Closed forms about schedules: best tangent law, expansion of the divergence in 1/N, geodesic levels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastkl._expansion import compose, excess, odd_coefficients, prior_terms
from fastkl._geodesic import log_levels, panel_edges
from fastkl._validation import check_all, choice, decreasing, integer, real_number
from fastkl.evaluate import METRICS, PRIORS
from fastkl.spectrum import Spectrum, as_spectrum

if TYPE_CHECKING:
    from fastkl.schedule import NoiseSchedule

__all__ = ["best_gamma", "expansion", "geodesic_levels", "tangent_gamma"]

_BINS = 400  # eigenvalues kept by _binned: 24 decades in steps of 15 %
_BLOCK = 1 << 20  # eigenvalues summed at a time, so that sums need little memory
_MOST_STEPS = 10**6

_Array = NDArray[np.float64]


def tangent_gamma(spectrum: Spectrum | ArrayLike) -> float:
    r"""Coefficient of the tangent law that is best as the number of steps grows.

    .. math:: \gamma^* = \sqrt{\sum_i c_i \lambda_i \Big/ \sum_i c_i / \lambda_i}

    minimises the leading term of the KL divergence of the law :math:`\sigma(t) = \sqrt\gamma \tan(\pi t/2)`,
    :math:`\frac{\pi^4}{256 N^2} \sum_i c_i (\lambda_i / \gamma + 2 + \gamma / \lambda_i)`.

    Parameters
    ----------
    spectrum : Spectrum or array_like, shape (d,)
        Eigenvalues (squared data units), all above 0.

    Returns
    -------
    float
        gamma* (squared data units); `best_gamma` gives the best one for a given number of steps.

    Raises
    ------
    ValueError
        If an eigenvalue is 0: every gamma above 0 then costs infinitely much.

    Notes
    -----
    O(d) time; right to a few units of rounding.

    References
    ----------
    Sun, Poor, Zhang, "An Elementary Approach to Scheduling in Generative Diffusion Models", arXiv 2601.13602.

    Examples
    --------
    >>> tangent_gamma([4.0, 1.0])
    2.0
    """
    spectrum = as_spectrum("spectrum", spectrum)
    _check_positive(spectrum)
    sums = np.zeros(2)
    for begin in range(0, len(spectrum), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        values = spectrum.eigenvalues[block]
        counts = 1.0 if spectrum.counts is None else spectrum.counts[block]
        sums += (counts * values).sum(), (counts / values).sum()
    return math.sqrt(sums[0] / sums[1])


def best_gamma(spectrum: Spectrum | ArrayLike, steps: int, *, metric: str = "kl") -> float:
    r"""Coefficient of the tangent law that is best for a given number of steps.

    The levels are :math:`\sigma_k = \sqrt\gamma \tan(\pi (N - k) / 2N)`, k = 0..N, from infinity to 0. With
    :math:`h = \pi / 2N`, :math:`\tau = |\log(\lambda / \gamma)| / 2` and
    :math:`\eta = -\log\tanh(\tau / 2)` the ratio r of the sampler's variance to the true one along an
    eigenvalue has the closed form

    .. math:: \sqrt r = T_N(\cos h \cosh\eta) / \sinh(N \eta),

    with the Chebyshev polynomial :math:`T_N`.

    Parameters
    ----------
    spectrum : Spectrum or array_like, shape (d,)
        Eigenvalues (squared data units), above 0; with `metric` ``"w2"`` some may be 0. A mean plays no part:
        starting from infinite noise costs it nothing.
    steps : int
        Number of steps N, 2 to 10**6 (one step from infinity to 0 gives variance 0 whatever gamma is).
    metric : {"kl", "reverse_kl", "jeffreys", "w2"}
        The divergence to minimise.

    Returns
    -------
    float
        The minimising gamma (squared data units), within the range of the positive eigenvalues.

    Raises
    ------
    ValueError
        For an eigenvalue of 0 (all 0 with ``"w2"``), `steps` out of range or an unknown `metric`.
    TypeError
        If `steps` is not an integer or `metric` not a string.

    Notes
    -----
    O(d) time for each gamma tried, whatever `steps` is; about 2 s for a million eigenvalues. A scan in steps
    of a quarter in log gamma (on at most 400 bins of eigenvalues) brackets the minimum, then Brent's method
    on all eigenvalues refines it: log gamma is right to about 1e-8, as a minimum in float64 is. For ``"kl"``
    it tends to `tangent_gamma` as `steps` grows.

    Examples
    --------
    >>> round(best_gamma([4.0, 1.0], steps=5), 6)
    2.0
    >>> round(best_gamma([4.0, 1.0], steps=5, metric="w2"), 3) > 2.0
    True
    """
    from scipy.optimize import minimize_scalar

    spectrum = as_spectrum("spectrum", spectrum)
    steps = integer("steps", steps, minimum=2, maximum=_MOST_STEPS)
    metric = choice("metric", metric, METRICS)
    eigenvalues, counts = _positive_entries(spectrum, drop_zeros=metric == "w2")
    low, high = math.log(eigenvalues.min()), math.log(eigenvalues.max())
    if low == high:
        return float(eigenvalues[0])

    def cost(log_gamma: float, values: _Array, weights: _Array) -> float:
        log_ratio = _tangent_log_ratio((np.log(values) - log_gamma) / 2, steps)
        return float((weights * _divergence(values, log_ratio, metric)).sum())

    binned = _binned(eigenvalues, counts)
    grid = np.linspace(low, high, 9 + math.ceil(4 * (high - low)))
    least = int(np.argmin([cost(x, *binned) for x in grid]))
    centre, reach = grid[least], grid[1] - grid[0]
    found = (
        minimize_scalar(  # of the distance to the centre, because its tolerance is relative to its argument
            lambda x: cost(centre + x, eigenvalues, counts),
            bounds=(max(low - centre, -reach), min(high - centre, reach)),
            method="bounded",
            options={"xatol": 1e-10},
        )
    )
    return math.exp(centre + found.x)


def expansion(
    spectrum: Spectrum | ArrayLike, schedule: NoiseSchedule, order: int = 4, *, prior: str | None = "exact"
) -> _Array:
    r"""Coefficients of the KL divergence in powers of 1/N, for a schedule visited at uniform times.

    With the N + 1 levels :math:`\sigma(1 - k/N)`, the angle :math:`\theta_i(t) = \arctan(\sigma(t) /
    \sqrt{\lambda_i})` of a smooth schedule and the log of the variance lost along an eigenvalue,

    .. math:: S_i = -2 \sum_k \log\cos(\theta_i(t_{k-1}) - \theta_i(t_k)) = A_i / N + B_i / N^3 + O(N^{-5}),

    :math:`A = \int \theta'^2 dt`, :math:`B = \int (\theta'^4 / 6 - \theta''^2 / 12) dt`: odd powers only
    (Euler-Maclaurin for the midpoint rule). Then :math:`\mathrm{KL} = \sum_i c_i (e^{x_i} - 1 - x_i)/2` with
    :math:`x_i = S_i - P_i` is a power series in 1/N; P is the log of the prior's variance over the true one.

    Parameters
    ----------
    spectrum : Spectrum or array_like, shape (d,)
        Eigenvalues (squared data units), above 0 unless the schedule ends above 0.
    schedule : NoiseSchedule
        One whose :math:`\theta(t)` has bounded derivatives on [0, 1] (``schedule.is_smooth``): tangent, flow,
        EDM. The DDPM kinds are not: they are tables, and the sigma of the linear ones behaves as
        :math:`\sqrt t` near the data.
    order : int
        The last power of 1/N, 1 to 8.
    prior : {"exact", "vp", "ve", "flow"} or None
        The sampler's first variance; None for the schedule's own. A mean of the data adds
        :math:`\mu_i^2 / (2 v_0)` to the constant, whatever the prior.

    Returns
    -------
    ndarray, shape (order + 1,)
        :math:`a_k` such that the divergence is about :math:`\sum_k a_k N^{-k}`. Where P and the mean are 0,
        the first that is not 0 is :math:`a_2 = \sum_i c_i A_i^2 / 4`.

    Raises
    ------
    ValueError
        If the schedule is not smooth, an eigenvalue is 0 where the schedule ends at 0, or an argument is out
        of range.
    TypeError
        If `schedule` is not a noise schedule or another argument of a wrong kind.
    RuntimeError
        If the coefficients do not converge: the angle is too steep for uniform times to resolve.

    Notes
    -----
    The coefficients of S come from S itself: a polynomial in 1/N^2 through N S(N) at eight N from about 12 to
    100. All grow until two polynomials agree within 1e-10 A for every larger N, up to N of about 35,000 where
    the angle is steep. O(d N) time. For angles of moderate slope the coefficients of 1/N, 1/N^3, 1/N^5, 1/N^7
    in S were right to 1e-15, 1e-11, 1e-7 and 1e-4. The series is asymptotic: of use where its terms fall.

    References
    ----------
    Sun, Poor, Zhang, arXiv 2601.13602, for the fall of the divergence with N. Joyce, "Survey of extrapolation
    processes in numerical analysis", SIAM Review 13 (1971), for the extrapolation.

    Examples
    --------
    >>> from fastkl import NoiseSchedule
    >>> expansion([1.0], NoiseSchedule.tangent(1.0)).round(6)  # a_2 = pi**4 / 64
    array([0.      , 0.      , 1.522017, 1.251809, 2.023987])
    """
    spectrum = as_spectrum("spectrum", spectrum)
    order = integer("order", order, minimum=1, maximum=8)
    if not hasattr(schedule, "is_smooth"):
        raise TypeError(f"schedule: must be a NoiseSchedule, got {type(schedule).__name__}")
    if not schedule.is_smooth:
        raise ValueError(
            f"schedule = {schedule!r}: not smooth, its angle arctan(sigma(t) / sqrt(eigenvalue)) has no "
            "bounded derivatives, so the divergence has no expansion in 1/N; take tangent, flow or edm"
        )
    prior = choice("prior", schedule.prior if prior is None else prior, PRIORS)
    first, last = schedule.sigmas(np.array([1.0, 0.0])).tolist()
    if last == 0.0:
        _check_positive(spectrum)
    counts = np.ones(len(spectrum)) if spectrum.counts is None else spectrum.counts
    odd = odd_coefficients(spectrum.eigenvalues, schedule)
    offset, mean_term = prior_terms(spectrum, first, prior)
    coefficients = compose(odd, offset, order) @ counts
    coefficients[0] += (counts * mean_term).sum()
    return coefficients


def geodesic_levels(
    spectrum: Spectrum | ArrayLike, steps: int, sigma_max: float, sigma_min: float = 0.0
) -> _Array:
    r"""Levels that minimise the leading term of the KL divergence among all schedules.

    With the density of levels :math:`u(\sigma) = dt / d\sigma`, an eigenvalue loses
    :math:`A_i = \int \lambda_i (\lambda_i + \sigma^2)^{-2} u^{-1} d\sigma` to leading order. The functional
    :math:`\sum_i c_i A_i^2` is convex in u; its one minimiser satisfies

    .. math:: u(\sigma) \propto \Big(\sum_i c_i A_i \lambda_i / (\lambda_i + \sigma^2)^2\Big)^{1/2},

    and level k is where the integral of u from `sigma_min` reaches 1 - k/N.

    Parameters
    ----------
    spectrum : Spectrum or array_like, shape (d,)
        Eigenvalues (squared data units). An eigenvalue of 0 is an error if `sigma_min` is 0, where its
        divergence is infinite; else it loses nothing in any schedule and plays no part.
    steps : int
        Number of steps N, 1 to 10**6.
    sigma_max : float
        First level (data units), above `sigma_min`; may be inf.
    sigma_min : float
        Last level (data units), at least 0.

    Returns
    -------
    ndarray, shape (steps + 1,)
        Strictly decreasing levels from exactly `sigma_max` to exactly `sigma_min`.

    Raises
    ------
    ValueError
        For an eigenvalue of 0 with `sigma_min` = 0, no positive eigenvalue, an argument out of its range, or
        more steps than the interval has distinct numbers for.
    TypeError
        If `steps` is not an integer or a level not a real number.
    RuntimeError
        If the fixed point does not converge (not seen: each iteration at least halves the distance).

    Notes
    -----
    More than 400 distinct eigenvalues are put into at most 400 bins of equal width in log eigenvalue, each
    standing for its geometric mean: over 8 decades that moves levels by 5e-5 of themselves, over 24 decades by
    3e-4. Otherwise they are right to about 1e-8. Time O(bins x panels) per iteration, panels of 0.025 in log
    sigma, some 40 iterations: 0.01 to 0.1 s.

    Examples
    --------
    For one eigenvalue the angles are equally spaced: the tangent law with gamma = eigenvalue.

    >>> geodesic_levels([4.0], steps=4, sigma_max=float("inf")).round(4)
    array([   inf, 4.8284, 2.    , 0.8284, 0.    ])
    """
    spectrum = as_spectrum("spectrum", spectrum)
    steps = integer("steps", steps, maximum=_MOST_STEPS)
    sigma_min = real_number("sigma_min", sigma_min, at_least=0.0)
    if not (isinstance(sigma_max, float | np.floating) and sigma_max == math.inf):
        sigma_max = real_number("sigma_max", sigma_max, above=sigma_min)
    eigenvalues, counts = _binned(*_positive_entries(spectrum, drop_zeros=sigma_min > 0.0))
    edges = panel_edges(eigenvalues, float(sigma_max), sigma_min)
    fractions = np.arange(steps - 1, 0, -1) / steps
    inner = np.exp(log_levels(eigenvalues, counts, edges, fractions))
    levels = np.concatenate(([sigma_max], inner, [sigma_min]))
    decreasing(f"levels (steps = {steps} between sigma_max and sigma_min)", levels)
    return levels


def _positive_entries(spectrum: Spectrum, *, drop_zeros: bool = False) -> tuple[_Array, _Array]:
    """Eigenvalues and counts, those of eigenvalue 0 left out or an error."""
    values = spectrum.eigenvalues
    counts = np.ones(len(values)) if spectrum.counts is None else spectrum.counts
    if not drop_zeros:
        _check_positive(spectrum)
        return values, counts
    positive = values > 0
    if not positive.any():
        raise ValueError("spectrum: must have an eigenvalue above 0, all are 0")
    return values[positive], counts[positive]


def _check_positive(spectrum: Spectrum) -> None:
    """Raise if an eigenvalue is 0."""
    if spectrum.eigenvalues.min() > 0.0:
        return
    rule = "must be above 0, the divergence is infinite at 0; give the spectrum a floor (Spectrum.floored)"
    check_all("spectrum", spectrum.eigenvalues, spectrum.eigenvalues > 0.0, rule)


def _binned(eigenvalues: _Array, counts: _Array) -> tuple[_Array, _Array]:
    """At most _BINS weighted eigenvalues: equal ones merged, close ones (in log) as their geometric mean."""
    values, inverse = np.unique(eigenvalues, return_inverse=True)
    weights: _Array = np.bincount(inverse, weights=counts).astype(np.float64)
    if len(values) <= _BINS:
        return values, weights
    logs = np.log(values)
    index = np.minimum(((logs - logs[0]) * (_BINS / (logs[-1] - logs[0]))).astype(np.intp), _BINS - 1)
    total: _Array = np.bincount(index, weights=weights).astype(np.float64)
    mean = np.bincount(index, weights=weights * logs)
    filled = total > 0
    return np.exp(mean[filled] / total[filled]), total[filled]


def _divergence(eigenvalues: _Array, log_ratio: _Array, metric: str) -> _Array:
    """Divergence of the output variance eigenvalue * exp(-log_ratio) along each eigenvalue."""
    if metric == "kl":
        return excess(log_ratio) / 2
    if metric == "reverse_kl":
        return excess(-log_ratio) / 2
    loss = np.expm1(-log_ratio / 2) ** 2 * eigenvalues if metric == "w2" else 2 * np.sinh(log_ratio / 2) ** 2
    return np.asarray(loss)


def _tangent_log_ratio(tau: _Array, steps: int) -> _Array:
    """S = -2 log(T_N(cos h cosh eta) / sinh(N eta)); with log(lambda / gamma) = 2 tau, coth tau = cosh eta.

    The argument of T_N is cosh(zeta) or, for large tau, cos(h - delta); T_N is cosh(N zeta) or sin(N delta).
    The differences zeta - eta and delta are formed without cancellation.
    """
    tau = np.abs(tau)
    h = math.pi / (2 * steps)
    cosh = np.cosh(tau)
    square = 1 - (math.sin(h) * cosh) ** 2
    root = np.sqrt(np.abs(square))
    wide = square < 0
    with np.errstate(divide="ignore"):  # tau = 0 is eta = inf
        eta = np.log1p(2 / np.expm1(tau))
        sine = math.cos(h) / (np.sinh(tau) * (math.sin(h) * cosh + root))
    log_gain = np.empty_like(tau)
    log_gain[wide] = np.log(np.sin(steps * np.arcsin(sine[wide])) / np.sinh(steps * eta[wide]))
    root, cosh, eta = root[~wide], cosh[~wide], eta[~wide]
    fall = 2 * cosh * math.sin(h / 2) ** 2 + (math.sin(h) * cosh) ** 2 / (root + 1)
    shift = np.log1p(-fall / (cosh + 1))  # zeta - eta
    ends = np.log1p(np.exp(-2 * steps * (eta + shift))) - np.log1p(-np.exp(-2 * steps * eta))
    log_gain[~wide] = steps * shift + ends
    return -2 * log_gain
