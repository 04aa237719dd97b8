"""Levels that are searched on samples instead of on the Gaussian model, and what that costs.

trajectory-dp   dynamic programming on trajectories, written from the description of Chen et al. 2024 ("On the
                trajectory regularity of ODE-based diffusion sampling", arXiv 2405.11326): teachers on a fine grid, the
                cost of a jump is the distance of its end from the teacher's, the sum over the jumps is minimised.
cma-fd          CMA-ES on the Frechet distance of the features itself, from 1,000 samples of a seed of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

TEACHERS = 256
GRID = 81  # levels of the teacher, log-uniform, then 0
PENALTY = 1.15  # Chen et al.: the cost-to-go is divided by this, since later errors weigh less
DRAWN = 1000
SEED = 1000


@dataclass(frozen=True)
class Found:
    """Levels and the network evaluations that they cost."""

    sigmas: list[float]
    evaluations: int


def teacher(
    denoise: Callable[[Tensor, float], Tensor], grid: Floats, noise: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """States and slopes dy/dsigma of Euler's method on the whole grid."""
    y, states, slopes = noise * float(grid[0]), [], []
    for sigma, after in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        slope = (y - denoise(y, sigma)) / sigma
        states.append(y)
        slopes.append(slope)
        y = y + (after - sigma) * slope
    return [*states, y], slopes


def jump_costs(states: list[Tensor], slopes: list[Tensor], grid: Floats) -> Floats:
    """Mean distance between the end of one Euler step from level i to level j and the teacher's state there."""
    count = len(grid)
    costs = np.full((count, count), np.inf)
    for i, (state, slope) in enumerate(zip(states[:-1], slopes, strict=True)):
        for j in range(i + 1, count):
            gap = state + float(grid[j] - grid[i]) * slope - states[j]
            costs[i, j] = float(gap.flatten(1).norm(dim=1).mean())
    return costs


def shortest(costs: Floats, steps: int, penalty: float = PENALTY) -> list[int]:
    """Indices of the path from the first to the last level with exactly `steps` jumps and the least discounted sum."""
    count = len(costs)
    best = np.full((steps + 1, count), np.inf)
    best[0, -1] = 0.0
    choice = np.zeros((steps + 1, count), dtype=int)
    for k in range(1, steps + 1):
        totals = costs + best[k - 1][None, :] / penalty
        choice[k] = totals.argmin(1)
        best[k] = totals.min(1)
    path = [0]
    for k in range(steps, 0, -1):
        path.append(int(choice[k, path[-1]]))
    return path


@torch.no_grad()
def trajectory_dp(
    denoise: Callable[[Tensor, float], Tensor],
    ends: tuple[float, float],
    shape: tuple[int, ...],
    steps: list[int],
) -> dict[int, Found]:
    """The levels for every number of steps out of one set of teachers."""
    grid = np.append(np.geomspace(ends[1], ends[0], GRID), 0.0)
    noise = torch.randn(TEACHERS, *shape, generator=torch.Generator().manual_seed(SEED))
    costs = jump_costs(*teacher(denoise, grid, noise), grid)
    cost = TEACHERS * GRID
    return {n: Found(grid[shortest(costs, n)].tolist(), cost) for n in steps}


def cma_fd(
    distance: Callable[[Floats], float], start: Floats, generations: int = 25, population: int = 8
) -> Found:
    """CMA-ES over the logarithms of the levels between the first and 0, from a good start."""
    import cma

    def levels(logs: Floats) -> Floats:
        return np.concatenate([start[:1], np.exp(-np.sort(-logs)), [0.0]])

    def value(logs: Floats) -> float:
        if not np.all(np.diff(found := levels(logs)) < 0):
            return 1e9 + float(np.clip(np.diff(found), 0, None).sum())
        return distance(found)

    options = {"seed": SEED, "popsize": population, "maxiter": generations, "verbose": -9}
    best, strategy = cma.fmin2(value, np.log(start[1:-1]), 0.2, options)
    return Found(levels(np.asarray(best)).tolist(), int(strategy.countevals) * DRAWN * (len(start) - 1))
