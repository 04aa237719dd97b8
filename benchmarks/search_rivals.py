"""What others would find the levels with: SciPy's local optimisers with the gradient, and CMA-ES, then snapping.

They get the same head start as the search: the compressed spectrum, closed-form losses and, for SciPy, the analytic
gradient. All start from the best of three standard schedules and minimise the logarithm of the divergence over the
logarithms of the levels between the first one and 0, kept in order by sorting or by constraints.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

import fastkl
from fastkl import discretize
from fastkl._objective import Objective

__all__ = ["RIVALS", "Task"]

Array = NDArray[np.float64]

APART = 1e-9  # relative distance that is put between levels that coincide, so that they can be snapped
EVALUATIONS = 1000  # of CMA-ES for each level that is moved
SEED = 0


class Task:
    """Levels between the first and 0 that are to be chosen, and the divergence as a function of their logarithms."""

    def __init__(
        self, spectrum: fastkl.Spectrum, schedule: fastkl.NoiseSchedule, steps: int, metric: str
    ) -> None:
        self.schedule = schedule
        self.first, self.least = schedule.sigma_max, schedule.sigma_min
        small = spectrum.compress(1e-9)
        self.objective = Objective(small, metric, schedule.prior)
        self.offset = self.objective.offsets(np.array([self.first]))[0]
        self.constant = float(self.objective.constants(np.array([self.first]))[0])
        self.bounds = (np.log(self.least), np.log(self.first))
        starts = [
            discretize.exponential(schedule, steps),
            discretize.karras(schedule, steps),
            discretize.tangent(schedule, steps),
        ]
        logs = np.log(np.array(starts)[:, 1:-1])
        self.start = logs[int(np.argmin(self.values(logs)))]

    def levels(self, logs: Array) -> Array:
        """Return candidates (M, N+1) from logarithms (M, N-1) in any order."""
        inner = np.exp(np.clip(-np.sort(-logs, axis=1), *self.bounds))
        ends = np.ones((len(logs), 1))
        return np.concatenate([self.first * ends, inner, 0.0 * ends], axis=1)

    def values(self, logs: Array) -> Array:
        """Return the logarithm of the divergence of every candidate."""
        y = self.objective.losses(self.levels(logs)) + self.offset
        return np.asarray(np.log(self.objective.value(y) + self.constant))

    def value_and_slope(self, logs: Array) -> tuple[float, Array]:
        """Return the logarithm of the divergence and its gradient.

        dS/dx_k = 2 L'(x_k) - L'(m_(k-1)) - L'(m_k) with x = log s^2, L' = s^2/(lambda + s^2), m the middle of two x.
        """
        order = np.argsort(-logs)
        sigmas = self.levels(logs[None])[0]
        y = self.objective.losses(sigmas[None])[0] + self.offset
        value = float(self.objective.value(y)) + self.constant
        eigenvalues = self.objective.eigenvalues
        square, crossed = np.square(sigmas[1:-1, None]), (sigmas[:-1] * sigmas[1:])[:, None]
        here, between = square / (eigenvalues + square), crossed / (eigenvalues + crossed)
        slope = np.empty(len(logs))
        slope[order] = (2.0 * here - between[:-1] - between[1:]) @ self.objective.gradient(y)
        return float(np.log(value)), 2.0 * slope / value

    def finished(self, logs: Array) -> Array:
        """Return levels (N+1,), on the timesteps of a discrete schedule."""
        levels = self.levels(logs[None])[0]
        for k in range(len(levels) - 3, 0, -1):
            levels[k] = max(levels[k], levels[k + 1] * (1.0 + APART))
        return discretize.snap(self.schedule, levels) if self.schedule.is_discrete else levels


def lbfgs(task: Task) -> Array:
    """L-BFGS-B, sorted within the objective."""
    done = scipy.optimize.minimize(
        task.value_and_slope, task.start, jac=True, method="L-BFGS-B", bounds=[task.bounds] * len(task.start)
    )
    return task.finished(done.x)


def slsqp(task: Task) -> Array:
    """SLSQP with the order as linear constraints."""
    size = len(task.start)
    falls = np.eye(size)[:-1] - np.eye(size, k=1)[:-1]
    done = scipy.optimize.minimize(
        task.value_and_slope,
        task.start,
        jac=True,
        method="SLSQP",
        bounds=[task.bounds] * size,
        constraints=[{"type": "ineq", "fun": lambda x: falls @ x, "jac": lambda x: falls}],
        options={"maxiter": 1000},
    )
    return task.finished(done.x)


def cma_es(task: Task) -> Array:
    """CMA-ES, a generation at a time, with EVALUATIONS for each level; it may stop earlier by its own criteria."""
    try:
        import cma
    except ImportError:
        raise SystemExit("CMA-ES needs cma: pip install 'fastkl[bench]', or use --no-cma") from None
    options = {
        "seed": SEED + 1,  # 0 would be the clock
        "verbose": -9,
        "maxfevals": EVALUATIONS * len(task.start),
        "bounds": [float(task.bounds[0]), float(task.bounds[1])],
        "tolfun": 1e-7,  # of a logarithm
    }
    strategy = cma.CMAEvolutionStrategy(task.start, 0.3, options)
    while not strategy.stop():
        asked = strategy.ask()
        strategy.tell(asked, task.values(np.array(asked)).tolist())
    return task.finished(strategy.result.xbest)


RIVALS: dict[str, Callable[[Task], Array]] = {"L-BFGS-B": lbfgs, "SLSQP": slsqp, "CMA-ES": cma_es}
