"""Noise schedules against 50-digit formulas and known values; inversion, immutability, refusals."""

import copy
import pickle

import mpmath
import numpy as np
import pytest

from fastkl.schedule import NoiseSchedule

DISCRETE = {
    "ddpm_linear": NoiseSchedule.ddpm_linear(),
    "scaled_linear": NoiseSchedule.scaled_linear(),
    "cosine": NoiseSchedule.cosine(),
    "sigmoid": NoiseSchedule.sigmoid(),
    "few": NoiseSchedule.ddpm_linear(7, 0.5, 0.1),
    "table": NoiseSchedule.from_alphas_cumprod([0.9, 0.5, 1e-3]),
}
CONTINUOUS = {
    "edm": NoiseSchedule.edm(),
    "edm_log": NoiseSchedule.edm(1e-3, 1e3, rho=1e4),
    "edm_steep": NoiseSchedule.edm(0.01, 10.0, rho=0.5),
    "flow": NoiseSchedule.flow(),
    "flow_shifted": NoiseSchedule.flow(3.0),
    "tangent": NoiseSchedule.tangent(0.25),
}
ZERO_SNR = NoiseSchedule.from_betas([0.1, 0.2, 0.5, 1.0])
SCHEDULES = {**DISCRETE, **CONTINUOUS, "zero_snr": ZERO_SNR}

each_discrete = pytest.mark.parametrize("schedule", DISCRETE.values(), ids=DISCRETE)
each_continuous = pytest.mark.parametrize("schedule", CONTINUOUS.values(), ids=CONTINUOUS)
each = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def mp_linspace(start, end, steps):
    return [start + (end - start) * i / (steps - 1) for i in range(steps)]


def mp_betas(name, steps=1000):
    number = mpmath.mpf
    if name == "ddpm_linear":
        return mp_linspace(number(1e-4), number(0.02), steps)
    if name == "scaled_linear":
        ends = mpmath.sqrt(number(0.00085)), mpmath.sqrt(number(0.012))
        return [root**2 for root in mp_linspace(*ends, steps)]
    if name == "sigmoid":
        low, high = number(1e-4), number(0.02)
        return [(high - low) / (1 + mpmath.exp(-x)) + low for x in mp_linspace(number(-6), number(6), steps)]
    offset = number(8) / 1000
    bars = [
        mpmath.cos((number(i) / steps + offset) / (1 + offset) * mpmath.pi / 2) ** 2 for i in range(steps + 1)
    ]
    return [min(1 - bars[i + 1] / bars[i], number(0.999)) for i in range(steps)]


@pytest.mark.parametrize("name", ["ddpm_linear", "scaled_linear", "cosine", "sigmoid"])
def test_tables_agree_with_50_digits(name):
    schedule = DISCRETE[name]
    with mpmath.workdps(50):
        product, levels, bars = mpmath.mpf(1), [], []
        for beta in mp_betas(name):
            product *= 1 - beta
            bars.append(float(product))
            levels.append(float(mpmath.sqrt((1 - product) / product)))
    np.testing.assert_allclose(schedule.sigmas(np.arange(1000)), levels, rtol=2e-14)
    np.testing.assert_allclose(schedule.alphas_cumprod, bars, rtol=2e-14)


@pytest.mark.parametrize(
    ("name", "timestep", "known", "digits"),
    [
        ("scaled_linear", 0, 0.0292, 4),  # Stable Diffusion, as k-diffusion and ComfyUI print it
        ("scaled_linear", 999, 14.6146, 4),
        ("ddpm_linear", 0, 0.01, 4),
        ("ddpm_linear", 999, 157.407, 3),
        ("cosine", 999, 20291, 0),
        ("cosine", 998, 642, 0),
    ],
)
def test_known_levels(name, timestep, known, digits):
    assert round(DISCRETE[name].sigmas(timestep), digits) == known


def test_continuous_laws_agree_with_textbook_forms():
    t = np.array([0.0, 0.013, 0.25, 0.5, 0.75, 0.99, 1.0])
    roots = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    np.testing.assert_allclose(
        CONTINUOUS["edm"].sigmas(t), (roots[0] + t * (roots[1] - roots[0])) ** 7, rtol=1e-13
    )
    inner = t[:-1]
    shifted = 3 * inner / (1 + 2 * inner)
    np.testing.assert_allclose(CONTINUOUS["flow_shifted"].sigmas(inner), shifted / (1 - shifted), rtol=1e-13)
    np.testing.assert_allclose(
        CONTINUOUS["tangent"].sigmas(inner), 0.5 * np.tan(np.pi * inner / 2), rtol=1e-13
    )
    for name in ("flow", "flow_shifted", "tangent"):
        assert CONTINUOUS[name].sigmas([0.0, 1.0]).tolist() == [0.0, np.inf]
    assert CONTINUOUS["edm"].sigmas([0.0, 1.0]).tolist() == [0.002, 80.0]


def test_tangent_keeps_its_digits_next_to_pure_noise():
    t = 1.0 - np.array([2.0**-20, 2.0**-40])  # exact in float64
    with mpmath.workdps(50):
        wanted = [float(mpmath.tan(mpmath.pi * mpmath.mpf(x) / 2) / 2) for x in t]
    np.testing.assert_allclose(CONTINUOUS["tangent"].sigmas(t), wanted, rtol=1e-15)


@each_discrete
def test_grid_levels_return_exact_integers(schedule):
    grid = np.arange(schedule.num_train_timesteps)
    levels = schedule.sigmas(grid)
    assert np.all(np.diff(levels) > 0)
    assert schedule.times(levels).tolist() == grid.tolist()
    assert schedule.timesteps(levels).tolist() == grid.tolist()
    assert schedule.timesteps(levels).dtype == np.int64


@each_discrete
def test_fractional_timesteps_are_log_linear_and_round_trip(schedule, rng):
    t = np.sort(rng.uniform(0, schedule.num_train_timesteps - 1, 500))
    low, weight = np.floor(t), t - np.floor(t)
    logs = (1 - weight) * np.log(schedule.sigmas(low)) + weight * np.log(schedule.sigmas(low + 1))
    levels = schedule.sigmas(t)
    np.testing.assert_allclose(levels, np.exp(logs), rtol=1e-13)
    np.testing.assert_allclose(schedule.times(levels), t, rtol=0, atol=1e-12 * schedule.num_train_timesteps)
    np.testing.assert_allclose(schedule.sigmas(schedule.times(levels)), levels, rtol=1e-12)
    apart = np.abs(weight - 0.5) > 1e-6
    assert schedule.timesteps(levels)[apart].tolist() == np.rint(t)[apart].tolist()


@each_continuous
def test_times_round_trip(schedule, rng):
    t = np.concatenate([[0.0], np.sort(rng.uniform(0, 1, 500)), [1.0]])
    levels = schedule.sigmas(t)
    assert np.all(np.diff(levels) > 0)
    np.testing.assert_allclose(schedule.times(levels), t, rtol=0, atol=1e-12)
    assert schedule.times(levels[[0, -1]]).tolist() == [0.0, 1.0]
    moderate = levels[(levels > 0) & (levels < 100)]
    np.testing.assert_allclose(schedule.sigmas(schedule.times(moderate)), moderate, rtol=1e-12)


def test_zero_terminal_snr():
    assert ZERO_SNR.sigma_max == np.inf
    assert ZERO_SNR.alphas_cumprod[-1] == 0.0
    assert NoiseSchedule.from_alphas_cumprod([0.5, 0.0]).sigma_max == np.inf
    levels = ZERO_SNR.sigmas([3, 2, 1, 0])
    assert ZERO_SNR.times(levels).tolist() == [3, 2, 1, 0]
    assert ZERO_SNR.timesteps([np.inf, 1e12]).tolist() == [3, 2]  # inf is infinitely far from every level


def test_constructors_from_tables_agree(rng):
    betas = rng.uniform(1e-4, 0.3, 40)
    by_betas = NoiseSchedule.from_betas(betas)
    by_bars = NoiseSchedule.from_alphas_cumprod(np.cumprod(1 - betas))
    t = np.arange(40)
    np.testing.assert_allclose(by_betas.sigmas(t), by_bars.sigmas(t), rtol=1e-11)
    linear = NoiseSchedule.from_betas(np.linspace(1e-4, 0.02, 1000))
    assert np.array_equal(linear.sigmas(np.arange(1000)), DISCRETE["ddpm_linear"].sigmas(np.arange(1000)))


def test_tiny_betas_do_not_cancel():
    levels = NoiseSchedule.from_betas(np.full(3, 1e-20)).sigmas([0, 1, 2])
    np.testing.assert_allclose(levels, 1e-10 * np.sqrt([1, 2, 3]), rtol=1e-15)


@each
def test_shapes_and_attributes(schedule):
    last = schedule.num_train_timesteps - 1 if schedule.is_discrete else 1.0
    assert isinstance(schedule.sigmas(0), float)
    assert schedule.sigmas(0) == schedule.sigma_min
    assert schedule.sigmas(last) == schedule.sigma_max
    assert schedule.sigmas(np.zeros((2, 3))).shape == (2, 3)
    assert schedule.sigmas(np.array(last)) == schedule.sigma_max
    assert isinstance(schedule.times(schedule.sigma_max), float)
    assert schedule.times(np.full((2, 1), schedule.sigma_max)).tolist() == [[last], [last]]
    assert schedule.is_smooth is not schedule.is_discrete
    assert (schedule.num_train_timesteps is None) is not schedule.is_discrete
    assert hasattr(schedule, "alphas_cumprod") is schedule.is_discrete
    if schedule.is_discrete:
        assert isinstance(schedule.timesteps(schedule.sigma_max), int)


def test_names_and_priors():
    kinds = {schedule.name: schedule.prior for schedule in SCHEDULES.values()}
    assert kinds == {
        "ddpm_linear": "vp",
        "scaled_linear": "vp",
        "cosine": "vp",
        "sigmoid": "vp",
        "from_betas": "vp",
        "from_alphas_cumprod": "vp",
        "edm": "ve",
        "flow": "flow",
        "tangent": "vp",
    }


@each
def test_copies_are_equal_and_immutable(schedule):
    for twin in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule), copy.copy(schedule)):
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert repr(twin) == repr(schedule)
        assert type(twin) is NoiseSchedule
        with pytest.raises(AttributeError, match="immutable"):
            twin.prior = "ve"
        with pytest.raises(AttributeError, match="immutable"):
            del twin.name
        if twin.is_discrete:
            with pytest.raises(ValueError, match="read-only"):
                twin.alphas_cumprod[0] = 0.5
            with pytest.raises(ValueError, match="WRITEABLE"):
                twin.alphas_cumprod.flags.writeable = True
        levels = twin.sigmas([0, 1])
        levels[:] = -1.0  # the caller's own
        assert twin.sigma_min == schedule.sigma_min


def test_different_schedules_are_unequal():
    assert len(set(SCHEDULES.values())) == len(SCHEDULES)
    assert NoiseSchedule.flow() != NoiseSchedule.flow(2.0)
    assert NoiseSchedule.flow() != "flow"


def test_repr_rebuilds_the_named_kinds():
    for name in ("ddpm_linear", "cosine", "edm_steep", "flow_shifted", "tangent"):
        schedule = SCHEDULES[name]
        assert eval(repr(schedule), {"NoiseSchedule": NoiseSchedule}) == schedule
    assert repr(ZERO_SNR) == "NoiseSchedule.from_betas(<4 timesteps, sigma 0.3333 to inf>)"


def test_inputs_are_neither_kept_nor_changed():
    bars = np.array([0.9, 0.5, 0.1])
    schedule = NoiseSchedule.from_alphas_cumprod(bars)
    bars[0] = 0.8
    assert schedule.alphas_cumprod[0] == 0.9
    assert bars.flags.writeable


LINEAR, EDM = DISCRETE["ddpm_linear"], CONTINUOUS["edm"]
BAD = [
    (lambda: NoiseSchedule(), TypeError, "classmethod"),
    (lambda: NoiseSchedule.ddpm_linear(0), ValueError, r"num_train_timesteps = 0"),
    (lambda: NoiseSchedule.ddpm_linear(10.0), TypeError, r"num_train_timesteps: must be an integer"),
    (lambda: NoiseSchedule.ddpm_linear(beta_start=0.0), ValueError, r"beta_start = 0\.0"),
    (lambda: NoiseSchedule.scaled_linear(beta_end=1.0), ValueError, r"beta_end = 1\.0"),
    (lambda: NoiseSchedule.sigmoid(beta_end="1"), TypeError, r"beta_end"),
    (lambda: NoiseSchedule.cosine(True), TypeError, r"num_train_timesteps"),
    (lambda: NoiseSchedule.ddpm_linear(10**4, 0.5, 0.6), ValueError, r"sigma of betas\[\d+\] = inf"),
    (lambda: NoiseSchedule.from_betas([0.1, 0.0]), ValueError, r"betas\[1\] = 0\.0"),
    (lambda: NoiseSchedule.from_betas([0.1, 1.5]), ValueError, r"betas\[1\] = 1\.5"),
    (lambda: NoiseSchedule.from_betas([0.1, 1.0, 0.1]), ValueError, r"betas\[1\] = 1\.0: only the last"),
    (lambda: NoiseSchedule.from_betas([0.1, np.nan]), ValueError, r"betas\[1\] = nan"),
    (lambda: NoiseSchedule.from_betas([0.5, 1e-20]), ValueError, r"sigma of betas\[1\].*too close"),
    (lambda: NoiseSchedule.from_betas([]), ValueError, r"betas: must have at least 1"),
    (lambda: NoiseSchedule.from_betas([[0.1]]), ValueError, r"betas: must be 1-D"),
    (lambda: NoiseSchedule.from_betas([1j]), TypeError, r"betas"),
    (lambda: NoiseSchedule.from_alphas_cumprod([1.0, 0.5]), ValueError, r"alphas_cumprod\[0\] = 1\.0"),
    (lambda: NoiseSchedule.from_alphas_cumprod([0.5, 0.6]), ValueError, r"alphas_cumprod\[1\] = 0\.6"),
    (lambda: NoiseSchedule.from_alphas_cumprod([0.5, 0.0, 0.0]), ValueError, r"alphas_cumprod\[2\] = 0\.0"),
    (lambda: NoiseSchedule.from_alphas_cumprod([0.5, -0.1]), ValueError, r"alphas_cumprod\[1\] = -0\.1"),
    (lambda: NoiseSchedule.edm(sigma_min=0.0), ValueError, r"sigma_min = 0\.0"),
    (lambda: NoiseSchedule.edm(sigma_max=0.001), ValueError, r"sigma_max = 0\.001"),
    (lambda: NoiseSchedule.edm(sigma_max=np.inf), ValueError, r"sigma_max = inf: must be finite"),
    (lambda: NoiseSchedule.edm(1e-300, 1e300), ValueError, r"sigma_min = 1e-300: must be at least 1e-15"),
    (lambda: NoiseSchedule.edm(1.0, 1e300), ValueError, r"sigma_max = 1e\+300: must be at most 1e\+15"),
    (lambda: NoiseSchedule.edm(1e-15, 1e15, 0.01), ValueError, r"rho = 0\.01: must be at least 0\.0987"),
    (lambda: NoiseSchedule.flow(10**400), ValueError, r"shift: must be within the range of float64"),
    (lambda: NoiseSchedule.cosine(10**400), ValueError, r"num_train_timesteps = an integer of more than 40"),
    (lambda: NoiseSchedule.from_betas([0.5, True]), TypeError, r"betas\[1\] = True"),
    (lambda: NoiseSchedule.edm(rho=0.0), ValueError, r"rho = 0\.0"),
    (lambda: NoiseSchedule.edm(rho=0.001), ValueError, r"rho = 0\.001: must be at least"),
    (lambda: NoiseSchedule.flow(-1.0), ValueError, r"shift = -1\.0"),
    (lambda: NoiseSchedule.tangent(0.0), ValueError, r"gamma = 0\.0"),
    (lambda: NoiseSchedule.tangent(None), TypeError, r"gamma"),
    (lambda: LINEAR.sigmas(1000), ValueError, r"^t = 1000\.0: must be in \[0, 999\]"),
    (lambda: LINEAR.sigmas([0, -0.5]), ValueError, r"t\[1\] = -0\.5"),
    (lambda: LINEAR.sigmas([[0, np.nan]]), ValueError, r"t\[0, 1\] = nan"),
    (lambda: LINEAR.sigmas([True]), TypeError, r"^t: "),
    (lambda: EDM.sigmas([0.5, 1.5]), ValueError, r"t\[1\] = 1\.5: must be in \[0, 1\]"),
    (lambda: LINEAR.times([1.0, 0.0]), ValueError, r"sigmas\[1\] = 0\.0: the clean end"),
    (lambda: LINEAR.timesteps([1.0, 0.0]), ValueError, r"sigmas\[1\] = 0\.0: the clean end"),
    (lambda: EDM.times(0.0), ValueError, r"^sigmas = 0\.0: the clean end"),
    (lambda: LINEAR.times([200.0]), ValueError, r"sigmas\[0\] = 200\.0: must be in \[0\.01"),
    (lambda: EDM.times([0.001]), ValueError, r"sigmas\[0\] = 0\.001: must be in \[0\.002, 80\.0\]"),
    (lambda: EDM.times([np.nan]), ValueError, r"sigmas\[0\] = nan"),
    (lambda: CONTINUOUS["flow"].times([-1.0]), ValueError, r"sigmas\[0\] = -1\.0"),
    (lambda: EDM.timesteps([1.0]), ValueError, r"timesteps: .* is continuous"),
    (lambda: EDM.alphas_cumprod, AttributeError, r"alphas_cumprod: .* is continuous"),
    (lambda: ZERO_SNR.sigmas([2.0, 2.5]), ValueError, r"t\[1\] = 2\.5: lies between"),
    (lambda: ZERO_SNR.times([1e9]), ValueError, r"sigmas\[0\] = 1000000000\.0: lies between"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
