"""`fastkl.search`: the best discretization, proved. (A module called `search` would hide the function.)"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastkl._dispatch import GUARD
from fastkl._refinement import refined_levels
from fastkl._validation import choice, integer, real_array, real_number
from fastkl.evaluate import METRICS, PRIORS, divergence, refuse_zero_eigenvalue
from fastkl.schedule import NoiseSchedule
from fastkl.spectrum import Spectrum, as_spectrum

__all__ = ["SearchResult", "search"]

Array = NDArray[np.float64]

COMPRESSION = 1e-9  # of the spectrum that paths are compared on; the result is evaluated on the whole one
FOREVER = 1e9  # seconds
ROUNDING = 1e-11  # of two evaluations of a divergence


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What `search` found for one number of steps.

    Parameters
    ----------
    steps : int
        Number of steps N.
    timesteps : ndarray of int, shape (N,), or None
        Timesteps in descending order, as diffusers' ``set_timesteps(timesteps=...)`` takes them; None for continuous
        schedules.
    sigmas : ndarray, shape (N+1,)
        Levels in descending order, ending in 0, as k-diffusion and ComfyUI take them.
    value : float
        Divergence of `sigmas` on the whole spectrum.
    lower_bound : float or None
        No choice of N levels from the grid that keeps to the constraints has a divergence below this; None where no
        bound is known.
    proved_optimal : bool
        Whether every other choice of levels has been excluded: `sigmas` has the least divergence of all.
    refined_sigmas : ndarray, shape (N+1,), or None
        For continuous schedules: all levels moved off the grid to a local optimum.
    refined_value : float or None
        Divergence of `refined_sigmas`, never above `value`.
    metric, prior, sampler : str
        What was minimised.
    candidates : int or None
        How many choices of levels there are; None where some must be visited.
    iterations : int
        Shortest paths that were computed.
    seconds : float
        Time that it took.
    """

    steps: int
    timesteps: NDArray[np.int64] | None
    sigmas: Array
    value: float
    lower_bound: float | None
    proved_optimal: bool
    refined_sigmas: Array | None
    refined_value: float | None
    metric: str
    prior: str
    sampler: str
    candidates: int | None
    iterations: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, strings and lists, for JSON.

        Returns
        -------
        dict
            The attributes by name.

        Examples
        --------
        >>> import fastkl
        >>> best = fastkl.search([1.0, 0.1], fastkl.NoiseSchedule.edm(), steps=3)
        >>> best.as_dict()["proved_optimal"]
        True
        """
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(self).items()}


def search(
    spectrum: Spectrum | ArrayLike | Sequence[Spectrum],
    schedule: NoiseSchedule,
    steps: int | Iterable[int],
    sampler: str = "ddim",
    metric: str = "kl",
    prior: str | None = None,
    prove: bool = True,
    free_start: bool = False,
    time_limit: float | None = None,
    *,
    grid: int = 1000,
    visit: ArrayLike | None = None,
    min_spacing: int = 1,
    weights: ArrayLike | None = None,
) -> Any:
    r"""Find the N levels of a schedule with the least divergence among all choices, and prove it.

    Over all :math:`\binom{T-1}{N-1}` ways to choose N of the schedule's T levels, the noisiest among them, and then 0,

    .. math:: \min F(S) = \sum_i c_i\, h(S_i), \qquad S_i = \sum_{k<N} S_i(s_k, s_{k+1}),

    F convex. A tangent of F is a sum over the steps, so that its minimum over all choices is a shortest path with N
    steps: a lower bound, lifted by Frank-Wolfe's method. What the best tangent does not exclude is enumerated.

    Parameters
    ----------
    spectrum : Spectrum, array_like or sequence of Spectrum
        Covariance spectrum of the data, or its eigenvalues (squared data units). Of several spectra the weighted sum of
        the divergences is minimised.
    schedule : NoiseSchedule
        The levels to choose from: the timesteps of a discrete schedule; of a continuous one `grid` times, evenly
        spaced.
    steps : int or iterable of int
        Number of steps N, at least 1 (2 if the schedule's first level is inf); several for several results.
    sampler : {"ddim"}
        The update rule.
    metric : {"kl", "reverse_kl", "jeffreys"}
        Which divergence, as in `divergence`.
    prior : {"vp", "ve", "flow", "exact"}, optional
        Variance of the first state. Default: the schedule's own.
    prove : bool
        False returns after a few shortest paths, without enumeration: within 0.1 % of the optimum in all cases tried,
        with a lower bound that says how far at most.
    free_start : bool
        Whether the first level may be any; the prior's mismatch and the mean are counted. Default: the noisiest.
    time_limit : float, optional
        Seconds after which the best choice so far is returned, with a bound that is valid. Default: none.
    grid : int
        Number of levels of a continuous schedule, at least 2.
    visit : array_like of int or float, optional
        Levels that must be among the N: timesteps for a discrete schedule, sigmas (the nearest grid level is taken)
        for a continuous one.
    min_spacing : int
        Least distance of neighbours on the grid (in timesteps), at least 1.
    weights : array_like, optional
        Weights of several spectra, positive. Default: ones.

    Returns
    -------
    SearchResult or list of SearchResult
        One for each number of steps: `timesteps`, `sigmas`, `value`, `lower_bound`, `proved_optimal`.

    Raises
    ------
    ValueError
        For an argument out of its range, an eigenvalue of 0 (`kl` and the like are not finite then), or constraints
        that no choice satisfies.
    TypeError
        For an argument of the wrong kind.

    Notes
    -----
    Paths are compared on a compression of the spectrum with a relative error of at most 1e-9; those within that of the
    best are evaluated on the whole spectrum, so that the proof is about the spectrum given, as far as the error of the
    compression is what it says (`Spectrum.compress`). Cost: a shortest path takes O(N T log T) interpolations, or
    O(T^2) where a weight of the tangent is negative (a prior's mismatch above the losses, or a mean with
    `reverse_kl`); some ten of them are needed. T = 1000 takes 10 to 300 ms.

    References
    ----------
    Frank and Wolfe, "An algorithm for quadratic programming", 1956. Aggarwal, Klawe, Moran, Shor and Wilber, "Geometric
    applications of a matrix-searching algorithm", 1987: monotone row minima.

    Examples
    --------
    >>> import fastkl
    >>> spectrum = fastkl.Spectrum.power_law(100, 1.0)
    >>> best = fastkl.search(spectrum, fastkl.NoiseSchedule.ddpm_linear(), steps=4)
    >>> best.timesteps
    array([999, 432, 211,  83])
    >>> best.proved_optimal
    True
    """
    choice("sampler", sampler, ("ddim",))
    choice("metric", metric, METRICS)
    if not isinstance(schedule, NoiseSchedule):
        raise TypeError(f"schedule: must be a NoiseSchedule, got {type(schedule).__name__}")
    prior = schedule.prior if prior is None else choice("prior", prior, PRIORS)
    if time_limit is not None:
        time_limit = real_number("time_limit", time_limit, above=0.0)
    data = combined(spectrum, weights)
    levels = grid_levels(schedule, grid)
    refuse_zero_eigenvalue(data, np.zeros((1, 2)), metric, isinstance(spectrum, Spectrum))
    problem = Problem(
        data, schedule, levels, metric, prior, free_start, visit, integer("min_spacing", min_spacing)
    )
    if isinstance(steps, Iterable):
        several = [problem.checked_steps(f"steps[{i}]", n) for i, n in enumerate(steps)]
        return [problem.solve(n, prove, time_limit) for n in several]
    return problem.solve(problem.checked_steps("steps", steps), prove, time_limit)


def combined(spectrum: Any, weights: ArrayLike | None) -> Spectrum:
    """Return one spectrum whose divergences are the weighted sum of those of several."""
    several = (
        isinstance(spectrum, Sequence)
        and len(spectrum) > 0
        and all(isinstance(s, Spectrum) for s in spectrum)
    )
    if not several:
        if weights is not None:
            raise ValueError("weights: must be left out where there is only one spectrum")
        return as_spectrum("spectrum", spectrum)
    shares = np.ones(len(spectrum)) if weights is None else real_array("weights", weights)
    if shares.shape != (len(spectrum),):
        raise ValueError(
            f"weights: must have shape ({len(spectrum)},) like spectrum, got shape {shares.shape}"
        )
    for i, share in enumerate(shares.tolist()):
        real_number(f"weights[{i}]", share, above=0.0)
    counts = [
        (np.ones(len(s)) if s.counts is None else s.counts) * w for s, w in zip(spectrum, shares, strict=True)
    ]
    means = [np.zeros(len(s)) if s.mean is None else s.mean for s in spectrum]
    return Spectrum(
        np.concatenate([s.eigenvalues for s in spectrum]), np.concatenate(counts), np.concatenate(means)
    )


def grid_levels(schedule: NoiseSchedule, grid: Any) -> Array:
    """Return the levels to choose from, noisiest first; the first may be inf."""
    if schedule.is_discrete:
        return np.ascontiguousarray(schedule.sigmas(np.arange(schedule.num_train_timesteps))[::-1])
    grid = integer("grid", grid, minimum=2)
    return np.asarray(schedule.sigmas(np.arange(grid, 0, -1) / grid))


class Problem:
    """A validated search, for any number of steps."""

    def __init__(
        self,
        data: Spectrum,
        schedule: NoiseSchedule,
        levels: Array,
        metric: str,
        prior: str,
        free_start: bool,
        visit: ArrayLike | None,
        min_spacing: int,
    ) -> None:
        with GUARD.importing:
            from fastkl._convex_search import ConvexSearch
            from fastkl._grid import Grid
        from fastkl._objective import Objective

        self.data, self.schedule, self.levels = data, schedule, levels
        self.metric, self.prior, self.free_start = metric, prior, free_start
        self.constrained = visit is not None
        self.min_spacing = min_spacing
        self.small = data.compress(COMPRESSION)
        self.objective = Objective(self.small, metric, prior)
        self.grid = Grid(levels, self.places_to_visit(visit), min_spacing)
        starts = np.flatnonzero(self.grid.may_start) if free_start else np.zeros(1, dtype=np.int64)
        self.search = ConvexSearch(self.grid, self.objective, starts)

    def places_to_visit(self, visit: ArrayLike | None) -> NDArray[np.int64]:
        """Return the grid indices of levels that must be visited."""
        if visit is None:
            return np.empty(0, dtype=np.int64)
        values = real_array("visit", visit)
        if self.schedule.is_discrete:
            last = len(self.levels) - 1
            for i, value in enumerate(values.tolist()):
                if not (value.is_integer() and 0 <= value <= last):
                    raise ValueError(
                        f"visit[{i}] = {value!r}: must be a timestep, an integer within 0 and {last}"
                    )
            places = last - values.astype(np.int64)
        else:
            for i, value in enumerate(values.tolist()):
                real_number(f"visit[{i}]", value, above=0.0)
            with np.errstate(divide="ignore"):
                distance = np.abs(np.log(self.levels)[:, None] - np.log(values))
            places = np.argmin(distance, axis=0)
        return np.unique(places)

    def checked_steps(self, name: str, steps: Any) -> int:
        """Return a number of steps for which there is a path, or raise."""
        fewest = 2 if np.isinf(self.levels[0]) and not self.free_start else 1
        return integer(name, steps, minimum=fewest, maximum=len(self.levels))

    def solve(self, steps: int, prove: bool, time_limit: float | None) -> SearchResult:
        """Search, evaluate what may be best on the whole spectrum, and say what is proved."""
        began = time.monotonic()
        slack = 4.0 * (self.small.rtol + ROUNDING)
        outcome = self.search.run(steps, began + (time_limit or FOREVER), prove, slack)
        values = np.array(outcome.values)
        near = np.flatnonzero(values <= values.min() * (1.0 + slack))
        paths = np.stack([outcome.paths[i] for i in near])
        sigmas = np.concatenate([self.levels[paths], np.zeros((len(paths), 1))], axis=1)
        exact = divergence(self.data, sigmas, self.metric, prior=self.prior)
        best = int(np.argmin(exact))
        value = float(exact[best])
        bound = value if outcome.complete else min(value, max(0.0, outcome.bound * (1.0 - slack)))
        refined = self.refined(sigmas[best], value)
        return SearchResult(
            steps=steps,
            timesteps=len(self.levels) - 1 - paths[best] if self.schedule.is_discrete else None,
            sigmas=sigmas[best],
            value=value,
            lower_bound=bound,
            proved_optimal=outcome.complete,
            refined_sigmas=refined[0],
            refined_value=refined[1],
            metric=self.metric,
            prior=self.prior,
            sampler="ddim",
            candidates=self.candidates(steps),
            iterations=outcome.iterations,
            seconds=time.monotonic() - began,
        )

    def refined(self, sigmas: Array, value: float) -> tuple[Array | None, float | None]:
        """Return the local optimum beside a choice of levels and its value, for continuous schedules."""
        if self.schedule.is_discrete:
            return None, None
        moved = refined_levels(self.objective, sigmas, float(self.levels[-1]))
        moved_value = divergence(self.data, moved, self.metric, prior=self.prior)
        return (moved, moved_value) if moved_value <= value else (sigmas, value)

    def candidates(self, steps: int) -> int | None:
        """Return how many choices there are; None where levels must be visited."""
        if self.constrained:
            return None
        lost = (steps - 1) * (self.min_spacing - 1)
        size = len(self.levels) - lost
        return math.comb(size, steps) if self.free_start else math.comb(size - 1, steps - 1)
