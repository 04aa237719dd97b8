"""`fastkl.exhaustive`: every choice of levels, one after the other. (A module called `exhaustive` would hide it.)"""

from __future__ import annotations

import hashlib
import math
import numbers
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastkl._dispatch import GUARD
from fastkl._search_setting import grid_levels, warn_of_missing_mean
from fastkl._threads import run_all, thread_count
from fastkl._validation import boolean, choice, integer
from fastkl.evaluate import METRICS, PRIORS, divergence, refuse_zero_eigenvalue
from fastkl.schedule import NoiseSchedule
from fastkl.spectrum import Spectrum, as_spectrum

__all__ = ["ExhaustiveResult", "exhaustive"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

MOST = 2**62  # choices of one call
MOST_KEPT = 10_000
TASK = 1 << 25  # (choice, eigenvalue) pairs of one task: some tenths of a second
TASKS_PER_THREAD = 8
THREADS_PAY = 1 << 18  # (choice, eigenvalue) pairs from which on threads are worth starting


@dataclass(frozen=True, eq=False)
class ExhaustiveResult:
    """What `exhaustive` found among the choices of levels that it evaluated.

    Parameters
    ----------
    steps : int
        Number of steps N.
    timesteps : ndarray of int, shape (N,), or None
        Timesteps of the best choice in descending order; None for continuous schedules.
    sigmas : ndarray, shape (N+1,)
        Levels of the best choice in descending order, ending in 0.
    value : float
        Divergence of `sigmas`.
    rank : int
        Number of the best choice, from 0 on; of equally good ones the least.
    ranks : tuple of int
        Numbers of the best choices, best first.
    values : ndarray, shape (K,)
        Their divergences, ascending.
    kept_sigmas : ndarray, shape (K, N+1)
        Their levels.
    keep : int
        How many were to be kept; K is less where fewer were evaluated.
    ranges : tuple of (int, int)
        First rank and last rank + 1 of the stretches that were evaluated, ascending and apart.
    total : int
        How many choices there are.
    metric, prior : str
        What was minimised.
    problem : str
        Digest of spectrum, levels and options: only results of one problem can be merged.
    """

    steps: int
    timesteps: Integers | None
    sigmas: Array
    value: float
    rank: int
    ranks: tuple[int, ...]
    values: Array
    kept_sigmas: Array
    keep: int
    ranges: tuple[tuple[int, int], ...]
    total: int
    metric: str
    prior: str
    problem: str

    @property
    def next_rank(self) -> int | None:
        """The rank at which the first stretch that was evaluated ended, to go on from; None if that was the last."""
        end = self.ranges[0][1]
        return end if end < self.total else None

    @property
    def complete(self) -> bool:
        """Whether every choice was evaluated, so that `sigmas` is the best of all."""
        return self.ranges == ((0, self.total),)

    def merge(self, other: ExhaustiveResult) -> ExhaustiveResult:
        """Return the result of both: the best choices of either, and the ranks that either evaluated.

        Parameters
        ----------
        other : ExhaustiveResult
            Of the same spectrum, schedule and options; it may cover the same ranks.

        Returns
        -------
        ExhaustiveResult
            With the lesser `keep` of the two: more are not known.

        Raises
        ------
        ValueError
            If the results are of different problems.
        TypeError
            If `other` is not an ExhaustiveResult.

        Examples
        --------
        >>> import fastkl
        >>> problem = ([1.0, 0.1], fastkl.NoiseSchedule.ddpm_linear(50), 3)
        >>> first = fastkl.exhaustive(*problem, count=500)
        >>> both = first.merge(fastkl.exhaustive(*problem, first_rank=first.next_rank))
        >>> both.ranges, both.complete
        (((0, 1176),), True)
        """
        if not isinstance(other, ExhaustiveResult):
            raise TypeError(f"other: must be an ExhaustiveResult, got {type(other).__name__}")
        if self.problem != other.problem:
            raise ValueError(
                "other: must be a result for the same spectrum, schedule, steps, metric, prior, free_start and grid"
            )
        keep = min(self.keep, other.keep)
        kept = {
            rank: (value, sigmas)
            for result in (self, other)
            for rank, value, sigmas in zip(
                result.ranks, result.values.tolist(), result.kept_sigmas, strict=True
            )
        }
        ranks = tuple(sorted(kept, key=lambda rank: (kept[rank][0], rank))[:keep])
        best = self if ranks[0] in self.ranks else other
        return replace(
            best,
            ranks=ranks,
            values=np.array([kept[rank][0] for rank in ranks]),
            kept_sigmas=np.stack([kept[rank][1] for rank in ranks]),
            keep=keep,
            ranges=united(self.ranges + other.ranges),
        )


def united(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Return the union of half-open stretches, ascending and apart."""
    out: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if out and begin <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((begin, end))
    return tuple(out)


def exhaustive(
    spectrum: Spectrum | ArrayLike,
    schedule: NoiseSchedule,
    steps: int,
    metric: str = "kl",
    prior: str | None = None,
    *,
    free_start: bool = False,
    grid: int = 1000,
    first_rank: int = 0,
    count: int | None = None,
    keep: int = 16,
    num_threads: int | None = None,
) -> ExhaustiveResult:
    r"""Evaluate every choice of N levels of a schedule, and keep the best.

    The choices are the subsets of the schedule's levels, noisiest first, with the noisiest in all of them,

    .. math:: \binom{T-1}{N-1} \text{ of them, or } \binom{T}{N} \text{ with a free start,}

    numbered from 0 on in lexicographic order. `search` finds the best one without looking at them all.

    Parameters
    ----------
    spectrum : Spectrum or array_like, shape (d,)
        Covariance spectrum of the data, or its eigenvalues (squared data units). It is evaluated as it is: pass
        ``spectrum.compress()`` where d is large.
    schedule : NoiseSchedule
        The T levels to choose from: the timesteps of a discrete schedule; of a continuous one `grid` levels, evenly
        spaced in log sigma, as `search` has them.
    steps : int
        Number of steps N, 1 to T (at least 2 if the schedule's first level is inf and the start is not free).
    metric : {"kl", "reverse_kl", "jeffreys", "w2"}
        Which divergence, as in `divergence`.
    prior : {"vp", "ve", "flow", "exact"}, optional
        Variance of the first state. Default: the schedule's own.
    free_start : bool
        Whether the first level may be any. Default: the noisiest. A spectrum without a mean makes a UserWarning, as in
        `search`.
    grid : int
        Number of levels of a continuous schedule, at least 2.
    first_rank : int
        Number of the choice to begin with.
    count : int, optional
        How many choices to evaluate at most, 1 to 2**62; fewer where there are no more. Default: all from `first_rank`
        on.
    keep : int
        How many of the best to return, 1 to 10,000.
    num_threads : int, optional
        Threads for this call, as in `divergence`. The result has the same bits for any number.

    Returns
    -------
    ExhaustiveResult
        The best choice: `sigmas`, `timesteps`, `value`, `rank`; the `keep` best; `next_rank`, to go on from, or None;
        `merge` unites the results of several calls.

    Raises
    ------
    ValueError
        For an argument out of its range, an eigenvalue of 0 with a metric other than ``w2``, or more than 2**62 choices
        in one call.
    TypeError
        For an argument of the wrong kind.

    Notes
    -----
    Neighbouring choices share all levels but the last, and what these contribute is kept: O(d) operations a choice,
    whatever N. With 45 eigenvalues and N = 5 one thread evaluates 7 million choices a second (kl; jeffreys 14, w2 9,
    reverse_kl 6), where `divergence` manages 2 million that are handed to it in one array. Few levels share less: 1.7
    million with T = 30 and N = 7. Memory: some kilobytes, and O(N d) a thread.

    The kernel's values decide which choices are kept; they are right to about 1e-12 (relative), less where the prior's
    mismatch cancels what the steps lose. Those kept are evaluated again by `divergence`, whose values are returned and
    decide which is the best.

    References
    ----------
    Knuth, "The Art of Computer Programming", volume 4A, section 7.2.1.3: combinations in lexicographic order, and their
    numbers.

    Examples
    --------
    >>> import fastkl
    >>> found = fastkl.exhaustive([1.0, 0.1, 0.01], fastkl.NoiseSchedule.ddpm_linear(100), steps=4)
    >>> found.total, found.rank, found.timesteps
    (156849, 140508, array([99, 47, 16,  5]))
    >>> found.complete, found.next_rank
    (True, None)
    """
    data = as_spectrum("spectrum", spectrum)
    if not isinstance(schedule, NoiseSchedule):
        raise TypeError(f"schedule: must be a NoiseSchedule, got {type(schedule).__name__}")
    choice("metric", metric, METRICS)
    prior = schedule.prior if prior is None else choice("prior", prior, PRIORS)
    free_start = boolean("free_start", free_start)
    levels = grid_levels(schedule, grid, data.eigenvalues)
    fewest = 2 if np.isinf(levels[0]) and not free_start else 1
    choices = Choices(levels, integer("steps", steps, minimum=fewest, maximum=len(levels)), free_start)
    if metric != "w2":
        refuse_zero_eigenvalue(data, np.zeros((1, 2)), metric, isinstance(spectrum, Spectrum))
    begin, end = checked_range(first_rank, count, choices.total)
    keep = integer("keep", keep, maximum=MOST_KEPT)
    threads = thread_count(num_threads)
    if free_start:
        warn_of_missing_mean(spectrum)
    ranks = best_ranks(data, choices, metric, prior, (begin, end), keep, threads)
    sigmas = np.stack([choices.sigmas(rank) for rank in ranks])
    values = divergence(data, sigmas, metric, prior=prior, num_threads=threads)
    order = sorted(range(len(ranks)), key=lambda i: (values[i], ranks[i]))
    best = ranks[order[0]]
    return ExhaustiveResult(
        steps=choices.steps,
        timesteps=len(levels) - 1 - choices.path(best) if schedule.is_discrete else None,
        sigmas=sigmas[order[0]],
        value=float(values[order[0]]),
        rank=best,
        ranks=tuple(ranks[i] for i in order),
        values=values[order],
        kept_sigmas=sigmas[order],
        keep=keep,
        ranges=((begin, end),),
        total=choices.total,
        metric=metric,
        prior=prior,
        problem=digest(data, choices, metric, prior),
    )


def checked_range(first_rank: Any, count: Any, total: int) -> tuple[int, int]:
    """Return the first rank and the last rank + 1 to evaluate, or raise; ranks may have any size."""
    if isinstance(first_rank, bool | np.bool_) or not isinstance(first_rank, numbers.Integral):
        raise TypeError(f"first_rank: must be an integer, got {first_rank!r} ({type(first_rank).__name__})")
    begin = int(first_rank)
    if begin < 0:
        raise ValueError(f"first_rank = {shown(begin)}: must be at least 0")
    if begin >= total:
        raise ValueError(f"first_rank = {shown(begin)}: must be below the number of choices, {shown(total)}")
    if count is not None:
        return begin, min(begin + integer("count", count, maximum=MOST), total)
    if total - begin > MOST:
        raise ValueError(
            f"count: must be given, because {shown(total - begin)} choices are left and a call evaluates at most 2**62"
        )
    return begin, total


def shown(number: int) -> str:
    """Return an integer for a message: Python refuses to print thousands of digits."""
    return str(number) if abs(number) < 10**40 else "an integer of more than 40 digits"


def digest(data: Spectrum, choices: Choices, metric: str, prior: str) -> str:
    """Return a digest of all that decides the values of choices and their numbers."""
    out = hashlib.sha256(repr((choices.steps, choices.free_start, metric, prior)).encode())
    for array in (choices.levels, data.eigenvalues, data.counts, data.mean):
        out.update(b"none" if array is None else repr(array.shape).encode() + array.tobytes())
    return out.hexdigest()


class Choices:
    """All choices of N out of T levels, numbered in lexicographic order of their indices."""

    def __init__(self, levels: Array, steps: int, free_start: bool) -> None:
        self.levels, self.steps, self.free_start = levels, steps, free_start
        self._fixed = 0 if free_start else 1  # levels that every choice begins with
        self.total = math.comb(len(levels) - self._fixed, steps - self._fixed)

    def path(self, rank: int) -> Integers:
        """Return the indices of the choice of a rank, (N,)."""
        indices = list(range(self._fixed))
        while len(indices) < self.steps:
            begin = indices[-1] + 1 if indices else 0
            left, size = self.steps - len(indices), len(self.levels) - begin
            every = math.comb(size, left)  # of which comb(size - c, left) take none of the first c levels
            low, high = 0, size - left
            while low < high:
                middle = (low + high + 1) // 2
                if every - math.comb(size - middle, left) <= rank:
                    low = middle
                else:
                    high = middle - 1
            rank -= every - math.comb(size - low, left)
            indices.append(begin + low)
        return np.array(indices, dtype=np.int64)

    def sigmas(self, rank: int) -> Array:
        """Return the levels of the choice of a rank, (N+1,)."""
        return np.append(self.levels[self.path(rank)], 0.0)


class Best:
    """The best of all choices that tasks report, in order of value, then of rank, whatever the order of reports."""

    def __init__(self, keep: int) -> None:
        self._keep, self._lock = keep, Lock()
        self._kept: list[tuple[float, int]] = []

    def add(self, values: Array, ranks: Integers, begin: int) -> None:
        """Take in a task's list; ranks count from `begin`, and -1 fills up."""
        found = [(v, begin + r) for v, r in zip(values.tolist(), ranks.tolist(), strict=True) if r >= 0]
        with self._lock:
            self._kept = sorted(self._kept + found)[: self._keep]

    def ranks(self) -> list[int]:
        """Return the ranks of the best."""
        return [rank for _, rank in self._kept]


def best_ranks(
    data: Spectrum,
    choices: Choices,
    metric: str,
    prior: str,
    span: tuple[int, int],
    keep: int,
    threads: int,
) -> list[int]:
    """Return the ranks within a span that have the least values."""
    begin, end = span
    if choices.steps == 1:  # nothing to share
        ranks = range(begin, end)
        values = divergence(data, np.stack([choices.sigmas(r) for r in ranks]), metric, prior=prior)
        return [begin + int(i) for i in np.argsort(values, kind="stable")[:keep]]
    with GUARD.importing:
        from fastkl._grid import fixed
        from fastkl.kernels.ddim_horner import METRICS as METRIC_CODES
        from fastkl.kernels.ddim_horner import PRIORS as PRIOR_CODES
        from fastkl.kernels.subsets import best_subsets

    used = data.eigenvalues > 0.0  # a path to 0 ends at 0 along the others, as w2 wants it
    counts = np.ones(len(data)) if data.counts is None else data.counts
    energies = np.zeros(len(data)) if data.mean is None else counts * np.square(data.mean)
    arrays = [
        fixed(array) for array in (choices.levels, data.eigenvalues[used], counts[used], energies[used])
    ]
    best = Best(keep)

    def task(first: int, last: int) -> None:
        values, places = np.empty(keep), np.empty(keep, dtype=np.int64)
        path = fixed(choices.path(first), np.int64)
        best_subsets(*arrays, PRIOR_CODES[prior], METRIC_CODES[metric], path, last - first, values, places)
        best.add(values, places, first)

    work = (end - begin) * max(1, int(used.sum()))
    threads = threads if work > THREADS_PAY else 1
    length = max(1, min(TASK * (end - begin) // work, -(-(end - begin) // (TASKS_PER_THREAD * threads))))
    run_all(task, ((i, min(i + length, end)) for i in range(begin, end, length)), threads)
    return best.ranks()
