"""Samplers: the registry, identities, orders of convergence, chance, and evaluations of the network."""

import itertools
import math

import numpy as np
import pytest
import reference_samplers as reference
from sampler_cases import reference_of

import fastkl
from fastkl import samplers
from fastkl._sampler_program import Program
from fastkl.kernels import sampler_reference

NAMES = samplers.names()
EIGENVALUES = np.array([1e-4, 0.03, 0.7, 1.0, 9.0, 400.0])
INF = math.inf


def path(steps, first=80.0, last=0.002, to_zero=True):
    """Karras' levels."""
    levels = np.linspace(first ** (1 / 7), last ** (1 / 7), steps if to_zero else steps + 1) ** 7
    return np.append(levels, 0.0) if to_zero else levels


def paths(name):
    """Levels that a sampler can run: few and many steps, to 0 and above, from inf where it can."""
    sampler = samplers.get(name)
    result = [path(steps, to_zero=False) for steps in (4, 9, 16)]
    if not sampler.above_zero:
        result += [path(steps) for steps in (4, 5, 6, 11, 17)]
    if not sampler.finite_start:
        result += [np.append(INF, levels) for levels in result]
    return result


# every registered sampler


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_is_the_reference_at_every_level(name):
    function, options = reference_of(samplers.get(name))
    for levels in paths(name):
        ours = fastkl.trajectory(EIGENVALUES, levels, sampler=name, prior="ve")
        output = fastkl.output_variance(EIGENVALUES, levels, sampler=name, prior="ve")
        v0 = 1.0 if levels[0] == INF else levels[0] ** 2
        for i, eigenvalue in enumerate(EIGENVALUES):
            states = reference.states(function, eigenvalue, levels.tolist(), **options)
            true = [reference.variance_of(state, v0) for state in states]
            np.testing.assert_allclose(ours[1:, i], true[1:], rtol=1e-8)
            np.testing.assert_allclose(output[i], true[-1], rtol=1e-8)
        assert (ours[0] == levels[0] ** 2).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_is_its_numpy_twin(name):
    sampler = samplers.get(name)
    for levels in paths(name)[::2]:
        program = Program(sampler, np.stack([levels, levels]))
        arguments = (EIGENVALUES, program.operations, program.coefficients, sampler.stochastic)
        twin = sampler_reference.output_variance(*arguments, program.tape.levels, "flow")
        ours = fastkl.output_variance(EIGENVALUES, [levels, levels], sampler=sampler, prior="flow")
        np.testing.assert_allclose(ours, twin, rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_is_covered_by_every_function_and_metric(name, rng):
    """Batches equal single calls; counts repeat; the divergence follows from the variances; threads do not matter."""
    levels = np.stack([path(8, to_zero=False), path(8, 50.0, 0.01, to_zero=False)])
    data = fastkl.Spectrum(EIGENVALUES, counts=[1, 2, 3, 1, 1, 2], mean=rng.normal(size=6))
    variance = fastkl.output_variance(data, levels, sampler=name)
    target = EIGENVALUES + levels[:, -1:] ** 2
    function, options = reference_of(samplers.get(name))
    gain = [[reference.gain_and_variance(function, x, row.tolist(), **options)[0] for x in EIGENVALUES]
            for row in levels]  # fmt: skip
    error, r = np.square(np.array(gain) * data.mean), variance / target
    terms = {
        "kl": (1 / r - 1 + np.log(r)) / 2 + error / (2 * variance),
        "reverse_kl": (r - 1 - np.log(r)) / 2 + error / (2 * target),
        "w2": np.square(np.sqrt(variance) - np.sqrt(target)) + error,
    }
    terms["jeffreys"] = terms["kl"] + terms["reverse_kl"]
    for metric, expected in terms.items():
        values = fastkl.divergence(data, levels, metric, name, num_threads=2)
        np.testing.assert_allclose(values, expected @ data.counts, rtol=1e-9)
        singles = [fastkl.divergence(data, row, metric, name, num_threads=1) for row in levels]
        np.testing.assert_array_equal(values, singles)
    if samplers.get(name).above_zero:
        return
    mixed = np.stack([path(9), path(9, to_zero=False), path(9, 60.0)])
    values = fastkl.divergence(data, mixed, sampler=name)
    np.testing.assert_array_equal(values, [fastkl.divergence(data, row, sampler=name) for row in mixed])


def test_names_and_objects_mean_the_same():
    levels = path(7)
    for name in ("heun", "lms", "sde_dpmpp_2m"):
        sampler = samplers.get(name)
        assert samplers.get(sampler) is sampler
        assert fastkl.divergence(EIGENVALUES, levels, sampler=name) == fastkl.divergence(
            EIGENVALUES, levels, sampler=sampler
        )
        assert eval(repr(sampler), {"fastkl": fastkl}) == sampler


def test_every_constructor_has_a_registered_sampler():
    makers = {
        name for name in samplers.__all__ if name not in ("Sampler", "get", "names", "nfe", "steps_for")
    }
    assert {samplers.get(name).name for name in NAMES} == makers


# identities


SAME = [  # pairs that are written in different ways
    ("deis_2", "dpm_2m_heun"),
    ("euler_ancestral", samplers.multistep("sde-dpmsolver++", 1)),
    ("euler_ancestral", "ddpm_fixed_small"),
    ("euler_ancestral", samplers.singlestep("sde-dpmsolver++", 1)),
    ("ddim", samplers.multistep(order=1)),
    ("ddim", samplers.multistep("dpmsolver", 1)),
    ("ddim", samplers.deis(1)),
    ("ddim", samplers.lms(1)),
    ("ddim", samplers.singlestep(order=1)),
]


@pytest.mark.parametrize(("first", "second"), SAME)
def test_samplers_that_are_one_map(first, second):
    for levels in (path(6), path(18, to_zero=False)):
        one = fastkl.output_variance(EIGENVALUES, levels, sampler=first)
        other = fastkl.output_variance(EIGENVALUES, levels, sampler=second)
        np.testing.assert_allclose(one, other, rtol=1e-11)


def test_samplers_that_are_nearly_one_map():
    """The third order with half of F_2, and Heun in another variable, are not what they resemble."""
    levels = path(12, to_zero=False)
    for first, second in (("deis_3", "dpm_3m"), ("heun", "flow_heun"), ("unipc_2", "unipc_2_bh1")):
        one = fastkl.output_variance(EIGENVALUES, levels, sampler=first)
        other = fastkl.output_variance(EIGENVALUES, levels, sampler=second)
        gaps = np.abs(one / other - 1)
        assert 1e-4 < gaps.max() < 1


def test_two_stage_samplers_are_singlestep_on_the_grid_with_the_middles():
    levels = path(6, to_zero=False)
    middles = np.sqrt(levels[1:] * levels[:-1])
    grid = np.append(np.stack([levels[:-1], middles], axis=1).ravel(), levels[-1])
    for whole, single in (("dpmpp_2s", "singlestep_2"), ("dpm_2", "dpm_singlestep_2")):
        one = fastkl.output_variance(EIGENVALUES, levels, sampler=whole)
        other = fastkl.output_variance(EIGENVALUES, grid, sampler=single)
        np.testing.assert_allclose(one, other, rtol=1e-11)


def test_ddim_keeps_its_own_kernels(monkeypatch):
    levels = path(7)
    expected = fastkl.divergence(EIGENVALUES, levels)
    monkeypatch.setattr("fastkl.evaluate.sampler_kernels", lambda: pytest.fail("DDIM has kernels of its own"))
    for name in ("ddim", "euler", "flow_euler", "dpmpp_1", samplers.ddim(eta=0)):
        assert fastkl.divergence(EIGENVALUES, levels, sampler=name) == expected


# what they are for


def smooth(steps):
    """Levels of a smooth schedule to a last level above 0."""
    angles = np.linspace(math.atan(8.0), math.atan(0.1), steps + 1)
    return np.tan(angles)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_convergence(name):
    """The error of the standard deviation relative to the true solution's falls as N^-order."""
    order = samplers.get(name).order
    eigenvalues = np.array([0.4, 2.0])
    errors = []
    for steps in (240, 480):
        output = fastkl.output_variance(eigenvalues, smooth(steps), sampler=name, prior="exact")
        errors.append(np.abs(output / (eigenvalues + 0.1**2) - 1).max())
    slope = math.log2(errors[0] / errors[1])
    assert abs(slope - order) < 0.25, slope


def test_the_wrong_sign_that_is_shipped_is_seen():
    """SDE-DPM-Solver++ of third order as shipped multiplies the variance; the same with the right sign does not."""
    schedule = fastkl.NoiseSchedule.scaled_linear()
    levels = fastkl.discretize.uniform(schedule, 21, "trailing")
    shipped = ("sde_singlestep_3_heun", "sde_dpmpp_3m")
    names = [name + ending for name in shipped for ending in ("", "_corrected")]
    ratio = {name: fastkl.output_variance([1.0], levels, sampler=name)[0] for name in names}
    assert ratio["sde_singlestep_3_heun"] > 20
    assert 0.5 < ratio["sde_singlestep_3_heun_corrected"] < 1.1
    assert ratio["sde_dpmpp_3m"] > 1.05
    assert 0.9 < ratio["sde_dpmpp_3m_corrected"] < 1.05


@pytest.mark.parametrize("brownian", [True, False])
def test_monte_carlo_of_the_sampler_with_correlated_noises(rng, brownian):
    """Simulated in floating point, with a Brownian path in sigma drawn at the levels and middles."""
    levels, eigenvalue, size = np.array([80.0, 5.0, 1.0, 0.1, 0.0]), 1.0, 400_000
    y = levels[0] * rng.normal(size=size)
    denoise = lambda y, s: y * eigenvalue / (eigenvalue + s * s)  # noqa: E731
    for s, t in itertools.pairwise(levels[:-1]):
        m, q = math.sqrt(s * t), t / s
        to_m, rest = math.sqrt(s - m) * rng.normal(size=size), math.sqrt(m - t) * rng.normal(size=size)
        z1, z2 = to_m / math.sqrt(s - m), (to_m + rest) / math.sqrt(s - t)
        if not brownian:
            z2 = rng.normal(size=size)
        p = (m / s) ** 2
        middle = p * y + (1 - p) * denoise(y, s) + m * math.sqrt(1 - p) * z1
        y = q * q * y + (1 - q * q) * denoise(middle, m) + t * math.sqrt(1 - q * q) * z2
    y = denoise(y, levels[-2])
    exact = fastkl.output_variance([eigenvalue], levels, sampler=samplers.dpmpp_sde(brownian), prior="ve")[0]
    assert abs(y.var() / exact - 1) < 5 * math.sqrt(2 / size)


def test_eigenvalue_zero_with_w2():
    for name in NAMES:
        to_zero = not samplers.get(name).above_zero
        levels = path(6, to_zero=to_zero)
        value = fastkl.divergence([1.0, 0.0], levels, "w2", name)
        assert math.isfinite(value)
        if to_zero:
            assert value == pytest.approx(fastkl.divergence([1.0], levels, "w2", name), rel=1e-12)
            assert fastkl.output_variance([1.0, 0.0], levels, name)[1] == pytest.approx(0.0, abs=1e-20)


# evaluations of the network


@pytest.mark.parametrize("name", NAMES)
def test_steps_for_is_the_inverse_of_nfe(name):
    sampler = samplers.get(name)
    for steps in (4, 5, 10, 37):
        nfe = samplers.nfe(name, steps)
        assert samplers.steps_for(name, nfe) == steps
        assert nfe == {"heun": 2 * steps - 1, "flow_heun": 2 * steps - 1, "dpm_2": 2 * steps - 1,
                       "dpmpp_2s": 2 * steps - 1, "dpmpp_sde": 2 * steps - 1, "plms": steps + 1,
                       "prk": steps + 9}.get(sampler.name, steps)  # fmt: skip
        if nfe + 1 < samplers.nfe(name, steps + 1):
            assert samplers.steps_for(name, nfe + 1) == steps


def test_discretizations_for_a_number_of_evaluations():
    schedule = fastkl.NoiseSchedule.edm()
    levels = fastkl.discretize.for_nfe("karras", schedule, 10, "heun", rho=[5.0, 7.0])
    np.testing.assert_array_equal(levels, fastkl.discretize.karras(schedule, 5, [5.0, 7.0]))
    with pytest.raises(ValueError, match=r"nfe = 12: .*prk.* needs at least 13 evaluations"):
        fastkl.discretize.for_nfe("karras", schedule, 12, "prk")
    with pytest.raises(ValueError, match="family = 'cubic'"):
        fastkl.discretize.for_nfe("cubic", schedule, 10, "ddim")
    with pytest.raises(TypeError, match="steps"):
        fastkl.discretize.for_nfe("karras", schedule, 10, "ddim", steps=5)


# what they refuse


REFUSED = [
    ("heun", [INF, 1.0, 0.0], "needs a finite first level, row 0"),
    ("sde_dpm_2m", [2.0, 1.0, 0.0], "needs a last level above 0, row 0"),
    ("prk", [4.0, 2.0, 1.0, 0.0], "needs at least 4 steps, sigmas has 3"),
    ("plms", [4.0, 0.0], "needs at least 2 steps"),
    (samplers.prk([3.0, 1.5, 0.5]), [4.0, 2.0, 1.0, 0.6, 0.0], r"middles\[2\] = 0\.5: must lie between"),
    ("no_such", [1.0, 0.0], "sampler = 'no_such': must be one of 'ddim', 'euler'"),
]


@pytest.mark.parametrize(("sampler", "levels", "message"), REFUSED)
@pytest.mark.parametrize("function", [fastkl.divergence, fastkl.output_variance, fastkl.trajectory])
def test_what_a_sampler_cannot_do_is_refused(function, sampler, levels, message):
    with pytest.raises(ValueError, match=message):
        function([1.0], levels, sampler=sampler)


BAD_OPTIONS = [
    (lambda: samplers.ddim(1.5), ValueError, "eta = 1.5"),
    (lambda: samplers.ddim("0"), TypeError, "eta"),
    (lambda: samplers.ddpm("learned"), ValueError, "variance = 'learned'"),
    (lambda: samplers.ddpm(noise_at_last=1), TypeError, "noise_at_last"),
    (lambda: samplers.dpmpp_sde(brownian=0), TypeError, "brownian"),
    (lambda: samplers.lms(5), ValueError, "order = 5"),
    (lambda: samplers.deis(4), ValueError, "order = 4"),
    (lambda: samplers.deis(2, None), TypeError, "lower_order_final"),
    (lambda: samplers.multistep("dpm"), ValueError, "algorithm = 'dpm'"),
    (lambda: samplers.multistep("sde-dpmsolver", 3), ValueError, "order = 3"),
    (lambda: samplers.multistep(solver_type="bh2"), ValueError, "solver_type = 'bh2'"),
    (lambda: samplers.multistep(second_step="third"), ValueError, "second_step"),
    (lambda: samplers.multistep(order=3, as_shipped=True), ValueError, "as_shipped"),
    (lambda: samplers.multistep(euler_at_final="no"), TypeError, "euler_at_final"),
    (lambda: samplers.multistep("sde-dpmsolver++", eta=0.0), ValueError, "eta = 0.0"),
    (lambda: samplers.singlestep("sde-dpmsolver"), ValueError, "algorithm"),
    (lambda: samplers.singlestep("sde-dpmsolver++", 2, "heun", as_shipped=True), ValueError, "as_shipped"),
    (lambda: samplers.unipc(variant="bh3"), ValueError, "variant = 'bh3'"),
    (lambda: samplers.unipc(prediction="v"), ValueError, "prediction = 'v'"),
    (lambda: samplers.prk([3.0, 1.0]), ValueError, "middles"),
    (lambda: samplers.prk([1.0, 2.0, 3.0]), ValueError, r"middles\[1\]"),
    (lambda: samplers.prk([2.0, 1.0, 0.0]), ValueError, r"middles\[2\]"),
    (lambda: samplers.get(3), TypeError, "sampler"),
    (lambda: samplers.nfe("heun", 0), ValueError, "steps = 0"),
    (lambda: samplers.nfe("heun", 2.0), TypeError, "steps"),
    (lambda: samplers.steps_for("prk", 12), ValueError, "nfe = 12"),
    (lambda: samplers.steps_for("ddim", 0), ValueError, "nfe = 0"),
]


@pytest.mark.parametrize(("call", "exception", "message"), BAD_OPTIONS)
def test_bad_options(call, exception, message):
    with pytest.raises(exception, match=message):
        call()
