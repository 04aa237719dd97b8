"""Search for samplers of two evaluations a step: against enumeration, its parts against 50 digits and brute force."""

import itertools
import math

import numpy as np
import pytest
from cases import PRIORS
from search_cases import METRICS, SAME, all_paths, grid_of, random_schedule, random_spectrum, with_zero

import fastkl
from fastkl import NoiseSchedule, Spectrum, search
from fastkl._step_losses import STEP_KINDS

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
        if sampler == "flow_heun" or np.isfinite(schedule.sigma_max):
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
        data = random_spectrum(rng)
        levels = grid_of(schedule, size, data)
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
        levels, steps = grid_of(schedule, size, data), int(rng.integers(2, 5))
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
    data = Spectrum(np.exp(rng.normal(0, 2, 300)), np.exp(rng.normal(size=300)), 0.1 * rng.normal(size=300))
    assert len(data.compress(1e-9)) < 150
    schedule = random_schedule(rng, 15, 3)
    sigmas = with_zero(grid_of(schedule, 15, data), all_paths(15, 4, False))
    for metric, prior in itertools.product(METRICS, PRIORS):
        result = search(data, schedule, 4, sampler, metric, prior)
        assert result.proved_optimal
        check(result, fastkl.divergence(data, sigmas, metric, sampler, prior=prior).min())


def test_several_spectra_and_step_counts(rng):
    schedule = random_schedule(rng, 12, 3)
    several = [random_spectrum(rng, kind) for kind in ("log_normal", "near_one", "one")]
    levels, weights = grid_of(schedule), [0.5, 3.0, 1e-3]
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
    for _ in range(20):
        schedule, data = random_schedule(rng, 14, 3), random_spectrum(rng)
        sigmas = with_zero(grid_of(schedule, 14, data), all_paths(14, 4, False))
        least = fastkl.divergence(data, sigmas, "w2", sampler, prior=schedule.prior).min()
        result = search(data, schedule, 4, sampler, "w2")
        assert not result.proved_optimal
        assert result.lower_bound is None
        assert result.value >= least * (1 - SAME)
        same += result.value <= least * (1 + 1e-3)
    assert same >= 16  # a local search, from several starts


# ---- a thousand levels


@pytest.mark.parametrize("sampler", STEP_KINDS)
@pytest.mark.parametrize("steps", [5, 10])
def test_a_thousand_levels(rng, sampler, steps):
    """Proved, and no level can move, nor any two neighbours, for the better."""
    data, schedule = Spectrum.power_law(3072, 1.0), NoiseSchedule.ddpm_linear()
    best = search(data, schedule, steps, sampler)
    print(f"{sampler}, {steps} steps: {best.seconds:.2f} s, {best.iterations} tangents")
    assert best.proved_optimal
    levels, path = grid_of(schedule), 999 - best.timesteps
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
    data = Spectrum([1.0, 0.1], mean=[0.0, 0.0])
    result = search(data, schedule, 3, sampler, free_start=True)
    sigmas = with_zero(grid_of(schedule)[1:], all_paths(5, 3, True))
    assert result.proved_optimal
    assert result.candidates == len(sigmas)
    check(result, fastkl.divergence([1.0, 0.1], sigmas, sampler=sampler).min())


def test_bad_samplers():
    schedule, data = NoiseSchedule.cosine(20), [Spectrum([1.0]), Spectrum([0.1])]
    with pytest.raises(
        ValueError, match=r"^combine = 'worst': needs the sampler 'ddim', got sampler = 'heun'"
    ):
        search(data, schedule, 3, "heun", combine="worst")
    with pytest.raises(ValueError, match=r"^spectrum\[1\] = 0\.0: must be above 0, because kl"):
        search([1.0, 0.0], schedule, 3, "heun")
    with pytest.raises(TypeError, match=r"^sampler: must be a name or a fastkl\.samplers\.Sampler, got 3"):
        search([1.0], schedule, 3, 3)
