"""diffusers: schedules whose first level is chosen too, and the first noise that each class then draws."""

import warnings

import numpy as np
import pytest
import torch
from diffusers_runs import output_w2
from test_diffusers import TAKERS, made

import fastkl
from fastkl.integrations.diffusers import optimize

torch.set_num_threads(1)
WITH_MEAN = fastkl.Spectrum(np.geomspace(20.0, 0.005, 40), mean=np.linspace(1.0, -0.5, 40))


@pytest.mark.parametrize(("name", "options", "argument"), [
    *(case for case in TAKERS if case[0] != "EDMEuler"),
    ("EulerDiscrete", {"timestep_spacing": "leading"}, "timesteps"),
    ("HeunDiscrete", {"timestep_spacing": "leading"}, "timesteps"),
    ("EulerDiscrete", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "timesteps"),
])  # fmt: skip
def test_a_free_start_is_set_and_is_worth_what_is_said(name, options, argument):
    """The scheduler's own first noise and steps return the variance and the mean that are predicted."""
    scheduler, mu = made(name, options)
    best = optimize(scheduler, WITH_MEAN, 4, mu=mu, free_start=True)
    assert best.value <= optimize(scheduler, WITH_MEAN, 4, mu=mu).value
    best.apply(scheduler)
    assert list(best.arguments) == [argument]
    # UniPC tells the network whole timesteps: what that makes of the mean is not predicted exactly
    told_the_truth = name != "UniPCMultistep"
    tolerance = 2e-3 if "Singlestep" in name else 1e-4 if told_the_truth else 0.02
    assert output_w2(scheduler, WITH_MEAN) == pytest.approx(best.value, rel=tolerance)
    if told_the_truth and best.sigmas[-1] == 0.0:  # then it is the library's own divergence too
        value = fastkl.divergence(WITH_MEAN, best.sigmas, "w2", best.sampler, best.reading.prior)
        assert best.value == pytest.approx(value, rel=tolerance)


def test_a_free_start_is_lower_where_that_is_better():
    for name, options in (("EulerDiscrete", {}), ("HeunDiscrete", {}), ("DDPM", {"clip_sample": False}),
                          ("FlowMatchEulerDiscrete", {"shift": 3.0})):  # fmt: skip
        scheduler, _ = made(name, options)
        free, fixed = (optimize(scheduler, WITH_MEAN, 4, free_start=free) for free in (True, False))
        assert free.sigmas[0] < 0.95 * fixed.sigmas[0]
        assert free.value < 0.99 * fixed.value


@pytest.mark.parametrize("options", [{}, {"min_spacing": 30}, {"visit": [700]}])
def test_levels_of_ddim_for_a_solver_with_a_memory(options):
    """They stay what they are where the scheduler's own levels have the lesser divergence."""
    scheduler, _ = made("DPMSolverMultistep", {"final_sigmas_type": "zero"})
    best = optimize(scheduler, WITH_MEAN, 6, free_start=True, levels_of="ddim", apply=True, **options)
    given = options | {"visit": sorted([0, *options.get("visit", [])])}
    schedule, prior = best.reading.schedule, best.reading.prior
    found = fastkl.search(WITH_MEAN, schedule, 6, "ddim", "w2", prior, free_start=True, prove=False, **given)
    assert best.arguments["timesteps"] == found.timesteps.tolist()
    assert best.arguments["timesteps"][-1] == 0
    assert best.origin == "ddim"
    assert best.value == pytest.approx(output_w2(scheduler, WITH_MEAN), rel=1e-4)


def test_levels_of_ddim_are_refused_where_they_do_not_fit():
    for name, options, message in (
        ("DPMSolverMultistep", {"final_sigmas_type": "sigma_min"}, "DPMSolverMultistepScheduler must end at 0"),
        ("UniPCMultistep", {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
         "the schedule must have a lowest level above 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^levels_of = .ddim.: {message}"):
            optimize(made(name, options)[0], WITH_MEAN, 6, levels_of="ddim")
    with pytest.raises(ValueError, match=r"^steps = 1: must be at least 2 with levels_of = .ddim."):
        optimize(made("DPMSolverMultistep", {})[0], WITH_MEAN, 1, levels_of="ddim")


def test_one_step_from_a_free_start():
    for name in ("EulerDiscrete", "HeunDiscrete", "DPMSolverMultistep"):
        scheduler, _ = made(name, {})
        best = optimize(scheduler, WITH_MEAN, 1, free_start=True, apply=True)
        assert best.value == pytest.approx(output_w2(scheduler, WITH_MEAN), rel=1e-4)


def test_a_free_start_is_refused_where_the_first_noise_does_not_follow_it():
    message = "^free_start = True of EDMEulerScheduler: it draws its first noise with a standard deviation of 80.0062"
    with pytest.raises(ValueError, match=message):
        optimize(made("EDMEuler", {})[0], WITH_MEAN, 5, free_start=True)


def test_a_free_start_without_a_mean_is_warned_of():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        optimize(made("EulerDiscrete", {})[0], fastkl.Spectrum.power_law(40, 1.0), 5, free_start=True)
    messages = [str(warning.message) for warning in caught]
    assert [text.startswith("free_start = True: spectrum has no mean") for text in messages] == [True]
    assert caught[0].filename == __file__  # who calls the library, not the library
