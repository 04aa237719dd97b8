"""Every run of the published schedulers, by the scalar reference and by the library."""

import math

import numpy as np
import pytest
import reference_samplers as reference
from sampler_cases import LAMBDAS, RUNS, library_sampler, reference_of

import fastkl

LOOSE = "heun/cosine/trailing/N10"  # there the scheduler's own float64 arithmetic loses digits
JUMPS = [
    name for name, run in RUNS.items() if "levels_eval" in run
]  # what is evaluated is not what was stepped to


def tolerance(name):
    return 1e-8 if name == LOOSE else 1e-10


def start_variance(run):
    """Variance of y_0; 1 for the pure noise in its place at an infinite first level."""
    return 1.0 if run["start_std"] is None else run["start_std"] ** 2


@pytest.mark.parametrize("name", [name for name in RUNS if name not in JUMPS])
def test_the_reference_repeats_the_run(name):
    run = RUNS[name]
    function, options = reference_of(library_sampler(run))
    levels, scale = run["sigmas_visited"], run["last_alpha"] ** 2
    for i, eigenvalue in enumerate(LAMBDAS):
        output = reference.states(function, eigenvalue, levels, **options)[-1]
        variance = scale * reference.variance_of(output, start_variance(run))
        assert variance == pytest.approx(run["output_variance"][i], rel=tolerance(name))
        gain = abs(output.parts.get(0, 0.0)) * math.sqrt(scale * start_variance(run))
        assert gain == pytest.approx(abs(run["gain"][i]), rel=max(tolerance(name), 1e-9), abs=1e-15)


def falling(levels):
    """The levels, a repeated last one (its step is the identity) moved by one unit in the last place."""
    levels = np.array(levels)
    if levels[-1] == levels[-2]:
        levels[-1] = np.nextafter(levels[-1], 0.0)
    return levels


@pytest.mark.parametrize("name", [name for name in RUNS if name not in JUMPS])
def test_the_library_repeats_the_run(name):
    """The prior of each run is its own: the noise's share is what a prior of variance v_0 leaves at gain 0."""
    run, levels = RUNS[name], falling(RUNS[name]["sigmas_visited"])
    sampler = library_sampler(run)
    variance = fastkl.output_variance(LAMBDAS, levels, sampler=sampler, prior="ve")
    if math.isfinite(levels[0]):
        other = fastkl.output_variance(LAMBDAS, levels, sampler=sampler, prior="vp")
        if run["stochastic"]:  # linear in v_0: two priors give the noise's share and the gain
            variance = variance + (start_variance(run) - levels[0] ** 2) * (other - variance)
        else:
            variance = variance * (start_variance(run) / levels[0] ** 2)
    scaled = run["last_alpha"] ** 2 * variance
    np.testing.assert_allclose(scaled, run["output_variance"], rtol=tolerance(name))
    assert sampler.nfe(len(levels) - 1) == run["nfe"]


@pytest.mark.parametrize("name", JUMPS)
def test_runs_that_evaluate_at_another_level_than_they_stepped_to(name):
    """diffusers' DDIM steps to t - T//N; x stays, and y = x/alpha is taken with the alpha of the next evaluation."""
    run = RUNS[name]
    assert run["scheduler"] == "DDIMScheduler"
    variance = np.full(len(LAMBDAS), 1.0)  # of x
    for (alpha, sigma), (next_alpha, next_sigma) in zip(
        run["levels_eval"], run["levels_target"], strict=True
    ):
        here, there = sigma / alpha, next_sigma / next_alpha
        gain = fastkl.output_variance(LAMBDAS, [here, there], prior="ve") / here**2
        variance = variance * gain * (next_alpha / alpha) ** 2
    np.testing.assert_allclose(variance, run["output_variance"], rtol=1e-10)
