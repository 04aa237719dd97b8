"""Search with samplers that have no proof: enumeration, DDIM's levels, standards, constraints, command line."""

import itertools
import json
import math
import re

import numpy as np
import pytest
from cases import PRIORS
from cli_calls import document, run
from search_cases import SAME, all_paths, grid_of, random_schedule, random_spectrum, with_zero

import fastkl
from fastkl import NoiseSchedule, Spectrum, discretize, samplers, search

METRICS = ("kl", "reverse_kl", "jeffreys", "w2")
OTHERS = [name for name in samplers.names() if not samplers.get(name).one_step]  # whose search is local
STEPS = {"prk": 5}


def candidates(levels, paths, rule):
    """The levels of paths; those of a sampler that needs a last level above 0 end at the lowest."""
    if not rule.above_zero:
        return with_zero(levels, paths)
    return np.concatenate([levels[paths], np.full((len(paths), 1), levels[-1])], axis=1)


def all_candidates(levels, steps, free, rule):
    """Every choice that a sampler can run on."""
    paths = all_paths(len(levels), steps, free)
    if rule.above_zero:
        paths = paths[paths[:, -1] < len(levels) - 1]
    if rule.finite_start:
        paths = paths[np.isfinite(levels[paths[:, 0]])]
    return candidates(levels, paths, rule)


def moved(path, size, rule, free):
    """Every path that differs from one in a single level, which stays between its neighbours."""
    ends = np.concatenate([[-1], path, [size - 1 if rule.above_zero else size]])
    rows = []
    for k in range(0 if free else 1, len(path)):
        rows += [[*path[:k], place, *path[k + 1 :]] for place in range(ends[k] + 1, ends[k + 2])]
    return np.array(rows, dtype=np.int64)


def random_case(rng, rule, sizes, most_steps):
    """Spectrum, schedule, number of levels and of steps, metric, prior, whether the start is free."""
    while True:
        size, free = int(rng.integers(*sizes)), bool(rng.random() < 0.3)
        steps = int(rng.integers(max(2, rule.least_steps), most_steps + 1))
        schedule = random_schedule(rng, size)
        if free or not (rule.finite_start and np.isinf(schedule.sigma_max)):
            metric, prior = METRICS[rng.integers(4)], (schedule.prior, *PRIORS)[rng.integers(5)]
            return random_spectrum(rng), schedule, size, steps, metric, prior, free


@pytest.fixture
def without_enumeration(monkeypatch):
    """The local search alone, also where so few choices exist that all would be evaluated."""
    monkeypatch.setattr("fastkl._local_search.FEW", 0)


# ---- quality


def misses(rng, sizes, most_steps, repeats):
    """By how much the value found is above the least of all choices, relative to it, for every sampler."""
    found = []
    for name, _ in itertools.product(OTHERS, range(repeats)):
        rule = samplers.get(name)
        data, schedule, size, steps, metric, prior, free = random_case(rng, rule, sizes, most_steps)
        sigmas = all_candidates(grid_of(schedule, size, data), steps, free, rule)
        least = float(np.nanmin(fastkl.divergence(data, sigmas, metric, name, prior)))
        best = search(data, schedule, steps, name, metric, prior, free_start=free, grid=size)
        assert best.candidates == len(sigmas)
        assert best.value >= least * (1 - SAME)
        found.append(best.value / least - 1 if least > 0 else best.value)
    return np.array(found)


def test_few_choices_are_all_evaluated(rng):
    assert misses(rng, (6, 17), 4, 1).max() <= 1e-9


def test_local_search_against_enumeration(rng, without_enumeration):
    excess = misses(rng, (6, 17), 4, 2)
    exact = (excess <= 1e-9).mean()
    print(
        f"exact {exact:.3f} of {len(excess)}, excess: 99 % {np.quantile(excess, 0.99):.2g}, max {excess.max():.2g}"
    )
    assert exact >= 0.95


def test_larger_grids_against_enumeration(rng, without_enumeration):
    excess = misses(rng, (16, 31), 5, 1)
    exact = (excess <= 1e-9).mean()
    print(
        f"exact {exact:.3f} of {len(excess)}, excess: 90 % {np.quantile(excess, 0.9):.2g}, max {excess.max():.2g}"
    )
    assert exact >= 0.85
    assert np.median(excess) <= 1e-9


@pytest.mark.parametrize("name", OTHERS)
def test_every_sampler_on_a_thousand_levels(name):
    rule, steps = samplers.get(name), STEPS.get(name, 4)
    data, schedule = Spectrum.preset("digits"), NoiseSchedule.ddpm_linear()
    levels = grid_of(schedule)
    best = search(data, schedule, steps, name)
    assert best.value == fastkl.divergence(data, best.sigmas, sampler=name)
    assert np.isfinite(best.value)
    assert (best.proved_optimal, best.lower_bound, best.sampler) == (False, None, name)
    assert best.refined_sigmas is None
    np.testing.assert_array_equal(schedule.sigmas(best.timesteps), best.sigmas[:-1])
    assert best.sigmas[0] == levels[0]
    assert best.sigmas[-1] == (levels[-1] if rule.above_zero else 0.0)

    path = 999 - best.timesteps
    near = moved(path, 1000, rule, False)
    far = np.abs(near - path).max(axis=1)
    near = near[(far & (far - 1)) == 0]  # by a power of 2
    values = fastkl.divergence(data, candidates(levels, near, rule), sampler=name)
    assert values.min() >= best.value * (1 - SAME)

    rivals = [search(data, schedule, steps, prove=False).sigmas]
    rivals += [discretize.snap(schedule, discretize.karras(schedule, steps, 7.0))]
    rivals += [discretize.snap(schedule, discretize.exponential(schedule, steps))]
    rivals += [
        discretize.snap(schedule, discretize.tangent(schedule, steps, gamma, 0.0)) for gamma in (1.0, 0.04)
    ]
    rivals += [discretize.snap(schedule, discretize.geodesic(schedule, steps, data))]
    if rule.above_zero:
        rivals = [np.append(rival[:-1], levels[-1]) for rival in rivals if rival[-2] > levels[-1]]
    assert fastkl.divergence(data, np.array(rivals), sampler=name).min() >= best.value * (1 - SAME)


@pytest.mark.parametrize("name", ["dpmpp_2m", "singlestep_2", "euler_ancestral", "sde_dpm_2m", "unipc_2"])
def test_no_single_level_can_be_moved(rng, name):
    """On the whole spectrum, which is compressed for the search, with counts and a mean."""
    rule = samplers.get(name)
    for free in (False, True):
        values = np.exp(rng.normal(-2, 2, 400))
        data = Spectrum(values, rng.uniform(0.5, 3, 400), rng.normal(0, 0.1, 400))
        schedule, size = random_schedule(rng, 40, 3), 40
        best = search(data, schedule, 5, name, free_start=free)
        near = moved(size - 1 - best.timesteps, size, rule, free)
        values = fastkl.divergence(data, candidates(grid_of(schedule, size), near, rule), sampler=name)
        assert len(near) >= 20
        assert values.min() >= best.value * (1 - 1e-9)


@pytest.mark.parametrize("name", ["dpmpp_2m", "singlestep_2", "sde_dpmpp_2m", "lms", "sde_dpm_1"])
def test_refined_levels(name):
    data, rule = Spectrum.preset("digits"), samplers.get(name)
    for schedule, free in itertools.product((NoiseSchedule.edm(), NoiseSchedule.flow()), (False, True)):
        if rule.finite_start and not free and np.isinf(schedule.sigma_max):
            continue
        best = search(data, schedule, 5, name, free_start=free)
        levels = grid_of(schedule, 1000, data)
        assert np.isin(best.sigmas[:-1], levels).all()
        assert best.value == fastkl.divergence(data, best.sigmas, sampler=name, prior=schedule.prior)
        refined = best.refined_sigmas
        assert best.refined_value == fastkl.divergence(data, refined, sampler=name, prior=schedule.prior)
        assert best.refined_value <= best.value
        assert refined[-1] == best.sigmas[-1]
        assert refined[-2] >= levels[-1]
        assert free or refined[0] == levels[0]
        assert (np.log(refined[1:-2] / refined[2:-1]) >= 0.0099).all()
        # nothing is gained by moving a level a little
        bent = np.repeat(refined[None], 8, axis=0)
        bent[np.arange(8), np.repeat(np.arange(1, 5), 2)] *= np.tile([1 + 1e-3, 1 - 1e-3], 4)
        bent = bent[
            (bent[:, 1:-1] >= levels[-1]).all(axis=1)
            & (np.log(bent[:, 1:-2] / bent[:, 2:-1]) >= 0.01).all(axis=1)
        ]
        values = fastkl.divergence(data, bent, sampler=name, prior=schedule.prior)
        assert values.min() >= best.refined_value * (1 - 1e-8)


# ---- constraints


@pytest.mark.parametrize("name", ["dpmpp_2m", "singlestep_2", "ddpm_fixed_large", "sde_dpm_2m"])
def test_constraints_against_enumeration(rng, name, without_enumeration):
    rule, exact, cases = samplers.get(name), 0, 0
    while cases < 8:
        data, schedule, size, steps, metric, prior, free = random_case(rng, rule, (8, 17), 4)
        levels, spacing = grid_of(schedule, size, data), int(rng.integers(1, 4))
        must = np.sort(rng.choice(np.arange(1, size - 1), int(rng.integers(0, 3)), replace=False))
        sigmas = all_candidates(levels, steps, free, rule)
        paths = np.searchsorted(-levels, -(sigmas if rule.above_zero else sigmas[:, :-1]))
        kept = [set(must) <= set(path) and (np.diff(path) >= spacing).all() for path in paths.tolist()]
        visit = (size - 1 - must if schedule.is_discrete else levels[must]) if len(must) else None
        options = {"free_start": free, "grid": size, "min_spacing": spacing, "visit": visit}
        if not any(kept):
            with pytest.raises(ValueError, match=rf"^steps = {steps}: no choice of levels keeps to visit"):
                search(data, schedule, steps, name, metric, prior, **options)
            continue
        least = np.nanmin(fastkl.divergence(data, sigmas[kept], metric, name, prior))
        best = search(data, schedule, steps, name, metric, prior, **options)
        path = np.searchsorted(-levels, -(best.sigmas if rule.above_zero else best.sigmas[:-1]))
        assert path.tolist() in paths[kept].tolist()
        assert best.candidates == (None if len(must) else sum(kept))
        assert best.value >= least * (1 - SAME)
        if best.refined_sigmas is not None:
            assert set(levels[must]) <= set(best.refined_sigmas)
        exact += best.value <= least * (1 + 1e-9)
        cases += 1
    assert exact >= cases - 1


@pytest.mark.parametrize("free", [False, True])
def test_an_infinite_first_level(free):
    """A sampler that needs a finite one begins at another level if it may, else it is an error."""
    schedule = NoiseSchedule.from_alphas_cumprod(np.linspace(0.999, 0.0, 30))
    data = Spectrum([1.0, 0.1], mean=[0.0, 0.0])
    assert search(data, schedule, 3, "dpmpp_2m", free_start=free).candidates == math.comb(
        30 - (not free), 3 - (not free)
    )
    if not free:
        with pytest.raises(ValueError, match=r"^sampler = 'heun': needs a finite first level"):
            search(data, schedule, 3, "heun")
        return
    best = search(data, schedule, 3, "heun", free_start=True)
    assert np.isfinite(best.sigmas).all()
    assert best.candidates == math.comb(29, 3)


def test_time_limit_returns_the_best_so_far():
    data, schedule = Spectrum.preset("digits"), NoiseSchedule.edm()
    short = search(data, schedule, 10, "dpmpp_2m", time_limit=1e-9)
    full = search(data, schedule, 10, "dpmpp_2m")
    ddim = search(data, schedule, 10, prove=False).sigmas
    assert full.value <= short.value <= fastkl.divergence(data, ddim, sampler="dpmpp_2m", prior="ve")
    assert short.refined_value <= short.value
    assert short.iterations < full.iterations


def test_same_bits_for_any_number_of_threads(monkeypatch):
    data, schedule = Spectrum.preset("mnist"), NoiseSchedule.edm()
    results = []
    for threads in ("1", "3", "1"):
        monkeypatch.setenv("FASTKL_NUM_THREADS", threads)
        document = search(data, schedule, 6, "sde_dpmpp_2m").as_dict()
        results.append({key: value for key, value in document.items() if key != "seconds"})
    assert results[0] == results[1] == results[2]


# ---- arguments and results


def test_sampler_objects_and_names():
    data, schedule = [1.0, 0.1], NoiseSchedule.ddpm_linear(40)
    best = search(data, schedule, 3, samplers.ddim(eta=0.5))
    assert best.sampler == "fastkl.samplers.ddim(eta=0.5)"
    assert best.value == fastkl.divergence(data, best.sigmas, sampler=samplers.ddim(eta=0.5))
    named = search(data, schedule, 3, "euler_ancestral")
    made = search(data, schedule, 3, samplers.ddim(eta=1.0))
    assert (named.sampler, named.value) == ("euler_ancestral", made.value)
    for sampler in ("euler", samplers.ddim()):  # DDIM by another name is proved
        assert search(data, schedule, 3, sampler).proved_optimal
    results = search(data, schedule, range(2, 5), "dpmpp_2m")
    assert [result.steps for result in results] == [2, 3, 4]
    assert json.loads(json.dumps(results[0].as_dict()))["lower_bound"] is None


def test_inner_levels_of_prk(rng):
    """Levels that the sampler itself holds must lie within its steps; a search finds paths for which they do."""
    schedule = NoiseSchedule.edm(0.01, 50.0)
    ddim = search([1.0, 0.1], schedule, 5, grid=30).sigmas
    middles = np.sqrt(ddim[:3] * ddim[1:4])
    best = search([1.0, 0.1], schedule, 5, samplers.prk(middles), grid=30)
    assert (best.sigmas[:3] > middles).all()
    assert (best.sigmas[1:4] < middles).all()
    with pytest.raises(ValueError, match=r"^middles"):
        search([1.0, 0.1], schedule, 5, samplers.prk([49.0, 48.9, 48.8]), grid=5)


LINEAR = NoiseSchedule.ddpm_linear(20)
BAD = {
    "name": ("heun3", {}, ValueError, r"^sampler = 'heun3': must be one of 'ddim'"),
    "kind": (3, {}, TypeError, r"^sampler: must be a name or a fastkl.samplers.Sampler, got 3"),
    "few steps": ("prk", {}, ValueError, r"^sampler = 'prk': needs at least 4 steps"),
    "spacing": ("heun", {"min_spacing": 10}, ValueError, r"^steps = 3: no choice of levels keeps to visit"),
    "all levels": (
        "sde_dpm_1",
        {"steps": 20},
        ValueError,
        r"^steps = 20: no choice of levels keeps to visit",
    ),
    "worst": (
        "heun",
        {"spectrum": [Spectrum([1.0]), Spectrum([2.0])], "combine": "worst"},
        ValueError,
        r"^combine = 'worst': needs the sampler 'ddim', got sampler = 'heun'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    sampler, options, exception, pattern = BAD[case]
    arguments = {"spectrum": [1.0], "schedule": LINEAR, "steps": 3, **options}
    with pytest.raises(exception) as caught:
        search(**arguments, sampler=sampler)
    assert type(caught.value) is exception
    assert re.search(pattern, str(caught.value)), str(caught.value)


# ---- command line

SMALL = ("--spectrum", "digits", "--schedule-option", "num_train_timesteps=30", "--steps", "4")


def test_command_line(capsys):
    report = document(capsys, "search", *SMALL, "--sampler", "dpmpp_2m")
    (found,) = report["results"]
    digits, schedule = Spectrum.preset("digits"), NoiseSchedule.ddpm_linear(30)
    best = search(digits, schedule, 4, "dpmpp_2m", "w2", free_start=True)
    assert report["sampler"] == found["sampler"] == "dpmpp_2m"
    assert (found["value"], found["timesteps"]) == (best.value, best.timesteps.tolist())
    assert (found["proved_optimal"], found["lower_bound"], found["gap"]) == (False, None, None)
    levels = discretize.snap(schedule, discretize.karras(schedule, 4, 7.0))
    (row,) = [row for row in found["standards"] if row["name"] == "karras"]
    assert row["value"] == fastkl.divergence(digits, levels, "w2", "dpmpp_2m")
    status, out, err = run(capsys, "search", *SMALL, "--sampler", "dpmpp_2m")
    assert (status, err) == (0, "")
    assert "local search: no bound is known" in out
    assert "proved" not in out
    assert "lower bound" not in out


def test_command_line_leaves_out_what_the_sampler_cannot_run(capsys):
    out = run(capsys, "search", *SMALL, "--sampler", "sde_dpm_2m")[1]
    assert "karras: left out, ends at 0, and sde_dpm_2m needs a last level above 0" in out
    arguments = ("search", "--spectrum", "digits", "--schedule", "flow", "--grid", "30", "--sampler", "heun")
    assert "geodesic: left out, starts at inf, and heun needs a finite" in run(capsys, *arguments)[1]
    status, _, err = run(capsys, *arguments, "--no-free-start")
    assert status == 2
    assert "sampler = 'heun': needs a finite first level" in err
