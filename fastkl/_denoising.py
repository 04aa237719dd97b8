"""Effective spectrum: the Gaussian whose exact denoiser makes the errors that were measured for a network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastkl._validation import check_all, integer, read_only, real_array, real_number
from fastkl.spectrum import Spectrum

__all__ = ["DenoisingFit", "PoorFitWarning", "fit_denoising_errors"]

_LEAST_POINTS = 3
_SPREAD = 3.0  # a measured error may be off by so many times its noise before the curve is refused
_PER_EFOLD = 16  # variances of the grid: the best pair of neighbours is then within 1e-4 of any curve between
_BELOW, _ABOVE = 1e-4, 1e2  # the grid's ends in units of the least and the largest sigma**2
_MERGING = 0.01  # how much merging may add to the RMS of residual / noise
_BITS = 50  # counts are multiples of 2**-50 of dim (to a factor of 2), so that they add up to dim exactly

_Array = NDArray[np.float64]


class PoorFitWarning(UserWarning):
    """No spectrum of the Gaussian model comes near the measured denoising errors."""


@dataclass(frozen=True, eq=False)
class DenoisingFit:
    """An effective spectrum and how well it fits; what `fit_denoising_errors` returns.

    Parameters
    ----------
    spectrum : Spectrum
        The effective spectrum.
    predicted : ndarray, shape (K,)
        Errors of the fitted spectrum (before any floor) at the given sigmas, in squared data units.
    residual : ndarray, shape (K,)
        ``(predicted - errors) / errors``.
    rms_in_noise : float
        Root mean square of residual / noise: about 1 or less where the model and the stated noise are right.
    """

    spectrum: Spectrum
    predicted: _Array
    residual: _Array
    rms_in_noise: float

    @property
    def rms(self) -> float:
        """Root mean square of the residual."""
        return math.sqrt(float(np.mean(np.square(self.residual))))

    @property
    def worst(self) -> float:
        """Largest magnitude of the residual."""
        return float(np.abs(self.residual).max())


def fit_denoising_errors(
    sigmas: ArrayLike,
    errors: ArrayLike,
    dim: int,
    floor: float = 0.0,
    *,
    noise: ArrayLike = 0.02,
    mean_of: Spectrum | None = None,
) -> DenoisingFit:
    r"""Fit the spectrum of a Gaussian to a model's denoising errors.

    For Gaussian data the exact denoiser of :math:`y = x + \sigma n` makes the expected squared error

    .. math:: E(\sigma) = \sum_i c_i \frac{\lambda_i \sigma^2}{\lambda_i + \sigma^2}, \qquad
              c_i \ge 0, \quad \sum_i c_i \le \mathrm{dim}.

    The counts :math:`c_i` of a fine grid of variances :math:`\lambda_i` are fitted to the errors measured for a
    trained model. The *effective spectrum* that results knows about the structure of the data that a covariance
    does not: it has the uncertainty that is really left at each noise level.

    Parameters
    ----------
    sigmas : array_like, shape (K,)
        At least 3 distinct noise levels in any order, within [1e-10, 1e10] (data units).
    errors : array_like, shape (K,)
        Expected squared error of the denoised sample at each, *summed* over the dimensions and averaged over
        samples (squared data units), within [1e-25, 1e30].
    dim : int
        Number of dimensions of the data, at least 1.
    floor : float
        Variance to add to every eigenvalue of the result, as `Spectrum.floored` does.
    noise : array_like, shape () or (K,)
        Relative standard error of the measured errors, within [1e-6, 0.3].
    mean_of : Spectrum, optional
        The data's covariance spectrum, of `dim` dimensions, whose mean the result gets. Errors do not tell the
        mean, and it matters where sampling starts far below the schedule's first level (``search`` with
        ``free_start``).

    Returns
    -------
    DenoisingFit
        The spectrum, largest eigenvalue first, what it predicts and the relative residual.

    Raises
    ------
    ValueError
        If an argument is out of its range, or no Gaussian has such errors: they must not exceed sigma**2 * dim
        (which leaving the noise in costs), must not fall as sigma grows, and errors / sigma**2 must not grow.
        Each error is allowed to be off by 3 times its noise.
    TypeError
        If an argument is of the wrong kind.

    Notes
    -----
    Non-negative least squares minimises the sum of squares of residual / noise. Residuals are relative because
    errors span many orders of magnitude and are measured with about the same relative precision; the small ones
    decide the last steps. The bound on the counts is part of the fit: a direction of variance 0 takes what is
    left of `dim`, and ends as an entry of eigenvalue 0 whose count completes `dim`. Entropies need it to be
    positive: use a floor or the metric ``w2``.

    The grid has 16 variances per e-fold, from 1e-4 times the least sigma**2 to 1e2 times the largest, but none with
    which a single direction would exceed the error at the largest sigma. Entries that are neighbours on the grid
    become one where that costs next to nothing. The errors determine variances between the squares of the least and
    the largest sigma. Far below, they determine only the sum of the variances; far above, only the number of
    directions, which come back at the grid's end. With noise the best levels are determined better than the
    divergence that they have: the largest variances, which decide it, have few points.

    The mean is given out by rank: the c directions of the largest effective variance get the squares of the mean
    along the c principal directions of the largest variance, averaged, and so on down.

    Cost: some milliseconds for K = 40, below a second for K = 1000.

    References
    ----------
    Lawson and Hanson, "Solving Least Squares Problems", chapter 23 (non-negative least squares).

    Examples
    --------
    >>> import fastkl, numpy as np
    >>> sigmas = np.geomspace(0.01, 50.0, 30)
    >>> errors = 3 * 2.0 * sigmas**2 / (2.0 + sigmas**2)  # 3 directions of variance 2
    >>> fit = fastkl.fit_denoising_errors(sigmas, errors, dim=5)
    >>> fit.spectrum.eigenvalues.round(3), fit.spectrum.counts.round(3)
    (array([2., 0.]), array([3., 2.]))
    >>> fit.worst < 1e-3
    True
    """
    levels, measured, deviations = _checked(sigmas, errors, noise)
    dim = integer("dim", dim, minimum=1)
    floor = real_number("floor", floor, at_least=0.0)
    if mean_of is not None:
        _check_mean(mean_of, dim)
    _check_curve(levels, measured, dim, deviations)
    variances, counts = _fit(levels, measured, dim, deviations)
    predicted = _curves(variances, levels) @ counts
    misfit = _misfit(variances, counts, levels, measured, deviations)
    spectrum = _spectrum(variances, counts, dim)
    if mean_of is not None and mean_of.mean is not None:
        spectrum = _with_mean(spectrum, mean_of, mean_of.mean)
    spectrum = spectrum.floored(floor)
    return DenoisingFit(spectrum, read_only(predicted), read_only(predicted / measured - 1.0), misfit)


def _checked(sigmas: ArrayLike, errors: ArrayLike, noise: ArrayLike) -> tuple[_Array, _Array, _Array]:
    """Return sigmas, errors and noise, each of shape (K,) and within its range."""
    levels = real_array("sigmas", sigmas)
    if len(levels) < _LEAST_POINTS:
        raise ValueError(f"sigmas: must have at least {_LEAST_POINTS} elements, got shape {levels.shape}")
    check_all("sigmas", levels, (levels >= 1e-10) & (levels <= 1e10), "must be within [1e-10, 1e10]")
    _, first = np.unique(levels, return_index=True)
    distinct = np.zeros(len(levels), dtype=np.bool_)
    distinct[first] = True
    check_all("sigmas", levels, distinct, "must not appear twice")
    measured = real_array("errors", errors)
    if measured.shape != levels.shape:
        raise ValueError(f"errors: must have shape {levels.shape} like sigmas, got shape {measured.shape}")
    check_all("errors", measured, (measured >= 1e-25) & (measured <= 1e30), "must be within [1e-25, 1e30]")
    deviations = real_array("noise", noise, ndim=(0, 1))
    if deviations.ndim and deviations.shape != levels.shape:
        raise ValueError(
            f"noise: must be one number or have shape {levels.shape} like sigmas, got shape {deviations.shape}"
        )
    deviations = np.atleast_1d(deviations)
    check_all("noise", deviations, (deviations >= 1e-6) & (deviations <= 0.3), "must be within [1e-6, 0.3]")
    return levels, measured, np.broadcast_to(deviations, levels.shape)


def _check_mean(mean_of: Spectrum, dim: int) -> None:
    """Raise unless `mean_of` is a spectrum of `dim` dimensions."""
    if not isinstance(mean_of, Spectrum):
        raise TypeError(f"mean_of: must be a Spectrum, got {type(mean_of).__name__}")
    if mean_of.dim != dim:
        raise ValueError(f"mean_of: must have dim = {dim} dimensions, got {mean_of.dim:.10g}")


def _with_mean(effective: Spectrum, covariance: Spectrum, mean: _Array) -> Spectrum:
    """Return the effective spectrum with the mean of the other, direction for direction by rank."""
    order = np.argsort(-covariance.eigenvalues, kind="stable")
    sizes = np.ones(len(order)) if covariance.counts is None else covariance.counts[order]
    places = np.concatenate([[0.0], np.cumsum(sizes)])
    squares = np.concatenate([[0.0], np.cumsum(sizes * np.square(mean[order]))])
    counts = np.ones(len(effective)) if effective.counts is None else effective.counts
    ends = np.concatenate([[0.0], np.cumsum(counts)])
    parts = np.diff(np.interp(ends, places, squares))
    return Spectrum(effective.eigenvalues, effective.counts, np.sqrt(parts / counts))


def _check_curve(sigmas: _Array, errors: _Array, dim: int, noise: _Array) -> None:
    """Raise unless some Gaussian may have these errors, each of which may be off by _SPREAD times its noise."""
    least, most = errors * (1.0 - _SPREAD * noise), errors * (1.0 + _SPREAD * noise)
    squares = np.square(sigmas)
    excess = np.flatnonzero(least > squares * dim)
    if len(excess):
        k = int(excess[0])
        raise ValueError(
            f"errors[{k}] = {errors[k].item()!r}: must be at most sigma**2 * dim = {squares[k] * dim:.6g}, which "
            f"leaving the noise in costs, to within {_SPREAD:g} times the noise of {noise[k]:g}; errors are sums over "
            "the dimensions"
        )
    order = np.argsort(sigmas)
    _check_rises(order, least, most, errors, sigmas, "errors must not fall as sigma grows")
    falling = order[::-1]
    least, most = least / squares, most / squares
    _check_rises(falling, least, most, errors, sigmas, "errors / sigma**2 must not grow with sigma")


def _check_rises(
    order: NDArray[np.intp], least: _Array, most: _Array, errors: _Array, sigmas: _Array, rule: str
) -> None:
    """Raise unless values within [least, most] can be non-decreasing when taken in `order`."""
    highest = np.maximum.accumulate(least[order])
    bad = np.flatnonzero(most[order] < highest)
    if len(bad) == 0:
        return
    place = int(bad[0])
    k, other = int(order[place]), int(order[int(np.argmax(least[order[:place]]))])
    raise ValueError(
        f"errors[{k}] = {errors[k].item()!r} at sigma {sigmas[k]:g} contradicts errors[{other}] = "
        f"{errors[other].item()!r} at sigma {sigmas[other]:g}: {rule} by more than {_SPREAD:g} times the noise"
    )


def _curves(variances: _Array, sigmas: _Array) -> _Array:
    """Return the denoising error of a direction of each variance at each sigma, shape (K, n)."""
    squares = np.square(sigmas)[:, None]
    return np.asarray(variances * squares / (variances + squares))


def _fit(sigmas: _Array, errors: _Array, dim: int, noise: _Array) -> tuple[_Array, _Array]:
    """Return variances, ascending, and positive counts whose sum is at most `dim`."""
    grid = _grid(sigmas, errors, noise)
    counts = _counts(grid, sigmas, errors, dim, noise)
    used = np.flatnonzero(counts)
    runs = np.split(used, np.flatnonzero(np.diff(used) > 1) + 1)
    merged = np.array([np.average(grid[run], weights=counts[run]) for run in runs])
    fewer = _counts(merged, sigmas, errors, dim, noise)
    kept = fewer > 0.0
    candidates = [(merged[kept], fewer[kept]), (grid[used], counts[used])]
    (coarse, fine) = (_misfit(*candidate, sigmas, errors, noise) for candidate in candidates)
    return candidates[0] if coarse <= fine + _MERGING else candidates[1]


def _misfit(variances: _Array, counts: _Array, sigmas: _Array, errors: _Array, noise: _Array) -> float:
    """Return the RMS of residual / noise."""
    residual = _curves(variances, sigmas) @ counts / errors - 1.0
    return math.sqrt(float(np.mean(np.square(residual / noise))))


def _grid(sigmas: _Array, errors: _Array, noise: _Array) -> _Array:
    """Return the variances that the fit may use, in equal ratios.

    One whole direction of variance v makes the error v s^2/(v + s^2), which cannot exceed the one measured at the
    largest s: v is at most errors/(1 - errors/s^2) there. Without that bound the noise in a plateau of the errors would
    turn into a fraction of a direction of enormous variance.
    """
    last = int(np.argmax(sigmas))
    square, most = float(sigmas[last]) ** 2, float(errors[last] * (1.0 + _SPREAD * noise[last]))
    largest = _ABOVE * square
    if most < square:
        largest = min(largest, most / (1.0 - most / square))
    least = _BELOW * min(float(sigmas.min()) ** 2, largest)
    return np.geomspace(least, largest, math.ceil(_PER_EFOLD * math.log(largest / least)) + 1)


def _counts(variances: _Array, sigmas: _Array, errors: _Array, dim: int, noise: _Array) -> _Array:
    """Return the counts >= 0 of sum <= dim that fit best, by non-negative least squares with an exact constraint.

    With shares p of `dim`, a slack direction of variance 0 included, the residual is B p for B = dim * curves / errors
    - 1, because sum p = 1. Minimising |B p|^2 + (sum p - 1)^2 over p >= 0 gives the minimiser under sum p = 1 up
    to a factor: for p = t q with sum q = 1 the best t leaves |B q|^2/(1 + |B q|^2), which grows with |B q|.
    """
    from scipy.optimize import nnls

    curves = _curves(np.append(variances, 0.0), sigmas)
    relative = dim * curves / errors[:, None] - 1.0
    relative *= (noise.min() / noise)[:, None]
    rows = np.vstack([relative, np.ones(len(variances) + 1)])
    norms = np.linalg.norm(rows, axis=0)  # at least 1
    target = np.zeros(len(rows))
    target[-1] = 1.0
    shares = nnls(rows / norms, target)[0] / norms
    return np.asarray(dim * (shares[:-1] / shares.sum()))


def _spectrum(variances: _Array, counts: _Array, dim: int) -> Spectrum:
    """Return the spectrum, largest eigenvalue first, with the entry of eigenvalue 0 that completes `dim` exactly."""
    unit = math.ldexp(1.0, math.frexp(dim)[1] - _BITS)
    whole = np.floor(counts / unit) * unit
    kept = whole > 0.0
    eigenvalues, numbers = variances[kept][::-1], whole[kept][::-1]
    rest = dim - float(numbers.sum())
    if rest > 1e-9 * dim:
        return Spectrum(np.append(eigenvalues, 0.0), np.append(numbers, rest))
    numbers[np.argmax(numbers)] += rest  # which is rounding
    return Spectrum(eigenvalues, numbers)
