"""The reference against formulas that it does not use: angles, hand-worked steps, integrals, limits."""

import ast
import itertools
import math
from pathlib import Path

import mpmath
import pytest
import reference

INF = math.inf
PRIORS = ["vp", "ve", "flow", "exact"]
METRICS = ["kl", "reverse_kl", "jeffreys", "w2"]
CONTEXT = mpmath.MPContext()
CONTEXT.dps = 90


def random_case(rng, steps=7, last=0.0):
    """Eigenvalues over 12 decades and levels over 6, in descending order."""
    eigenvalues = (10.0 ** rng.uniform(-6, 6, size=3)).tolist()
    levels = sorted((10.0 ** rng.uniform(-3, 3, size=steps)).tolist(), reverse=True)
    return eigenvalues, [*levels, last]


def ratio_in_angles(eigenvalue, sigmas, prior):
    """Output over target variance as the prior's ratio times the product of cos^2(theta_k - theta_{k+1})."""
    root, levels = CONTEXT.sqrt(eigenvalue), [CONTEXT.mpf(s) for s in sigmas]
    first = levels[0]
    initial = {"vp": 1 + first**2, "ve": first**2, "flow": (1 + first) ** 2, "exact": eigenvalue + first**2}
    ratio = CONTEXT.mpf(1) if first == INF else initial[prior] / (eigenvalue + first**2)
    angles = [CONTEXT.atan(level / root) for level in levels]
    for before, after in itertools.pairwise(angles):
        ratio *= CONTEXT.cos(before - after) ** 2
    return ratio


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize(("first", "last"), [(None, 0.0), (None, 1e-4), (INF, 0.0), (INF, 1e-4)])
def test_output_variance_is_a_product_of_cosines(rng, prior, first, last):
    eigenvalues, sigmas = random_case(rng, last=last)
    if first is not None:
        sigmas = [first, *sigmas]
    for eigenvalue in eigenvalues:
        target = CONTEXT.mpf(eigenvalue) + CONTEXT.mpf(last) ** 2
        expected = target * ratio_in_angles(eigenvalue, sigmas, prior)
        got = reference.output_variance(eigenvalue, sigmas, prior, reference.arithmetic(50))
        assert abs(got / expected - 1) < 1e-50


HALF_LOG2 = math.log(2) / 2
BY_HAND = [  # lambda = 1: one step from 1 to 0 halves y, one from 3 to 1 takes 2/5 of it
    ([1, 0], "vp", "kl", 0.5 - HALF_LOG2),
    ([1, 0], "vp", "reverse_kl", HALF_LOG2 - 0.25),
    ([1, 0], "vp", "jeffreys", 0.25),
    ([1, 0], "vp", "w2", (math.sqrt(0.5) - 1) ** 2),
    ([1, 0], "ve", "kl", 1.5 - 2 * HALF_LOG2),
    ([1, 0], "ve", "w2", 0.25),
    ([1, 0], "flow", "kl", 0.0),
    ([1, 0], "exact", "kl", 0.5 - HALF_LOG2),
    ([3, 1, 0], "vp", "w2", (math.sqrt(10) / 5 - 1) ** 2),
    ([3, 1], "ve", "w2", (1.2 - math.sqrt(2)) ** 2),
    ([INF, 1, 0], "vp", "w2", 0.25),
    ([INF, 1, 0], "flow", "kl", 1.5 - 2 * HALF_LOG2),
    ([INF, 1], "ve", "kl", 0.5 - HALF_LOG2),
    ([INF, 0], "vp", "kl", INF),
    ([INF, 0], "vp", "reverse_kl", INF),
    ([INF, 0], "vp", "w2", 1.0),
]


@pytest.mark.parametrize("digits", [None, 50])
@pytest.mark.parametrize(("sigmas", "prior", "metric", "expected"), BY_HAND)
def test_steps_worked_by_hand(sigmas, prior, metric, expected, digits):
    got = float(reference.divergence([1.0], sigmas, metric, prior, digits=digits))
    assert got == pytest.approx(expected, rel=1e-15, abs=1e-16)


def test_trajectory_by_hand():
    assert reference.trajectory(1.0, [3.0, 1.0, 0.0], "vp") == pytest.approx([10.0, 1.6, 0.4], rel=1e-15)
    assert reference.trajectory(2.0, [INF, 2.0, 0.0], "ve") == pytest.approx([INF, 4.0, 4.0 / 9], rel=1e-15)


def test_infinite_first_level_is_the_limit_of_large_ones():
    for prior in PRIORS:
        for metric in METRICS:
            far = reference.divergence([0.3, 2.0], ["1e40", 1.5, 0.2], metric, prior, mean=[1.0, -1.0])
            limit = reference.divergence([0.3, 2.0], [INF, 1.5, 0.2], metric, prior, mean=[1.0, -1.0])
            assert abs(far / limit - 1) < 1e-35


@pytest.mark.parametrize("prior", PRIORS)
def test_many_steps_leave_the_error_of_the_prior(prior):
    """The exact flow keeps the ratio to the true variance; n S tends to the integral of theta'^2."""
    eigenvalue, first, steps = 0.5, 3.0, 500
    start, end = CONTEXT.atan(first / CONTEXT.sqrt(eigenvalue)), CONTEXT.mpf(0)
    angles = [start + (end - start) * k / steps for k in range(steps + 1)]
    sigmas = [CONTEXT.sqrt(eigenvalue) * CONTEXT.tan(angle) for angle in angles]
    got = reference.output_variance(eigenvalue, sigmas, prior, reference.arithmetic(50)) / eigenvalue
    of_prior = ratio_in_angles(eigenvalue, [first], prior)
    assert abs(got / of_prior - 1) < 2e-2
    assert abs(-CONTEXT.log(got / of_prior) * steps / start**2 - 1) < 1e-5


def density(x, mean, variance):
    return CONTEXT.exp(-((x - mean) ** 2) / (2 * variance)) / CONTEXT.sqrt(2 * CONTEXT.pi * variance)


def integrated_kl(p, q):
    """Integral of p log(p/q) for two Gaussians (mean, variance) by Gauss-Legendre panels."""
    half = 14 * CONTEXT.sqrt(p[1])
    panels = CONTEXT.linspace(p[0] - half, p[0] + half, 9)
    return CONTEXT.quad(
        lambda x: density(x, *p) * CONTEXT.log(density(x, *p) / density(x, *q)), panels, maxdegree=6
    )


def test_divergences_are_integrals_over_the_two_gaussians():
    eigenvalue, mu, sigmas, prior = 0.7, 0.4, [4.0, 1.0, 0.3], "vp"
    output = reference.output_variance(eigenvalue, sigmas, prior, reference.arithmetic(50))
    model = (mu - reference.gain(eigenvalue, sigmas) * mu, output)
    data = (mu, CONTEXT.mpf(eigenvalue) + CONTEXT.mpf(0.3) ** 2)
    forward, backward = integrated_kl(data, model), integrated_kl(model, data)
    transport = CONTEXT.quad(  # the monotone map sends the quantile z of one to the quantile z of the other
        lambda z: density(z, 0, 1) * (data[0] - model[0] + z * (data[1] ** 0.5 - model[1] ** 0.5)) ** 2,
        CONTEXT.linspace(-14, 14, 9),
        maxdegree=6,
    )
    expected = {"kl": forward, "reverse_kl": backward, "jeffreys": forward + backward, "w2": transport}
    for metric, value in expected.items():
        got = reference.divergence([eigenvalue], sigmas, metric, prior, mean=[mu])
        assert abs(got / value - 1) < 1e-14, metric


def test_divergences_add_over_the_spectrum_and_counts_repeat_entries(rng):
    eigenvalues, sigmas = random_case(rng)
    mean = rng.normal(size=3).tolist()
    for metric in METRICS:
        whole = reference.divergence(eigenvalues, sigmas, metric, counts=[2, 1, 3], mean=mean)
        entries = [0, 0, 1, 2, 2, 2]
        parts = [reference.divergence([eigenvalues[i]], sigmas, metric, mean=[mean[i]]) for i in entries]
        assert abs(whole / sum(parts) - 1) < 1e-50
        assert whole > 0


def test_mean_costs_kl_the_same_whatever_the_levels_between(rng):
    eigenvalues, sigmas = random_case(rng)
    for prior in PRIORS:
        for levels in (sigmas, [sigmas[0], *sigmas[2:]], [sigmas[0], sigmas[-1]]):
            with_mean = reference.divergence(eigenvalues, levels, "kl", prior, mean=[0.5, 1.0, 2.0])
            without = reference.divergence(eigenvalues, levels, "kl", prior)
            first, arith = CONTEXT.mpf(sigmas[0]), reference.arithmetic(50)
            initial = [reference.initial_variance(arith.number(v), first, prior) for v in eigenvalues]
            expected = sum(m**2 / (2 * v) for m, v in zip([0.5, 1.0, 2.0], initial, strict=True))
            assert abs((with_mean - without) / expected - 1) < 1e-40


@pytest.mark.parametrize("prior", ["ve", "exact"])
def test_kl_does_not_change_with_the_unit(rng, prior):
    eigenvalues, sigmas = random_case(rng)
    scaled = [16 * v for v in eigenvalues], [4 * s for s in sigmas]
    for metric in ("kl", "reverse_kl", "jeffreys"):
        ratio = reference.divergence(*scaled, metric, prior) / reference.divergence(
            eigenvalues, sigmas, metric, prior
        )
        assert abs(ratio - 1) < 1e-50


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("prior", PRIORS)
def test_float64_follows_the_fifty_digits(rng, metric, prior):
    eigenvalues, sigmas = random_case(rng, last=1e-4)
    exact = reference.divergence(eigenvalues, sigmas, metric, prior, mean=[1.0, 0.0, 3.0])
    assert reference.divergence(
        eigenvalues, sigmas, metric, prior, mean=[1.0, 0.0, 3.0], digits=None
    ) == pytest.approx(float(exact), rel=1e-10)


def test_fifty_digits_are_right_even_where_most_cancel():
    """1,000 steps so fine that kl is about 1e-12: float64 keeps few of its digits, 50 are kept here."""
    sigmas = [1 + 4e-5 * k for k in range(1000, -1, -1)]
    value = reference.divergence([1.0], sigmas, prior="exact")
    more = reference.divergence([1.0], sigmas, prior="exact", digits=100)
    assert 1e-15 < value < 1e-11
    assert abs(value / more - 1) < 1e-50


def test_zero_eigenvalues():
    assert reference.divergence([0.0], [INF, 1.0, 0.0], "w2") == 0
    assert reference.divergence([0.0], [2.0, 1.0, 0.0], "w2", digits=None, mean=[3.0]) == 0.0
    assert reference.divergence([0.0], [2.0, 1.0], "kl", "ve") == 0  # exact along a direction without data
    for metric in ("kl", "reverse_kl", "jeffreys"):
        with pytest.raises(ValueError, match="eigenvalue 0"):
            reference.divergence([1.0, 0.0], [2.0, 1.0, 0.0], metric)


def test_reference_imports_nothing_of_fastkl_and_leaves_the_precision_alone():
    tree = ast.parse(Path(reference.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"math", "types", "mpmath"}
    before = mpmath.mp.prec
    reference.divergence([1.0], [2.0, 0.0])
    assert mpmath.mp.prec == before
