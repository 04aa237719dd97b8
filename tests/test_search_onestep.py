"""Search for samplers of two evaluations a step: against enumeration, its parts against 50 digits and brute force."""

import itertools
import math

import numpy as np
import pytest
from cases import PRIORS
from reference import arithmetic
from reference_samplers import Model
from sampler_cases import reference_of
from search_cases import METRICS, SAME, all_paths, grid_of, random_schedule, random_spectrum, with_zero

import fastkl
from fastkl import NoiseSchedule, Spectrum, search
from fastkl._step_grid import TableGrid
from fastkl._step_losses import STEP_KINDS, StepObjective, step_losses
from fastkl._step_refinement import refined_steps, slopes_in_levels, value_of
from fastkl._step_search import EDGE_ROUNDING, StepSearch, tightened

NONE = np.empty(0, dtype=np.int64)
FINITE = tuple(name for name in STEP_KINDS if name != "flow_heun")


def check(result, least):
    """What holds of every result: value and bound on either side of the optimum, equal where that is proved."""
    assert result.value >= least * (1 - SAME)
    if result.lower_bound is not None:
        assert result.lower_bound <= least * (1 + SAME)
        assert result.lower_bound <= result.value
    if result.proved_optimal:
        assert result.value <= least * (1 + SAME)
        assert result.lower_bound == result.value


def schedule_for(rng, sampler, size):
    """A random schedule whose first level is finite where the sampler needs that."""
    while True:
        schedule = random_schedule(rng, size)
        if sampler == "flow_heun" or np.isfinite(grid_of(schedule, size)[0]):
            return schedule


# ---- enumeration


@pytest.mark.parametrize("part", range(10))
@pytest.mark.parametrize("sampler", STEP_KINDS)
def test_equals_exhaustive_enumeration(rng, sampler, part):
    for case in range(5):
        free, size, steps = bool(rng.random() < 0.4), 30, 5
        while case and math.comb(size, steps) > 10_000:  # one of 5 has any number of choices
            size, steps = int(rng.integers(2, 31)), int(rng.integers(1, 6))
        schedule = schedule_for(rng, sampler, size)
        levels, data = grid_of(schedule, size), random_spectrum(rng)
        free &= bool(np.isfinite(levels[0]))
        steps = min(max(steps, 1 if np.isfinite(levels[0]) else 2), size)
        metric, prior = METRICS[rng.integers(3)], (None, *PRIORS)[rng.integers(5)]
        options = {"metric": metric, "prior": prior, "free_start": free, "grid": size}
        paths = all_paths(size, steps, free)
        values = fastkl.divergence(
            data, with_zero(levels, paths), metric, sampler, prior=prior or schedule.prior
        )
        result = search(data, schedule, steps, sampler, **options)
        check(result, values.min())
        assert result.proved_optimal
        assert result.sampler == sampler
        assert result.candidates == len(paths)
        value = fastkl.divergence(data, result.sigmas, metric, sampler, prior=result.prior)
        assert result.value == value
        assert np.isin(result.sigmas[:-1], levels).all()
        if schedule.is_discrete:
            np.testing.assert_array_equal(schedule.sigmas(result.timesteps), result.sigmas[:-1])
        else:
            assert result.refined_value <= result.value
        quick = search(data, schedule, steps, sampler, prove=False, **options)
        check(quick, values.min())
        assert not quick.proved_optimal
        hasty = search(data, schedule, steps, sampler, time_limit=1e-9, **options)
        check(hasty, values.min())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("sampler", STEP_KINDS)
def test_constraints_against_enumeration(rng, sampler, metric):
    for _ in range(5):
        size, free, spacing = int(rng.integers(6, 15)), bool(rng.integers(2)), int(rng.integers(1, 4))
        schedule, data = schedule_for(rng, sampler, size), random_spectrum(rng)
        levels, steps = grid_of(schedule, size), int(rng.integers(2, 5))
        free &= bool(np.isfinite(levels[0]))
        must = np.sort(rng.choice(np.arange(1, size), int(rng.integers(0, 3)), replace=False))
        paths = all_paths(size, steps, free)
        allowed = np.array(
            [set(must) <= set(path) and (np.diff(path) >= spacing).all() for path in paths.tolist()]
        )
        visit = size - 1 - must if schedule.is_discrete else levels[must]
        options = {"free_start": free, "grid": size, "min_spacing": spacing}
        options |= {"metric": metric, "visit": visit if len(must) else None}
        if not allowed.any():
            with pytest.raises(ValueError, match=rf"^steps = {steps}: no choice of levels keeps to visit"):
                search(data, schedule, steps, sampler, **options)
            continue
        sigmas = with_zero(levels, paths[allowed])
        values = fastkl.divergence(data, sigmas, metric, sampler, prior=schedule.prior)
        result = search(data, schedule, steps, sampler, **options)
        check(result, values.min())
        assert result.proved_optimal
        path = np.searchsorted(-levels, -result.sigmas[:-1])
        assert set(must) <= set(path.tolist())
        assert (np.diff(path) >= spacing).all()


@pytest.mark.parametrize("sampler", STEP_KINDS)
def test_uncompressed_spectra_with_counts_and_mean(rng, sampler):
    """The proof is about the spectrum given, also where the guide is a compressed one."""
    data = Spectrum(
        np.exp(rng.normal(0, 2, 300)), np.exp(rng.normal(size=300)), 0.1 * rng.normal(size=300)
    )
    assert len(data.compress(1e-9)) < 150
    schedule = random_schedule(rng, 15, 3)
    sigmas = with_zero(grid_of(schedule, 15), all_paths(15, 4, False))
    for metric, prior in itertools.product(METRICS, PRIORS):
        result = search(data, schedule, 4, sampler, metric, prior)
        assert result.proved_optimal
        check(result, fastkl.divergence(data, sigmas, metric, sampler, prior=prior).min())


def test_several_spectra_and_step_counts(rng):
    schedule = random_schedule(rng, 12, 3)
    several = [random_spectrum(rng, kind) for kind in ("log_normal", "near_one", "one")]
    levels, weights = grid_of(schedule, 12), [0.5, 3.0, 1e-3]
    results = search(several, schedule, range(2, 5), "heun", weights=weights)
    assert [r.steps for r in results] == [2, 3, 4]
    for result in results:
        sigmas = with_zero(levels, all_paths(12, result.steps, False))
        values = sum(
            w * fastkl.divergence(s, sigmas, sampler="heun") for w, s in zip(weights, several, strict=True)
        )
        assert result.proved_optimal
        check(result, values.min())


@pytest.mark.parametrize("sampler", STEP_KINDS)
def test_w2_is_searched_without_a_proof(rng, sampler):
    same = 0
    for _ in range(10):
        schedule, data = random_schedule(rng, 14, 3), random_spectrum(rng)
        sigmas = with_zero(grid_of(schedule, 14), all_paths(14, 4, False))
        least = fastkl.divergence(data, sigmas, "w2", sampler, prior=schedule.prior).min()
        result = search(data, schedule, 4, sampler, "w2")
        assert not result.proved_optimal
        assert result.lower_bound is None
        assert result.value >= least * (1 - SAME)
        same += result.value <= least * (1 + 1e-3)
    assert same >= 8


# ---- a thousand levels


@pytest.mark.parametrize("sampler", STEP_KINDS)
@pytest.mark.parametrize("steps", [5, 10])
def test_a_thousand_levels(rng, sampler, steps):
    """Proved, and no level can move, nor any two neighbours, for the better."""
    data, schedule = Spectrum.power_law(3072, 1.0), NoiseSchedule.ddpm_linear()
    best = search(data, schedule, steps, sampler)
    print(f"{sampler}, {steps} steps: {best.seconds:.2f} s, {best.iterations} tangents")
    assert best.proved_optimal
    levels, path = grid_of(schedule, 0), 999 - best.timesteps
    moved = []
    for k, far, other in itertools.product(range(1, steps), (-20, -2, -1, 1, 2, 20), (-1, 0, 1)):
        trial = path.copy()
        trial[k] += far
        trial[min(k + 1, steps - 1)] += other
        if (np.diff(trial) > 0).all() and trial[-1] < 1000:
            moved.append(trial)
    for _ in range(200):
        trial = path + np.append(0, rng.integers(-4, 5, steps - 1))
        if (np.diff(trial) > 0).all() and trial[-1] < 1000:
            moved.append(trial)
    values = fastkl.divergence(data, with_zero(levels, np.array(moved)), sampler=sampler)
    assert len(moved) > 100
    assert values.min() >= best.value * (1 - SAME)


def test_too_many_eigenvalues_for_a_proof(monkeypatch):
    data, schedule = Spectrum(np.geomspace(1e-3, 10.0, 400)), NoiseSchedule.cosine(40)
    proved = search(data, schedule, 4, "heun")
    monkeypatch.setattr("fastkl._step_problem.MOST_ENTRIES", 399)
    result = search(data, schedule, 4, "heun")
    assert proved.proved_optimal
    assert not result.proved_optimal
    assert result.lower_bound is None
    assert proved.value <= result.value <= 1.01 * proved.value
    small = search(data.compress(1e-9), schedule, 4, "heun")
    assert small.proved_optimal
    assert small.value == pytest.approx(proved.value, rel=1e-8)


def test_the_time_limit_is_kept():
    data, schedule = Spectrum.preset("mnist"), NoiseSchedule.ddpm_linear()
    search(data, schedule, 3, "heun", prove=False)  # compiles
    result = search(data, schedule, 30, "heun", time_limit=0.5)
    assert not result.proved_optimal
    assert result.seconds < 10.0
    assert 0.0 <= result.lower_bound <= result.value


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
        there = here * float(1 - 10 ** rng.uniform(-6, -0.01)) if case % 2 else here * 10 ** -rng.uniform(0, 5)
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
            assert objective.losses(with_zero(levels, found[None]))[0] @ weights == pytest.approx(least, abs=1e-11)
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
        step, scale = 1e-4, value_of(objective, sigmas)
        for k in range(4):
            up, down = sigmas.copy(), sigmas.copy()
            up[k + 1] *= math.exp(step / 2)
            down[k + 1] *= math.exp(-step / 2)
            slope = (value_of(objective, up) - value_of(objective, down)) / (2 * step)
            assert gradient[k] == pytest.approx(slope, rel=1e-5, abs=1e-7 * scale)
            bend = slopes_in_levels(objective, up)[0] - slopes_in_levels(objective, down)[0]
            np.testing.assert_allclose(hessian[k], bend / (2 * step), rtol=1e-4, atol=1e-5 * scale)


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


# ---- which samplers, and bad input


def test_one_step_samplers_are_marked():
    """Their gains over two steps are products of the gains of each."""
    marked = {name for name in fastkl.samplers.names() if fastkl.samplers.get(name).one_step}
    same_as_ddim = {"ddim", "euler", "flow_euler", "dpmpp_1", "dpm_1", "deis_1"}
    assert marked == {*STEP_KINDS, *same_as_ddim}
    values, sigmas = np.array([0.1, 1.0, 10.0]), np.array([8.0, 3.0, 1.0, 0.4])
    for name in marked:
        whole = fastkl.output_variance(values, sigmas, name, prior="exact") / (values + 64.0)
        parts = [
            fastkl.output_variance(values, pair, name, prior="exact") / (values + pair[0] ** 2)
            for pair in (sigmas[0:2], sigmas[1:3], sigmas[2:4])
        ]
        np.testing.assert_allclose(whole, np.prod(parts, axis=0), rtol=1e-12)


@pytest.mark.parametrize("sampler", FINITE)
def test_an_infinite_first_level(rng, sampler):
    schedule = NoiseSchedule.from_alphas_cumprod([0.99, 0.9, 0.6, 0.3, 0.1, 0.0])
    with pytest.raises(ValueError, match=rf"^sampler = '{sampler}': needs a finite first level"):
        search([1.0, 0.1], schedule, 3, sampler)
    result = search([1.0, 0.1], schedule, 3, sampler, free_start=True)
    sigmas = with_zero(grid_of(schedule, 6)[1:], all_paths(5, 3, True))
    assert result.proved_optimal
    assert result.candidates == len(sigmas)
    check(result, fastkl.divergence([1.0, 0.1], sigmas, sampler=sampler).min())


def test_bad_samplers():
    schedule, data = NoiseSchedule.cosine(20), [Spectrum([1.0]), Spectrum([0.1])]
    with pytest.raises(ValueError, match=r"^combine = 'worst': needs the sampler 'ddim', got 'heun'"):
        search(data, schedule, 3, "heun", combine="worst")
    with pytest.raises(ValueError, match=r"^spectrum\[1\] = 0\.0: must be above 0, because kl"):
        search([1.0, 0.0], schedule, 3, "heun")
    with pytest.raises(TypeError, match=r"^sampler: must be a name or a fastkl\.samplers\.Sampler, got 3"):
        search([1.0], schedule, 3, 3)
