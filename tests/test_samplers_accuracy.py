"""Accuracy of every sampler against the 50-digit reference, over the whole contract: 1e-10 relative of each divergence.

Eigenvalues 1e-12 to 1e12, levels 1e-4 to 1e5, divergences down to 1e-12 of an eigenvalue's scale.
"""

import math

import numpy as np
import pytest
import reference
import reference_samplers
from sampler_cases import reference_of
from test_samplers import path

import fastkl
from fastkl import samplers

ARITHMETIC = reference.arithmetic(50)
BOUND, VARIANCE_BOUND = 1e-10, 1e-10
LEAST = 1e-12  # of divergences, w2 in units of its eigenvalue
# One name for each map: the others are the same object.
NAMES = list({samplers.get(name): name for name in reversed(samplers.names())}.values())
NAMES.remove("ddpm_fixed_large")  # by its last test


def exact(name, eigenvalue, levels, prior):
    """The divergences of one direction, and its output variance."""
    function, options = reference_of(samplers.get(name))
    _, variance = reference_samplers.gain_and_variance(
        function, eigenvalue, levels.tolist(), prior, ARITHMETIC, **options
    )
    number = ARITHMETIC.number
    target = number(eigenvalue) + number(levels[-1]) ** 2
    return {
        "kl": reference.gaussian_kl(number(0), target, variance, ARITHMETIC),
        "reverse_kl": reference.gaussian_kl(number(0), variance, target, ARITHMETIC),
        "w2": (ARITHMETIC.sqrt(variance) - ARITHMETIC.sqrt(target)) ** 2,
    }, variance


def assert_accurate(name, eigenvalue, levels, prior):
    true, variance = exact(name, eigenvalue, levels, prior)
    got = fastkl.output_variance([eigenvalue], levels, sampler=name, prior=prior)[0]
    assert abs(float(got / variance - 1)) <= VARIANCE_BOUND
    checked = 0
    for metric, value in true.items():
        if value < LEAST * (eigenvalue if metric == "w2" else 1.0):
            continue
        checked += 1
        error = abs(float(fastkl.divergence([eigenvalue], levels, metric, name, prior) / value - 1))
        assert error <= BOUND, (metric, error, float(value), eigenvalue, levels)
    return checked


def last_level(name, levels):
    """The levels without a last 0 where the sampler cannot step to it."""
    return levels[:-1] if samplers.get(name).above_zero else levels


@pytest.mark.parametrize("name", NAMES)
def test_coarse_paths_to_zero(name, rng):
    levels = last_level(name, path(int(rng.integers(5, 20))))
    for eigenvalue, prior in zip(10.0 ** rng.uniform(-8, 6, 4), ("vp", "ve", "flow", "exact"), strict=True):
        assert_accurate(name, eigenvalue, levels, prior)


@pytest.mark.parametrize("name", NAMES)
def test_the_ends_of_the_contract(name):
    levels = last_level(name, np.append(np.geomspace(1e5, 1e-4, 12), 0.0))
    checked = [assert_accurate(name, eigenvalue, levels, "exact") for eigenvalue in (1e-12, 1e-4, 1.0, 1e12)]
    assert sum(checked) > 3


@pytest.mark.parametrize("name", NAMES)
def test_short_paths_that_lose_next_to_nothing(name):
    """Down to where the divergence is far below the rounding of a ratio of variances."""
    checked = 0
    for first in (3.0, 1.1, 1.01):
        levels = np.geomspace(first, 1.0, 9)
        checked += sum(assert_accurate(name, eigenvalue, levels, "exact") for eigenvalue in (1e-3, 1.0, 30.0))
    assert checked > 0


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "dpmpp_3m", "deis_2", "plms", "singlestep_2", "unipc_2",
                                  "euler_ancestral", "sde_dpmpp_2m", "sde_singlestep_2"])  # fmt: skip
def test_long_paths(name):
    levels = np.linspace(80.0 ** (1 / 7), 0.01 ** (1 / 7), 121) ** 7
    assert sum(assert_accurate(name, eigenvalue, levels, "exact") for eigenvalue in (0.01, 3.0)) > 0


def test_ddpm_with_the_larger_variance_is_exact_at_lambda_1():
    """It keeps data of unit variance as it is, whatever the levels: that digit is known without a reference."""
    for levels in (path(9, to_zero=False), path(40, to_zero=False)):
        assert fastkl.divergence([1.0], levels, sampler="ddpm_fixed_large") < 1e-28
        assert_accurate("ddpm_fixed_large", 0.3, levels, "vp")
        assert_accurate("ddpm_fixed_large", 40.0, levels, "exact")


def test_thousand_steps():
    """Tiny divergences of long schedules, where a product of ratios has lost all digits."""
    levels = np.tan(np.linspace(math.atan(20.0), math.atan(0.05), 1001))
    for name in ("dpmpp_2m", "singlestep_2"):
        assert assert_accurate(name, 0.8, levels, "exact") == 3


def test_large_eigenvalues_that_a_small_prior_leaves_far_from_their_target():
    """The ratio of variances is 1 plus a mismatch near -1: each candidate alone, and among unstable ones."""
    levels = np.append(np.geomspace(80.0, 0.002, 17) ** 1.0, 0.0)
    for eigenvalue in (1e6, 1e10):
        true = exact("dpm_2m", eigenvalue, levels, "vp")[1]
        got = fastkl.output_variance([1e-12, eigenvalue], levels, sampler="dpm_2m")[1]
        assert abs(float(got / true - 1)) <= 1e-12
