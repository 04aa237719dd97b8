"""Search against enumeration: values, bounds, proofs; its tables and gradients; spectra made to break it; bad input."""

import itertools
import json
import math
import re

import mpmath
import numpy as np
import pytest
import reference
from cases import PRIORS

import fastkl
from fastkl import NoiseSchedule, Spectrum, search

METRICS = ("kl", "reverse_kl", "jeffreys")
SAME = 1e-11  # of two evaluations of one divergence
KINDS = ("log_normal", "wide", "clusters", "near_one", "below_one", "two_atoms", "one", "power_law")


def random_spectrum(rng, kind=None, full=None):
    kind = kind or KINDS[rng.integers(len(KINDS))]
    size = int(rng.integers(1, 25))
    values = {
        "log_normal": lambda: np.exp(2 * rng.normal(size=size)),
        "wide": lambda: 10 ** rng.uniform(-12, 12, size),
        "clusters": lambda: np.concatenate(
            [c * (1 + 1e-3 * rng.random(20)) for c in 10 ** rng.uniform(-4, 4, 3)]
        ),
        "near_one": lambda: 1 + rng.uniform(-0.2, 0.2, size),
        "below_one": lambda: rng.uniform(0.3, 0.99, 40),
        "two_atoms": lambda: np.array([1e-6, 1e6]) * 10 ** rng.uniform(-2, 2),
        "one": lambda: 10 ** rng.uniform(-6, 6, 1),
        "power_law": lambda: np.arange(1, 301) ** -rng.uniform(0.5, 3),
    }[kind]()
    counted, moved = rng.random(2) < 0.4 if full is None else (full, full)
    counts = np.exp(rng.normal(size=len(values))) if counted else None
    return Spectrum(values, counts, rng.normal(0, 10 ** rng.uniform(-2, 1), len(values)) if moved else None)


def random_schedule(rng, size, kind=None):
    """A schedule that has `size` levels, on a grid of this size where it is continuous."""
    kind = int(rng.integers(5)) if kind is None else kind
    if kind == 0:
        return NoiseSchedule.edm(10 ** rng.uniform(-3, -1), 10 ** rng.uniform(0.5, 3))
    if kind == 1:
        return NoiseSchedule.flow(rng.uniform(0.3, 5))
    sigmas = np.exp(np.cumsum(rng.exponential(size=size)) * rng.uniform(1, 14) / size) * 10 ** rng.uniform(
        -4, 0
    )
    alphas = 1 / (1 + np.square(sigmas))
    if kind == 2:
        alphas[-1] = 0.0
    return NoiseSchedule.from_alphas_cumprod(alphas)


def grid_of(schedule, grid):
    """Levels, noisiest first."""
    if schedule.is_discrete:
        return schedule.sigmas(np.arange(schedule.num_train_timesteps))[::-1]
    return schedule.sigmas(np.arange(grid, 0, -1) / grid)


def all_paths(size, steps, free):
    rest = itertools.combinations(range(0 if free else 1, size), steps if free else steps - 1)
    return np.array([path if free else (0, *path) for path in rest], dtype=np.int64).reshape(-1, steps)


def with_zero(levels, paths):
    return np.concatenate([levels[paths], np.zeros((len(paths), 1))], axis=1)


def check(result, least):
    """What holds of every result: value and bound on either side of the optimum, equal where that is proved."""
    assert result.lower_bound <= least * (1 + SAME)
    assert result.value >= least * (1 - SAME)
    assert result.lower_bound <= result.value
    if result.proved_optimal:
        assert result.value <= least * (1 + SAME)
        assert result.lower_bound == result.value


# ---- enumeration


@pytest.mark.parametrize("part", range(10))
def test_equals_exhaustive_enumeration(rng, part):
    proved = 0
    for _ in range(25):
        size = int(rng.integers(2, 41))
        steps, free = int(rng.integers(2, min(6, size) + 1)), bool(rng.random() < 0.4)
        metric, prior = METRICS[rng.integers(3)], (None, *PRIORS)[rng.integers(5)]
        schedule, data = random_schedule(rng, size), random_spectrum(rng).compress(1e-12)
        found = fastkl.exhaustive(data, schedule, steps, metric, prior, free_start=free, grid=size, keep=1)
        result = search(data, schedule, steps, metric=metric, prior=prior, free_start=free, grid=size)
        check(result, found.value)
        assert result.candidates == found.total
        assert result.value == fastkl.divergence(data, result.sigmas, metric, prior=result.prior)
        assert np.isin(result.sigmas[:-1], grid_of(schedule, size)).all()
        if schedule.is_discrete:
            np.testing.assert_array_equal(schedule.sigmas(result.timesteps), result.sigmas[:-1])
        proved += result.proved_optimal
        quick = search(data, schedule, steps, "ddim", metric, prior, False, free, grid=size)
        check(quick, found.value)
        assert not quick.proved_optimal
    assert (
        proved >= 22
    )  # where a prior's mismatch cancels the losses, more may be left than can be enumerated


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("metric", METRICS)
def test_uncompressed_spectra_with_counts_and_mean(rng, metric, prior):
    """The proof is about the spectrum given, not the one that paths are compared on."""
    for kind in ("power_law", "clusters", "below_one"):
        data, schedule = random_spectrum(rng, kind, full=True), random_schedule(rng, 15)
        found = fastkl.exhaustive(data, schedule, 4, metric, prior, grid=15, keep=1)
        check(search(data, schedule, 4, metric=metric, prior=prior, grid=15), found.value)


@pytest.mark.parametrize("metric", METRICS)
def test_constraints_against_enumeration(rng, metric):
    for _ in range(12):
        size, free, spacing = int(rng.integers(6, 15)), bool(rng.integers(2)), int(rng.integers(1, 4))
        schedule, data = random_schedule(rng, size), random_spectrum(rng)
        levels, steps = grid_of(schedule, size), int(rng.integers(2, 5))
        must = np.sort(rng.choice(np.arange(1, size), int(rng.integers(0, 3)), replace=False))
        paths = all_paths(size, steps, free)
        allowed = np.array(
            [set(must) <= set(path) and (np.diff(path) >= spacing).all() for path in paths.tolist()]
        )
        visit = size - 1 - must if schedule.is_discrete else levels[must]
        options = {
            "free_start": free,
            "grid": size,
            "min_spacing": spacing,
            "visit": visit if len(must) else None,
        }
        if not allowed.any():
            with pytest.raises(
                ValueError, match=rf"^steps = {steps}: no choice of levels keeps to visit and min"
            ):
                search(data, schedule, steps, metric=metric, **options)
            continue
        values = fastkl.divergence(data, with_zero(levels, paths[allowed]), metric, prior=schedule.prior)
        result = search(data, schedule, steps, metric=metric, **options)
        check(result, values.min())
        path = np.searchsorted(-levels, -result.sigmas[:-1])
        assert set(must) <= set(path.tolist())
        assert (np.diff(path) >= spacing).all()
        assert (result.candidates is None) == (len(must) > 0)
        if spacing == 1 and not len(must):
            assert result.candidates == len(paths)


def test_candidates_with_a_spacing(rng):
    schedule, data = random_schedule(rng, 13, 3), random_spectrum(rng)
    for free, spacing, steps in itertools.product((False, True), (1, 2, 3), (1, 2, 4)):
        paths = all_paths(13, steps, free)
        expected = int((np.diff(paths, axis=1) >= spacing).all(axis=1).sum())
        result = search(data, schedule, steps, free_start=free, min_spacing=spacing)
        assert result.candidates == expected


@pytest.mark.parametrize("metric", METRICS)
def test_several_spectra_with_weights(rng, metric):
    schedule = random_schedule(rng, 16, 3)
    several = [random_spectrum(rng, kind) for kind in ("log_normal", "near_one", "one")]
    levels = grid_of(schedule, 16)
    sigmas = with_zero(levels, all_paths(16, 4, False))
    for weights in (None, [0.5, 3.0, 1e-3]):
        shares = np.ones(3) if weights is None else weights
        values = sum(w * fastkl.divergence(s, sigmas, metric) for w, s in zip(shares, several, strict=True))
        check(search(several, schedule, 4, metric=metric, weights=weights), values.min())
    one = search(several[:1], schedule, 4, metric=metric)
    assert one.value == pytest.approx(search(several[0], schedule, 4, metric=metric).value, rel=SAME)


def test_several_step_counts_in_one_call(rng):
    data, schedule = random_spectrum(rng, "power_law"), random_schedule(rng, 25, 3)
    results = search(data, schedule, range(2, 9))
    assert [r.steps for r in results] == list(range(2, 9))
    for result in results:
        alone = search(data, schedule, result.steps)
        assert (result.value, result.lower_bound, result.proved_optimal) == (
            alone.value,
            alone.lower_bound,
            alone.proved_optimal,
        )
        np.testing.assert_array_equal(result.timesteps, alone.timesteps)
    assert all(a.value > b.value for a, b in itertools.pairwise(results))
    assert search(data, schedule, []) == []
    assert [r.steps for r in search(data, schedule, np.array([3, 2]))] == [3, 2]


def test_one_step_and_all_levels(rng):
    data, schedule = random_spectrum(rng, "log_normal"), random_schedule(rng, 7, 3)
    levels = grid_of(schedule, 7)
    one = search(data, schedule, 1)
    assert one.sigmas.tolist() == [levels[0], 0.0]
    assert one.candidates == 1
    free = search(data, schedule, 1, free_start=True)
    values = fastkl.divergence(data, with_zero(levels, np.arange(7)[:, None]))
    assert free.value == values.min()
    every = search(data, schedule, 7)
    np.testing.assert_array_equal(every.sigmas, np.append(levels, 0.0))
    assert every.proved_optimal


# ---- bounds and proofs where the search is cut short


@pytest.mark.parametrize("metric", METRICS)
def test_bounds_hold_when_time_is_up(rng, metric):
    for _ in range(8):
        data, schedule = random_spectrum(rng), random_schedule(rng, 30)
        free = bool(rng.integers(2))
        found = fastkl.exhaustive(data.compress(1e-12), schedule, 4, metric, free_start=free, grid=30, keep=1)
        check(
            search(data, schedule, 4, metric=metric, free_start=free, grid=30, time_limit=1e-9), found.value
        )


@pytest.mark.parametrize("limit", ["MOST_PATHS", "MOST_EFFORT"])
def test_nothing_is_proved_where_enumeration_is_not_finished(rng, limit, monkeypatch):
    """Few levels leave a gap that only enumeration closes; it is allowed one path, or no effort at all."""
    monkeypatch.setattr(f"fastkl._convex_search.{limit}", 1)
    unproved = 0
    for _ in range(20):
        data, schedule = random_spectrum(rng, "wide"), random_schedule(rng, 12, 3)
        found = fastkl.exhaustive(data, schedule, 3, keep=1)
        result = search(data, schedule, 3)
        check(result, found.value)
        unproved += not result.proved_optimal
    assert unproved >= 5


def test_where_more_paths_are_left_than_can_be_enumerated(rng):
    """The prior's mismatch cancels the losses of many paths, so that no tangent excludes them."""
    data, schedule = Spectrum(1 + rng.uniform(-0.02, 0.02, 3)), NoiseSchedule.flow()
    result = search(data, schedule, 5, metric="kl", prior="flow", free_start=True, grid=40)
    found = fastkl.exhaustive(data, schedule, 5, prior="flow", free_start=True, grid=40, keep=1)
    check(result, found.value)
    assert 0.0 <= result.lower_bound <= found.value


# ---- the tables


def random_levels(rng, size):
    levels = np.sort(10 ** rng.uniform(-3, 3, size))[::-1].copy()
    if rng.integers(2):
        levels[0] = np.inf
    return levels


def test_costs_of_steps_against_direct_sums(rng):
    from fastkl._convex_search import EDGE_ROUNDING
    from fastkl._grid import Grid, Linearised
    from fastkl.kernels.paths import edge

    for _ in range(20):
        levels = random_levels(rng, int(rng.integers(3, 120)))
        values = 10 ** rng.uniform(-9, 9, 6)
        weights = rng.normal(size=6)
        grid = Grid(levels, np.empty(0, dtype=np.int64), 1)
        x, at, total, _, *table = Linearised(grid, values, weights, 2, monge=False)._graph
        largest = np.maximum(np.abs(np.log(values)), np.abs(x[np.isfinite(x)]).max())
        for a, b in itertools.islice(itertools.combinations(range(len(levels)), 2), 0, None, 7):
            here, there = levels[a], levels[b]
            gap = 1 / there if np.isinf(here) else (here - there) / (values + here * there)
            direct = weights @ np.log1p(values * np.square(gap))
            if np.isinf(here):
                direct = weights @ np.log1p(values / there**2)
            error = abs(edge(x, at, total, *table, a, b) - direct)
            assert error <= EDGE_ROUNDING * (np.abs(weights) @ largest)


def test_the_fast_table_is_the_full_one(rng):
    from fastkl._grid import Grid, Linearised

    for _ in range(25):
        size, steps = int(rng.integers(3, 90)), int(rng.integers(1, 7))
        levels, values = random_levels(rng, size), 10 ** rng.uniform(-3, 3, 5)
        visit = np.unique(rng.integers(0, size, int(rng.integers(0, 3)))).astype(np.int64)
        grid = Grid(levels, visit, int(rng.integers(1, 4)))
        weights = rng.exponential(size=5)
        full, fast = (Linearised(grid, values, weights, steps, monge=monge).costs for monge in (False, True))
        np.testing.assert_array_equal(np.isinf(fast), np.isinf(full))
        finite = np.isfinite(full)
        np.testing.assert_allclose(fast[finite], full[finite], rtol=1e-12)
        assert finite[:, 0].any()


def test_the_full_table_is_the_least_over_all_paths(rng):
    from fastkl._grid import Grid, Linearised
    from fastkl._objective import Objective

    values, weights = 10 ** rng.uniform(-3, 3, 4), rng.normal(size=4)
    objective = Objective(Spectrum(values), "kl", "exact")
    for _ in range(6):
        levels = random_levels(rng, 9)
        linear = Linearised(Grid(levels, np.empty(0, dtype=np.int64), 1), values, weights, 4, monge=False)
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


# ---- refinement


@pytest.mark.parametrize("infinite", [False, True])
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("metric", METRICS)
def test_gradient_against_fifty_digit_differences(rng, metric, prior, infinite):
    from fastkl._objective import Objective
    from fastkl._refinement import gradient_in_levels

    context = mpmath.MPContext()
    context.dps = 90
    data = random_spectrum(rng, "log_normal", full=True)
    levels = np.append(np.sort(10 ** rng.uniform(-2, 2, 5))[::-1], 0.0)
    if infinite:
        levels[0] = np.inf
    value, slope = gradient_in_levels(Objective(data, metric, prior), levels)

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
        assert result.refined_sigmas[-2] >= grid_of(schedule, 30)[-1] * (1 - 1e-12)
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
            result = search([value], schedule, steps, metric=metric, prior="vp", free_start=True, grid=18)
            assert (np.diff(result.refined_sigmas) < 0).all()
            assert result.refined_value <= result.value


# ---- spectra made to break it

ADVERSARIAL = {
    "one": Spectrum([1.0]),
    "one, large": Spectrum([2e5]),  # steps lose so little that logarithms cancel to rounding
    "one, huge": Spectrum([1e10]),
    "one, tiny": Spectrum([1e-12]),
    "two atoms": Spectrum([1e-6, 1e6]),
    "mean dominates": Spectrum([1.0, 0.1], mean=[1e6, 1e6]),
    "mean of a tiny eigenvalue": Spectrum([1.0, 1e-10], mean=[0.0, 1e3]),
    "just below one": Spectrum([0.9, 0.95, 0.99, 0.999]),
    "around one": Spectrum(np.linspace(0.5, 1.5, 30)),
    "counts of 1e12": Spectrum([2.0, 0.5], counts=[1e-12, 1e12]),
}


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_spectra(name, free):
    data = ADVERSARIAL[name]
    schedules = (
        NoiseSchedule.cosine(20),
        NoiseSchedule.flow(),
        NoiseSchedule.tangent(0.1),
        NoiseSchedule.from_alphas_cumprod(np.linspace(0.9999, 0.999, 20)),
    )
    for schedule, metric, prior in itertools.product(schedules, METRICS, PRIORS):
        found = fastkl.exhaustive(data, schedule, 3, metric, prior, free_start=free, grid=20, keep=1)
        check(search(data, schedule, 3, metric=metric, prior=prior, free_start=free, grid=20), found.value)


def test_long_paths_on_a_thousand_levels(rng):
    """No level of a proved optimum can move, nor any two neighbours, for the better."""
    data, schedule = Spectrum.preset("mnist"), NoiseSchedule.cosine()
    levels, data = grid_of(schedule, 0), data.compress(1e-12)
    for steps in (3, 10, 30):
        best = search(data, schedule, steps)
        assert best.proved_optimal
        path = 999 - best.timesteps
        moved = [path + 0]
        for k, far in itertools.product(range(1, steps), (-9, -2, -1, 1, 2, 9)):
            for other in (0, -1, 1):
                trial = path.copy()
                trial[k] += far
                if k + 1 < steps:
                    trial[k + 1] += other
                if (np.diff(trial) > 0).all() and trial[-1] < 1000:
                    moved.append(trial)
        values = fastkl.divergence(data, with_zero(levels, np.array(moved)))
        assert values.min() >= best.value * (1 - SAME)
        assert np.unique(values).size > steps


# ---- results and bad input


def test_the_result_is_json(rng):
    for schedule in (random_schedule(rng, 9, 2), NoiseSchedule.flow()):
        result = search(random_spectrum(rng), schedule, 3, grid=9)
        kept = json.loads(json.dumps(result.as_dict()))
        assert kept["sigmas"] == result.sigmas.tolist()
        assert kept["value"] == result.value
        assert kept["metric"] == "kl"
        assert kept["seconds"] > 0
        assert kept["iterations"] >= 1


LINEAR = NoiseSchedule.ddpm_linear(20)
ZERO_SNR = NoiseSchedule.from_alphas_cumprod([0.9, 0.5, 0.0])
TWO = [Spectrum([1.0]), Spectrum([2.0])]
BAD = {
    "spectrum": (([1.0, -1.0], LINEAR, 3), {}, ValueError, r"^spectrum\[1\] = -1\.0"),
    "no spectra": (([], LINEAR, 3), {}, ValueError, r"^spectrum: must have at least 1"),
    "mixed spectra": (
        ([Spectrum([1.0]), [2.0]], LINEAR, 3),
        {},
        ValueError,
        r"^spectrum: must be a rectangular",
    ),
    "zero": (([1.0, 0.0], LINEAR, 3), {}, ValueError, r"^spectrum\[1\] = 0\.0: must be above 0, because kl"),
    "zero of a Spectrum": (
        (Spectrum([0.0]), LINEAR, 3),
        {},
        ValueError,
        r"^spectrum\.eigenvalues\[0\] = 0\.0",
    ),
    "schedule": (([1.0], [3.0, 2.0], 3), {}, TypeError, r"^schedule: must be a NoiseSchedule, got list"),
    "steps": (([1.0], LINEAR, 0), {}, ValueError, r"^steps = 0: must be at least 1"),
    "many steps": (([1.0], LINEAR, 21), {}, ValueError, r"^steps = 21: must be at most 20"),
    "float steps": (([1.0], LINEAR, 3.0), {}, TypeError, r"^steps: must be an integer, got 3\.0"),
    "several steps": (([1.0], LINEAR, [3, 0]), {}, ValueError, r"^steps\[1\] = 0: must be at least 1"),
    "text": (([1.0], LINEAR, "3"), {}, TypeError, r"^steps\[0\]: must be an integer, got '3'"),
    "one step from inf": (([1.0], ZERO_SNR, 1), {}, ValueError, r"^steps = 1: must be at least 2"),
    "sampler": (([1.0], LINEAR, 3), {"sampler": "heun3"}, ValueError, r"^sampler = 'heun3': must be one of"),
    "metric": (([1.0], LINEAR, 3), {"metric": "fid"}, ValueError, r"^metric = 'fid': must be one of 'kl'"),
    "metric's kind": (([1.0], LINEAR, 3), {"metric": 3}, TypeError, r"^metric: must be one of .*, got 3"),
    "prior": (([1.0], LINEAR, 3), {"prior": "normal"}, ValueError, r"^prior = 'normal': must be one of"),
    "time_limit": (([1.0], LINEAR, 3), {"time_limit": 0}, ValueError, r"^time_limit = 0\.0: must be above 0"),
    "time_limit's kind": (
        ([1.0], LINEAR, 3),
        {"time_limit": "1"},
        TypeError,
        r"^time_limit: must be a real number",
    ),
    "grid": (([1.0], NoiseSchedule.edm(), 1), {"grid": 1}, ValueError, r"^grid = 1: must be at least 2"),
    "min_spacing": (
        ([1.0], LINEAR, 3),
        {"min_spacing": 0},
        ValueError,
        r"^min_spacing = 0: must be at least 1",
    ),
    "wide spacing": (
        ([1.0], LINEAR, 4),
        {"min_spacing": 7},
        ValueError,
        r"^steps = 4: no choice of levels keeps",
    ),
    "visit": (
        ([1.0], LINEAR, 3),
        {"visit": [3, 20]},
        ValueError,
        r"^visit\[1\] = 20\.0: must be a timestep, an",
    ),
    "visit a half": (
        ([1.0], LINEAR, 3),
        {"visit": [2.5]},
        ValueError,
        r"^visit\[0\] = 2\.5: must be a timestep",
    ),
    "visit's kind": (
        ([1.0], LINEAR, 3),
        {"visit": ["3"]},
        TypeError,
        r"^visit: must be an array of real numbers",
    ),
    "visit 0": (
        ([1.0], NoiseSchedule.edm(), 3),
        {"visit": [1.0, 0.0]},
        ValueError,
        r"^visit\[1\] = 0\.0: must be ab",
    ),
    "visit inf": (
        ([1.0], NoiseSchedule.flow(), 3),
        {"visit": [np.inf]},
        ValueError,
        r"^visit\[0\] = inf: must be fin",
    ),
    "many to visit": (
        ([1.0], LINEAR, 2),
        {"visit": [1, 2, 3]},
        ValueError,
        r"^steps = 2: no choice of levels keeps",
    ),
    "weights of one": (
        ([1.0], LINEAR, 3),
        {"weights": [1.0]},
        ValueError,
        r"^weights: must be left out where there",
    ),
    "weights' shape": (
        (TWO, LINEAR, 3),
        {"weights": [1.0]},
        ValueError,
        r"^weights: must have shape \(2,\) like",
    ),
    "negative weight": (
        (TWO, LINEAR, 3),
        {"weights": [1.0, -1.0]},
        ValueError,
        r"^weights\[1\] = -1\.0: must be ab",
    ),
    "weights' kind": (
        (TWO, LINEAR, 3),
        {"weights": "12"},
        TypeError,
        r"^weights: must be an array of real numbers",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    args, kwargs, exception, pattern = BAD[case]
    with pytest.raises(exception) as caught:
        search(*args, **kwargs)
    assert type(caught.value) is exception
    assert re.search(pattern, str(caught.value)), str(caught.value)


def test_counts_of_steps_are_checked_before_any_work(monkeypatch):
    def never(*args):
        raise AssertionError("worked before the arguments were checked")

    monkeypatch.setattr("fastkl._search.Problem.solve", never)
    with pytest.raises(ValueError, match=r"^steps\[1\] = 99: must be at most 20"):
        search([1.0], LINEAR, [3, 99])


def test_a_thousand_levels_have_that_many_choices():
    result = search([1.0, 0.1], NoiseSchedule.ddpm_linear(), 5, prove=False)
    assert result.candidates == math.comb(999, 4)
