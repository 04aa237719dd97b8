"""Levels that are searched on samples instead of on the Gaussian model, and what that costs.

trajectory-dp     dynamic programming on trajectories, written from the description of Chen et al. 2024 ("On the
                  trajectory regularity of ODE-based diffusion sampling", arXiv 2405.11326): teachers on a fine grid;
                  a jump costs how much farther than the teacher its end is from the straight line between the
                  teacher's first and last state; the sum over the jumps is minimised, later jumps weighing more.
trajectory-dp-l2  the same with the distance between the jump's end and the teacher's state as the cost.
cma-fd            CMA-ES on the Frechet distance of the features itself, from 1,000 samples of a seed of its own.
cma-fd-free       the same with the first level moved too, from fastkl's levels.
cma-fd-free-plain the same from the tangent law with gamma = 1 from sigma = 20.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastkl import NoiseSchedule, discretize

Floats = NDArray[np.float64]

TEACHERS = 256
GRID = 61  # levels of the teacher: karras with rho = 7, then 0
LATER = 1.15  # weight of a jump over that of the one before it
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


def off_line(points: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Distance of every row from the straight line through the teacher's first and last state."""
    line = torch.nn.functional.normalize((last - first).flatten(1), dim=1)
    offset = (points - last).flatten(1)
    return (offset - (offset * line).sum(1, keepdim=True) * line).norm(dim=1)


def jump_costs(states: list[Tensor], slopes: list[Tensor], grid: Floats, deviation: bool) -> Floats:
    """Cost of one Euler step from level i to level j, averaged over the teachers."""
    count = len(grid)
    costs = np.full((count, count), np.inf)
    first, last = states[0], states[-1]
    of_teacher = [off_line(state, first, last).mean() for state in states]
    for i, (state, slope) in enumerate(zip(states[:-1], slopes, strict=True)):
        for j in range(i + 1, count):
            end = state + float(grid[j] - grid[i]) * slope
            if deviation:
                costs[i, j] = float(off_line(end, first, last).mean() - of_teacher[j])
            else:
                costs[i, j] = float((end - states[j]).flatten(1).norm(dim=1).mean())
    return costs


def shortest(costs: Floats, steps: int, later: float = LATER) -> list[int]:
    """Indices of the path from the first to the last level with exactly `steps` jumps and the least weighted sum."""
    count = len(costs)
    best = np.full((steps + 1, count), np.inf)
    best[0, -1] = 0.0
    choice = np.zeros((steps + 1, count), dtype=int)
    for k in range(1, steps + 1):
        totals = costs + later * best[k - 1][None, :]
        choice[k] = totals.argmin(1)
        best[k] = totals.min(1)
    path = [0]
    for k in range(steps, 0, -1):
        path.append(int(choice[k, path[-1]]))
    return path


@torch.no_grad()
def trajectory_dp(
    denoise: Callable[[Tensor, float], Tensor],
    schedule: NoiseSchedule,
    shape: tuple[int, ...],
    steps: list[int],
    device: str = "cpu",
) -> dict[tuple[str, int], Found]:
    """The levels by both costs for every number of steps out of one set of teachers."""
    grid = discretize.karras(schedule, GRID)
    noise = torch.randn(TEACHERS, *shape, generator=torch.Generator().manual_seed(SEED)).to(device)
    states, slopes = teacher(denoise, grid, noise)
    found = {}
    for name, deviation in (("trajectory-dp", True), ("trajectory-dp-l2", False)):
        costs = jump_costs(states, slopes, grid, deviation)
        for n in steps:
            found[name, n] = Found(grid[shortest(costs, n)].tolist(), TEACHERS * GRID)
    return found


def cma_fd(
    distance: Callable[[Floats], float],
    start: Floats,
    most: float | None = None,
    generations: int = 25,
    population: int = 8,
) -> Found:
    """CMA-ES over the logarithms of the levels, the first only if it may rise to `most`, from a good start."""
    import cma

    kept = start[:1] if most is None else start[:0]

    def levels(logs: Floats) -> Floats:
        inner = np.exp(-np.sort(-logs))
        return np.concatenate([kept, inner if most is None else np.minimum(inner, most), [0.0]])

    def value(logs: Floats) -> float:
        if not np.all(np.diff(found := levels(logs)) < 0):
            return 1e9 + float(np.clip(np.diff(found), 0, None).sum())
        return distance(found)

    options = {"seed": SEED, "popsize": population, "maxiter": generations, "verbose": -9}
    best, strategy = cma.fmin2(value, np.log(start[len(kept) : -1]), 0.2, options)
    return Found(levels(np.asarray(best)).tolist(), int(strategy.countevals) * DRAWN * (len(start) - 1))
