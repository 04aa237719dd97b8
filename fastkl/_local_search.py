"""Local search for the levels of samplers whose divergence is no sum over the steps: multistep and stochastic ones.

Nothing bounds their divergence from below, so that no choice can be proved best. The search begins at DDIM's optimum
and at smooth schedules, moves the best of them downhill off the grid, takes the nearest levels of the grid, and moves
these one by one, two by two and all together until nothing helps. It draws no random numbers.
"""

from __future__ import annotations

import heapq
import math
import time

import numpy as np
from numpy.typing import NDArray

from fastkl._dispatch import backend_for
from fastkl._local_descent import Descent, descend
from fastkl._local_paths import Paths
from fastkl._local_starts import smooth_starts, standard_starts, warped
from fastkl._sampler_base import Sampler
from fastkl._sampler_dispatch import checked_sampler
from fastkl._search_problem import COMPRESSION, FOREVER, Problem
from fastkl._search_result import SearchResult
from fastkl._search_setting import Setting
from fastkl._threads import thread_count
from fastkl.evaluate import divergence, evaluated
from fastkl.spectrum import Spectrum

__all__ = ["LocalSearch"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

WHOLE = 256  # eigenvalues up to which the spectrum is used as it is
DESCENTS = 4  # smooth starts that are moved downhill, and as many irregular ones; half of all go all the way
FIRST_ITERATIONS, MORE_ITERATIONS, LAST_ITERATIONS = 8, 30, 60
ROUGH, FINE = 1e-5, 1e-11  # gains in log(divergence) below which a descent ends, before snapping and after
CLOSEST = 0.01  # in log sigma: two levels off the grid, if it has none that are closer
APART = 0.3  # in log sigma, by which two starts differ at some level
SCATTERED = 512  # paths spread over all there are
ROUNDED = 2  # descents whose ends are rounded to the grid in all ways
WORTH = 1e-6  # relative gain from moves of several levels that is worth going on
FEW = 1 << 11  # paths of which all are evaluated
CLIMBS, FINE_CLIMBS = 8, 2  # grid paths that the discrete search begins at, on coarse and on fine grids
MISTRUST = 10.0  # times the compression's error seen, within which paths are compared on the whole spectrum
LEAST_MISTRUST = 1e-9
WORTH_WHOLE = 1e-7  # relative gain of a round of these comparisons that is worth another
LEAST_VALUE = 1e-300  # so that 0 has a logarithm
BLOCK = 1 << 12  # candidates evaluated together


class Values:
    """A sampler's divergence of many candidates; inf where it is not a number, or the candidate cannot be run."""

    def __init__(self, data: Spectrum, metric: str, prior: str, rule: Sampler) -> None:
        self.data, self._options = data, (metric, rule, prior, thread_count(None))
        self._rule, self._kernels = rule, backend_for("auto")
        self.batches = 0

    def __call__(self, levels: Array) -> Array:
        """Return the divergence of candidates (M, N+1)."""
        out = np.full(len(levels), np.inf)
        with np.errstate(invalid="ignore"):  # inf - inf
            good = np.flatnonzero((levels[:, 1:] < levels[:, :-1]).all(axis=1) & self._runs(levels))
        for begin in range(0, len(good), BLOCK):
            rows = good[begin : begin + BLOCK]
            with np.errstate(over="ignore", invalid="ignore"):  # of absurd candidates; NaN becomes inf below
                out[rows] = evaluated(self._kernels, self.data, levels[rows], *self._options)
            self.batches += 1
        out[np.isnan(out)] = np.inf
        return out

    def _runs(self, levels: Array) -> NDArray[np.bool_]:
        """Return which candidates go with the sampler's options."""
        good = np.isfinite(levels[:, 0]) | (not self._rule.finite_start)
        if self._rule.check is not None:
            for row in range(len(levels)):
                try:
                    self._rule.check(levels[row : row + 1], **dict(self._rule.options))
                except ValueError:
                    good[row] = False
        return good


class LocalSearch:
    """A spectrum, where and for what is searched, and a sampler; searches for any number of steps."""

    def __init__(self, data: Spectrum, setting: Setting, rule: Sampler, name: str | None = None) -> None:
        self.data, self.setting, self.rule = data, setting, rule
        self.name, self._given = name or repr(rule), name or rule
        self.small = data if len(data) <= WHOLE else data.compress(COMPRESSION)
        self.paths = Paths(
            setting.levels, setting.visit, setting.min_spacing, setting.free_start,
            rule.finite_start, rule.above_zero,
        )  # fmt: skip
        self.least_gap = min(CLOSEST, float(-np.diff(self.paths.x).max(initial=-CLOSEST)))
        self._ddim = Problem(data, setting)
        self.values = Values(self.small, setting.metric, setting.prior, rule)
        self.whole = self.values
        if self.small is not data:
            self.whole = Values(data, setting.metric, setting.prior, rule)

    def solve(self, steps: int, prove: bool, time_limit: float | None) -> SearchResult:
        """Search; `prove` changes nothing, because nothing can be proved."""
        began = time.monotonic()
        deadline = began + (time_limit or FOREVER)
        self._check(steps)
        before = self._batches()
        pool = Pool(self.paths, self.values)
        descents: list[Descent] = []
        every = self.paths.every(steps, FEW)
        if every is not None:
            self._take_all(pool, every, steps)
        if every is None or not self.setting.schedule.is_discrete:
            descents = self._descents(pool, self._starts(pool, steps, deadline), deadline)
        if every is None:
            coarse = self.paths.is_coarse(steps)
            climb(pool, pool.least(CLIMBS if coarse else FINE_CLIMBS), CLIMBS if coarse else 1, deadline)
        path, value = self._settled(pool, deadline)
        refined = self._refined(path, value, descents, deadline)
        timesteps = len(self.paths.levels) - 1 - path[:steps] if self.setting.schedule.is_discrete else None
        return SearchResult(
            steps=steps,
            timesteps=timesteps,
            sigmas=self.paths.sigmas(path[None])[0],
            value=value,
            lower_bound=None,
            proved_optimal=False,
            refined_sigmas=refined[0],
            refined_value=refined[1],
            metric=self.setting.metric,
            prior=self.setting.prior,
            sampler=self.name,
            candidates=self.paths.count(steps),
            iterations=self._batches() - before,
            seconds=time.monotonic() - began,
        )

    def _batches(self) -> int:
        """Return how many batches of candidates have been evaluated."""
        return sum(values.batches for values in {self.values, self.whole})

    def _check(self, steps: int) -> None:
        """Raise if the sampler cannot do so few steps, or cannot start where it must."""
        if steps < self.rule.least_steps or not self.paths.may_start.any():
            last = 0.5 * self.setting.levels[-1] if self.rule.above_zero else 0.0
            checked_sampler(self._given, np.append(self.setting.levels[:steps], last)[None])

    def _take_all(self, pool: Pool, found: Integers, steps: int) -> None:
        """Evaluate the first paths that were found, or raise if there are none that the sampler can run on."""
        if len(found) == 0:
            needs = self.rule.finite_start or self.rule.above_zero
            ends = f", and to the first and last level that {self.name} needs" if needs else ""
            raise ValueError(f"steps = {steps}: no choice of levels keeps to visit and min_spacing{ends}")
        pool.take(found)
        if math.isinf(pool.best) and self.rule.check is not None:
            self.rule.check(self.paths.sigmas(found[:1]), **dict(self.rule.options))

    def _starts(self, pool: Pool, steps: int, deadline: float) -> list[Descent]:
        """Evaluate DDIM's optimum, the standards and others; return the best smooth and the best irregular levels."""
        paths = self.paths
        length = steps + int(paths.above_zero)
        limit = None if deadline > FOREVER / 2 else max(deadline - time.monotonic(), 1e-9)
        ddim = self._ddim.solve(steps, False, limit).sigmas[:-1]
        x = paths.x[np.searchsorted(-paths.levels, -ddim)]
        path = paths.nearest(np.append(x, paths.x[-1]) if paths.above_zero else x)
        found = np.array([path] if path is not None else [], dtype=np.int64).reshape(-1, length)
        self._take_all(pool, found, steps)
        begin = paths.x[found[0]]
        standards = []
        for levels in standard_starts(self.setting.schedule, self.small, steps, paths):
            kept = np.maximum(levels[:length], paths.levels[-1])
            infinite = np.isinf(kept)
            standards.append(np.where(infinite, paths.x[0], np.log(np.where(infinite, 1.0, kept))))
        pool.take_nearest(standards)
        smooth = np.array([begin, *standards])
        laws = smooth_starts(self.small, length, paths)
        starts = self._chosen(np.concatenate([smooth, warped(begin, paths.x[-1]), laws]))
        scattered = paths.scattered(length, SCATTERED)
        if len(scattered):
            best = scattered[np.argsort(pool.take(scattered), kind="stable")[:DESCENTS]]
            starts += self._chosen(paths.x[best])
        return starts

    def _descents(self, pool: Pool, starts: list[Descent], deadline: float) -> list[Descent]:
        """Move levels downhill, the best to the end, and take the grid's paths near there; return the best first."""
        descend(starts, self._logarithm, FIRST_ITERATIONS, ROUGH, deadline)
        starts.sort(key=lambda start: start.value)
        descend(starts[:DESCENTS], self._logarithm, MORE_ITERATIONS, ROUGH, deadline)
        starts.sort(key=lambda start: start.value)
        pool.take_nearest([start.best for start in starts])
        for start in starts[:ROUNDED]:
            pool.take(self.paths.roundings(start.best))
        return starts

    def _chosen(self, smooth: Array) -> list[Descent]:
        """Return the best of many levels, log sigma (M, L), that differ."""
        smooth = np.minimum(smooth, self.paths.x[np.argmax(self.paths.may_start)])
        if not self.paths.free_start:
            smooth[:, 0] = self.paths.x[0]
        if self.paths.above_zero:
            smooth[:, -1] = self.paths.x[-1]
        values = self._logarithm(smooth)
        chosen: list[Array] = []
        for row in np.argsort(values, kind="stable"):
            if not np.isfinite(values[row]) or len(chosen) == DESCENTS:
                break
            if all(np.abs(smooth[row] - other).max() > APART for other in chosen):
                chosen.append(smooth[row])
        return [start for x in chosen if (start := self._descent(x)) is not None]

    def _descent(self, x: Array) -> Descent | None:
        """Return a descent from log sigma (L,), from the nearest path if levels must be visited."""
        paths = self.paths
        if len(paths.visit):
            path = paths.nearest(x)
            return None if path is None else self._from_path(path)
        held = np.zeros(len(x), dtype=np.bool_)
        held[0] = not paths.free_start or (paths.starts_at_inf and x[0] >= paths.x[0])
        held[-1] |= paths.above_zero
        return Descent(x, held, self._ends(), self.least_gap)

    def _from_path(self, path: Integers) -> Descent:
        return Descent(self.paths.x[path], self.paths.held(path), self._ends(), self.least_gap)

    def _ends(self) -> tuple[float, float]:
        """Return log sigma between which levels move: the first and the last finite one of the grid."""
        x = self.paths.x
        top = x[1] if self.paths.starts_at_inf and len(x) > 1 else x[0]
        return float(top), float(x[-1])

    def _sigmas(self, x: Array) -> Array:
        """Return candidates (M, N+1) of levels in log sigma (M, L)."""
        on_grid = np.minimum(np.searchsorted(-self.paths.x, -x), len(self.paths.x) - 1)
        # the grid's own bits for its levels, and inf for what stands for it
        sigmas = np.where(self.paths.x[on_grid] == x, self.paths.levels[on_grid], np.exp(x))
        return sigmas if self.paths.above_zero else np.append(sigmas, np.zeros((len(sigmas), 1)), axis=1)

    def _logarithm(self, x: Array) -> Array:
        """Return log(divergence) of levels in log sigma (M, L)."""
        return np.log(np.maximum(self.values(self._sigmas(x)), LEAST_VALUE))

    def _settled(self, pool: Pool, deadline: float) -> tuple[Integers, float]:
        """Return the best path on the whole spectrum, and its value there.

        The compression is a guide: of the paths beside the best one, those are compared on the whole spectrum that it
        cannot tell from it, as far as its error was seen.
        """
        path = pool.least(1)[0]
        if self.whole is not self.values:
            path = self._on_the_whole(pool, deadline)
        exact = divergence(
            self.data, self.paths.sigmas(path[None])[0], self.setting.metric, self.rule, self.setting.prior
        )
        return path, float(exact)

    def _on_the_whole(self, pool: Pool, deadline: float) -> Integers:
        """Return the path from which, on the whole spectrum, no small move gains more than is worth it."""
        known = Pool(self.paths, self.whole)
        known.take(np.array(pool.least(DESCENTS)))
        before = math.inf
        while 0.0 < known.best < before * (1.0 - WORTH_WHOLE) and time.monotonic() <= deadline:
            path, before = known.least(1)[0], known.best
            near = np.concatenate([path[None], self.paths.beside(path, wide=False)])
            guess = self.values(self.paths.sigmas(near))
            error = max(LEAST_MISTRUST, abs(guess[0] / known.best - 1.0))
            known.take(near[guess <= guess[0] * (1.0 + MISTRUST * error)])
        return known.least(1)[0]

    def _refined(
        self, path: Integers, value: float, starts: list[Descent], deadline: float
    ) -> tuple[Array | None, float | None]:
        """Return the best levels found off the grid and their value, for continuous schedules."""
        if self.setting.schedule.is_discrete:
            return None, None
        starts = [self._from_path(path), *starts[:1]]
        for start in starts:
            start.done = len(start.free) == 0
        descend(starts, self._logarithm, LAST_ITERATIONS, FINE, deadline)
        moved = self._sigmas(np.stack([start.best for start in starts]))
        best = moved[int(np.argmin(self.whole(moved)))]
        moved_value = float(divergence(self.data, best, self.setting.metric, self.rule, self.setting.prior))
        return (best, moved_value) if moved_value <= value else (self.paths.sigmas(path[None])[0], value)


class Pool:
    """Paths that were evaluated, and their values."""

    def __init__(self, paths: Paths, values: Values) -> None:
        self.paths, self.values = paths, values
        self._rows: dict[bytes, tuple[float, Integers]] = {}
        self._best = math.inf

    @property
    def best(self) -> float:
        """The least value."""
        return self._best

    def value(self, path: Integers) -> float:
        """Return the value of a path that was evaluated."""
        return self._rows[path.tobytes()][0]

    def take(self, paths: Integers) -> Array:
        """Evaluate paths (M, L), keep them, and return their values."""
        values = self.values(self.paths.sigmas(paths))
        for path, value in zip(paths, values.tolist(), strict=True):
            self._rows[path.tobytes()] = value, path
        self._best = min(self._best, float(values.min(initial=math.inf)))
        return values

    def take_nearest(self, wanted: list[Array]) -> None:
        """Evaluate the paths nearest to levels in log sigma (L,)."""
        found = [path for x in wanted if (path := self.paths.nearest(x)) is not None]
        if found:
            self.take(np.array(found))

    def least(self, count: int) -> list[Integers]:
        """Return the best paths, best first; of equal ones the first that was evaluated."""
        return [path for _, path in heapq.nsmallest(count, self._rows.values(), key=lambda row: row[0])]


def climb(pool: Pool, paths: list[Integers], wide: int, deadline: float) -> None:
    """Move every path to the best of those beside it, as long as one is better, all paths in step.

    The best `wide` of those that end there look wider, and go on if they find something better that is worth it. (With
    many levels there is no end of moves of several that gain next to nothing.)
    """
    settled = downhill(pool, paths, False, deadline)
    while settled and time.monotonic() <= deadline:
        settled = sorted(settled, key=lambda path: (pool.value(path), path.tolist()))[:wide]
        moved = downhill(pool, settled, True, deadline)
        if not moved:  # time is up
            return
        gained = [
            new
            for new, old in zip(moved, settled, strict=True)
            if pool.value(new) < (1.0 - WORTH) * pool.value(old)
        ]
        settled = downhill(pool, gained, False, deadline)


def downhill(pool: Pool, paths: list[Integers], wide: bool, deadline: float) -> list[Integers]:
    """Return where paths end that move to the best path beside them: once if `wide`, else until none is better."""
    seen = {path.tobytes() for path in paths}
    ended: list[Integers] = []
    while paths and time.monotonic() <= deadline:
        near = [np.concatenate([path[None], pool.paths.beside(path, wide)]) for path in paths]
        values = np.split(pool.take(np.concatenate(near)), np.cumsum([len(rows) for rows in near])[:-1])
        best = [rows[int(np.argmin(found))] for rows, found in zip(near, values, strict=True)]
        together = [combined(pool.paths, rows, found) for rows, found in zip(near, values, strict=True)]
        if any(len(rows) for rows in together):
            sums = np.split(
                pool.take(np.concatenate(together)), np.cumsum([len(rows) for rows in together])[:-1]
            )
            for i, (rows, found) in enumerate(zip(together, sums, strict=True)):
                if len(found) and found.min() < pool.value(best[i]):
                    best[i] = rows[int(np.argmin(found))]
        ended += [new for new, old in zip(best, paths, strict=True) if wide or (new == old).all()]
        if wide:
            break
        paths = []
        for path in best:
            if path.tobytes() not in seen:
                seen.add(path.tobytes())
                paths.append(path)
    return ended


def combined(paths: Paths, near: Integers, values: Array) -> Integers:
    """Return the first row with the best moves to other rows made together: two of them, three and so on.

    Only moves of different levels are made together. With many levels this saves most of the rounds.
    """
    moves = near - near[0]
    better = np.flatnonzero(values < values[0])
    taken = np.zeros(near.shape[1], dtype=np.bool_)
    chosen = []
    for row in better[np.argsort(values[better], kind="stable")]:
        moving = moves[row] != 0
        if not (taken & moving).any():
            taken |= moving
            chosen.append(moves[row])
    if len(chosen) < 2:
        return near[:0]
    sums = near[0] + np.cumsum(chosen, axis=0)[1:]
    return sums[paths.allowed(sums)]
