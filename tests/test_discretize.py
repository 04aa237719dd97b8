"""Discretizations against literal timesteps, textbook formulas, and brute force."""

import itertools

import numpy as np
import pytest

from fastkl import Spectrum, discretize, divergence, tangent_gamma
from fastkl.discretize import (
    FAMILIES,
    exponential,
    geodesic,
    karras,
    power_uniform,
    quadratic,
    snap,
    tangent,
    uniform,
)
from fastkl.schedule import NoiseSchedule

LINEAR = NoiseSchedule.ddpm_linear()
SD = NoiseSchedule.scaled_linear()
EDM = NoiseSchedule.edm()
FLOW = NoiseSchedule.flow()
ZERO_SNR = NoiseSchedule.from_betas([0.1, 0.2, 0.3, 0.5, 1.0])
SMALL = NoiseSchedule.from_betas(np.full(12, 0.2))
SCHEDULES = {
    "linear": LINEAR,
    "cosine": NoiseSchedule.cosine(),
    "edm": EDM,
    "flow": FLOW,
    "tangent": NoiseSchedule.tangent(0.3),
}


def keywords(family, schedule):
    """What a family needs beside its defaults on this schedule."""
    needed = {"power": 1.5} if family == "power_uniform" else {}
    if family in ("karras", "exponential") and schedule.sigma_max == np.inf:
        needed.update(sigma_min=0.01, sigma_max=50.0)
    return needed


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", SCHEDULES)
def test_levels_fall_from_the_first_to_zero(family, kind, steps):
    schedule = SCHEDULES[kind]
    extra = keywords(family, schedule)
    levels = FAMILIES[family](schedule, steps, **extra)
    assert levels.shape == (steps + 1,)
    assert levels.dtype == np.float64
    assert levels[0] == extra.get("sigma_max", schedule.sigma_max)
    assert levels[-1] == 0.0
    assert np.all(levels[1:] < levels[:-1])


def test_registry_lists_the_public_families():
    assert all(getattr(discretize, name) is family for name, family in FAMILIES.items())
    assert {"uniform", "quadratic", "power_uniform", "karras", "exponential", "tangent"} <= set(FAMILIES)


@pytest.mark.parametrize(
    ("spacing", "steps", "timesteps"),
    [  # as diffusers prints them for 1000 training timesteps and steps_offset 0
        ("leading", 10, [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
        ("linspace", 10, [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
        ("trailing", 10, [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
        ("leading", 3, [666, 333, 0]),
        ("linspace", 3, [999, 500, 0]),
        ("trailing", 3, [999, 666, 332]),
        ("linspace", 4, [999, 666, 333, 0]),
        ("linspace", 5, [999, 749, 500, 250, 0]),
        ("trailing", 8, [999, 874, 749, 624, 499, 374, 249, 124]),
        ("leading", 1, [0]),
        ("linspace", 1, [999]),
        ("trailing", 1, [999]),
    ],
)
def test_uniform_timesteps_are_the_tools(spacing, steps, timesteps):
    levels = uniform(LINEAR, steps, spacing)
    assert LINEAR.timesteps(levels[:-1]).tolist() == timesteps
    assert np.array_equal(levels[:-1], LINEAR.sigmas(timesteps))
    assert levels[-1] == 0.0


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_uniform_has_n_timesteps_for_every_n(spacing):
    for steps in range(1, 1001):
        assert uniform(LINEAR, steps, spacing).shape == (steps + 1,)
    assert np.array_equal(uniform(LINEAR, 1000, spacing)[:-1], LINEAR.sigmas(np.arange(999, -1, -1)))


def test_uniform_on_continuous_schedules():
    np.testing.assert_allclose(uniform(FLOW, 4), [np.inf, 3.0, 1.0, 1 / 3, 0.0], rtol=1e-15)
    np.testing.assert_allclose(uniform(EDM, 9), karras(EDM, 9), rtol=1e-13)
    gamma = 0.3
    np.testing.assert_allclose(uniform(NoiseSchedule.tangent(gamma), 7), tangent(FLOW, 7, gamma), rtol=1e-13)


def test_power_uniform_formula():
    k = np.arange(6)
    for power in (0.5, 1.0, 2.3):
        t = (1 - k / 6) ** power
        inner = power_uniform(FLOW, 6, power)[1:-1]
        np.testing.assert_allclose(inner, t[1:] / (1 - t[1:]), rtol=1e-13)
        free = power_uniform(LINEAR, 6, power, snap=False)
        np.testing.assert_allclose(LINEAR.times(free[:-1]), 999 * t, rtol=1e-12)
        grid = power_uniform(LINEAR, 6, power)
        assert LINEAR.timesteps(grid[:-1]).tolist() == np.rint(999 * t).tolist()
    np.testing.assert_allclose(power_uniform(FLOW, 9, 1.0), uniform(FLOW, 9), rtol=1e-14)


def test_power_uniform_snaps_crowded_ends_without_duplicates():
    for power in (0.01, 0.2, 6.0, 40.0):
        timesteps = LINEAR.timesteps(power_uniform(LINEAR, 30, power)[:-1])
        assert np.all(np.diff(timesteps) < 0)
        assert timesteps[0] == 999
    assert LINEAR.timesteps(power_uniform(LINEAR, 5, 1e6)[:-1]).tolist() == [999, 3, 2, 1, 0]
    assert ZERO_SNR.timesteps(power_uniform(ZERO_SNR, 5, 3.0)[:-1]).tolist() == [4, 3, 2, 1, 0]


def test_quadratic_is_power_two():
    for schedule in (LINEAR, FLOW, EDM):
        assert np.array_equal(quadratic(schedule, 8), power_uniform(schedule, 8, 2.0))
    assert LINEAR.timesteps(quadratic(LINEAR, 4)[:-1]).tolist() == [999, 562, 250, 62]
    assert np.array_equal(quadratic(LINEAR, 4, snap=False), power_uniform(LINEAR, 4, 2.0, snap=False))


@pytest.mark.parametrize("rho", [0.3, 1.0, 7.0, 200.0])
def test_karras_formula(rho):
    first, last, steps = 80.0, 0.002, 12
    k = np.arange(steps) / (steps - 1)
    wanted = ((1 - k) * first ** (1 / rho) + k * last ** (1 / rho)) ** rho
    levels = karras(EDM, steps, rho)
    np.testing.assert_allclose(levels[:-1], wanted, rtol=1e-12)
    assert levels[0] == first
    assert levels[-2] == last


def test_karras_of_large_rho_is_exponential():
    np.testing.assert_allclose(karras(EDM, 10, 1e12), exponential(EDM, 10), rtol=1e-9)


def test_karras_down_to_zero():
    levels = karras(EDM, 5, 3.0, sigma_min=0.0)
    np.testing.assert_allclose(levels, 80.0 * (1 - np.arange(6) / 5) ** 3, rtol=1e-13)
    np.testing.assert_allclose(karras(FLOW, 5, 3.0, sigma_max=80.0), levels, rtol=1e-15)


def test_exponential_formula():
    levels = exponential(SD, 7, sigma_min=0.03, sigma_max=14.0)
    np.testing.assert_allclose(levels[:-1], np.geomspace(14.0, 0.03, 7), rtol=1e-13)
    assert exponential(SD, 7)[[0, -2]].tolist() == [SD.sigma_max, SD.sigma_min]


def test_tangent_with_gamma_one_is_comfyui_kl_optimal():
    n = 13
    index = np.arange(n) / (n - 1)
    wanted = np.tan(index * np.arctan(SD.sigma_min) + (1 - index) * np.arctan(SD.sigma_max))
    np.testing.assert_allclose(tangent(SD, n)[:-1], wanted, rtol=1e-13)


def test_tangent_down_to_zero():
    gamma, steps = 0.4, 9
    fractions = np.arange(steps + 1) / steps
    angles = (1 - fractions) * np.arctan(80.0 / np.sqrt(gamma))
    levels = tangent(EDM, steps, gamma, sigma_min=0.0)
    np.testing.assert_allclose(levels, np.sqrt(gamma) * np.tan(angles), rtol=1e-12)
    assert levels[0] == 80.0
    np.testing.assert_allclose(
        tangent(FLOW, 4, 4.0), 2 * np.array([np.inf, 1 + np.sqrt(2), 1.0, np.sqrt(2) - 1, 0.0]), rtol=1e-15
    )
    np.testing.assert_allclose(tangent(ZERO_SNR, 2, sigma_min=0.0), [np.inf, 1.0, 0.0], rtol=1e-15)


@pytest.mark.parametrize("gamma", [1e-12, 1.0, 1e12])
def test_tangent_has_equal_angles_on_both_sides(gamma):
    levels = tangent(FLOW, 1000, gamma)[1:-1] / np.sqrt(gamma)
    step = np.pi / 2000
    np.testing.assert_allclose(np.arctan(1 / levels), step * np.arange(1, 1000), rtol=1e-13)
    np.testing.assert_allclose(np.arctan(levels), step * np.arange(999, 0, -1), rtol=1e-13)


def test_rows_of_a_batch_are_the_scalars(rng):
    values = rng.uniform(0.3, 9.0, 37)
    lows, highs = rng.uniform(0.02, 0.1, 37), rng.uniform(1.0, 100.0, 37)
    lows[3] = 0.0
    cases = [
        (power_uniform(LINEAR, 11, values), lambda i: power_uniform(LINEAR, 11, values[i])),
        (power_uniform(FLOW, 11, values), lambda i: power_uniform(FLOW, 11, float(values[i]))),
        (
            power_uniform(LINEAR, 11, values, snap=False),
            lambda i: power_uniform(LINEAR, 11, values[i], snap=False),
        ),
        (karras(LINEAR, 11, values), lambda i: karras(LINEAR, 11, values[i])),
        (karras(LINEAR, 11, 7, lows, highs), lambda i: karras(LINEAR, 11, 7, lows[i], highs[i])),
        (tangent(LINEAR, 11, values), lambda i: tangent(LINEAR, 11, values[i])),
        (tangent(FLOW, 11, values, lows), lambda i: tangent(FLOW, 11, values[i], lows[i])),
        (
            exponential(LINEAR, 11, sigma_max=highs),
            lambda i: exponential(LINEAR, 11, sigma_max=highs[i]),
        ),
    ]
    for batch, single in cases:
        assert batch.shape == (37, 12)
        assert batch.flags.c_contiguous
        for i in range(37):
            assert np.array_equal(batch[i], single(i))


def test_a_batch_of_one_keeps_its_axis():
    assert karras(EDM, 3, [7.0]).shape == (1, 4)
    assert power_uniform(EDM, 3, np.array([2])).shape == (1, 4)
    assert tangent(EDM, 3, np.array(2.0)).shape == (4,)


def test_snap_leaves_grid_levels_alone_and_moves_others_to_the_nearest(rng):
    timesteps = np.sort(rng.choice(1000, size=(50, 9), replace=True), axis=1)
    timesteps = timesteps[(np.diff(timesteps) > 1).all(axis=1)][:, ::-1]
    grid = LINEAR.sigmas(timesteps)
    levels = np.concatenate([grid, np.zeros((len(grid), 1))], axis=1)
    assert np.array_equal(snap(LINEAR, levels), levels)
    nearby = LINEAR.sigmas(np.clip(timesteps + rng.uniform(-0.49, 0.49, timesteps.shape), 0, 999))
    assert np.array_equal(snap(LINEAR, nearby), grid)


def test_snap_spreads_duplicates_with_the_least_largest_shift(rng):
    count = SMALL.num_train_timesteps
    for steps in (2, 4, 7, 11, 12):
        choices = np.array(list(itertools.combinations(range(count - 1, -1, -1), steps)))
        t = np.sort(rng.beta(0.4, 0.4, (40, steps)) * (count - 1), axis=1)[:, ::-1]
        levels = SMALL.sigmas(t)
        moved = SMALL.timesteps(snap(SMALL, levels))
        nearest = SMALL.timesteps(levels)
        assert np.all(np.diff(moved) < 0)
        for row in range(40):
            least = np.abs(choices - nearest[row]).max(axis=1).min()
            assert np.abs(moved[row] - nearest[row]).max() == least


def test_snap_shapes_endings_and_infinity():
    assert snap(SMALL, [1.0, 0.9, 0.0]).shape == (3,)
    assert snap(SMALL, [[1.0, 0.9]]).shape == (1, 2)
    assert snap(SMALL, [0.0]).tolist() == [0.0]
    everything = SMALL.sigmas(np.linspace(11, 10.5, 12))
    assert SMALL.timesteps(snap(SMALL, everything)).tolist() == list(range(11, -1, -1))
    levels = snap(ZERO_SNR, [np.inf, 50.0, 49.0, 0.0])
    assert levels[0] == np.inf
    assert ZERO_SNR.timesteps(levels[:-1]).tolist() == [4, 3, 2]


def test_snap_sends_levels_outside_the_range_to_the_nearest_end():
    low, high = SMALL.sigma_min, SMALL.sigma_max
    assert snap(SMALL, [2.0 * high, 0.0]).tolist() == [high, 0.0]
    assert snap(SMALL, [np.inf, low / 10.0]).tolist() == [high, low]
    levels = snap(SMALL, [low / 2.0, low / 3.0, low / 4.0, 0.0])
    assert SMALL.timesteps(levels[:-1]).tolist() == [2, 1, 0]


def test_geodesic_spans_the_schedule_and_beats_the_tangent_law_with_gamma_star():
    spectrum = Spectrum.power_law(3072, 1.0)
    for steps in (5, 20):
        levels = geodesic(FLOW, steps, spectrum)
        assert levels[0] == np.inf
        assert levels[-1] == 0.0
        law = tangent(FLOW, steps, gamma=tangent_gamma(spectrum))
        assert divergence(spectrum, levels) < 0.9 * divergence(spectrum, law)
    ends = geodesic(EDM, 7, spectrum, sigma_min=0.1, sigma_max=20.0)
    assert (ends[0], ends[-1], len(ends)) == (20.0, 0.1, 8)


def test_snap_reads_only():
    levels = np.array([1.0, 0.95, 0.9, 0.0])
    before = levels.copy()
    levels.flags.writeable = False
    assert not np.shares_memory(snap(SMALL, levels), levels)
    assert np.array_equal(levels, before)


def test_a_row_of_snap_does_not_depend_on_the_others(rng):
    levels = np.sort(rng.uniform(0.5, SMALL.sigma_max, (30, 6)), axis=1)[:, ::-1]
    together = snap(SMALL, levels)
    for i in range(30):
        assert np.array_equal(together[i], snap(SMALL, levels[i]))


BAD = [
    (lambda: uniform("linear", 10), TypeError, r"schedule: .*NoiseSchedule.*'linear'"),
    (lambda: power_uniform(None, 10, 1.0), TypeError, r"schedule: "),
    (lambda: quadratic(None, 10), TypeError, r"schedule: "),
    (lambda: karras([1.0], 10), TypeError, r"schedule: "),
    (lambda: exponential(LINEAR.alphas_cumprod, 10), TypeError, r"schedule: "),
    (lambda: tangent(NoiseSchedule, 10), TypeError, r"schedule: "),
    (lambda: snap(None, [1.0]), TypeError, r"schedule: "),
    (lambda: snap(EDM, [1.0]), ValueError, r"schedule = .*must be discrete"),
    (lambda: uniform(LINEAR, 0), ValueError, r"steps = 0: must be at least 1"),
    (
        lambda: uniform(EDM, 10**400),
        ValueError,
        r"steps = an integer of more than 40 digits: must be at most",
    ),
    (
        lambda: karras(EDM, 10, [7.0, True]),
        TypeError,
        r"rho\[1\] = True: must be a real number, not a boolean",
    ),
    (lambda: uniform(LINEAR, 1001), ValueError, r"steps = 1001: must be at most 1000"),
    (lambda: power_uniform(LINEAR, 1001, 1.0), ValueError, r"steps = 1001"),
    (lambda: karras(LINEAR, 2.0), TypeError, r"steps: must be an integer"),
    (lambda: tangent(LINEAR, True), TypeError, r"steps"),
    (lambda: exponential(LINEAR, -1), ValueError, r"steps = -1"),
    (lambda: uniform(LINEAR, 5, "logspace"), ValueError, r"spacing = 'logspace'"),
    (lambda: uniform(LINEAR, 5, None), TypeError, r"spacing"),
    (lambda: uniform(EDM, 5, "leading"), ValueError, r"spacing = 'leading': counts training timesteps"),
    (lambda: uniform(FLOW, 5, "trailing"), ValueError, r"spacing = 'trailing'"),
    (lambda: power_uniform(LINEAR, 5, 0.0), ValueError, r"^power = 0\.0: must be finite and above 0"),
    (lambda: power_uniform(LINEAR, 5, [1.0, -2.0]), ValueError, r"power\[1\] = -2\.0"),
    (lambda: power_uniform(LINEAR, 5, [1.0, np.inf]), ValueError, r"power\[1\] = inf"),
    (lambda: power_uniform(LINEAR, 5, []), ValueError, r"power: must have at least 1"),
    (lambda: power_uniform(LINEAR, 5, [[1.0]]), ValueError, r"power: must be 0-D or 1-D"),
    (lambda: power_uniform(LINEAR, 5, "2"), TypeError, r"power"),
    (lambda: power_uniform(LINEAR, 5, None), TypeError, r"power"),
    (lambda: power_uniform(LINEAR, 5, 1.0, snap=1), TypeError, r"snap: must be True or False"),
    (lambda: power_uniform(ZERO_SNR, 5, 0.5, snap=False), ValueError, r"snap = False: no level"),
    (lambda: power_uniform(FLOW, 5, 1e6), ValueError, r"steps = 5: levels . and . of row 0 coincide.*power"),
    (lambda: karras(EDM, 5, 0.0), ValueError, r"^rho = 0\.0"),
    (lambda: karras(EDM, 5, [7.0, np.nan]), ValueError, r"rho\[1\] = nan"),
    (lambda: karras(EDM, 5, 1e-18), ValueError, r"steps = 5: .*another rho"),
    (lambda: karras(EDM, 5, sigma_max=100.0), ValueError, r"^sigma_max = 100\.0: .*at most 80\.0"),
    (
        lambda: karras(EDM, 5, sigma_min=0.001),
        ValueError,
        r"^sigma_min = 0\.001: must be 0 or at least 0\.002",
    ),
    (lambda: karras(EDM, 5, sigma_min=-1.0), ValueError, r"sigma_min = -1\.0"),
    (lambda: karras(EDM, 5, sigma_min=[0.1, np.nan]), ValueError, r"sigma_min\[1\] = nan"),
    (
        lambda: karras(EDM, 5, sigma_min=2.0, sigma_max=1.0),
        ValueError,
        r"sigma_min = 2\.0: .*above sigma_max",
    ),
    (lambda: karras(EDM, 2, sigma_min=2.0, sigma_max=2.0), ValueError, r"steps = 2: levels 0 and 1"),
    (lambda: karras(FLOW, 5), ValueError, r"sigma_max = inf: must be finite"),
    (lambda: karras(EDM, 5, [1.0, 2.0], [0.1, 0.2, 0.3]), ValueError, r"sigma_min has 3, rho has 2"),
    (lambda: exponential(FLOW, 5), ValueError, r"sigma_max = inf: must be finite"),
    (lambda: exponential(EDM, 5, sigma_min=0.0), ValueError, r"^sigma_min = 0\.0: must be above 0"),
    (
        lambda: exponential(EDM, 5, sigma_min=[0.1, 0.0]),
        ValueError,
        r"sigma_min\[1\] = 0\.0: must be above 0",
    ),
    (
        lambda: exponential(EDM, 50, sigma_min=1.0, sigma_max=1.0 + 1e-15),
        ValueError,
        r"steps = 50: .*coincide in float64 .*use fewer steps",
    ),
    (lambda: tangent(EDM, 5, -1.0), ValueError, r"^gamma = -1\.0"),
    (lambda: tangent(EDM, 5, [[1.0]]), ValueError, r"gamma: must be"),
    (lambda: tangent(EDM, 5, sigma_max=np.inf), ValueError, r"sigma_max = inf: must be above 0 and at most"),
    (lambda: snap(SMALL, [0.9, 1.0]), ValueError, r"sigmas\[1\] = 1\.0: must be below"),
    (
        lambda: snap(SMALL, [100.0, -1.0]),
        ValueError,
        r"sigmas\[1\] = -1\.0: a noise level must be a number >= 0",
    ),
    (lambda: snap(SMALL, [np.nan, 0.1, 0.0]), ValueError, r"sigmas\[0\] = nan: a noise level must be"),
    (lambda: geodesic(SMALL, 3, [1.0], sigma_max=100.0), ValueError, r"^sigma_max = 100\.0: .*at most"),
    (lambda: geodesic(EDM, 3, [1.0], sigma_min=[0.1, 0.2]), TypeError, r"sigma_min: must be a number"),
    (lambda: geodesic(EDM, 3, [1.0, 0.0]), ValueError, r"spectrum\[1\] = 0\.0"),
    (lambda: geodesic("edm", 3, [1.0]), TypeError, r"schedule: "),
    (lambda: snap(SMALL, [1.0, np.nan]), ValueError, r"sigmas\[1\] = nan"),
    (lambda: snap(SMALL, [[1.0, 0.0], [1.0, 0.9]]), ValueError, r"sigmas\[1, 1\] = 0\.9: all rows"),
    (lambda: snap(SMALL, np.linspace(3, 1, 13)), ValueError, r"sigmas: 13 levels .* has 12"),
    (lambda: snap(SMALL, []), ValueError, r"sigmas: must have at least 1"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
