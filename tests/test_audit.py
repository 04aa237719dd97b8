"""The auditor: its variances are those of the real schedulers, and it finds what is known to be wrong with them."""

import copy
import json
import math

import diffusers
import numpy as np
import pytest
import torch
from cli_calls import document, run
from diffusers_runs import output_variance

import fastkl
from fastkl.integrations.audit import audit

torch.set_num_threads(1)
LAMBDAS = np.geomspace(100.0, 0.01, 9)
SPECTRUM = fastkl.Spectrum(LAMBDAS)
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def made(name, **options):
    """A scheduler, with Stable Diffusion's betas where it has betas."""
    betas = {} if name.startswith(("EDM", "FlowMatch")) or "beta_schedule" in options else SCALED
    return getattr(diffusers, f"{name}Scheduler")(**{**betas, **options})


def numbers(report, code):
    """The numbers of the finding of that kind, of which there is one."""
    (finding,) = [finding for finding in report.findings if finding.code == code]
    assert finding.message
    return finding.numbers


def codes(report):
    return [finding.code for finding in report.findings]


def ratio(report, eigenvalue):
    return report.ratio[np.argmin(np.abs(np.log(report.eigenvalues / eigenvalue)))]


KNOWN = [
    ("DDIM", {"clip_sample": False, "timestep_spacing": "linspace"}, 10),
    ("DDIM", {"clip_sample": False, "timestep_spacing": "trailing"}, 61),
    ("DDPM", {"clip_sample": False, "timestep_spacing": "trailing"}, 61),
    ("DPMSolverMultistep", {"use_karras_sigmas": True}, 20),
    ("UniPCMultistep", {"use_exponential_sigmas": True}, 10),
    ("DEISMultistep", {"use_exponential_sigmas": True}, 20),
    ("DDPM", {"clip_sample": False, "variance_type": "fixed_large", "timestep_spacing": "trailing"}, 10),
    ("FlowMatchEulerDiscrete", {"shift": 3.0}, 10),
    ("EulerDiscrete", {"interpolation_type": "log_linear"}, 10),
    ("EulerDiscrete", {"final_sigmas_type": "sigma_min"}, 10),
    ("HeunDiscrete", {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"}, 10),
    ("DPMSolverSinglestep", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "solver_type": "heun"}, 21),
    ("DDIM", {"clip_sample": False, "set_alpha_to_one": False}, 10),
]  # fmt: skip
TOLERANCE = {"HeunDiscrete": 0.3}  # float32 loses that much where it explodes


@pytest.mark.parametrize(("name", "options", "steps"), KNOWN)
def test_variances_are_those_of_the_real_scheduler(name, options, steps):
    scheduler = made(name, **options)
    report = audit(scheduler, steps, SPECTRUM)
    running = copy.deepcopy(scheduler)
    running.set_timesteps(steps)
    variance = output_variance(running, LAMBDAS)
    large = variance > 1e-4 * LAMBDAS  # a remainder of 1e-7 is nothing but rounding of float32
    np.testing.assert_allclose(report.variance[large], variance[large], rtol=TOLERANCE.get(name, 5e-5))
    np.testing.assert_allclose(report.variance[~large], variance[~large], rtol=0.3)
    assert report.evaluations == len(running.timesteps)
    w2 = np.square(np.sqrt(variance) - np.sqrt(LAMBDAS)).sum()
    assert report.value == pytest.approx(w2, rel=TOLERANCE.get(name, 1e-4))


def test_ddim_steps_to_another_level_than_it_evaluates_next():
    report = audit(made("DDIM", clip_sample=False, timestep_spacing="linspace"), 10, SPECTRUM)
    found = numbers(report, "inconsistent_step")
    assert (found["stepped_to"], found["evaluated_at"]) == pytest.approx((0.1028, 0.02917), rel=1e-3)
    assert found["value_without"] < 0.5 * report.value
    assert ratio(report, 0.01) == pytest.approx(1.70, abs=0.01)
    assert "inconsistent_step" not in codes(audit(made("DDIM", clip_sample=False), 10, SPECTRUM))


@pytest.mark.parametrize(("name", "largest"), [("DDIM", 13.15), ("DDPM", 18.18)])
def test_the_last_timestep_of_trailing_may_read_the_noisiest_entry(name, largest):
    report = audit(made(name, clip_sample=False, timestep_spacing="trailing"), 61, SPECTRUM)
    found = numbers(report, "wrong_table_entry")
    assert (found["step"], found["timestep"]) == (61, -1)
    assert found["sigma"] == pytest.approx(14.61, abs=0.01)
    assert ratio(report, 100.0) == pytest.approx(largest, rel=1e-3)
    assert found["value_without"] < report.value / 100
    clamped = audit(made("EulerDiscrete", timestep_spacing="trailing"), 61, SPECTRUM)
    assert numbers(clamped, "wrong_table_entry")["sigma"] == pytest.approx(0.02917, rel=1e-3)


@pytest.mark.parametrize(("name", "options", "steps", "gap"), [
    ("DPMSolverMultistep", {"use_karras_sigmas": True}, 10, 1.9e-2),
    ("DPMSolverMultistep", {"use_karras_sigmas": True}, 20, 4.5e-2),
    ("DPMSolverMultistep", {"use_karras_sigmas": True}, 50, 0.16),
    ("DPMSolverMultistep", {"use_lu_lambdas": True}, 50, 0.12),
    ("DEISMultistep", {"use_exponential_sigmas": True}, 20, 0.28),
])  # fmt: skip
def test_the_network_is_told_another_timestep(name, options, steps, gap):
    report = audit(made(name, **options), steps, SPECTRUM)
    relative = numbers(report, "told_timestep")["relative"]
    assert abs(relative) == pytest.approx(gap, rel=0.06)
    assert any(f"({100 * relative:+.1f} %)" in finding.message for finding in report.findings)
    plain = audit(made("EulerDiscrete", use_karras_sigmas=True), steps, SPECTRUM)
    assert "told_timestep" not in codes(plain)


def test_fixed_large_adds_noise_on_the_last_step():
    options = {"clip_sample": False, "variance_type": "fixed_large", "beta_schedule": "linear"}
    report = audit(made("DDPM", timestep_spacing="trailing", **options), 10, SPECTRUM)
    assert numbers(report, "noise_at_last")["variance"] == pytest.approx(0.103, abs=5e-4)
    assert report.variance.min() > 0.103
    assert "noise_at_last" not in codes(audit(made("DDPM", **options), 10, SPECTRUM))


def test_flow_matching_shifts_the_last_sigma_twice():
    report = audit(made("FlowMatchEulerDiscrete", shift=3.0), 10, SPECTRUM)
    found = numbers(report, "shifted_twice")
    assert (found["sigma"], found["once"]) == pytest.approx((0.00893, 0.00299), abs=1e-5)
    assert "shifted_twice" not in codes(audit(made("FlowMatchEulerDiscrete"), 10, SPECTRUM))


def test_log_linear_ends_at_another_level_than_it_says():
    report = audit(made("EulerDiscrete", interpolation_type="log_linear"), 10, SPECTRUM)
    assert numbers(report, "wrong_table_entry")["sigma"] == pytest.approx(0.02917, rel=1e-3)
    assert numbers(report, "ends_above_zero")["variance"] == pytest.approx(8.5e-4, rel=1e-2)


@pytest.mark.parametrize(("name", "options"), [
    ("EulerDiscrete", {"final_sigmas_type": "sigma_min"}),
    ("DDIM", {"clip_sample": False, "set_alpha_to_one": False}),
    ("PNDM", {}),
    ("DEISMultistep", {"use_karras_sigmas": True}),
    ("UniPCMultistep", {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}),
    ("EDMEuler", {"final_sigmas_type": "sigma_min"}),
])  # fmt: skip
def test_a_wasted_last_step(name, options):
    report = audit(made(name, **options), 10, SPECTRUM)
    assert numbers(report, "wasted_step")["step"] == 9
    assert "wasted_step" not in codes(audit(made("DPMSolverMultistep"), 10, SPECTRUM))


def test_the_first_level_and_the_prior():
    report = audit(made("DDIM", clip_sample=False, steps_offset=1), 10, SPECTRUM)
    found = numbers(report, "first_level_short")
    assert (found["sigma"], found["noisiest"]) == pytest.approx((8.39, 14.61), abs=0.01)
    prior = numbers(report, "prior_mismatch")
    assert prior["eigenvalue"] == 100.0
    assert prior["ratio"] == pytest.approx((1 + 8.39**2) / (100 + 8.39**2), rel=1e-3)
    assert prior["value_without"] < report.value
    assert ratio(report, 100.0) == pytest.approx(0.38, abs=0.01)
    noise = audit(made("FlowMatchEulerDiscrete"), 10, SPECTRUM)
    assert not {"first_level_short", "prior_mismatch"} & set(codes(noise))


def test_inflated_and_lost_variance():
    report = audit(
        made("HeunDiscrete", beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing"), 10, SPECTRUM
    )
    assert numbers(report, "variance_inflated")["ratio"] > 3e5
    assert ratio(report, 1.0) == pytest.approx(1.6e3, rel=0.05)
    slip = audit(made("DPMSolverSinglestep", algorithm_type="sde-dpmsolver++", solver_order=3, solver_type="heun"), 21,
                 SPECTRUM)  # fmt: skip
    assert ratio(slip, 1.0) == pytest.approx(29.8, abs=0.1)  # upstream's wrong sign
    euler = audit(made("EulerDiscrete"), 10, SPECTRUM)
    lost = numbers(euler, "variance_lost")
    assert ratio(euler, 0.01) < 0.3
    missing = np.where(euler.ratio < 0.95, LAMBDAS - euler.variance, 0.0)
    assert lost["eigenvalue"] == LAMBDAS[np.argmax(missing)] > 0.01  # where most variance is lost
    assert lost["ratio"] == pytest.approx(euler.variance[np.argmax(missing)] / lost["eigenvalue"])
    assert 0.5 < lost["total_ratio"] < 0.9


FAILING = [
    ("UniPCMultistep", {"solver_type": "bh1"}, "returns nan"),
    (
        "EDMDPMSolverMultistep",
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
        "raises UnboundLocalError",
    ),
    (
        "DPMSolverMultistep",
        {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True},
        "raises IndexError",
    ),
]


@pytest.mark.parametrize(("name", "options", "message"), FAILING)
def test_a_scheduler_that_fails(name, options, message):
    report = audit(made(name, **options), 10, SPECTRUM)
    assert codes(report) == ["fails"]
    assert message in report.findings[0].message
    assert np.isnan(report.value)
    assert np.isnan(report.variance).all()
    assert report.best is None
    json.dumps(report.as_dict())


@pytest.mark.parametrize(("name", "options"), [
    ("EulerDiscrete", {}), ("DPMSolverMultistep", {}), ("FlowMatchEulerDiscrete", {"shift": 3.0}),
    ("DDIM", {"clip_sample": False}), ("PNDM", {}), ("LMSDiscrete", {}), ("EDMDPMSolverMultistep", {}),
    ("HeunDiscrete", {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"}),
    ("DPMSolverSinglestep", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "solver_type": "heun"}),
])  # fmt: skip
def test_the_best_schedule_of_the_same_cost_is_better(name, options):
    scheduler = made(name, **options)
    report = audit(scheduler, 10, SPECTRUM)
    best = report.best
    assert best.value < report.value
    assert len(best.sigmas) == len(report.path.levels)
    assert best.value == pytest.approx(np.square(np.sqrt(best.variance) - np.sqrt(LAMBDAS)).sum(), rel=1e-9)
    if best.arguments is None:
        assert "takes no schedule" in best.reason
        return
    running = copy.deepcopy(scheduler)
    running.set_timesteps(**best.arguments)
    np.testing.assert_allclose(output_variance(running, LAMBDAS), best.variance, rtol=1e-3)


@pytest.mark.parametrize("metric", ["kl", "reverse_kl", "jeffreys", "w2"])
def test_divergences_are_the_librarys(metric):
    """With a mean, counts, and a scheduler that is exactly one of fastkl's samplers."""
    spectrum = fastkl.Spectrum([9.0, 1.0, 0.04], counts=[1, 2.5, 30], mean=[3.0, -0.5, 0.1])
    report = audit(made("EulerDiscrete"), 10, spectrum, metric)  # whole timesteps
    expected = fastkl.divergence(spectrum, report.path.levels, metric, "euler", "ve")
    assert report.value == pytest.approx(expected, rel=1e-5)


def test_the_mean_vanishes_in_pure_noise():
    spectrum = fastkl.Spectrum([9.0, 1.0], mean=[3.0, -0.5])
    report = audit(made("FlowMatchEulerDiscrete"), 8, spectrum, "kl")
    expected = fastkl.divergence(spectrum, report.path.levels, "kl", "euler", "flow")
    assert report.value == pytest.approx(expected, rel=1e-5)


def test_small_divergences_keep_their_digits():
    spectrum = fastkl.Spectrum([0.5])
    report = audit(made("DPMSolverMultistep", use_karras_sigmas=False), 200, spectrum, "kl")
    x = math.log(report.variance[0] / 0.5)
    assert abs(x) < 0.05
    assert report.value == pytest.approx((math.expm1(-x) + x) / 2, rel=1e-6)


def saved(tmp_path, scheduler):
    scheduler.save_pretrained(tmp_path)
    return str(tmp_path / "scheduler_config.json")


def test_the_command_line(tmp_path, capsys):
    file, picture = (
        saved(tmp_path, made("EulerDiscrete", final_sigmas_type="sigma_min")),
        tmp_path / "audit.png",
    )
    report = document(capsys, "audit", file, "--steps", "8", "--spectrum", "digits", "--plot", str(picture))
    direct = audit(file, 8, fastkl.Spectrum.preset("digits"))
    assert report["value"] == direct.value
    assert report["variance"] == direct.variance.tolist()
    assert [finding["code"] for finding in report["findings"]] == codes(direct)
    assert report["best"]["arguments"] == direct.best.arguments
    assert picture.read_bytes().startswith(b"\x89PNG")
    status, out, _ = run(capsys, "audit", file, "--steps", "8")
    assert status == 0
    for word in (
        "EulerDiscreteScheduler",
        "wasted_step: the last of 8 steps",
        "w2 as shipped",
        "pipe(..., timesteps=[",
    ):
        assert word in out


def test_the_command_line_on_a_class_that_takes_no_schedule(tmp_path, capsys):
    status, out, _ = run(capsys, "audit", saved(tmp_path, made("DDIM", clip_sample=False)))
    assert status == 0
    assert "EulerDiscreteScheduler is the same sampler" in out


@pytest.mark.parametrize(("content", "message"), [
    ('{"_class_name": "DDIMScheduler"}', "clip_sample = True of DDIMScheduler"),
    ('{"_class_name": "Nothing"}', "is not supported"),
    ("[1]", "must be a diffusers scheduler"),
    ("{", "not a scheduler_config.json"),
])  # fmt: skip
def test_errors_on_the_command_line(content, message, tmp_path, capsys):
    file = tmp_path / "scheduler_config.json"
    file.write_text(content)
    status, out, err = run(capsys, "audit", str(file), "--json")
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_the_random_numbers_of_the_caller_stay():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    audit(made("EulerAncestralDiscrete"), 5, SPECTRUM)
    assert torch.equal(torch.rand(4), expected)


def test_zero_eigenvalues():
    spectrum = fastkl.Spectrum([1.0, 0.0])
    with pytest.raises(ValueError, match=r"spectrum\.eigenvalues\[1\] = 0\.0"):
        audit(made("EulerDiscrete"), 5, spectrum, "kl")
    report = audit(made("EulerDiscrete"), 5, spectrum)
    assert np.isnan(report.ratio[1])
    assert np.isfinite(report.value)
    with pytest.raises(ValueError, match="spectrum: must have an eigenvalue above 0"):
        audit(made("EulerDiscrete"), 5, fastkl.Spectrum([0.0]))


def test_one_step():
    assert audit(made("FlowMatchEulerDiscrete"), 1, SPECTRUM).best is None
    report = audit(made("EulerDiscrete", timestep_spacing="trailing"), 1, SPECTRUM)
    assert report.best.value == pytest.approx(report.value)
