"""Search under w2 and for the worst of several spectra, against every choice of levels; envelopes and boxes."""

import itertools
import math

import numpy as np
import pytest

import fastkl
from fastkl import NoiseSchedule, Spectrum, search
from fastkl._bounded_search import INFLECTION, BoundedSearch, Envelope, distance, touching
from fastkl._grid import Grid
from fastkl._objective import Objective
from fastkl._refinement import slopes_in_levels, value_of

PRIORS = ("vp", "ve", "flow", "exact")


def random_schedule(rng, size):
    logits = rng.normal(0, rng.choice([1.0, 4.0]), size)
    return NoiseSchedule.from_alphas_cumprod(np.sort(1 / (1 + np.exp(logits)))[::-1])


def random_spectrum(rng):
    size = int(rng.integers(1, 25))
    values = np.exp(rng.normal(0, rng.choice([0.1, 1, 3]), size))
    values[rng.random(size) < 0.1] = 0.0
    counts = np.exp(rng.normal(0, 2, size)) if rng.random() < 0.5 else None
    mean = rng.normal(0, rng.choice([0.1, 1, 10]), size) if rng.random() < 0.5 else np.zeros(size)
    counts = None if counts is None else np.append(counts, 1.0)
    return Spectrum(np.append(values, 1.0), counts, np.append(mean, 0.0))


def every_choice(schedule, steps, free_start):
    """All paths of a discrete schedule, ending in 0."""
    levels = schedule.sigmas(np.arange(schedule.num_train_timesteps))[::-1]
    later = itertools.combinations(range(1, len(levels)), steps - 1)
    paths = (
        list(itertools.combinations(range(len(levels)), steps)) if free_start else [(0, *p) for p in later]
    )
    return np.concatenate([levels[np.array(paths)], np.zeros((len(paths), 1))], axis=1)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("free_start", [False, True])
def test_w2_equals_exhaustive_enumeration(rng, prior, free_start):
    for _ in range(12):
        schedule, spectrum = random_schedule(rng, int(rng.integers(3, 13))), random_spectrum(rng)
        steps = int(rng.integers(1, min(schedule.num_train_timesteps, 6)))
        least = fastkl.divergence(
            spectrum, every_choice(schedule, steps, free_start), "w2", prior=prior
        ).min()
        best = search(spectrum, schedule, steps, metric="w2", prior=prior, free_start=free_start)
        assert best.proved_optimal
        assert best.value == pytest.approx(least, rel=1e-10)
        assert best.lower_bound <= least * (1 + 1e-10)
        quick = search(
            spectrum, schedule, steps, metric="w2", prior=prior, free_start=free_start, prove=False
        )
        assert quick.lower_bound <= least * (1 + 1e-10)
        assert quick.value >= least * (1 - 1e-10)


def test_w2_equals_exhaustive_enumeration_where_levels_are_left_out(rng, monkeypatch):
    """Grids so fine that bounds exclude levels; quick enumeration is switched off, or it would be over before."""
    monkeypatch.setattr("fastkl._bounded_search.QUICK_EFFORT", 1)
    restricted = []
    restrict = Grid.restricted
    monkeypatch.setattr(
        Grid, "restricted", lambda self, kept: restricted.append(len(kept)) or restrict(self, kept)
    )
    for _ in range(15):
        schedule, spectrum = random_schedule(rng, 60), random_spectrum(rng)
        steps = int(rng.integers(2, 5))
        visit = 10 if schedule.is_discrete and rng.random() < 0.3 else None
        found = fastkl.exhaustive(spectrum, schedule, steps, "w2", grid=60, keep=100)
        kept = [value for value, sigmas in zip(found.values, found.kept_sigmas, strict=True)
                if visit is None or schedule.sigmas(visit) in sigmas]  # fmt: skip
        best = search(
            spectrum, schedule, steps, metric="w2", grid=60, visit=None if visit is None else [visit]
        )
        assert best.lower_bound <= best.value
        if kept:
            assert best.value == pytest.approx(kept[0], rel=1e-10)
            assert best.lower_bound <= kept[0] * (1 + 1e-10)
    assert len(restricted) >= 8


def test_w2_of_a_thousand_levels_cannot_be_improved_by_moving_levels(rng):
    spectrum, schedule = Spectrum.power_law(300, 1.0), NoiseSchedule.ddpm_linear()
    best = search(spectrum, schedule, 7, metric="w2")
    assert best.proved_optimal
    moved = np.repeat(best.timesteps[None], 4000, axis=0)
    moved[:, 1:] += rng.integers(-30, 31, (4000, 6)) * (rng.random((4000, 6)) < 0.5)
    moved = moved[(np.diff(moved, axis=1) < 0).all(axis=1) & (moved[:, -1] >= 0)]
    sigmas = np.concatenate([schedule.sigmas(moved), np.zeros((len(moved), 1))], axis=1)
    assert len(moved) > 1000
    assert fastkl.divergence(spectrum, sigmas, "w2").min() >= best.value * (1 - 1e-12)


def test_time_limit_gives_a_valid_bound():
    spectrum, schedule = Spectrum.preset("photographs"), NoiseSchedule.ddpm_linear()
    proved = search(spectrum, schedule, 5, metric="w2")
    hasty = search(spectrum, schedule, 5, metric="w2", time_limit=0.01)
    assert not hasty.proved_optimal
    assert hasty.seconds < 5.0
    assert hasty.lower_bound <= proved.value <= hasty.value * (1 + 1e-12)


# ---- envelopes and boxes


def test_the_touching_point_of_the_chord():
    high = np.array([1.5, 2.0, 4.0, 10.0, 50.0])
    left = touching(high)
    assert (left > 0).all()
    assert (left < INFLECTION).all()
    chord = (distance(high) - distance(left)) / (high - left)
    q = np.exp(-0.5 * left)
    np.testing.assert_allclose((1 - q) * q, chord, rtol=1e-10)


def test_envelopes_are_convex_and_below(rng):
    whole = Objective(Spectrum(np.ones(200)), "w2", "exact")
    low, width = rng.uniform(-2, 6, 200), np.exp(rng.normal(0, 2, 200))
    envelope = Envelope(whole, low, low + width)
    y = low + width * np.linspace(0, 1, 400)[:, None]
    terms = envelope.terms(y)
    assert (terms <= distance(y) + 1e-12).all()
    assert (np.diff(terms, 2, axis=0) >= -1e-9).all()
    np.testing.assert_allclose(terms[0], distance(y[0]), atol=1e-12)
    np.testing.assert_allclose(terms[-1], distance(y[-1]), atol=1e-12)
    step = 1e-6
    for row in (100, 200, 300):
        slope = (envelope.terms(y[row] + step) - envelope.terms(y[row] - step)) / (2 * step)
        np.testing.assert_allclose(envelope.gradient(y[row]) / envelope.weights, slope, atol=1e-5)


def test_tangents_of_envelopes_are_below_in_the_box_wherever_they_are_taken(rng):
    size = 300
    whole = Objective(Spectrum(np.ones(size)), "w2", "exact")
    low, width = rng.uniform(-2, 6, size), np.exp(rng.normal(0, 2, size))
    envelope = Envelope(whole, low, low + width)
    inside = low + width * np.linspace(0, 1, 200)[:, None]
    for _ in range(50):
        y = low + width * rng.uniform(-3, 4, size)
        tangent = envelope.terms(y) + envelope.gradient(y) / envelope.weights * (inside - y)
        assert (tangent <= distance(inside) + 1e-11 * (1 + np.abs(tangent))).all()


@pytest.mark.parametrize("free_start", [False, True])
def test_boxes_hold_every_path_that_matters(rng, free_start):
    """Bounds of y, first of all paths and then of those below a limit, against all paths."""
    for _ in range(10):
        schedule, spectrum, steps = random_schedule(rng, 10), Spectrum(np.exp(rng.normal(0, 2, 8))), 4
        levels = np.ascontiguousarray(schedule.sigmas(np.arange(10))[::-1])
        objective = Objective(spectrum, "w2", "vp")
        grid = Grid(levels, np.empty(0, np.int64), 1, objective.eigenvalues)
        starts = np.arange(10) if free_start else np.zeros(1, np.int64)
        bounded = BoundedSearch(grid, objective, starts)
        paths = np.array([p for p in itertools.combinations(range(10), steps) if free_start or p[0] == 0])
        points, constants = bounded.points(paths)
        low, high = bounded.widest_box()
        assert (points >= low).all()
        assert (points <= high).all()
        values = objective.value(points) + constants
        limit = float(np.quantile(values, 0.3))
        high = np.minimum(high, bounded.worth(limit))
        envelope = Envelope(objective, low, high)
        tangent = bounded._tangent(envelope, points[values.argmin()], steps, True)
        boxed = (points <= high).all(axis=1)
        for start, bound in zip(starts, tangent.bounds, strict=True):
            assert bound <= values[boxed & (paths[:, 0] == start)].min(initial=np.inf)
        relevant = points[values <= limit]
        assert (relevant <= high).all()
        for entry in range(8):
            known = float(points[values.argmin(), entry])
            assert bounded.extreme(entry, 1.0, tangent, known, steps, limit) >= relevant[:, entry].max()
            assert -bounded.extreme(entry, -1.0, tangent, known, steps, limit) <= relevant[:, entry].min()


@pytest.mark.parametrize("metric", ["kl", "reverse_kl", "jeffreys", "w2"])
@pytest.mark.parametrize("first", [9.0, math.inf])
def test_slopes_of_the_divergence_in_the_levels(rng, metric, first):
    objective = Objective(random_spectrum(rng), metric, "flow")
    sigmas = np.array([first, 3.0, 0.9, 0.2, 0.0])
    gradient, hessian = slopes_in_levels(objective, sigmas)

    def moved(*changes):
        x = 2 * np.log(sigmas[1:-1])
        for k, change in changes:
            x[k] += change
        return np.concatenate([sigmas[:1], np.exp(x / 2), [0.0]])

    step, scale = 1e-4, value_of(objective, sigmas)
    for k in range(3):
        up, down = (value_of(objective, moved((k, s))) for s in (step, -step))
        assert gradient[k] == pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-7 * scale)
        above, below = (slopes_in_levels(objective, moved((k, s)))[0] for s in (step, -step))
        np.testing.assert_allclose(hessian[k], (above - below) / (2 * step), rtol=1e-5, atol=1e-6 * scale)


# ---- the worst of several spectra


@pytest.mark.parametrize("metric", ["kl", "reverse_kl", "w2"])
def test_worst_of_several_equals_exhaustive_enumeration(rng, metric):
    for _ in range(6):
        schedule, steps = random_schedule(rng, 11), int(rng.integers(2, 5))
        spectra = [
            Spectrum(np.exp(rng.normal(rng.normal(0, 2), 1, 10)), mean=rng.normal(size=10)) for _ in range(3)
        ]
        weights = rng.uniform(0.5, 2, 3)
        choices = every_choice(schedule, steps, False)
        values = np.stack([fastkl.divergence(s, choices, metric) for s in spectra], axis=1) * weights
        worst = search(spectra, schedule, steps, metric=metric, weights=weights, combine="worst")
        assert worst.proved_optimal
        assert worst.value == pytest.approx(values.max(axis=1).min(), rel=1e-10)
        total = search(spectra, schedule, steps, metric=metric, weights=weights)
        assert total.value == pytest.approx(values.sum(axis=1).min(), rel=1e-9)
        assert total.proved_optimal


def test_bad_weights_of_spectra():
    spectra, schedule = [Spectrum([1.0]), Spectrum([2.0])], NoiseSchedule.ddpm_linear()
    for weights, message in (([1.0], r"weights: must have shape \(2,\)"), ([1.0, 0.0], r"weights\[1\] = 0.0"),
                             ([1.0, math.nan], r"weights\[1\] = nan")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            search(spectra, schedule, 3, weights=weights)
    with pytest.raises(ValueError, match="weights: must be left out"):
        search(spectra[0], schedule, 3, weights=[1.0])
    with pytest.raises(ValueError, match="combine = 'best'"):
        search(spectra, schedule, 3, combine="best")
