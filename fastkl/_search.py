"""`fastkl.search`: the best discretization, proved. (A module called `search` would hide the function.)"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastkl._sampler_base import Sampler
from fastkl._search_problem import Problem
from fastkl._search_result import SearchResult
from fastkl._search_setting import Setting, combined, several, warn_of_missing_mean, weights_of
from fastkl._step_problem import StepProblem, can_be_proved
from fastkl._validation import boolean, choice, integer, real_number
from fastkl.evaluate import METRICS, PRIORS, refuse_zero_eigenvalue
from fastkl.samplers import get
from fastkl.schedule import NoiseSchedule
from fastkl.spectrum import Spectrum, as_spectrum

__all__ = ["SearchResult", "search"]


def search(
    spectrum: Spectrum | ArrayLike | Sequence[Spectrum],
    schedule: NoiseSchedule,
    steps: int | Iterable[int],
    sampler: str | Sampler = "ddim",
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
    combine: str = "sum",
) -> Any:
    r"""Find the N levels of a schedule with the least divergence among all choices, and prove it.

    Over all :math:`\binom{T-1}{N-1}` ways to choose N of the schedule's T levels, the noisiest among them, and then 0,

    .. math:: \min F(S) = \sum_i c_i\, h(S_i), \qquad S_i = \sum_{k<N} S_i(s_k, s_{k+1}),

    F convex. A tangent of F is a sum over the steps, so that its minimum over all choices is a shortest path with N
    steps: a lower bound, lifted by Frank-Wolfe's method. What the best tangent does not exclude is enumerated.

    Parameters
    ----------
    spectrum : Spectrum, array_like or sequence of Spectrum
        Covariance spectrum of the data, or its eigenvalues (squared data units). Several spectra are combined as
        `weights` and `combine` say.
    schedule : NoiseSchedule
        The levels to choose from: the timesteps of a discrete schedule; of a continuous one `grid` levels, evenly
        spaced in log sigma over its range, where that goes on to 0 and inf from there to three to four decades past
        the square roots of the eigenvalues.
    steps : int or iterable of int
        Number of steps N, at least 1 (2 if the schedule's first level is inf); several for several results.
    sampler : str or Sampler
        The update rule: a name of `fastkl.samplers.names()`, or what a function of `fastkl.samplers` returns. "ddim"
        (and the names of the same map) is searched with a proof, and so are the deterministic samplers of two
        evaluations a step, "heun", "flow_heun", "dpm_2" and "dpmpp_2s", but not for `w2`. All others are searched
        locally: what is returned is no worse than DDIM's best levels and, on the timesteps of a discrete schedule, the
        standard schedules that keep to the constraints, and no single level can be moved for the better by a power of 2
        (by more than 1e-7 of the value where there are more than 256 eigenvalues). Other choices may be better still:
        `proved_optimal` is False and `lower_bound` None. A sampler that needs a last level above 0 ends at the lowest
        level of the grid instead of 0.
    metric : {"kl", "reverse_kl", "jeffreys", "w2"}
        Which divergence, as in `divergence`. `w2` is not convex: convex envelopes on boxes take its place, which
        shortest paths tighten until what is left can be enumerated.
    prior : {"vp", "ve", "flow", "exact"}, optional
        Variance of the first state. Default: the schedule's own.
    prove : bool
        False returns after a few shortest paths, without enumeration, with a lower bound that says how far from the
        optimum at most: within 0.1 % of it in all cases tried at T = 1000 with the schedule's own prior, farther where
        a prior's mismatch cancels most of what the steps lose.
    free_start : bool
        Whether the first level may be any; the prior's mismatch and the mean are counted. Default: the noisiest.
        A spectrum without a mean makes a UserWarning: counted as 0, it lets the first level come out too low. Zeros
        say that the mean is 0.
        Starts are searched one by one, and it takes ten times as long. Where a prior's mismatch and the losses have
        opposite signs for many eigenvalues (`vp` and `flow` with `reverse_kl`), mixtures of paths can look better than
        any path: then nothing is proved, and the choice can be some percent from the best.
    time_limit : float, optional
        Seconds, for each number of steps, after which the best choice so far is returned, with a bound that is valid;
        what is under way then is finished first. Default: none.
    grid : int
        Number of levels of a continuous schedule, at least 2.
    visit : array_like of int or float, optional
        Levels that must be among the N: timesteps for a discrete schedule, sigmas for a continuous one, whose grid they
        are added to.
    min_spacing : int
        Least distance of neighbours on the grid (in timesteps), at least 1.
    weights : array_like, optional
        Weights of several spectra, within [1e-9, 1e9]. Default: ones.
    combine : {"sum", "worst"}
        Whether the weighted sum of the divergences of several spectra is minimised or the largest of them, weights
        included.

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
    O(N T^2) where a weight of the tangent is negative (a prior's mismatch above the losses, or a mean with
    `reverse_kl`); two to ten of them are needed, under `w2` hundreds of the second kind. T = 1000 takes 10 to 100 ms
    (`w2` 0.2 to 2 s), T = 100,000 half a second (`w2` is for a few thousand levels). Without a proof: 5 to 20 ms.

    Samplers of two evaluations a step: losses have either sign, and mixtures of paths cancel them, so that boxes of
    paths are bounded, and cut where their bounds do not exclude them. The proof is about the spectrum given, without
    compression; above 100,000 eigenvalues (4 million pairs of a start and an eigenvalue) the search is local: pass
    ``spectrum.compress()`` to have a proof for that one. Each bound takes O(N T^2) operations; T = 1000 takes some
    seconds with N = 10, tens of seconds or more with N = 20 to 30. `combine="worst"` needs DDIM.

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
    rule = get(sampler)
    choice("metric", metric, METRICS)
    if choice("combine", combine, ("sum", "worst")) == "worst" and not rule.is_ddim:
        raise ValueError(f"combine = 'worst': needs the sampler 'ddim', got sampler = {sampler!r}")
    if not isinstance(schedule, NoiseSchedule):
        raise TypeError(f"schedule: must be a NoiseSchedule, got {type(schedule).__name__}")
    prior = schedule.prior if prior is None else choice("prior", prior, PRIORS)
    limit = None if time_limit is None else real_number("time_limit", time_limit, above=0.0)
    free_start, prove = boolean("free_start", free_start), boolean("prove", prove)
    shares = weights_of(spectrum, weights)
    data = combined(spectrum, shares)
    if metric != "w2":
        refuse_zero(spectrum, metric)
    if not (data.eigenvalues > 0.0).any():
        raise ValueError("spectrum: must have an eigenvalue above 0, or all levels are equally good")
    spacing = integer("min_spacing", min_spacing)
    setting = Setting(schedule, grid, data.eigenvalues, metric, prior, free_start, visit, spacing)
    wanted = step_numbers(setting, steps)
    if free_start:
        warn_of_missing_mean(spectrum)
    solve = solver(spectrum, data, shares, setting, sampler, combine)
    results = [solve(n, prove, limit) for n in wanted]
    return results if is_several(steps) else results[0]


def is_several(steps: Any) -> bool:
    """Whether several numbers of steps are asked for; an array of no axes is one number."""
    return isinstance(steps, Iterable) and getattr(steps, "ndim", 1) > 0


def step_numbers(setting: Setting, steps: Any) -> list[int]:
    """Return the numbers of steps, or raise."""
    if is_several(steps):
        return [setting.checked_steps(f"steps[{i}]", n) for i, n in enumerate(steps)]
    return [setting.checked_steps("steps", steps)]


def refuse_zero(spectrum: Any, metric: str) -> None:
    """Raise if an eigenvalue is 0, naming it in the argument as it was given."""
    to_zero = np.zeros((1, 2))
    if not several(spectrum):
        data = as_spectrum("spectrum", spectrum)
        refuse_zero_eigenvalue(data, to_zero, metric, isinstance(spectrum, Spectrum))
        return
    for i, one in enumerate(spectrum):
        refuse_zero_eigenvalue(one, to_zero, metric, True, f"spectrum[{i}]")


def solver(
    spectrum: Any, data: Spectrum, shares: Any, setting: Setting, sampler: str | Sampler, combine: str
) -> Callable[[int, bool, float | None], SearchResult]:
    """Return the method of the kind of search that a sampler and a combination of spectra need."""
    rule = get(sampler)
    if combine == "worst" and several(spectrum):
        from fastkl._minimax import Minimax

        return Minimax(spectrum, shares, setting).solve
    if rule.is_ddim:
        return Problem(data, setting).solve
    if rule.one_step and can_be_proved(data, setting):
        return StepProblem(data, setting, rule, sampler).solve
    from fastkl._local_search import LocalSearch

    return LocalSearch(data, setting, rule, sampler if isinstance(sampler, str) else None).solve
