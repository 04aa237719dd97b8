"""Accuracy over the whole contract, against the 50-digit reference.

Every divergence is to be within 1e-10 relative: eigenvalues 1e-12 to 1e12, levels 1e-4 to 1e5 (the first may be inf,
the last 0), 1 to 1,000 steps, divergences down to 1e-12. That holds well below: only what lies under 1e-30 of the
number of directions meets the end of pair arithmetic, PAIRS. Every test prints its seed when it fails.
"""

import itertools
import math
from unittest import mock

import numpy as np
import pytest
import reference
from cases import METRICS, PRIORS

import fastkl
from fastkl import _cpu

BOUND = 1e-10
VARIANCE_BOUND = 1e-11
PAIRS = 1e-28  # error of a ratio of variances in pair arithmetic, for up to 1,000 steps
ARITHMETIC = reference.arithmetic(50)
INF = math.inf


def exact_divergences(eigenvalues, sigmas, prior="vp", counts=None, mean=None):
    """All four metrics by the reference's own pieces, with one pass over the steps for each eigenvalue."""
    number = ARITHMETIC.number
    total = dict.fromkeys(METRICS, number(0))
    for i, eigenvalue in enumerate(eigenvalues):
        count = number(1 if counts is None else counts[i])
        output = reference.output_variance(eigenvalue, sigmas, prior, ARITHMETIC)
        target = number(eigenvalue) + number(sigmas[-1]) ** 2
        error = number(0)
        if mean is not None:
            error = reference.gain(eigenvalue, sigmas, ARITHMETIC) * number(mean[i])
        transport = (ARITHMETIC.sqrt(output) - ARITHMETIC.sqrt(target)) ** 2 + error * error
        total["w2"] += count * transport
        if target == 0:
            continue
        forward = reference.gaussian_kl(error, target, output, ARITHMETIC)
        backward = reference.gaussian_kl(error, output, target, ARITHMETIC)
        total["kl"] += count * forward
        total["reverse_kl"] += count * backward
        total["jeffreys"] += count * (forward + backward)
    return total


def relative_error(value, exact):
    """|value/exact - 1|, inf for a NaN, 0 for equal infinities."""
    if float(exact) in (0.0, INF):
        return 0.0 if value == float(exact) else INF
    error = float(abs(ARITHMETIC.number(value) / exact - 1))
    return INF if math.isnan(error) else error


def assert_accurate(eigenvalues, sigmas, prior="vp", counts=None, mean=None, bound=BOUND, metrics=METRICS):
    sigmas, spectrum = np.asarray(sigmas, dtype=float), fastkl.Spectrum(eigenvalues, counts, mean)
    exact = exact_divergences(eigenvalues, sigmas, prior, counts, mean)
    weights = np.ones(len(spectrum)) if counts is None else spectrum.counts
    for metric, few in itertools.product(metrics, (0, _cpu.FEW_EIGENVALUES)):  # by polynomials, by factors
        with mock.patch.object(_cpu, "FEW_EIGENVALUES", few):
            got = fastkl.divergence(spectrum, sigmas, metric, prior=prior)
        scale = weights @ (spectrum.eigenvalues + sigmas[-1] ** 2) if metric == "w2" else weights.sum()
        error, value = relative_error(got, exact[metric]), float(exact[metric])
        slack = PAIRS * math.sqrt(scale / value) if value > 0 else 0.0
        if not error <= bound + slack:
            levels = f"{sigmas[0].item()!r}, {sigmas[1].item()!r} to {sigmas[-1].item()!r} in {len(sigmas) - 1} steps"
            pytest.fail(
                f"{metric}, {prior}, {few=}: {error=:.3g} of {value:.6g}; {spectrum!r}, levels {levels}"
            )


def random_levels(rng, steps, low=-4.0, high=5.0, last=None):
    """Strictly decreasing levels within [10**low, 10**high]: random, geometric, linear or by Karras' law."""
    low, high = np.sort(rng.uniform(low, high, 2))
    high = max(high, low + 1e-3)
    laws = [
        lambda: 10 ** rng.uniform(low, high, steps + 1),
        lambda: 10 ** np.linspace(high, low, steps + 1),
        lambda: np.linspace(10**high, 10**low, steps + 1),
        lambda: np.linspace(10 ** (high / 7), 10 ** (low / 7), steps + 1) ** 7,
    ]
    levels = np.sort(laws[rng.integers(len(laws))]())[::-1].clip(1e-15, 1e15)
    if last is not None:
        levels[-1] = last
    assert (np.diff(levels) < 0).all()
    return levels


ENDS = {"to zero": (None, 0.0), "above zero": (None, None), "inf to zero": (INF, 0.0), "inf": (INF, None)}


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("prior", PRIORS)
def test_random_cases_of_the_whole_contract(rng, prior, ends):
    first, last = ENDS[ends]
    for case in range(16):
        steps = [1, 2, 3, 1000][case] if case < 4 else round(10 ** rng.uniform(0, 2.7))
        size = 1 if steps == 1000 else rng.integers(1, 6)
        eigenvalues = 10 ** rng.uniform(-12, 12, size)
        levels = random_levels(rng, steps, last=last)
        if first is not None:
            levels[0] = first
        counts = 10 ** rng.uniform(-3, 6, size) if case % 3 == 1 else None
        mean = rng.normal(size=size) * 10 ** rng.uniform(-6, 4) if case % 4 == 2 else None
        assert_accurate(eigenvalues, levels, prior, counts, mean)


@pytest.mark.parametrize("prior", PRIORS)
def test_corners_of_the_contract(prior):
    paths = [
        [1e5, 1e-4],
        [1e5, 0],
        [1e-4, 0],
        [INF, 1e5],
        [INF, 1e-4, 0],
        [1e5, 9e4, 2e-4, 1e-4, 0],
        [INF, 1e5, 0],
    ]
    for levels, eigenvalue in itertools.product(paths, [1e-12, 1e-8, 1.0, 1e10, 1e12]):
        assert_accurate([eigenvalue], levels, prior)
    for levels in paths:
        assert_accurate([1e-12, 1e12], levels, prior, counts=[1e6, 1.0])


@pytest.mark.parametrize("steps", [1, 2, 15, 16, 17, 100, 1000])
def test_divergences_made_tiny_by_fine_schedules(rng, steps):
    """S is about w^2/(4 N) for a path of relative length w, kl about S^2/4: from 1e-1 down to 1e-24."""
    for target in 10 ** rng.uniform(-24, -1, 12 if steps < 1000 else 3):
        width = math.sqrt(4 * steps * 2 * math.sqrt(target))
        centre = 10 ** rng.uniform(-3, 4)
        levels = centre * np.exp(np.linspace(min(width, 2.0), 0, steps + 1))
        eigenvalues = centre**2 * 10 ** rng.uniform(-2, 2, 2)
        assert_accurate(eigenvalues, levels, "exact")
        assert_accurate(eigenvalues, levels, "exact", counts=[3.0, 0.25])


def crossing(levels, prior):
    """An eigenvalue whose output variance is its target variance: what the steps lose, the prior adds. Or None."""

    def gap(eigenvalue):
        output = fastkl.output_variance([eigenvalue], levels, prior=prior)[0]
        return output / (eigenvalue + levels[-1] ** 2) - 1.0

    grid = np.geomspace(1e-12, 1e12, 97)
    gaps = [gap(eigenvalue) for eigenvalue in grid]
    for k in range(grid.size - 1):
        if gaps[k] * gaps[k + 1] < 0:
            low, high = grid[k], grid[k + 1]
            for _ in range(60):
                middle = math.sqrt(low * high)
                low, high = (middle, high) if gaps[k] * gap(middle) > 0 else (low, middle)
            return low
    return None


# Below 1e-6 pair arithmetic takes over; from 1e-6 to 1e-1 the fast kernel's error bound decides.
PERTURBATIONS = [0.0, 1e-12, -1e-10, 1e-8, -1e-6, 1e-5, 1e-4, -3e-4, 1e-3, -3e-3, 1e-2, 1e-1]


@pytest.mark.parametrize("last", [0.0, None])
@pytest.mark.parametrize("prior", ["vp", "flow"])
def test_divergences_made_tiny_by_cancellation_between_prior_and_steps(rng, prior, last):
    found = 0
    for _ in range(200):
        steps = round(10 ** rng.uniform(0, 2))
        levels = random_levels(rng, steps, -3.0, 2.0, last)
        eigenvalue = crossing(levels, prior)
        if eigenvalue is None:
            continue
        found += 1
        for change in PERTURBATIONS:
            assert_accurate([eigenvalue * (1 + change)], levels, prior)
        near = eigenvalue * (1 + np.array([1e-5, -1e-9, 1e-3]))
        assert_accurate(near, levels, prior, counts=[1.0, 1e6, 1e-3])
        # The same crossing through a level: the first one moves.
        moved = levels.copy()
        moved[0] *= 1 + 1e-7
        assert_accurate([eigenvalue], moved, prior)
        if found == 6:
            break
    assert found >= 3


def geometric(first, per_octave):
    """All levels first * 2**(-k/per_octave) of the contract; all octaves have the same mantissas."""
    octave = first * 2.0 ** (-np.arange(per_octave) / per_octave)
    levels = np.concatenate([octave * 2.0**-j for j in range(31)])
    return levels[levels >= 1e-4]


# Rounding errors of s_k s_{k+1} and s_k^2 recur in every octave and add up: the fast kernel's errors at their largest.
SYSTEMATIC = [  # first level, levels an octave, eigenvalue
    (46956.062084022094, 4, 1e-10),
    (50545.318979718475, 4, 1.138651905979026e-10),
    (51158.70394668063, 4, 1.1686088553466498e-10),
    (47499.23851339104, 3, 8.410310505352604e-11),
    (64863.00517522298, 6, 2.54691843897454e-10),
    (55617.936803917124, 28, 2.0336240846866703e-09),
    (59891.94192053053, 30, 2.706018909321322e-09),
    (50167.05953329778, 32, 2.5032039797173203e-09),
    (49200.00447010706, 32, 2.5032039797173203e-09),
]


@pytest.mark.parametrize("prior", ["exact", "ve", "vp"])
@pytest.mark.parametrize(("first", "per_octave", "eigenvalue"), SYSTEMATIC)
def test_rounding_errors_that_recur_in_every_octave(first, per_octave, eigenvalue, prior):
    levels = geometric(first, per_octave)
    assert_accurate([eigenvalue], levels, prior)


def test_rounding_errors_that_recur_in_every_octave_for_any_first_level(rng):
    for per_octave in (1, 2, 3, 4, 5, 8):
        for first in 32768 * rng.uniform(1, 2, 3):
            levels = geometric(first, per_octave)
            for eigenvalue in 10 ** rng.uniform(-11, -8, 3):
                assert_accurate([eigenvalue], levels, "exact", metrics=("kl", "w2"))


@pytest.mark.parametrize("first", [6.223629981277606, 6.256770466034542, 6.322360470439998])
def test_rounding_errors_that_recur_in_every_chunk(first):
    """An eigenvalue next to a power of two, far above nearly equal levels: Horner's rule rounds each chunk alike."""
    last = 1.5541942732600025
    levels = [first, *np.linspace(last * (1 + 0.0032120002084138305), last, 256)]
    assert_accurate([16384.000007629395], levels, "exact")


def test_rounding_errors_that_recur_in_every_chunk_for_any_levels(rng):
    for _ in range(12):
        steps, last = int(rng.choice([64, 256, 500])), 10 ** rng.uniform(-3, 1)
        tail = last * np.linspace(1 + 10 ** rng.uniform(-4, -1), 1, steps)
        eigenvalue = 2.0 ** rng.integers(12, 39) * (1 + 2.0 ** -rng.integers(5, 53))
        for loss in 10 ** rng.uniform(-3.3, -2, 4):  # -log r of the first step, next to where pairs take over
            first = math.sqrt(eigenvalue * loss) + tail[0]
            assert_accurate([eigenvalue], [first, *tail], "exact", metrics=("kl", "w2"))


@pytest.mark.parametrize("size", [1023, 1024, 1025, 2051])
@pytest.mark.parametrize("prior", PRIORS)
def test_full_tiles(rng, size, prior):
    """Full tiles take one logarithm of a product, partial ones may not; wide, narrow, sorted and not."""
    steps = int(rng.integers(1, 7))
    last = 0.0 if rng.random() < 0.5 else None
    levels = random_levels(rng, steps, -2.0, 3.0, last)
    eigenvalues = 10 ** rng.uniform(-12, 12, size) if rng.random() < 0.5 else np.exp(rng.normal(size=size))
    if rng.random() < 0.5:
        eigenvalues = np.sort(eigenvalues)
    assert_accurate(eigenvalues, levels, prior)


@pytest.mark.parametrize("spread", [0.0, 1e-9, 1e-6, 1e-4, 3e-3, 3e-2, 0.1])
def test_full_tiles_of_nearly_vanishing_terms(rng, spread):
    """Ratios of output to target variance around 1 by `spread`, on both sides: all switches of the kernels."""
    levels = np.geomspace(30.0, 0.05, 5)
    eigenvalue = crossing(levels, "vp")
    eigenvalues = eigenvalue * (1 + spread * rng.normal(size=1100)).clip(0.1)
    assert_accurate(eigenvalues, levels, "vp")
    assert_accurate(eigenvalues, levels, "vp", counts=rng.uniform(0.5, 2, 1100))


def test_few_huge_terms_among_tiny_ones(rng):
    levels = np.geomspace(30.0, 0.05, 9)
    quiet = crossing(levels, "vp")
    eigenvalues = quiet * (1 + 1e-8 * rng.normal(size=1500))
    for position in (0, 1023, 1024, 1499):
        loud = eigenvalues.copy()
        loud[position] = 1e-9
        assert_accurate(loud, levels)
        counts = np.full(1500, 1e9)
        counts[position] = 1e-9
        assert_accurate(loud, levels, counts=counts)


def test_one_batch_of_wildly_different_candidates(rng):
    """What one candidate needs (pairs, limits at inf) must not touch the others in its batch."""
    steps = 12
    quiet = np.geomspace(2.0, 1.99, steps + 1)
    rows = [
        np.geomspace(1e5, 1e-4, steps + 1),
        quiet,
        np.concatenate([[INF], quiet[1:]]),
        np.concatenate([np.geomspace(80, 0.002, steps), [0.0]]),
        np.concatenate([[INF, 1e5], np.geomspace(9, 1e-4, steps - 2), [0.0]]),
        np.geomspace(1e-3, 1e-4, steps + 1),
        1e5 - np.arange(steps + 1.0),
    ]
    sigmas = np.stack(rows)
    eigenvalues = np.concatenate([10 ** rng.uniform(-12, 12, 40), np.exp(rng.normal(size=8))])
    mean = rng.normal(size=48)
    for prior in PRIORS:
        for spectrum in (fastkl.Spectrum(eigenvalues), fastkl.Spectrum(eigenvalues, mean=mean)):
            exact = [exact_divergences(eigenvalues, row, prior, mean=spectrum.mean) for row in sigmas]
            for metric in METRICS:
                values = fastkl.divergence(spectrum, sigmas, metric, prior=prior)
                worst = max(relative_error(v, e[metric]) for v, e in zip(values, exact, strict=True))
                assert worst <= BOUND, (prior, metric)


def test_one_step_from_inf_to_0_returns_no_variance():
    sigmas = np.array([[INF, 0.0], [5.0, 0.0], [INF, 0.5], [INF, 0.0]])
    for metric in METRICS:
        values = fastkl.divergence(fastkl.Spectrum([2.0, 0.5], mean=[1.0, 0.0]), sigmas, metric)
        for value, row in zip(values, sigmas, strict=True):
            exact = exact_divergences([2.0, 0.5], row, mean=[1.0, 0.0])[metric]
            assert relative_error(value, exact) <= BOUND, (metric, row)
        assert math.isinf(values[0]) == (metric != "w2")


def test_zero_eigenvalues(rng):
    """w2 counts them; the entropies take them where the last level is above 0."""
    eigenvalues = np.concatenate([np.zeros(3), 10 ** rng.uniform(-12, 3, 3)])
    for prior in PRIORS:
        assert_accurate(eigenvalues, [INF, 3.0, 0.2, 1e-4], prior)
        assert_accurate(eigenvalues, np.geomspace(1e5, 1e-4, 40), prior)
        assert_accurate(np.zeros(1030), [5.0, 1.0, 0.3], prior)
        assert_accurate(eigenvalues, [50.0, 3.0, 0.2, 0.0], prior, metrics=("w2",))
        assert_accurate([0.0], [50.0, 3.0, 0.0], prior, metrics=("w2",))


@pytest.mark.parametrize("prior", PRIORS)
def test_values_beyond_the_contract_that_validation_lets_in(rng, prior):
    """Eigenvalues 1e-30 to 1e30, levels 1e-15 to 1e15: finite, not negative, and right to 1e-6."""
    for eigenvalue in (1e-30, 1.0, 1e30):
        for levels in (
            [1e15, 1e-15],
            [1e15, 0.0],
            [1e-15, 0.0],
            [INF, 1e15, 1e-15, 0.0],
            np.geomspace(1e15, 1e-15, 60),
        ):
            assert_accurate([eigenvalue], levels, prior, bound=1e-6)
    for case in range(20):
        steps = round(10 ** rng.uniform(0, 1.7))
        size = 1024 if case < 2 else rng.integers(1, 5)
        steps = min(steps, 4) if case < 2 else steps
        levels = random_levels(rng, steps, -15, 15, last=0.0 if case % 2 else None)
        counts = 10 ** rng.uniform(-9, 9, size) if case % 3 == 0 else None
        assert_accurate(10 ** rng.uniform(-30, 30, size), levels, prior, counts, bound=1e-6)


@pytest.mark.parametrize("prior", PRIORS)
def test_large_means(rng, prior):
    for last in (0.0, None):
        levels = random_levels(rng, 9, -2.0, 3.0, last)
        eigenvalues, mean = 10 ** rng.uniform(-3, 3, 5), rng.normal(size=5)
        for scale in (1e-8, 1.0, 1e8):
            assert_accurate(eigenvalues, levels, prior, mean=scale * mean)
            assert_accurate(eigenvalues, levels, prior, counts=[1.0, 2.5, 1e3, 1.0, 0.1], mean=scale * mean)


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("prior", PRIORS)
def test_variances(rng, prior, ends):
    first, last = ENDS[ends]
    for steps in (1, 2, 7, 8, 9, 16, 17, 33, 300):
        levels = random_levels(rng, steps, last=last)
        if first is not None:
            levels[0] = first
        eigenvalues = 10 ** rng.uniform(-12, 12, 3)
        path = fastkl.trajectory(eigenvalues, levels, prior=prior)
        output = fastkl.output_variance(eigenvalues, levels, prior=prior)
        assert path.shape == (steps + 1, 3)
        np.testing.assert_allclose(path[-1], output, rtol=1e-12)
        for i, eigenvalue in enumerate(eigenvalues):
            exact = reference.trajectory(eigenvalue, levels, prior, ARITHMETIC)
            worst = max(relative_error(got, true) for got, true in zip(path[:, i], exact, strict=True))
            assert max(worst, relative_error(output[i], exact[-1])) <= VARIANCE_BOUND, (
                prior,
                levels,
                eigenvalue,
            )


def test_trajectory_ends_in_the_output_variance_after_a_thousand_steps(rng):
    eigenvalues = 10 ** rng.uniform(-12, 12, 1500)
    for prior in PRIORS:
        levels = np.stack([random_levels(rng, 1000) for _ in range(2)])
        path = fastkl.trajectory(eigenvalues, levels, prior=prior)
        output = fastkl.output_variance(eigenvalues, levels, prior=prior)
        np.testing.assert_allclose(path[:, -1], output, rtol=1e-12)
