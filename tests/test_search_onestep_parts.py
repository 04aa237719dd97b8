"""The parts of search for samplers of two evaluations a step: against 50 digits, brute force, and differences."""

import itertools
import math

import numpy as np
import pytest
from reference import arithmetic
from reference_samplers import Model
from sampler_cases import reference_of
from search_cases import SAME, all_paths, random_spectrum, with_zero

import fastkl
from fastkl import NoiseSchedule, Spectrum, search
from fastkl._refinement import value_of
from fastkl._step_grid import TableGrid
from fastkl._step_losses import STEP_KINDS, StepObjective, step_losses
from fastkl._step_refinement import refined_steps, slopes_in_levels
from fastkl._step_search import EDGE_ROUNDING, tightened

NONE = np.empty(0, dtype=np.int64)


# ---- losses, costs, tables


def levels_between(rng, count):
    return np.sort(10 ** rng.uniform(-3, 3, count))[::-1]


@pytest.mark.parametrize("sampler", STEP_KINDS)
def test_losses_against_fifty_digits(rng, sampler):
    """S = -log(gain^2 (lambda + s^2)/(lambda + s'^2)), the gain in textbook order with 50 digits."""
    arith = arithmetic(50)
    one = arith.number(1)
    for case in range(60):
        here = float(10 ** rng.uniform(-3, 4))
        there = (
            here * float(1 - 10 ** rng.uniform(-6, -0.01)) if case % 2 else here * 10 ** -rng.uniform(0, 5)
        )
        value = float(10 ** rng.uniform(-8, 8))
        model = Model(value, arith)
        numbers = [arith.number(here), arith.number(there), arith.number(there) / 2]
        function, options = reference_of(fastkl.samplers.get(sampler))
        states = function(model, numbers, **options)
        gain = states[1].parts[0]
        lam, s, t = arith.number(value), *numbers[:2]
        exact = -arith.log(gain * gain * (lam + s * s) / (lam + t * t))
        found = float(step_losses(sampler, np.array([value]), np.array([here]), np.array([there]))[0])
        assert found == pytest.approx(float(exact), rel=1e-13, abs=4e-16 * float(one))


def test_losses_of_a_step_from_infinity_are_the_limit(rng):
    values, there = 10 ** rng.uniform(-4, 4, 50), 10 ** rng.uniform(-2, 3, 50)
    infinite = step_losses("flow_heun", values, np.full(50, math.inf), there)
    far = step_losses("flow_heun", values, np.full(50, 1e13), there)
    np.testing.assert_allclose(infinite, far, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sampler", STEP_KINDS)
def test_costs_of_all_steps_are_within_the_stated_rounding(rng, sampler):
    for case in range(6):
        levels = 10 ** np.sort(rng.uniform(-4, 4, 40))[::-1] if case else np.geomspace(100, 99, 40)
        if sampler == "flow_heun" and case % 2:
            levels[0] = math.inf
        values = 10 ** rng.uniform(-9, 9, 200)
        weights = rng.normal(size=200) * 10 ** rng.uniform(-6, 6, 200)
        grid = TableGrid(levels, NONE, 1, values, sampler)
        linear = grid.linearised(weights, 2)
        bound = EDGE_ROUNDING * (grid.table.largest + 1.0) * float(np.abs(weights).sum())
        last = np.log1p(np.square(np.minimum(levels, 1e4)[:, None]) / values) @ weights
        found = np.array([linear.costs[a, 1] for a in range(40)])
        for a in range(39):
            steps = step_losses(sampler, values, levels[a, None, None], levels[a + 1 :, None]) @ weights
            assert found[a] == pytest.approx((steps + last[a + 1 :]).min(), rel=1e-14, abs=2 * bound)
        assert np.isinf(found[39])


@pytest.mark.parametrize("sampler", STEP_KINDS)
def test_shortest_paths_and_paths_below_against_brute_force(rng, sampler):
    for _ in range(10):
        size, steps, spacing = int(rng.integers(5, 12)), int(rng.integers(1, 5)), int(rng.integers(1, 3))
        levels = levels_between(rng, size)
        visit = np.sort(rng.choice(size, int(rng.integers(0, 2)), replace=False)).astype(np.int64)
        data = Spectrum(10 ** rng.uniform(-4, 4, 6))
        objective = StepObjective(data, "kl", "vp", sampler)
        grid = TableGrid(levels, visit, spacing, objective.eigenvalues, sampler)
        weights = rng.normal(size=6)
        low = np.sort(rng.integers(0, size, steps))
        box = tightened(np.stack([low, np.minimum(low + rng.integers(1, size, steps), size)]), spacing)
        paths = all_paths(size, steps, True)
        inside = ((paths >= box[0]) & (paths < box[1])).all(axis=1) & (np.diff(paths) >= spacing).all(axis=1)
        inside &= np.array([set(visit) <= set(path) for path in paths.tolist()])
        paths = paths[inside]
        costs = objective.losses(with_zero(levels, paths)) @ weights
        linear = grid.linearised(weights, steps, box=box)
        for start in range(size):
            if not grid.may_start[start]:
                continue
            here = paths[:, 0] == start
            least = costs[here].min(initial=math.inf)
            assert linear.costs[start, steps - 1] == pytest.approx(least, abs=1e-11)
            if not here.any():
                continue
            found = linear.path(start, steps)
            assert objective.losses(with_zero(levels, found[None]))[0] @ weights == pytest.approx(
                least, abs=1e-11
            )
            threshold = float(np.median(costs[here])) + 1e-9
            below = linear.below(start, steps, threshold, 1 << 20, 1000)
            wanted = paths[here & (costs <= threshold)]
            assert {tuple(p) for p in below.tolist()} == {tuple(p) for p in wanted.tolist()}
            assert linear.below(start, steps, threshold, 1 << 20, len(wanted)) is not None
            if len(wanted) > 1:
                assert linear.below(start, steps, threshold, 1 << 20, len(wanted) - 1) is None


@pytest.mark.parametrize("sampler", STEP_KINDS)
def test_tables_reach_all_places_that_steps_ask_for(rng, sampler):
    """p and q of the factored gain, for steps of any length, lie within the table."""
    levels = 10 ** np.sort(rng.uniform(-6, 6, 60))[::-1]
    grid = TableGrid(levels, NONE, 1, np.ones(1), sampler)
    high = grid.table.low + 0.02 * (grid.table.places - 1)
    for a, b in itertools.combinations(range(60), 2):
        s, t = levels[a], levels[b]
        u2 = t * t if sampler in ("heun", "flow_heun") else s * t
        gap = s - t
        kappa = {
            "heun": gap * gap / 2,
            "flow_heun": gap * gap / 2 * (1 + t) / (1 + s),
            "dpm_2": gap * (s - math.sqrt(s * t)),
            "dpmpp_2s": gap * math.sqrt(t / s) * (s - math.sqrt(s * t)),
        }[sampler]
        total = s * t + u2 + kappa
        q = (total + math.sqrt(max(0.0, total * total - 4 * s * t * u2))) / 2
        assert grid.table.low < math.log(s * t * u2 / q)
        assert math.log(q) < high
        for value in 10 ** rng.uniform(-6, 6, 3):  # the factored form is the loss
            loss = (value + s * s) * (value + t * t) * (value + u2) ** 2
            loss /= (value * value + total * value + s * t * u2) ** 2
            found = step_losses(sampler, np.array([value]), np.array([s]), np.array([t]))[0]
            assert found == pytest.approx(math.log(loss), abs=1e-9)


def test_boxes_are_tightened_by_the_order_of_levels():
    bounds = np.array([[0, 0, 5, 0], [9, 9, 9, 8]])
    np.testing.assert_array_equal(tightened(bounds, 1), [[0, 1, 5, 6], [5, 6, 7, 8]])
    np.testing.assert_array_equal(tightened(bounds, 2), [[0, 2, 5, 7], [2, 4, 6, 8]])


@pytest.mark.parametrize("sampler", STEP_KINDS)
def test_threads_change_no_bit(sampler, monkeypatch):
    levels = np.geomspace(100.0, 0.01, 400)
    weights = np.linspace(-1.0, 1.0, 30)
    grid = TableGrid(levels, NONE, 1, np.geomspace(1e-3, 1e3, 30), sampler)
    costs = []
    for threads in ("1", "3"):
        monkeypatch.setenv("FASTKL_NUM_THREADS", threads)
        costs.append(grid.linearised(weights, 4).costs)
    np.testing.assert_array_equal(*costs)


def test_grids_of_several_blocks_of_edges(monkeypatch):
    levels, weights = np.geomspace(100.0, 0.01, 50), np.linspace(-1.0, 1.0, 9)
    grid = TableGrid(levels, NONE, 1, np.geomspace(1e-3, 1e3, 9), "heun")
    whole = grid.linearised(weights, 5).costs
    monkeypatch.setattr("fastkl._step_grid.EDGES", 350)
    np.testing.assert_array_equal(grid.linearised(weights, 5).costs, whole)


# ---- refinement


@pytest.mark.parametrize("metric", ["kl", "reverse_kl", "jeffreys", "w2"])
@pytest.mark.parametrize("sampler", STEP_KINDS)
def test_slopes_of_the_divergence_in_the_levels(rng, sampler, metric):
    objective = StepObjective(random_spectrum(rng), metric, "flow", sampler)
    for first in (9.0, math.inf) if sampler == "flow_heun" else (9.0,):
        sigmas = np.array([first, 3.0, 0.9, 0.4, 0.1, 0.0])
        gradient, hessian = slopes_in_levels(objective, sigmas)

        def moved(k, change, sigmas=sigmas):
            levels = sigmas.copy()
            levels[k + 1] *= math.exp(change / 2)
            return levels

        step, scale = 1e-3, float(np.abs(gradient).max()) + value_of(objective, sigmas)
        for k in range(4):  # differences of fourth order
            near, far = (
                [value_of(objective, moved(k, sign * by)) for sign in (1, -1)] for by in (step, 2 * step)
            )
            slope = (8 * (near[0] - near[1]) - (far[0] - far[1])) / (12 * step)
            assert gradient[k] == pytest.approx(slope, abs=1e-8 * scale)
            up, down = (slopes_in_levels(objective, moved(k, sign * 1e-4))[0] for sign in (1, -1))
            np.testing.assert_allclose(hessian[k], (up - down) / 2e-4, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("sampler", STEP_KINDS)
def test_refined_levels_are_a_local_optimum(rng, sampler):
    objective = StepObjective(Spectrum.power_law(50, 1.0), "kl", "ve", sampler)
    sigmas = np.append(np.geomspace(80.0, 0.1, 6), 0.0)
    refined = refined_steps(objective, sigmas, 1e-3)
    least = value_of(objective, refined)
    assert least < value_of(objective, sigmas)
    assert (np.diff(refined) < 0).all()
    assert refined[0] == 80.0
    for k, share in itertools.product(range(1, 6), (-1e-3, 1e-3)):
        moved = refined.copy()
        moved[k] *= 1 + share
        if moved[5] >= 1e-3:
            assert value_of(objective, moved) >= least * (1 - SAME)


@pytest.mark.parametrize("sampler", STEP_KINDS)
def test_continuous_schedules_are_refined(sampler):
    data = Spectrum.power_law(50, 1.0)
    for schedule in (NoiseSchedule.edm(), *((NoiseSchedule.flow(),) if sampler == "flow_heun" else ())):
        result = search(data, schedule, 5, sampler, grid=60)
        assert result.proved_optimal
        assert result.refined_value < result.value
        value = fastkl.divergence(data, result.refined_sigmas, sampler=sampler, prior=schedule.prior)
        assert result.refined_value == value


@pytest.mark.parametrize("sampler", STEP_KINDS)
def test_refined_levels_keep_to_the_constraints(sampler):
    data, schedule = Spectrum.power_law(50, 1.0), NoiseSchedule.edm()
    result = search(data, schedule, 5, sampler, grid=60, visit=[1.0], min_spacing=12)
    assert 1.0 in result.refined_sigmas
    on_the_grid, moved = (-np.diff(np.log(s[:-1])) for s in (result.sigmas, result.refined_sigmas))
    least = min(12 * math.log(80.0 / 0.002) / 59, on_the_grid.min())  # nearer only beside the level to visit
    assert (moved >= least * (1 - 1e-9)).all()
    assert result.refined_value <= result.value
