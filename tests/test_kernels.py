"""The kernels' pieces against plain computations of the same."""

import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from cases import METRICS, PRIORS
from numba import njit

from fastkl import _cpu
from fastkl.kernels import compiling, ddim_compensated, ddim_horner, factors, pairs
from fastkl.kernels.ddim_horner import LANES, MAX_DEGREE, TILE

CONTEXT = mpmath.MPContext()
CONTEXT.dps = 80
INF = math.inf
LENGTHS = [*range(1, 41), 1000]


def exact(value):
    return CONTEXT.mpf(float(value))


def scratch(count=1):
    arrays = [np.full(TILE, np.nan) for _ in range(count)]
    return arrays if count > 1 else arrays[0]


# ---- machine instructions


@njit
def fused(x, y, z):
    return compiling.fma(x, y, z)


@njit
def there_and_back(x):
    return compiling.from_bits(compiling.as_bits(x))


def test_fma_rounds_once(rng):
    for x, y in rng.normal(size=(200, 2)):
        assert fused(x, y, -(x * y)) == float(Fraction(x) * Fraction(y) - Fraction(x * y))


def test_bits_go_there_and_back():
    for x in (0.0, -0.0, 1.0, -2.5, 5e-324, 1e308, INF, -INF):
        assert math.copysign(1, there_and_back(x)) == math.copysign(1, x)
        assert there_and_back(x) == x
    assert math.isnan(there_and_back(math.nan))


def test_no_two_kernels_share_a_name():
    """Compiled code is linked by name: see test_processes_that_compile_at_once_into_one_cache."""
    kernels = {
        id(value): value
        for module in (ddim_horner, ddim_compensated, pairs)
        for value in vars(module).values()
        if hasattr(value, "py_func")
    }
    names = [(k.py_func.__module__, k.py_func.__qualname__) for k in kernels.values()]
    assert len(names) > 30
    assert not {name for name in names if names.count(name) > 1}


# ---- logarithms and sums


def excess_arguments(rng):
    """z from next to -1 to 1e22, with q = 1 + z; near -1 it is q that has the digits."""
    tiny = 10 ** rng.uniform(-150, -1, 1500)
    ratios = 10 ** rng.uniform(-22, 0, 500)
    steps = [
        -0.25,
        0.25,
        math.sqrt(2) - 1,
        math.sqrt(0.5) - 1,
        1.0,
        3.0,
        -0.5,
        -0.75,
        2.0**-52,
        -(2.0**-53),
        1e22,
        0.1,
    ]
    near_steps = [np.nextafter(z, side) for z in steps for side in (-2.0, INF)]
    z = np.concatenate(
        [tiny, -tiny, 10 ** rng.uniform(-1, 22, 800), rng.uniform(-0.99, 3, 800), steps, near_steps]
    )
    return [(float(v), float(1 + v)) for v in z] + [(float(q - 1), float(q)) for q in ratios]


def exact_excess(z, q):
    """Where z is small it is z that is exact; where it is not, q is."""
    if abs(z) < 1e-30:
        return exact(z) ** 2 * (CONTEXT.mpf(1) / 2 - exact(z) / 3)
    return exact(z) - (CONTEXT.log1p(exact(z)) if abs(z) < 0.25 else CONTEXT.log(exact(q)))


def test_excess(rng):
    for z, q in excess_arguments(rng):
        true = exact_excess(z, q)
        assert abs(ddim_horner.excess(z, q) / true - 1) < 1e-14, (z, q)


def test_excess_of_1_is_0():
    assert ddim_horner.excess(0.0, 1.0) == 0.0
    assert ddim_horner.excess(-0.0, 1.0) == 0.0


def test_excess_is_never_negative(rng):
    assert min(ddim_horner.excess(z, q) for z, q in excess_arguments(rng)) >= 0.0


@pytest.mark.parametrize("decades", [0.0, 1e-9, 1.0, 177.0, 300.0])
def test_log_product(rng, decades):
    for _ in range(20):
        values = 10 ** rng.uniform(-decades, decades, LANES)
        true = CONTEXT.fsum(CONTEXT.log(exact(v)) for v in values)
        scale = max(CONTEXT.fsum(abs(CONTEXT.log(exact(v))) for v in values), CONTEXT.mpf(1))
        assert abs(ddim_horner.log_product_lanes(values) - true) < 1e-14 * scale


def test_log_product_of_the_largest_and_least_normal_numbers():
    values = np.full(LANES, 2.0**1023)
    assert ddim_horner.log_product_lanes(values) == pytest.approx(LANES * 1023 * math.log(2), rel=1e-15)
    values = np.full(LANES, 2.0**-1022)
    assert ddim_horner.log_product_lanes(values) == pytest.approx(-LANES * 1022 * math.log(2), rel=1e-15)


def test_sum_tile_for_every_size(rng):
    for size in range(1, TILE + 1):
        tile = scratch()
        tile[:size] = rng.normal(size=size) * 10 ** rng.uniform(-10, 10, size)
        true, scale = math.fsum(tile[:size]), math.fsum(np.abs(tile[:size]))
        assert abs(ddim_horner.sum_tile(tile, size) - true) <= 2e-15 * scale


@pytest.mark.parametrize("spread", [1e-3, 1.5e-2, 0.1, 2.0, 22.0])
@pytest.mark.parametrize("size", [1, 127, 128, 129, 1000, 1023, 1024])
def test_relative_entropy(rng, size, spread):
    """The sum of (q - 1 - log q)/2 over a tile: by products and one logarithm, or one by one."""
    q = 10 ** (rng.uniform(-spread, spread, size) if spread > 1 else rng.normal(size=size) * spread)
    weights = rng.uniform(0.5, 3, size)
    terms = [(exact(v) - 1 - CONTEXT.log(exact(v))) / 2 for v in q]
    for unit, w in ((True, np.ones(TILE)), (False, weights)):
        tile, products, sums = scratch(3)
        tile[:size] = q
        true = CONTEXT.fsum(t * exact(c) for t, c in zip(terms, w, strict=False))
        got = ddim_horner.relative_entropy(tile, w, size, unit, products, sums)
        assert abs(got / true - 1) < 1e-12


# ---- polynomials


def polynomial(factors):
    """Coefficients, highest power first, of the product of (slope x + constant), in exact arithmetic."""
    coefficients = [Fraction(1)]
    for slope, constant in factors:
        longer = [slope * c for c in coefficients] + [Fraction(0)]
        for k, c in enumerate(coefficients):
            longer[k + 1] += constant * c
        coefficients = longer
    return coefficients


def chunk_factors(levels, begin, end):
    """Factors of Q and P for the steps begin to end - 1; an infinite level leaves s_1 and 1."""
    top, bottom = [], []
    for here, there in itertools.pairwise(levels[begin : end + 1]):
        infinite = math.isinf(here)
        top.append((0, Fraction(there)) if infinite else (1, Fraction(here) * Fraction(there)))
        bottom.append((0, Fraction(1)) if infinite else (1, Fraction(here) ** 2))
    return top, bottom


def expanded(levels, prior, degree):
    chunks = math.ceil((levels.size - 1) / degree)
    q, p = np.full((2, chunks, degree + 1), np.nan)
    ddim_horner.expand(_cpu.read_only(levels), ddim_horner.PRIORS[prior], degree, q, p)
    return q, p


@pytest.mark.parametrize("first", [None, INF])
@pytest.mark.parametrize("steps", [1, 2, 7, 8, 9, 16, 17, 33])
def test_expand(rng, steps, first):
    levels = np.sort(10 ** rng.uniform(-3, 3, steps + 1))[::-1].copy()
    levels[0] = levels[0] if first is None else first
    degree = _cpu.chunk_degree(steps, 6.0)
    for prior in PRIORS:
        deviation = {"vp": math.hypot(1, levels[0]), "ve": levels[0], "flow": 1 + levels[0], "exact": 1.0}[
            prior
        ]
        q, p = expanded(levels, prior, degree)
        for chunk in range(q.shape[0]):
            top, bottom = chunk_factors(levels, chunk * degree, min(steps, (chunk + 1) * degree))
            scale = deviation if chunk == 0 and first is None else 1.0
            for got, linear, factor in ((q[chunk], top, scale), (p[chunk], bottom, 1.0)):
                true = [factor * float(c) for c in polynomial(linear)]
                np.testing.assert_array_equal(got[: degree + 1 - len(true)], 0.0)
                np.testing.assert_allclose(got[degree + 1 - len(true) :], true, rtol=1e-14)


@pytest.mark.parametrize("degree", range(1, MAX_DEGREE + 1))
def test_quotient_of_every_degree(rng, degree):
    for size in (1, 3, 8, 100, 1024):
        x = 10 ** rng.uniform(-3, 3, size)
        top, bottom = 10 ** rng.uniform(-3, 3, (2, 3, degree + 1))
        a, b, product = scratch(3)
        ddim_horner.quotient_of_polynomials(_cpu.read_only(x), top, bottom, a, b, product)
        true = np.prod(
            [np.polyval(t, x) / np.polyval(u, x) for t, u in zip(top, bottom, strict=True)], axis=0
        )
        np.testing.assert_allclose(product[:size], true, rtol=1e-13)
        assert np.isnan(product[size:]).all()


@pytest.mark.parametrize("first", [None, INF])
@pytest.mark.parametrize("steps", [*range(1, 18), 31, 32, 33])
def test_quotient_of_factors(rng, steps, first):
    levels = np.sort(10 ** rng.uniform(-3, 3, steps + 1))[::-1].copy()
    levels[0] = levels[0] if first is None else first
    pairs_of_levels = list(itertools.pairwise(levels))[0 if first is None else 1 :]
    start = 1.7 if first is None else 1.7 * levels[1]
    for size in (1, 3, 8, 100, 512):
        x = 10 ** rng.uniform(-3, 3, size)
        true = start * np.prod([(x + s * t) / (x + s * s) for s, t in pairs_of_levels], axis=0)
        for inverse in (False, True):
            a, b, out = scratch(3)
            factors.quotient_of_factors(_cpu.read_only(x), _cpu.read_only(levels), 1.7, inverse, a, b, out)
            np.testing.assert_allclose(out[:size], 1 / true if inverse else true, rtol=1e-13)
            assert np.isnan(out[size:]).all()


@pytest.mark.parametrize("value", [1e-30, 1e30])
def test_products_of_factors_at_the_ends_of_their_range_do_not_overflow(value):
    """All factors as large, or as small, as validation lets them be."""
    levels = math.sqrt(value) * (1 - 1e-6 * np.arange(34))
    true = math.prod((value + s * t) / (value + s * s) for s, t in itertools.pairwise(levels))
    a, b, out = scratch(3)
    x = _cpu.read_only(np.full(9, value))
    factors.quotient_of_factors(x, _cpu.read_only(levels), 1.0, False, a, b, out)
    np.testing.assert_allclose(out[:9], true, rtol=1e-13)


@pytest.mark.parametrize("steps", LENGTHS)
def test_chunks_of_every_length(rng, steps):
    levels = np.geomspace(1e3, 1e-3, steps + 1)
    x = 10 ** rng.uniform(-6, 6, 50)
    true = np.prod([(x + s * t) / (x + s * s) for s, t in itertools.pairwise(levels)], axis=0)
    for span in (1.0, 12.0, 18.0, 18.2, 29.0, 30.0):
        degree = _cpu.chunk_degree(steps, span)
        chunks = math.ceil(steps / degree)
        assert 1 <= degree <= MAX_DEGREE
        assert degree * span <= _cpu.LARGEST_EXPONENT
        assert (chunks - 1) * degree < steps <= chunks * degree  # none is empty
        q, p = expanded(levels, "exact", degree)
        assert q.shape[0] == chunks
        a, b, product = scratch(3)
        ddim_horner.quotient_of_polynomials(_cpu.read_only(x), q, p, a, b, product)
        np.testing.assert_allclose(product[:50], true, rtol=1e-13 if steps < 100 else 1e-12)


@pytest.mark.parametrize("span", [12.0, 18.0, 24.0, 29.0, 30.0])
def test_polynomials_at_the_ends_of_their_range_do_not_overflow(span):
    """All factors as large, or as small, as the span lets them be."""
    for sign, steps in itertools.product((1, -1), (1, 9, 16, 40)):
        degree = _cpu.chunk_degree(steps, span)
        value = 10.0 ** (sign * span)
        levels = math.sqrt(value) * (1 - 1e-6 * np.arange(steps + 1))
        x = np.array([value])
        for prior in PRIORS:
            q, p = expanded(levels, prior, degree)
            a, b, product = scratch(3)
            ddim_horner.quotient_of_polynomials(_cpu.read_only(x), q, p, a, b, product)
            deviation = {
                "vp": math.hypot(1, levels[0]),
                "ve": levels[0],
                "flow": 1 + levels[0],
                "exact": 1.0,
            }[prior]
            true = deviation * math.prod(
                (value + s * t) / (value + s * s) for s, t in itertools.pairwise(levels)
            )
            assert product[0] == pytest.approx(true, rel=1e-13)


# ---- pairs


def random_pairs(rng, count):
    high = 10 ** rng.uniform(-100, 100, count)
    low = high * rng.uniform(-1, 1, count) * 2.0**-53
    return [(float(h + e), float(e - ((h + e) - h))) for h, e in zip(high, low, strict=True)]


PAIR_OPERATIONS = {
    "pair_add": lambda x, y: x + y,
    "pair_multiply": lambda x, y: x * y,
    "pair_divide": lambda x, y: x / y,
}


@pytest.mark.parametrize("name", PAIR_OPERATIONS)
def test_pair_arithmetic(rng, name):
    """Positive pairs, as all that the kernels meet."""
    operation, true_operation = getattr(pairs, name), PAIR_OPERATIONS[name]
    left, right = random_pairs(rng, 2000), random_pairs(rng, 2000)
    close = [(h * 1.0000001, e) for h, e in left[:500]]
    for (a, b), (c, e) in zip([*left, *left[:500]], [*right, *close], strict=True):
        high, low = operation(a, b, c, e)
        true = true_operation(exact(a) + exact(b), exact(c) + exact(e))
        assert abs((exact(high) + exact(low)) / true - 1) < 1e-30
        assert high + low == high


def test_pair_product_is_exact(rng):
    for a, b in 10 ** rng.uniform(-100, 100, (500, 2)) * rng.uniform(1, 2, (500, 2)):
        high, low = pairs.pair_product(a, b)
        assert Fraction(high) + Fraction(low) == Fraction(a) * Fraction(b)


@pytest.mark.parametrize("first", [1e-15, 1e-4, 0.3, 1.0, 7.7, 1e5, 1e15])
def test_start_variance_and_deviation(first):
    s = exact(first)
    true = {"vp": 1 + s * s, "ve": s * s, "flow": (1 + s) ** 2}
    for prior, v0 in true.items():
        high, low = ddim_compensated.start_variance(first, ddim_horner.PRIORS[prior])
        assert abs((exact(high) + exact(low)) / v0 - 1) < 1e-30
        deviation = ddim_horner.start_deviation(first, ddim_horner.PRIORS[prior])
        assert abs(exact(deviation) / CONTEXT.sqrt(v0) - 1) < 1e-15
    assert ddim_horner.start_deviation(first, ddim_horner.EXACT) == 1.0
    for prior in PRIORS:
        assert ddim_horner.start_deviation(INF, ddim_horner.PRIORS[prior]) == 1.0
        assert ddim_compensated.start_variance(INF, ddim_horner.PRIORS[prior]) == (1.0, 0.0)


# ---- tiles


def fast_sums(eigenvalues, weights, levels, metric, prior, cuts=None):
    """Tile sums of the fast kernel; `cuts` are the ranges (m0, m1, t0, t1) of its calls."""
    tiles = math.ceil(eigenvalues.size / TILE)
    out = np.full((levels.shape[0], tiles), np.nan)
    unit = weights is None
    used = np.ones(TILE) if unit else weights
    degree = _cpu.chunk_degree(levels.shape[1] - 1, 12.0)
    for cut in cuts or [(0, levels.shape[0], 0, tiles)]:
        ddim_horner.tile_sums(_cpu.read_only(eigenvalues), _cpu.read_only(used), unit, _cpu.read_only(levels),
                              ddim_horner.PRIORS[prior], degree, ddim_horner.METRICS[metric], *cut, out)  # fmt: skip
    return out


def compensated_sums(eigenvalues, weights, levels, metric, prior):
    shape = levels.shape[0], math.ceil(eigenvalues.size / TILE)
    candidates, tiles = np.indices(shape).reshape(2, -1)
    out = np.full(candidates.size, np.nan)
    used = np.ones(TILE) if weights is None else weights
    ddim_compensated.compensated_tile_sums(
        _cpu.read_only(eigenvalues), _cpu.read_only(used), _cpu.read_only(levels), ddim_horner.PRIORS[prior],
        2 * _cpu.chunk_degree(levels.shape[1] - 1, 12.0, 2), ddim_horner.METRICS[metric], candidates, tiles,
        0, candidates.size, out)  # fmt: skip
    return out.reshape(shape)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("size", [1, 1000, 1024, 2100])
def test_both_kernels_agree_where_no_digits_are_lost(rng, size, prior):
    eigenvalues = np.exp(2 * rng.normal(size=size))
    levels = np.geomspace([90.0, 3.0, 50.0], [0.5, 0.1, 1e-3], 12, axis=1)
    levels[0, 0] = INF
    levels[1, -1] = 0.0
    levels[2, -1] = 0.0
    for metric, weights in itertools.product(METRICS, (None, rng.uniform(0.5, 3, size))):
        fast = fast_sums(eigenvalues, weights, levels, metric, prior)
        slow = compensated_sums(eigenvalues, weights, levels, metric, prior)
        np.testing.assert_allclose(fast, slow, rtol=2e-11)


def test_tiles_and_candidates_do_not_see_each_other(rng):
    """Any cut into tasks gives the same bits, and a task writes what it was told and nothing else."""
    eigenvalues = np.exp(2 * rng.normal(size=4 * TILE + 17))
    levels = np.geomspace(rng.uniform(5, 50, 6), 0.01, 12, axis=1)
    for metric, prior in zip(METRICS, PRIORS, strict=True):
        whole = fast_sums(eigenvalues, None, levels, metric, prior)
        ones = [(m, m + 1, t, t + 1) for m, t in itertools.product(range(6), range(5))]
        blocks = [(0, 4, 0, 2), (4, 6, 0, 5), (0, 4, 2, 5)]
        for cuts in (ones, ones[::-1], blocks):
            np.testing.assert_array_equal(fast_sums(eigenvalues, None, levels, metric, prior, cuts), whole)
        part = fast_sums(eigenvalues, None, levels, metric, prior, [(1, 3, 2, 4)])
        assert np.isnan(part).sum() == part.size - 4
        np.testing.assert_array_equal(part[1:3, 2:4], whole[1:3, 2:4])


def test_tasks_cover_everything_once():
    shapes = [(1, 1, 1), (7, 3, 10), (1000, 1, 10), (3, 2000, 16), (100, 17, 1000), (1, 40, 100_000)]
    for (candidates, tiles, steps), threads in itertools.product(shapes, (1, 2, 5)):
        levels = np.broadcast_to(np.linspace(2, 1, steps + 1), (candidates, steps + 1))
        problem = _cpu.Problem(np.ones(tiles * TILE - 7), None, levels, "vp", threads)
        covered = np.zeros((candidates, tiles), dtype=int)

        def task(m0, m1, t0, t1, covered=covered):
            covered[m0:m1, t0:t1] += 1

        problem.run(task, 0, candidates)
        assert (covered == 1).all()
        covered[...] = 0
        problem.run(task, candidates // 2, candidates)
        assert (covered[candidates // 2 :] == 1).all()
        assert not covered[: candidates // 2].any()
