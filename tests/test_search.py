"""Search against enumeration: values, bounds, proofs; its tables and gradients; spectra made to break it; results."""

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from cases import PRIORS
from search_cases import METRICS, SAME, all_paths, grid_of, random_schedule, random_spectrum, with_zero

import fastkl
from fastkl import NoiseSchedule, Spectrum, search


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
    for case in range(25):
        free, size, steps = bool(rng.random() < 0.4), 40, 6
        while case and math.comb(size, steps) > 20_000:  # one of 25 has any number of choices
            size, steps = int(rng.integers(2, 41)), int(rng.integers(2, 7))
        steps = min(steps, size)
        metric, prior = METRICS[rng.integers(3)], (None, *PRIORS)[rng.integers(5)]
        schedule, data = random_schedule(rng, size), random_spectrum(rng)
        found = fastkl.exhaustive(data, schedule, steps, metric, prior, free_start=free, grid=size, keep=1)
        result = search(data, schedule, steps, metric=metric, prior=prior, free_start=free, grid=size)
        check(result, found.value)
        assert result.candidates == found.total
        assert result.value == fastkl.divergence(data, result.sigmas, metric, prior=result.prior)
        assert np.isin(result.sigmas[:-1], grid_of(schedule, size, data)).all()
        if schedule.is_discrete:
            np.testing.assert_array_equal(schedule.sigmas(result.timesteps), result.sigmas[:-1])
            quick = search(data, schedule, steps, "ddim", metric, prior, False, free)
            check(quick, found.value)
            assert not quick.proved_optimal
        proved += result.proved_optimal
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
        levels, steps = grid_of(schedule, size, data), int(rng.integers(2, 5))
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


def test_levels_to_visit_are_taken_to_the_bit_and_stay_where_they_are(rng):
    for schedule, visit in ((NoiseSchedule.edm(), [1.2345678, 0.05]), (NoiseSchedule.flow(2.0), [0.7, 3.3])):
        data = random_spectrum(rng, "log_normal")
        best = search(data, schedule, 5, grid=300, visit=visit)
        free = search(data, schedule, 5, grid=300)
        assert np.isin(visit, best.sigmas).all()
        assert np.isin(visit, best.refined_sigmas).all()
        assert free.refined_value < best.refined_value < best.value


@pytest.mark.parametrize("spacing", [2, 25])
def test_refined_levels_keep_the_spacing_of_the_grid(rng, spacing):
    schedule = NoiseSchedule.edm()
    for _ in range(6):
        data = random_spectrum(rng)
        best = search(data, schedule, 7, grid=200, min_spacing=spacing)
        step = np.log(schedule.sigma_max / schedule.sigma_min) / 199
        assert (-np.diff(np.log(best.refined_sigmas[:-1])) >= spacing * step * (1 - 1e-9)).all()
        assert best.refined_value <= best.value


@pytest.mark.parametrize("metric", ["kl", "w2"])
def test_a_free_start_on_a_thousand_levels(metric):
    """The start of a proved optimum cannot move for the better, whatever the other levels do."""
    data, schedule = Spectrum.preset("digits"), NoiseSchedule.ddpm_linear()
    best = search(data, schedule, 3, metric=metric, free_start=True)
    assert best.proved_optimal
    assert best.value < search(data, schedule, 3, metric=metric).value
    assert best.value <= search(data, schedule, 3, metric=metric, free_start=True, prove=False).value
    for start in best.timesteps[0] + np.array([-40, -3, -1, 1, 3, 40]):
        beside = NoiseSchedule.from_alphas_cumprod(schedule.alphas_cumprod[: start + 1])
        assert search(data, beside, 3, metric=metric, prior="vp").value > best.value


def test_the_error_of_a_compression_counts_where_a_prior_cancels_losses():
    """The compression's error is relative to the losses and the mismatch, which may be far above the value."""
    data = Spectrum(np.linspace(0.9, 0.99, 400), mean=np.zeros(400))
    schedule = NoiseSchedule.from_alphas_cumprod(np.linspace(0.9999, 0.5, 30))
    assert len(data.compress(1e-9)) < 50
    found = fastkl.exhaustive(data, schedule, 3, "kl", "flow", free_start=True, keep=1)
    result = search(data, schedule, 3, prior="flow", free_start=True)
    check(result, found.value)


def test_the_grid_reaches_the_ends_of_the_schedule_and_past_the_spectrum():
    best = search([1.0, 0.01], NoiseSchedule.edm(0.002, 80.0), 3, grid=50, visit=[0.002])
    assert best.sigmas[0] == 80.0
    assert best.sigmas[-2] == 0.002
    fine = search(Spectrum.preset("mnist"), NoiseSchedule.flow(), 50)
    levels = fastkl.discretize.geodesic(NoiseSchedule.flow(), 50, spectrum=Spectrum.preset("mnist"))
    geodesic = fastkl.divergence(Spectrum.preset("mnist"), levels, prior="flow")
    assert fine.refined_value < geodesic
    assert fine.value < 1.01 * geodesic


@pytest.mark.parametrize("metric", [*METRICS, "w2"])
def test_one_step_from_a_free_start_where_one_is_infinite(metric):
    data = Spectrum([1.0, 0.1], mean=[0.0, 0.0])
    for schedule in (NoiseSchedule.tangent(1.0), ZERO_SNR):
        best = search(data, schedule, 1, metric=metric, free_start=True, grid=18)
        levels = grid_of(schedule, 18, data)
        values = fastkl.divergence(data, with_zero(levels, np.arange(len(levels))[:, None]), metric,
                                   prior=schedule.prior)  # fmt: skip
        assert best.value == values.min()
        assert best.proved_optimal


def test_a_proof_is_not_needed_for_the_best_of_few_choices(rng):
    for _ in range(20):
        data, schedule = random_spectrum(rng), random_schedule(rng, 20)
        metric = (*METRICS, "w2")[rng.integers(4)]
        prior = PRIORS[rng.integers(4)]
        found = fastkl.exhaustive(data, schedule, 4, metric, prior, grid=20, keep=1)
        best = search(data, schedule, 4, metric=metric, prior=prior, grid=20, prove=False)
        assert best.value <= found.value * (1 + SAME)
        assert not best.proved_optimal


def test_the_worst_of_several_without_a_proof_ends_when_nothing_new_is_found():
    several = [Spectrum([1.0, 0.1]), Spectrum([3.0, 0.01])]
    best = search(several, NoiseSchedule.flow(), 12, metric="w2", combine="worst", grid=100, prove=False)
    assert best.iterations < 20


def test_refined_levels_stay_where_levels_can_be_evaluated():
    best = search([1e30, 3e29], NoiseSchedule.flow(), 5, grid=50)
    assert best.refined_value <= best.value


def test_tables_of_many_eigenvalues_are_summed_in_blocks(rng, monkeypatch):
    data, schedule = Spectrum(1 + 1e-6 * rng.random(400)), NoiseSchedule.ddpm_linear(100)
    known = search(data, schedule, 4)
    monkeypatch.setattr("fastkl._grid.MOST_TABLED", 1000)
    best = search(data, schedule, 4)
    assert (best.value, best.proved_optimal) == (known.value, True)
    np.testing.assert_array_equal(best.sigmas, known.sigmas)


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


def test_enumeration_keeps_to_the_time_limit(rng, monkeypatch):
    """A clock that enumeration moves by 10 ns for each step it may look at, and that finds it never enough."""
    clock = SimpleNamespace(now=0.0, efforts=[])

    def below(self, start, steps, threshold, most_steps, most_paths):
        clock.now += 1e-8 * most_steps
        clock.efforts.append(most_steps)

    monkeypatch.setattr("fastkl._grid.Linearised.below", below)
    monkeypatch.setattr("fastkl._convex_search.time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr("fastkl._search_problem.time", SimpleNamespace(monotonic=lambda: clock.now))
    for limit in (0.5, 3.0, 10.0):
        clock.now, clock.efforts = 0.0, []
        result = search([1.0, 0.1], NoiseSchedule.cosine(40), 5, time_limit=limit)
        assert not result.proved_optimal
        assert limit / 10 < clock.now <= limit * 1.001
        assert len(clock.efforts) > 1


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
    data, schedule = Spectrum(1 + rng.uniform(-0.02, 0.02, 3), mean=np.zeros(3)), NoiseSchedule.cosine(40)
    result = search(data, schedule, 5, prior="flow", free_start=True)
    found = fastkl.exhaustive(data, schedule, 5, prior="flow", free_start=True, keep=1)
    check(result, found.value)
    assert 0.0 <= result.lower_bound <= found.value


# ---- spectra made to break it

ZERO_SNR = NoiseSchedule.from_alphas_cumprod([0.9, 0.5, 0.0])
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
    if free and data.mean is None:
        data = Spectrum(data.eigenvalues, data.counts, np.zeros(len(data)))
    discrete = (NoiseSchedule.cosine(16), NoiseSchedule.from_alphas_cumprod(np.linspace(0.9999, 0.999, 16)))
    continuous = (NoiseSchedule.flow(), NoiseSchedule.tangent(0.1))
    cases = [
        *itertools.product(discrete, METRICS, PRIORS),
        *itertools.product(continuous, ("kl",), (None, "exact")),
    ]
    for schedule, metric, prior in cases:
        found = fastkl.exhaustive(data, schedule, 4, metric, prior, free_start=free, grid=16, keep=1)
        result = search(data, schedule, 4, metric=metric, prior=prior, free_start=free, grid=16)
        check(result, found.value)


def test_long_paths_on_a_thousand_levels(rng):
    """No level of a proved optimum can move, nor any two neighbours, for the better."""
    data, schedule = Spectrum.preset("mnist"), NoiseSchedule.cosine()
    levels, data = grid_of(schedule), data.compress(1e-12)
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


# ---- results


def test_the_result_is_json(rng):
    for schedule in (random_schedule(rng, 9, 2), NoiseSchedule.flow()):
        result = search(random_spectrum(rng), schedule, 3, grid=9)
        kept = json.loads(json.dumps(result.as_dict()))
        assert kept["sigmas"] == result.sigmas.tolist()
        assert kept["value"] == result.value
        assert kept["metric"] == "kl"
        assert kept["seconds"] > 0
        assert kept["iterations"] >= 1


def test_a_thousand_levels_have_that_many_choices():
    result = search([1.0, 0.1], NoiseSchedule.ddpm_linear(), 5, prove=False)
    assert result.candidates == math.comb(999, 4)
