"""What search is made of: costs of steps, tables, enumeration of paths, and the refinement of levels."""

import itertools

import mpmath
import numpy as np
import pytest
import reference
from cases import PRIORS
from search_cases import METRICS, all_paths, grid_of, random_schedule, random_spectrum, with_zero

import fastkl
from fastkl import NoiseSchedule, Spectrum, search

# ---- the tables


def random_levels(rng, size):
    levels = np.sort(10 ** rng.uniform(-3, 3, size))[::-1].copy()
    if rng.integers(2):
        levels[0] = np.inf
    return levels


def test_costs_of_steps_against_direct_sums(rng):
    from fastkl._convex_search import EDGE_ROUNDING
    from fastkl._grid import Grid
    from fastkl.kernels.paths import edge

    for _ in range(20):
        levels = random_levels(rng, int(rng.integers(3, 120)))
        values = 10 ** rng.uniform(-9, 9, 6)
        weights = rng.normal(size=6)
        grid = Grid(levels, np.empty(0, dtype=np.int64), 1, values)
        x, at, total, _, *pieces = grid.linearised(weights, 2)._graph
        largest = np.maximum(np.abs(np.log(values)), np.abs(x[np.isfinite(x)]).max())
        for a, b in itertools.islice(itertools.combinations(range(len(levels)), 2), 0, None, 7):
            here, there = levels[a], levels[b]
            gap = 1 / there if np.isinf(here) else (here - there) / (values + here * there)
            direct = weights @ np.log1p(values * np.square(gap))
            if np.isinf(here):
                direct = weights @ np.log1p(values / there**2)
            error = abs(edge(x, at, total, *pieces, a, b) - direct)
            assert error <= EDGE_ROUNDING * (np.abs(weights) @ largest)


def test_the_fast_table_is_the_full_one(rng):
    from fastkl._grid import Grid

    for _ in range(25):
        size, steps = int(rng.integers(3, 90)), int(rng.integers(1, 7))
        levels, values = random_levels(rng, size), 10 ** rng.uniform(-3, 3, 5)
        visit = np.unique(rng.integers(0, size, int(rng.integers(0, 3)))).astype(np.int64)
        grid = Grid(levels, visit, int(rng.integers(1, 4)), values)
        weights = rng.exponential(size=5)
        full, fast = (grid.linearised(weights, steps, monge=monge).costs for monge in (False, True))
        np.testing.assert_array_equal(np.isinf(fast), np.isinf(full))
        finite = np.isfinite(full)
        np.testing.assert_allclose(fast[finite], full[finite], rtol=1e-12)
        assert finite[:, 0].any()


def test_the_full_table_is_the_least_over_all_paths(rng):
    from fastkl._grid import Grid
    from fastkl._objective import Objective

    values, weights = 10 ** rng.uniform(-3, 3, 4), rng.normal(size=4)
    objective = Objective(Spectrum(values), "kl", "exact")
    for _ in range(6):
        levels = random_levels(rng, 9)
        linear = Grid(levels, np.empty(0, dtype=np.int64), 1, values).linearised(weights, 4)
        for start, steps in ((0, 2), (0, 4), (3, 1), (4, 3)):
            paths = start + all_paths(9 - start, steps, False)
            costs = objective.losses(with_zero(levels, paths)) @ weights
            assert linear.costs[start, steps - 1] == pytest.approx(costs.min(), rel=1e-10, abs=1e-10)
            if steps == 4:
                np.testing.assert_array_equal(linear.path(start, steps), paths[np.argmin(costs)])
                middle = float(np.median(costs))
                below = linear.below(start, steps, middle, 10**6, 1000)
                assert {tuple(p) for p in below.tolist()} == {
                    tuple(p) for p in paths[costs <= middle].tolist()
                }
                assert linear.below(start, steps, middle, 10**6, len(below) - 1) is None
                assert linear.below(start, steps, middle, 2, 1000) is None


def test_the_least_cost_by_way_of_every_level(rng):
    from fastkl._grid import Grid
    from fastkl._objective import Objective

    values = 10 ** rng.uniform(-3, 3, 4)
    objective = Objective(Spectrum(values), "kl", "exact")
    for case in range(12):
        levels, steps = random_levels(rng, 9), int(rng.integers(2, 5))
        weights = rng.normal(size=4) if case % 2 else rng.exponential(size=4)
        visit = np.array([5] if case % 3 == 0 else [], dtype=np.int64)
        grid = Grid(levels, visit, int(rng.integers(1, 3)), values)
        linear, start = grid.linearised(weights, steps), int(rng.integers(0, 3))
        paths = start + all_paths(9 - start, steps, False)
        kept = (np.diff(paths, axis=1) >= grid.min_spacing).all(axis=1)
        kept &= np.array([set(visit) <= set(path) for path in paths.tolist()])
        costs = objective.losses(with_zero(levels, paths[kept])) @ weights
        by_way = [costs[(paths[kept] == b).any(axis=1)].min(initial=np.inf) for b in range(9)]
        np.testing.assert_allclose(linear.through(start, steps), by_way, rtol=1e-10, atol=1e-10)


# ---- refinement


@pytest.mark.parametrize("infinite", [False, True])
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("metric", METRICS)
def test_gradient_against_fifty_digit_differences(rng, metric, prior, infinite):
    from fastkl._objective import Objective
    from fastkl._refinement import slopes_in_levels, value_of

    context = mpmath.MPContext()
    context.dps = 90
    data = random_spectrum(rng, "log_normal", full=True)
    levels = np.append(np.sort(10 ** rng.uniform(-2, 2, 5))[::-1], 0.0)
    if infinite:
        levels[0] = np.inf
    objective = Objective(data, metric, prior)
    value, slope = value_of(objective, levels), slopes_in_levels(objective, levels)[0]

    def true(sigmas):
        return reference.divergence(data.eigenvalues, sigmas, metric, prior, data.counts, data.mean)

    assert abs(value - true(levels)) <= 1e-11 * value
    h = context.mpf(10) ** -25
    for k in range(1, 5):
        ends = []
        for sign in (1, -1):
            moved = [context.mpf(float(s)) for s in levels]
            moved[k] *= context.exp(sign * h / 2)  # log s^2 moves by h
            ends.append(true(moved))
        expected = (ends[0] - ends[1]) / (2 * h)
        assert abs(slope[k - 1] - expected) <= 1e-8 * max(abs(expected), 1e-3 * np.abs(slope).max())


@pytest.mark.parametrize("metric", METRICS)
def test_refined_levels_are_never_worse_and_always_levels(rng, metric):
    better = 0
    for _ in range(15):
        data, schedule = random_spectrum(rng), random_schedule(rng, 30, int(rng.integers(2)))
        result = search(data, schedule, int(rng.integers(2, 7)), metric=metric, grid=30, prove=False)
        assert result.refined_value <= result.value
        assert result.refined_value == fastkl.divergence(
            data, result.refined_sigmas, metric, prior=schedule.prior
        )
        assert (np.diff(result.refined_sigmas) < 0).all()
        assert result.refined_sigmas[0] == result.sigmas[0]
        assert result.refined_sigmas[-2] >= grid_of(schedule, 30, data)[-1] * (1 - 1e-12)
        better += result.refined_value < result.value * (1 - 1e-6)
    assert better >= 8


def test_refinement_reaches_what_a_finer_grid_has(rng):
    data, schedule = random_spectrum(rng, "log_normal"), NoiseSchedule.edm()
    coarse, fine = (search(data, schedule, 5, grid=grid) for grid in (60, 960))
    assert fine.proved_optimal
    assert coarse.refined_value <= fine.value
    assert fine.refined_value == pytest.approx(coarse.refined_value, rel=1e-6)


def test_discrete_schedules_are_not_refined(rng):
    result = search(random_spectrum(rng), random_schedule(rng, 10, 3), 3)
    assert result.refined_sigmas is None
    assert result.refined_value is None


def test_levels_that_are_best_as_one_do_not_meet(rng):
    """One direction whose prior varies too little: losses help, fewer levels lose more, and gaps close."""
    schedule = NoiseSchedule.flow(shift=3.5)
    for value in (0.5, 0.74, 0.9, 0.99):
        for metric, steps in itertools.product(METRICS, (3, 4, 6)):
            data = Spectrum([value], mean=[0.0])
            result = search(data, schedule, steps, metric=metric, prior="vp", free_start=True, grid=18)
            assert (np.diff(result.refined_sigmas) < 0).all()
            assert result.refined_value <= result.value
