"""The best path for the worst of several spectra, and the proof.

For weights nu that add up to 1, the largest of the divergences F_q is at least sum_q nu_q F_q, whose least value over
all paths the search for one spectrum finds. The nu that lifts this bound most comes from a linear programme over the
paths found so far; what the last bound does not exclude is enumerated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastkl._search_problem import COMPRESSION, FOREVER, Problem
from fastkl._search_result import SearchResult
from fastkl._search_setting import Setting, combined
from fastkl.evaluate import divergence
from fastkl.spectrum import Spectrum

__all__ = ["Minimax"]

Array = NDArray[np.float64]

MOST_ROUNDS = 40
CLOSED = 1e-9  # relative gap
LEAST_SHARE = 1e-9  # of a spectrum in a mixture


class Minimax:
    """A search on several spectra, for any number of steps."""

    def __init__(self, spectra: Sequence[Spectrum], weights: Array, setting: Setting) -> None:
        self.spectra, self.weights, self.setting = spectra, weights, setting
        self.small = [spectrum.compress(COMPRESSION) for spectrum in spectra]

    def mixture(self, shares: Array) -> Problem:
        """Return the search on a weighted sum of the spectra."""
        return Problem(combined(self.small, shares * self.weights), self.setting, compress=False)

    def values(self, paths: NDArray[np.int64]) -> Array:
        """Return the weighted divergences of paths on every spectrum, (paths, spectra)."""
        setting = self.setting
        sigmas = setting.sigmas(paths)
        columns = [divergence(s, sigmas, setting.metric, prior=setting.prior) for s in self.spectra]
        return np.stack(columns, axis=1) * self.weights

    def solve(self, steps: int, prove: bool, time_limit: float | None) -> SearchResult:
        """Search for the path whose largest divergence is least."""
        began = time.monotonic()
        deadline = began + (time_limit or FOREVER)
        shares = np.full(len(self.spectra), 1.0 / len(self.spectra))
        paths: dict[bytes, NDArray[np.int64]] = {}
        table = np.empty((0, len(self.spectra)))
        bound, best_shares, iterations = 0.0, shares, 0
        for _ in range(MOST_ROUNDS):
            problem = self.mixture(shares)
            outcome = problem.search.run(steps, deadline, prove, problem.slack)
            iterations += outcome.iterations
            lifted = (outcome.best if outcome.complete else outcome.bound) * (1.0 - problem.slack)
            if lifted > bound:
                bound, best_shares = lifted, shares
            new = {path.tobytes(): path for path in outcome.paths if path.tobytes() not in paths}
            if new:
                paths |= new
                table = np.concatenate([table, self.values(np.stack(list(new.values())))])
            best = float(table.max(axis=1).min())
            shares, reachable = best_mixture(table)
            if (
                best - bound <= CLOSED * best
                or reachable - bound <= CLOSED * best
                or time.monotonic() > deadline
            ):
                break
        proved = False
        if prove and time.monotonic() < deadline:
            problem = self.mixture(best_shares)
            outcome = problem.search.run(steps, deadline, True, problem.slack, target=best)
            proved = outcome.complete
            table = np.concatenate([table, self.values(np.stack(outcome.paths))])
            paths |= {bytes([1]) + path.tobytes(): path for path in outcome.paths}
        row = int(table.max(axis=1).argmin())
        path = list(paths.values())[row]
        value = float(table[row].max())
        return self.setting.result(path, value, bound, proved, (None, None), iterations, began)


def best_mixture(table: Array) -> tuple[Array, float]:
    """Return the weights that make the least mixed value of the table's paths as large as can be, and that value."""
    from scipy.optimize import linprog

    scale = float(table.max(axis=1).min()) or 1.0
    rows, spectra = table.shape
    done = linprog(
        np.append(np.zeros(spectra), -1.0),
        A_ub=np.append(-table / scale, np.ones((rows, 1)), axis=1),
        b_ub=np.zeros(rows),
        A_eq=np.append(np.ones((1, spectra)), [[0.0]], axis=1),
        b_eq=[1.0],
        bounds=[(LEAST_SHARE, 1.0)] * spectra + [(None, None)],
        method="highs",
    )
    if done.status != 0:
        return np.full(spectra, 1.0 / spectra), math.inf
    shares = np.maximum(done.x[:spectra], LEAST_SHARE)  # the solver keeps bounds to a tolerance
    return shares / shares.sum(), float(done.x[-1]) * scale
