"""Every choice of levels against itertools and `divergence`; ranks, resumption, merging, threads, bad input."""

import itertools
import math
import re

import numpy as np
import pytest
import reference
from cases import METRICS, PRIORS
from search_cases import grid_of

import fastkl
from fastkl import NoiseSchedule, Spectrum, exhaustive

INF = math.inf
STARTS = ("first", "free")


def discrete(rng, size, infinite=False):
    """A schedule of random levels, the noisiest perhaps inf."""
    sigmas = np.cumsum(np.exp(rng.normal(size=size))) * 10 ** rng.uniform(-2, 1)
    alphas = 1 / (1 + np.square(sigmas))
    if infinite:
        alphas[-1] = 0.0
    return NoiseSchedule.from_alphas_cumprod(alphas)


def spectrum(rng, size, zeros=0, full=True):
    values = 10 ** rng.uniform(-3, 3, size)
    values[:zeros] = 0.0
    counts = rng.uniform(0.5, 50, size) if full else None
    return Spectrum(values, counts, rng.normal(size=size) if full else np.zeros(size))


def all_sigmas(schedule, steps, free, grid=None, data=None):
    """Every choice in lexicographic order of indices, noisiest first, (choices, N+1)."""
    levels = grid_of(schedule, grid, data)
    size = len(levels)
    if free:
        paths = list(itertools.combinations(range(size), steps))
    else:
        paths = [(0, *rest) for rest in itertools.combinations(range(1, size), steps - 1)]
    return np.concatenate([levels[np.array(paths)], np.zeros((len(paths), 1))], axis=1)


def check(result, data, sigmas, metric, prior):
    """The list kept is that of a sort of all divergences, by value; the ranks have these values."""
    values = fastkl.divergence(data, sigmas, metric, prior=prior)
    assert result.total == len(sigmas)
    expected = np.sort(values)[: result.keep]
    np.testing.assert_allclose(result.values, expected, rtol=1e-11)
    assert (np.diff(result.values) >= 0).all()
    assert len(set(result.ranks)) == len(result.ranks) == len(expected)
    np.testing.assert_array_equal(result.kept_sigmas, sigmas[list(result.ranks)])
    np.testing.assert_allclose(result.values, values[list(result.ranks)], rtol=1e-13)
    assert result.rank == result.ranks[0]
    assert result.value == result.values[0]
    np.testing.assert_array_equal(result.sigmas, sigmas[result.rank])


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("infinite", [False, True])
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("metric", METRICS)
def test_small_cases_against_itertools(rng, metric, prior, infinite, start):
    free = start == "free"
    for steps, size in ((1, 6), (2, 9), (3, 8), (4, 9), (6, 6), (7, 9)):
        if infinite and steps == 1 and not free:
            continue
        schedule = discrete(rng, size, infinite)
        data = spectrum(rng, int(rng.integers(1, 7)), zeros=int(rng.integers(0, 2)) if metric == "w2" else 0)
        keep = int(rng.integers(1, 30))
        result = exhaustive(data, schedule, steps, metric, prior, free_start=free, keep=keep)
        check(result, data, all_sigmas(schedule, steps, free), metric, prior)
        assert result.complete
        assert result.next_rank is None
        np.testing.assert_array_equal(schedule.sigmas(result.timesteps), result.sigmas[:-1])
        assert (result.steps, result.metric, result.prior) == (steps, metric, prior)


@pytest.mark.parametrize("schedule", [NoiseSchedule.edm(), NoiseSchedule.flow(), NoiseSchedule.tangent(1.0)])
@pytest.mark.parametrize("start", STARTS)
def test_continuous_schedules_and_their_own_priors(rng, schedule, start):
    data, free = spectrum(rng, 4, full=False), start == "free"
    result = exhaustive(data, schedule, 3, free_start=free, grid=20)
    assert result.timesteps is None
    assert result.prior == schedule.prior
    check(result, data, all_sigmas(schedule, 3, free, 20, data), "kl", schedule.prior)


@pytest.mark.parametrize("metric", METRICS)
def test_blocks_longer_than_the_kernels(rng, metric):
    schedule, data = discrete(rng, 301), spectrum(rng, 3)
    result = exhaustive(data, schedule, 3, metric, keep=50)
    check(result, data, all_sigmas(schedule, 3, False), metric, "vp")


def test_values_agree_with_fifty_digits(rng):
    for metric, prior in itertools.product(METRICS, PRIORS):
        data, schedule = spectrum(rng, 3), discrete(rng, 12)
        result = exhaustive(data, schedule, 4, metric, prior, keep=2)
        for value, sigmas in zip(result.values, result.kept_sigmas, strict=True):
            true = reference.divergence(
                data.eigenvalues, sigmas, metric, prior, counts=data.counts, mean=data.mean
            )
            assert abs(value - true) <= 1e-10 * true


def test_the_kernel_keeps_its_digits_where_the_divergence_is_tiny(rng):
    """Ranked by the kernel's values alone: the least losses are some 1e-10, their squares 1e-20."""
    data, schedule = Spectrum([1e10, 3e10]), discrete(rng, 30)
    sigmas = all_sigmas(schedule, 3, False)
    values = fastkl.divergence(data, sigmas, prior="exact")
    assert values.max() < 1e-10
    result = exhaustive(data, schedule, 3, prior="exact", keep=1)
    assert result.value == values.min()


def test_only_eigenvalues_of_zero():
    result = exhaustive([0.0, 0.0], NoiseSchedule.ddpm_linear(10), 3, "w2", keep=4)
    assert result.ranks == (0, 1, 2, 3)
    assert result.values.tolist() == [0.0] * 4


def test_of_equal_values_the_least_rank_comes_first():
    """A zero eigenvalue makes all choices equal; so whatever is cut into tasks, ranks ascend."""
    for threads in (1, 3):
        result = exhaustive([0.0], NoiseSchedule.ddpm_linear(60), 4, "w2", keep=40, num_threads=threads)
        assert result.ranks == tuple(range(40))


# ---- ranks, resumption, merging


@pytest.mark.parametrize("start", STARTS)
def test_every_stretch_of_ranks(rng, start):
    schedule, data, free = discrete(rng, 9), spectrum(rng, 3), start == "free"
    sigmas = all_sigmas(schedule, 4, free)
    values = fastkl.divergence(data, sigmas)
    for first, count in itertools.product(range(0, len(sigmas), 5), (1, 2, 7, 1000)):
        result = exhaustive(data, schedule, 4, free_start=free, first_rank=first, count=count, keep=3)
        end = min(first + count, len(sigmas))
        assert result.ranges == ((first, end),)
        assert result.next_rank == (end if end < len(sigmas) else None)
        assert result.complete == ((first, end) == (0, len(sigmas)))
        assert result.rank == first + int(np.argmin(values[first:end]))
        assert len(result.values) == min(3, end - first)


def test_going_on_from_next_rank_gives_the_same_as_one_call(rng):
    schedule, data = discrete(rng, 14), spectrum(rng, 3)
    whole = exhaustive(data, schedule, 5, keep=10)
    parts, rank = [], 0
    while rank is not None:
        parts.append(exhaustive(data, schedule, 5, first_rank=rank, count=100, keep=10))
        rank = parts[-1].next_rank
    assert len(parts) == math.ceil(whole.total / 100)
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    backwards = parts[-1]
    for part in parts[-2::-1]:
        assert not backwards.complete
        backwards = part.merge(backwards)
    for result in (merged, backwards, whole.merge(whole), whole.merge(parts[3])):
        assert same(result, whole)
        assert result.complete


def same(a, b):
    return (
        (a.ranks, a.rank, a.value, a.ranges, a.next_rank, a.keep)
        == (b.ranks, b.rank, b.value, b.ranges, b.next_rank, b.keep)
        and np.array_equal(a.values, b.values)
        and np.array_equal(a.kept_sigmas, b.kept_sigmas)
        and np.array_equal(a.sigmas, b.sigmas)
        and np.array_equal(a.timesteps, b.timesteps)
    )


def test_merging_with_a_gap_and_with_fewer_kept(rng):
    schedule, data = discrete(rng, 12), spectrum(rng, 2)
    early = exhaustive(data, schedule, 4, count=40, keep=8)
    late = exhaustive(data, schedule, 4, first_rank=100, keep=3)
    assert (early.next_rank, late.next_rank) == (40, None)
    assert not late.complete
    merged = early.merge(late)
    assert merged.ranges == ((0, 40), (100, 165))
    assert merged.next_rank == 40
    assert not merged.complete
    assert merged.keep == len(merged.ranks) == 3
    assert merged.ranks == tuple(
        sorted((*early.ranks, *late.ranks), key=lambda r: value_of(r, early, late))[:3]
    )


def value_of(rank, *results):
    return next(
        v for result in results for r, v in zip(result.ranks, result.values, strict=True) if r == rank
    )


def test_ranks_beyond_64_bits(rng):
    schedule, data = NoiseSchedule.ddpm_linear(), spectrum(rng, 3)
    total = math.comb(999, 29)
    assert total > 2**180
    result = exhaustive(data, schedule, 30, first_rank=total - 2)
    assert result.ranges == ((total - 2, total),)
    assert result.next_rank is None
    timesteps = {total - 2: [999, 29, *range(27, -1, -1)], total - 1: [999, *range(28, -1, -1)]}
    assert set(result.ranks) == set(timesteps)
    for rank, sigmas in zip(result.ranks, result.kept_sigmas, strict=True):
        np.testing.assert_array_equal(sigmas[:-1], schedule.sigmas(timesteps[rank]))
    assert exhaustive(data, schedule, 30, first_rank=total - 3, count=1).next_rank == total - 2


def test_merging_needs_one_problem(rng):
    schedule, data = discrete(rng, 8), spectrum(rng, 3)
    base = exhaustive(data, schedule, 3)
    others = [
        exhaustive(spectrum(rng, 3), schedule, 3),
        exhaustive(Spectrum(data.eigenvalues, data.counts), schedule, 3),
        exhaustive(data, discrete(rng, 8), 3),
        exhaustive(data, schedule, 4),
        exhaustive(data, schedule, 3, "reverse_kl"),
        exhaustive(data, schedule, 3, prior="ve"),
        exhaustive(data, schedule, 3, free_start=True),
    ]
    for other in others:
        with pytest.raises(ValueError, match=r"^other: must be a result for the same spectrum, schedule"):
            base.merge(other)
    with pytest.raises(TypeError, match=r"^other: must be an ExhaustiveResult, got int"):
        base.merge(3)


# ---- threads


@pytest.mark.parametrize("metric", METRICS)
def test_the_number_of_threads_changes_no_bit(rng, metric):
    data, schedule = spectrum(rng, 20, zeros=1 if metric == "w2" else 0), discrete(rng, 40)
    one = exhaustive(data, schedule, 5, metric, keep=100, num_threads=1)
    assert one.total * len(data) > 1 << 18  # enough work for threads
    for threads in (2, 3, 8):
        assert same(exhaustive(data, schedule, 5, metric, keep=100, num_threads=threads), one)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastkl._exhaustive.TASK", 5000)  # tasks of some hundred choices, cut anywhere
        assert same(exhaustive(data, schedule, 5, metric, keep=100, num_threads=2), one)


def test_search_agrees(rng):
    data, schedule = Spectrum.preset("digits").compress(), NoiseSchedule.cosine(60)
    for metric in ("kl", "reverse_kl", "jeffreys"):
        best = fastkl.search(data, schedule, 4, metric=metric)
        assert best.proved_optimal
        found = exhaustive(data, schedule, 4, metric)
        assert found.value == pytest.approx(best.value, rel=1e-12)
        assert found.total == best.candidates


# ---- bad input

LINEAR = NoiseSchedule.ddpm_linear(20)
ZERO_SNR = NoiseSchedule.from_alphas_cumprod([0.9, 0.5, 0.0])
BAD = {
    "no spectrum": (("x", LINEAR, 3), {}, TypeError, r"^spectrum: must be an array of real numbers"),
    "negative": (([1.0, -1.0], LINEAR, 3), {}, ValueError, r"^spectrum\[1\] = -1\.0"),
    "zero": (([1.0, 0.0], LINEAR, 3), {}, ValueError, r"^spectrum\[1\] = 0\.0: must be above 0, because kl"),
    "zero of a Spectrum": (
        (Spectrum([1.0, 0.0]), LINEAR, 3),
        {},
        ValueError,
        r"^spectrum\.eigenvalues\[1\] = 0\.0",
    ),
    "schedule": (([1.0], [3.0, 2.0], 3), {}, TypeError, r"^schedule: must be a NoiseSchedule, got list"),
    "steps": (([1.0], LINEAR, 0), {}, ValueError, r"^steps = 0: must be at least 1"),
    "many steps": (([1.0], LINEAR, 21), {}, ValueError, r"^steps = 21: must be at most 20"),
    "several steps": (([1.0], LINEAR, [3]), {}, TypeError, r"^steps: must be an integer, got \[3\]"),
    "float steps": (([1.0], LINEAR, 3.0), {}, TypeError, r"^steps: must be an integer, got 3\.0"),
    "one step from inf": (([1.0], ZERO_SNR, 1), {}, ValueError, r"^steps = 1: must be at least 2"),
    "metric": (([1.0], LINEAR, 3, "fid"), {}, ValueError, r"^metric = 'fid': must be one of 'kl'"),
    "prior": (([1.0], LINEAR, 3, "kl", "normal"), {}, ValueError, r"^prior = 'normal'"),
    "free_start": (
        ([1.0], LINEAR, 3),
        {"free_start": 1},
        TypeError,
        r"^free_start: must be True or False, got 1",
    ),
    "grid": (([1.0], NoiseSchedule.edm(), 1), {"grid": 1}, ValueError, r"^grid = 1: must be at least 2"),
    "first_rank": (
        ([1.0], LINEAR, 3),
        {"first_rank": -1},
        ValueError,
        r"^first_rank = -1: must be at least 0",
    ),
    "late first_rank": (
        ([1.0], LINEAR, 3),
        {"first_rank": 171},
        ValueError,
        r"^first_rank = 171: must be below the number of choices, 171$",
    ),
    "huge first_rank": (
        ([1.0], LINEAR, 3),
        {"first_rank": 10**5000},
        ValueError,
        r"^first_rank = an integer of more than 40 digits: must be below the number of choices, 171$",
    ),
    "float first_rank": (
        ([1.0], LINEAR, 3),
        {"first_rank": 0.0},
        TypeError,
        r"^first_rank: must be an integer",
    ),
    "bool first_rank": (
        ([1.0], LINEAR, 3),
        {"first_rank": True},
        TypeError,
        r"^first_rank: must be an integer",
    ),
    "count": (([1.0], LINEAR, 3), {"count": 0}, ValueError, r"^count = 0: must be at least 1"),
    "large count": (
        ([1.0], LINEAR, 3),
        {"count": 2**62 + 1},
        ValueError,
        r"^count = 4611686018427387905: must be at",
    ),
    "no count": (
        ([1.0], NoiseSchedule.ddpm_linear(), 30),
        {},
        ValueError,
        r"^count: must be given, because an integer of more than 40 digits choices are left",
    ),
    "keep": (([1.0], LINEAR, 3), {"keep": 0}, ValueError, r"^keep = 0: must be at least 1"),
    "large keep": (([1.0], LINEAR, 3), {"keep": 10_001}, ValueError, r"^keep = 10001: must be at most 10000"),
    "num_threads": (
        ([1.0], LINEAR, 3),
        {"num_threads": 0},
        ValueError,
        r"^num_threads = 0: must be at least 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    args, kwargs, exception, pattern = BAD[case]
    with pytest.raises(exception) as caught:
        exhaustive(*args, **kwargs)
    assert type(caught.value) is exception
    assert re.search(pattern, str(caught.value)), str(caught.value)
