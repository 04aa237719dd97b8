"""Tangent law, expansion in 1/N and geodesic levels, against the 50-digit reference and against perturbations."""

import math
import subprocess
import sys

import mpmath
import numpy as np
import pytest
import reference

import fastkl
from fastkl import NoiseSchedule, Spectrum
from fastkl._expansion import excess, odd_coefficients
from fastkl.theory import _tangent_log_ratio, best_gamma, expansion, geodesic_levels, tangent_gamma

INF = math.inf
METRICS = ["kl", "reverse_kl", "jeffreys", "w2"]
SMOOTH = [
    NoiseSchedule.tangent(0.8),
    NoiseSchedule.flow(),
    NoiseSchedule.flow(shift=2.0),
    NoiseSchedule.edm(0.02, 10.0),
]
CONTEXT = mpmath.MPContext()
CONTEXT.dps = 60


def uniform_levels(schedule, steps):
    return schedule.sigmas(np.arange(steps, -1, -1) / steps)


def tangent_levels(gamma, steps):
    return uniform_levels(NoiseSchedule.tangent(gamma), steps)


def log_losses(eigenvalues, levels):
    """-2 sum log cos of the angle differences, in float64."""
    angles = np.arctan2(levels[:, None], np.sqrt(eigenvalues))
    return -2 * np.log(np.cos(np.diff(angles, axis=0))).sum(axis=0)


def kl(eigenvalues, levels):
    return excess(log_losses(eigenvalues, levels)).sum() / 2


# The closed form of the tangent law


@pytest.mark.parametrize("steps", [2, 3, 5, 10, 50, 300])
@pytest.mark.parametrize("exponent", [-12, -6, -3, -1, -1e-9, 0, 1e-3, 2, 5, 12])
def test_closed_form_of_the_tangent_law(steps, exponent):
    """gamma = 1 and eigenvalue 10**exponent, over the whole range that the library accepts."""
    eigenvalue = 10.0**exponent
    levels = [CONTEXT.tan(CONTEXT.pi * k / (2 * steps)) for k in range(steps - 1, -1, -1)]
    ratio = reference.output_variance(eigenvalue, [INF, *levels], "vp", reference.arithmetic(50)) / eigenvalue
    got = _tangent_log_ratio(np.array([math.log(eigenvalue) / 2]), steps)[0]
    assert got == pytest.approx(float(-CONTEXT.log(CONTEXT.mpf(ratio))), rel=2e-14)


def test_excess_of_the_exponential(rng):
    x = np.concatenate((rng.uniform(-3, 3, 50), 10.0 ** rng.uniform(-12, 0, 50), [0.0, -0.3, 0.3]))
    exact = [float(CONTEXT.exp(CONTEXT.mpf(float(v))) - 1 - CONTEXT.mpf(float(v))) for v in x]
    np.testing.assert_allclose(excess(x), exact, rtol=2e-14)


# gamma


def test_tangent_gamma_minimises_the_leading_coefficient(rng):
    spectrum = Spectrum(10.0 ** rng.uniform(-1.5, 1.5, size=5), counts=rng.uniform(0.5, 4, size=5))
    eigenvalues, counts, gamma = spectrum.eigenvalues, spectrum.counts, tangent_gamma(spectrum)
    leading = []
    for scale in (0.98, 1.0, 1.02):
        at = scale * gamma
        leading.append(expansion(spectrum, NoiseSchedule.tangent(at), order=2)[2])
        formula = np.pi**4 / 256 * (counts * (eigenvalues / at + 2 + at / eigenvalues)).sum()
        assert leading[-1] == pytest.approx(formula, rel=1e-12)
    assert leading[1] < min(leading[0], leading[2])


def test_counts_repeat_entries():
    assert tangent_gamma(Spectrum([2.0, 0.1], counts=[1, 3])) == pytest.approx(
        tangent_gamma([2.0, 0.1, 0.1, 0.1]), rel=1e-15
    )
    assert best_gamma(Spectrum([2.0, 0.1], counts=[1, 3]), 6) == pytest.approx(
        best_gamma([0.1, 2.0, 0.1, 0.1], 6), rel=1e-7
    )
    np.testing.assert_allclose(
        geodesic_levels(Spectrum([2.0, 0.1], counts=[1, 3]), 6, 50.0),
        geodesic_levels([0.1, 2.0, 0.1, 0.1], 6, 50.0),
        rtol=1e-10,
    )


def test_best_gamma_tends_to_tangent_gamma(rng):
    eigenvalues = 10.0 ** rng.uniform(-1, 1, size=6)
    distances = [
        abs(math.log(best_gamma(eigenvalues, n) / tangent_gamma(eigenvalues))) for n in (20, 200, 2000)
    ]
    for near, far in zip(distances[1:], distances[:-1], strict=True):
        assert near < far / 5 + 1e-7  # the distance falls as 1/N


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("steps", [2, 4, 9])
def test_best_gamma_beats_its_neighbours(rng, metric, steps):
    eigenvalues = 10.0 ** rng.uniform(-3, 3, size=4)
    gamma = best_gamma(eigenvalues, steps, metric=metric)

    def cost(scale):
        levels = [CONTEXT.tan(CONTEXT.pi * k / (2 * steps)) for k in range(steps - 1, -1, -1)]
        levels = [CONTEXT.sqrt(scale * gamma) * level for level in levels]
        return reference.divergence(eigenvalues, [INF, *levels], metric)

    best = cost(1.0)
    for scale in (0.1, 0.5, 0.99, 0.999, 1.001, 1.01, 2.0, 10.0):
        assert best < cost(scale), scale


def test_best_gamma_of_one_eigenvalue_and_of_far_apart_ones():
    assert best_gamma([3.0], 4) == 3.0
    assert best_gamma([3.0, 0.0], 4, metric="w2") == 3.0
    assert best_gamma([1e-30, 1e30], 4, metric="w2") == pytest.approx(1e30, rel=1e-6)
    assert best_gamma([1e-12, 1e12], 4) == pytest.approx(1.0, rel=1e-5)


def test_tangent_law_is_the_best_for_one_eigenvalue_at_every_number_of_steps(rng):
    eigenvalue = np.array([0.7])
    for steps in (2, 3, 5, 12, 40):
        levels = tangent_levels(0.7, steps)
        best = kl(eigenvalue, levels)
        for size in (1e-3, 1e-2, 0.1):
            for _ in range(10):
                moved = levels.copy()
                moved[1:-1] *= np.exp(size / steps * rng.normal(size=steps - 1))
                assert kl(eigenvalue, moved) > best


# Expansion


@pytest.mark.parametrize("gamma", [0.05, 1.0, 4.0])
def test_first_coefficient_of_the_tangent_law(gamma):
    eigenvalues = np.array([0.1, 0.7, 3.0])
    leading = np.pi**2 / 8 * (np.sqrt(eigenvalues / gamma) + np.sqrt(gamma / eigenvalues))
    np.testing.assert_allclose(
        odd_coefficients(eigenvalues, NoiseSchedule.tangent(gamma))[0], leading, rtol=1e-13
    )


def test_coefficients_of_one_eigenvalue_at_its_own_tangent_law():
    """There S = -2 N log cos(pi / 2N), whose series is known."""
    x = np.pi / 2
    exact = [x**2, x**4 / 6, 2 * x**6 / 45, 17 * x**8 / 1260]
    got = odd_coefficients(np.array([2.0]), NoiseSchedule.tangent(2.0))[:, 0]
    for value, expected, rtol in zip(got, exact, [1e-14, 1e-10, 1e-6, 1e-3], strict=True):
        assert value == pytest.approx(expected, rel=rtol)


@pytest.mark.parametrize(("shift", "eigenvalue"), [(1.0, 0.1), (1.0, 1.0), (3.0, 2.0)])
def test_first_two_coefficients_are_the_integrals(shift, eigenvalue):
    """A = int theta'^2, B = int (theta'^4 / 6 - theta''^2 / 12), with derivatives by mpmath."""

    def angle(t):
        return CONTEXT.atan2(shift * t, CONTEXT.sqrt(eigenvalue) * (1 - t))

    def density(t):
        return CONTEXT.diff(angle, t) ** 4 / 6 - CONTEXT.diff(angle, t, 2) ** 2 / 12

    nodes, weights = np.polynomial.legendre.leggauss(40)
    times = [(CONTEXT.mpf(float(x)) + 1) / 2 for x in nodes]
    leading = sum(w / 2 * float(CONTEXT.diff(angle, t)) ** 2 for w, t in zip(weights, times, strict=True))
    second = sum(w / 2 * float(density(t)) for w, t in zip(weights, times, strict=True))
    got = odd_coefficients(np.array([eigenvalue]), NoiseSchedule.flow(shift))[:2, 0]
    np.testing.assert_allclose(got, [leading, second], rtol=1e-9)


@pytest.mark.parametrize("schedule", SMOOTH, ids=repr)
def test_only_odd_powers_in_the_loss(schedule):
    """N S(N) is a series in 1/N^2: halving the step divides successive differences by 4, not by 2."""
    arith, values = reference.arithmetic(50), []
    for steps in (160, 320, 640):
        levels = uniform_levels(schedule, steps)
        ratio = reference.output_variance(0.3, levels, "exact", arith) / (CONTEXT.mpf(0.3) + levels[-1] ** 2)
        values.append(-steps * CONTEXT.log(CONTEXT.mpf(ratio)))
    assert float((values[0] - values[1]) / (values[1] - values[2])) == pytest.approx(4.0, abs=0.05)


@pytest.mark.parametrize("schedule", SMOOTH, ids=repr)
@pytest.mark.parametrize("prior", ["exact", None])
@pytest.mark.parametrize("order", [2, 3, 4, 5, 6, 7, 8])
def test_error_of_the_expansion_falls_at_its_order(schedule, prior, order):
    """The first term left out has the power order + 1, or a higher one where that coefficient is small."""
    spectrum = Spectrum([0.3, 1.0, 2.0], counts=[2.0, 1.0, 3.0])
    coefficients = expansion(spectrum, schedule, order, prior=prior)
    assert coefficients.shape == (order + 1,)
    errors = []
    for steps in (20, 40):
        exact = reference.divergence(
            spectrum.eigenvalues,
            uniform_levels(schedule, steps),
            "kl",
            prior or schedule.prior,
            spectrum.counts,
        )
        series = sum(CONTEXT.mpf(float(c)) / steps**k for k, c in enumerate(coefficients))
        errors.append(abs(float(exact - series)))
        assert errors[-1] < 40 * float(exact) * (2 / steps) ** (order - 1)
    assert math.log2(errors[0] / errors[1]) > order + 1 - 0.1


def test_kl_falls_as_the_square_of_the_steps():
    coefficients = expansion([0.2, 3.0], NoiseSchedule.flow(), 4)
    assert coefficients[0] == coefficients[1] == 0.0
    np.testing.assert_array_equal(coefficients, expansion([0.2, 3.0], NoiseSchedule.flow(), 8)[:5])
    odd = odd_coefficients(np.array([0.2, 3.0]), NoiseSchedule.flow())
    assert coefficients[2] == pytest.approx((odd[0] ** 2).sum() / 4, rel=1e-12)
    assert coefficients[3] == pytest.approx((odd[0] ** 3).sum() / 12, rel=1e-12)
    assert coefficients[4] == pytest.approx((odd[0] ** 4 / 48 + odd[0] * odd[1] / 2).sum(), rel=1e-10)


@pytest.mark.parametrize("prior", ["vp", "ve", "flow", "exact"])
def test_constant_is_the_cost_of_the_prior_and_of_the_mean(prior):
    """mu^2 / (2 v_0) and the divergence of the prior at the first level, which no number of steps removes."""
    spectrum = Spectrum([0.5, 1e-4, 900.0], counts=[2.0, 1.0, 1.0], mean=[1.0, -2.0, 0.3])
    schedule = NoiseSchedule.edm(0.01, 5.0)
    got = expansion(spectrum, schedule, 1, prior=prior)[0]
    initial = {"vp": 26.0, "ve": 25.0, "flow": 36.0}
    expected = 0.0
    for value, count, mean in zip(spectrum.eigenvalues, spectrum.counts, spectrum.mean, strict=True):
        first = initial.get(prior, 25.0 + value)
        x = CONTEXT.log((CONTEXT.mpf(float(value)) + 25) / CONTEXT.mpf(float(first)))
        expected += float(count * ((CONTEXT.exp(x) - 1 - x) / 2 + mean**2 / (2 * first)))
    assert got == pytest.approx(expected, rel=1e-12)


def test_mean_costs_nothing_from_infinite_noise():
    schedule = NoiseSchedule.flow()
    with_mean = expansion(Spectrum([0.5], mean=[7.0]), schedule, prior=None)
    np.testing.assert_array_equal(with_mean, expansion([0.5], schedule, prior=None))


def test_steep_angles_are_resolved_or_refused():
    steep = NoiseSchedule.edm(
        0.001, 80.0, rho=1.0
    )  # linear in t: the angle turns within sqrt(eigenvalue) / 80
    leading = odd_coefficients(np.array([1.0]), steep)[0, 0]
    start, end = math.atan(80.0), math.atan(0.001)
    exact = 79.999 * ((start + math.sin(2 * start) / 2) - (end + math.sin(2 * end) / 2)) / 2
    assert leading == pytest.approx(exact, rel=1e-12)
    with pytest.raises(RuntimeError, match=r"eigenvalue 1e-08 .*too steep"):
        expansion([1.0, 1e-8], steep)


# Geodesic levels


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_geodesic_of_one_eigenvalue_is_the_tangent_law(steps):
    levels = geodesic_levels([4.0], steps, INF)
    np.testing.assert_allclose(levels, tangent_levels(4.0, steps), rtol=2e-8)
    first = math.atan(30.0 / 2) / (math.pi / 2)
    last = math.atan(0.1 / 2) / (math.pi / 2)
    times = first + (last - first) * np.arange(steps + 1) / steps
    expected = NoiseSchedule.tangent(4.0).sigmas(times)
    np.testing.assert_allclose(geodesic_levels([4.0], steps, 30.0, 0.1), expected, rtol=2e-8)


def leading_functional(eigenvalues, counts, levels):
    """sum_i c_i A_i^2 with A_i = N sum (theta step)^2: its limit for many levels of one density."""
    angles = np.arctan2(levels[:, None], np.sqrt(eigenvalues))
    paths = (len(levels) - 1) * (np.diff(angles, axis=0) ** 2).sum(axis=0)
    return (counts * paths**2).sum()


@pytest.mark.parametrize(("first", "last"), [(INF, 0.0), (80.0, 0.002)])
def test_geodesic_minimises_the_leading_functional(rng, first, last):
    eigenvalues, counts = 10.0 ** rng.uniform(-3, 1, size=6), rng.uniform(0.5, 3, size=6)
    spectrum, steps = Spectrum(eigenvalues, counts=counts), 2000
    levels = geodesic_levels(spectrum, steps, first, last)
    best = leading_functional(eigenvalues, counts, levels)
    times = np.arange(steps + 1) / steps
    for frequency in (1, 2, 3, 5):
        gains = []
        for size in (-0.05, -0.02, 0.02, 0.05):  # levels of a slightly different density
            warped = times + size / frequency * np.sin(np.pi * frequency * times)
            moved = levels.copy()
            inner = np.interp(warped, times[1:-1], np.log(levels[1:-1]))
            moved[1:-1] = np.exp(inner[1:-1])
            gains.append(leading_functional(eigenvalues, counts, moved) / best - 1)
        assert min(gains) > 0, (frequency, gains)


def test_geodesic_against_the_tangent_law_and_the_best_levels():
    """A 1/i spectrum of 3,072 eigenvalues: how much worse the tangent law is, how little there is to gain."""
    from scipy.optimize import minimize

    eigenvalues = Spectrum.power_law(3072, 1.0).eigenvalues
    for steps, left in ((5, 0.03), (10, 0.012)):
        levels = geodesic_levels(eigenvalues, steps, 157.0)
        first = math.atan(157.0 / math.sqrt(tangent_gamma(eigenvalues))) / (math.pi / 2)
        tangent = NoiseSchedule.tangent(tangent_gamma(eigenvalues)).sigmas(
            first * np.arange(steps, -1, -1) / steps
        )

        def cost(inner, ends=levels):
            return math.log(kl(eigenvalues, np.concatenate((ends[:1], np.exp(inner), ends[-1:]))))

        found = minimize(cost, np.log(levels[1:-1]), method="BFGS", options={"gtol": 1e-5})
        best = math.exp(found.fun)
        assert best <= kl(eigenvalues, levels) < (1 + left) * best
        assert 1.1 < kl(eigenvalues, tangent) / best < 1.25


def test_geodesic_scales_with_the_unit(rng):
    eigenvalues = 10.0 ** rng.uniform(-3, 3, size=5)
    scaled = geodesic_levels(16 * eigenvalues, 9, 400.0, 0.04)
    np.testing.assert_allclose(scaled, 4 * geodesic_levels(eigenvalues, 9, 100.0, 0.01), rtol=1e-8)


def test_binning_moves_geodesic_levels_little(rng, monkeypatch):
    eigenvalues = 10.0 ** rng.uniform(-6, 2, size=1000)
    binned = geodesic_levels(eigenvalues, 20, INF)
    monkeypatch.setattr("fastkl.theory._BINS", 10**6)
    np.testing.assert_allclose(binned, geodesic_levels(eigenvalues, 20, INF), rtol=2e-4)


def test_zero_eigenvalues_play_no_part_above_zero():
    np.testing.assert_array_equal(
        geodesic_levels([1.0, 0.0, 0.3], 6, 10.0, 0.01), geodesic_levels([1.0, 0.3], 6, 10.0, 0.01)
    )
    schedule = NoiseSchedule.edm(0.02, 10.0)
    np.testing.assert_array_equal(expansion([1.0, 0.0], schedule), expansion([1.0], schedule))


# Bad input

FLOW = NoiseSchedule.flow()
BAD = [
    (tangent_gamma, ([1.0, 0.0],), ValueError, r"spectrum\[1\] = 0\.0.*floor"),
    (tangent_gamma, ([1.0, -1.0],), ValueError, r"spectrum\[1\] = -1\.0"),
    (tangent_gamma, ([1.0, math.nan],), ValueError, r"spectrum\[1\] = nan"),
    (tangent_gamma, ("spectrum",), TypeError, "spectrum"),
    (best_gamma, ([0.0, 1.0], 5), ValueError, r"spectrum\[0\] = 0\.0.*floor"),
    (best_gamma, ([1.0], 1), ValueError, "steps = 1"),
    (best_gamma, ([1.0], 2.0), TypeError, "steps"),
    (
        best_gamma,
        ([4.0, 1.0], 10**400),
        ValueError,
        "steps = an integer of more than 40 digits: must be at most 1000000",
    ),
    (geodesic_levels, ([1.0], 10**6 + 1, 10.0), ValueError, "steps = 1000001: must be at most 1000000"),
    (geodesic_levels, ([1.0], 5, 10**400), ValueError, "sigma_max: must be within the range of float64"),
    (lambda *a: best_gamma(*a, metric="fid"), ([1.0], 2), ValueError, "metric = 'fid'"),
    (lambda *a: best_gamma(*a, metric=2), ([1.0], 2), TypeError, "metric"),
    (lambda *a: best_gamma(*a, metric="w2"), ([0.0, 0.0], 2), ValueError, "spectrum"),
    (expansion, ([1.0, 0.0], FLOW), ValueError, r"spectrum\[1\] = 0\.0.*floor"),
    (
        expansion,
        ([1.0], NoiseSchedule.ddpm_linear()),
        ValueError,
        r"schedule = NoiseSchedule\.ddpm_linear.*smooth",
    ),
    (expansion, ([1.0], "flow"), TypeError, "schedule"),
    (expansion, ([1.0], FLOW, 9), ValueError, "order = 9"),
    (expansion, ([1.0], FLOW, 0), ValueError, "order = 0"),
    (expansion, ([1.0], FLOW, 4.0), TypeError, "order"),
    (lambda *a: expansion(*a, prior="edm"), ([1.0], FLOW), ValueError, "prior = 'edm'"),
    (geodesic_levels, ([0.0, 1.0], 5, 10.0), ValueError, r"spectrum\[0\] = 0\.0.*floor"),
    (geodesic_levels, ([0.0, 0.0], 5, 10.0, 0.1), ValueError, "spectrum"),
    (geodesic_levels, ([1.0], 0, 10.0), ValueError, "steps = 0"),
    (geodesic_levels, ([1.0], True, 10.0), TypeError, "steps"),
    (geodesic_levels, ([1.0], 5, 1.0, 1.0), ValueError, "sigma_max = 1.0"),
    (geodesic_levels, ([1.0], 5, math.nan), ValueError, "sigma_max = nan"),
    (geodesic_levels, ([1.0], 5, None), TypeError, "sigma_max"),
    (geodesic_levels, ([1.0], 5, 1.0, -0.1), ValueError, "sigma_min = -0.1"),
    (geodesic_levels, ([1.0], 5, INF, INF), ValueError, "sigma_min = inf"),
]


@pytest.mark.parametrize(("function", "arguments", "error", "message"), BAD)
def test_bad_input(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(*arguments)


def test_theory_is_an_attribute_of_the_package():
    code = "import sys, fastkl; sys.exit(fastkl.theory is not sys.modules['fastkl.theory'])"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert "theory" in fastkl.__all__


def test_import_loads_no_scipy():
    code = "import sys, fastkl.theory; sys.exit(bool({'scipy', 'numba', 'cupy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
