"""The auditor and `optimize` on options of schedulers that are rare or hard."""

import copy

import diffusers
import numpy as np
import pytest
import torch
from cli_calls import run
from diffusers_runs import output_variance

import fastkl
from fastkl.integrations.audit import audit
from fastkl.integrations.diffusers import optimize, read

torch.set_num_threads(1)
LAMBDAS = np.geomspace(100.0, 0.01, 9)
SPECTRUM = fastkl.Spectrum(LAMBDAS)
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.mark.parametrize("kind", [diffusers.EDMEulerScheduler, diffusers.EDMDPMSolverMultistepScheduler])
def test_negative_timesteps_of_edm_are_no_wrong_table_entry(kind):
    report = audit(kind(), 10, SPECTRUM)
    assert report.path.timesteps.min() < -1.0
    assert "wrong_table_entry" not in [finding.code for finding in report.findings]


@pytest.mark.parametrize("order", [2, 3])
def test_deis_without_lower_order_at_the_end(order):
    options = {**SCALED, "solver_order": order}
    scheduler = diffusers.DEISMultistepScheduler(lower_order_final=False, **options)
    report = audit(scheduler, 10, SPECTRUM)
    running = copy.deepcopy(scheduler)
    running.set_timesteps(10)
    np.testing.assert_allclose(report.variance, output_variance(running, LAMBDAS), rtol=2e-3)
    usual = audit(diffusers.DEISMultistepScheduler(**options), 10, SPECTRUM)
    assert np.abs(report.variance / usual.variance - 1.0).max() > 5e-3


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lower_order_final", False),
        ("disable_corrector", [0]),
        ("solver_p", diffusers.DDIMScheduler()),
    ],
)
def test_options_of_unipc_that_are_not_read_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} = .* of UniPCMultistepScheduler"):
        read(diffusers.UniPCMultistepScheduler(**{option: value}))
    assert read(diffusers.UniPCMultistepScheduler(disable_corrector=())).prior == "vp"


@pytest.mark.parametrize("steps", [5, 10])
def test_the_best_schedule_starts_with_the_variance_of_its_own_first_level(steps):
    options = {"timestep_spacing": "leading", "steps_offset": 1}
    report = audit(diffusers.LMSDiscreteScheduler(**SCALED, **options), steps, SPECTRUM)
    assert report.best.value <= report.value
    if report.best.sigmas[0] > report.path.levels[0]:
        expected = fastkl.output_variance(LAMBDAS, report.best.sigmas, "lms", "vp")
        np.testing.assert_allclose(report.best.variance, expected, rtol=1e-7)
    else:
        np.testing.assert_array_equal(report.best.variance, report.variance)


@pytest.mark.filterwarnings("ignore:.*sde-dpmsolver:FutureWarning")
@pytest.mark.parametrize("options", [{}, {"solver_order": 1}, {"timestep_spacing": "leading"}])
def test_the_schedule_of_a_sampler_that_ends_above_zero_is_no_worse_than_as_shipped(options):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver", final_sigmas_type="sigma_min", **SCALED, **options
    )
    best = optimize(scheduler, SPECTRUM, 8)
    assert best.value <= best.shipped_value
    best.apply(scheduler)
    w2 = np.square(np.sqrt(output_variance(scheduler, LAMBDAS)) - np.sqrt(LAMBDAS)).sum()
    assert w2 == pytest.approx(best.value, rel=1e-3)


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}


@pytest.mark.parametrize(("scheduler", "beginning"), [
    (diffusers.EDMEulerScheduler(), "sigmas=torch.tensor(["),
    (diffusers.UniPCMultistepScheduler(**FLOW), "sigmas=np.array(["),
    (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), "sigmas=["),
    (diffusers.DPMSolverMultistepScheduler(**SCALED), "timesteps=["),
])  # fmt: skip
def test_the_printed_call_can_be_pasted(scheduler, beginning, tmp_path, capsys):
    scheduler.save_pretrained(tmp_path)
    file = str(tmp_path / "scheduler_config.json")
    status, out, _ = run(capsys, "audit", file, "--steps", "6")
    assert status == 0
    (text,) = [line for line in out.splitlines() if line.startswith("pipe(")]
    call = text.removeprefix("pipe(..., ").removesuffix(")")
    assert call.startswith(beginning)
    best = audit(file, 6).best
    running = copy.deepcopy(scheduler)
    running.set_timesteps(**eval(f"dict({call})", {"np": np, "torch": torch}))
    np.testing.assert_array_equal(
        read(scheduler).path_of(best.arguments).timesteps, running.timesteps.numpy()
    )


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_zero_terminal_snr_with_ddpm(spacing):
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="scaled_linear", clip_sample=False, rescale_betas_zero_snr=True,
        prediction_type="v_prediction", timestep_spacing=spacing,
    )  # fmt: skip
    best = optimize(scheduler, SPECTRUM, 8)
    assert best.value <= best.shipped_value
    assert best.sigmas[0] > 1e3
    best.apply(scheduler)
    w2 = np.square(np.sqrt(output_variance(scheduler, LAMBDAS)) - np.sqrt(LAMBDAS)).sum()
    assert w2 == pytest.approx(best.value, rel=1e-3)
    assert audit(scheduler, 8, SPECTRUM).best.value == best.value


def test_a_last_level_that_repeats_the_one_before_to_float32():
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(
        euler_at_final=True, final_sigmas_type="sigma_min", sigma_schedule="exponential"
    )
    report = audit(scheduler, 10, SPECTRUM)
    assert report.path.wasted == [9]
    assert "wasted_step" in [finding.code for finding in report.findings]
    running = copy.deepcopy(scheduler)
    running.set_timesteps(10)
    np.testing.assert_allclose(report.variance, output_variance(running, LAMBDAS), rtol=5e-5)


@pytest.mark.parametrize(
    ("metric", "proved"), [("kl", True), ("reverse_kl", True), ("jeffreys", True), ("w2", False)]
)
def test_heun_is_proved_for_all_metrics_but_w2(metric, proved):
    best = optimize(diffusers.HeunDiscreteScheduler(**SCALED), [4.0, 1.0, 0.1], 3, metric, prove=True)
    assert best.search.proved_optimal is proved
    assert best.value <= best.shipped_value


@pytest.mark.parametrize(
    ("name", "way"),
    [("DPMSolverMultistep", "optimize"), ("EulerDiscrete", None), ("LMSDiscrete", "fastkl.search")],
)
def test_the_report_warns_of_memory_and_of_latents(name, way, tmp_path, capsys):
    getattr(diffusers, f"{name}Scheduler")(**SCALED).save_pretrained(tmp_path)
    status, out, _ = run(capsys, "audit", str(tmp_path / "scheduler_config.json"), "--steps", "5")
    assert status == 0
    words = " ".join(out.split())
    assert ("keeps them apart" in words) is (way is not None)
    assert way is None or f"{way}(..., min_spacing=) keeps them apart" in words
    assert "spectrum mnist (a latent model needs that of its latents: fastkl.Spectrum.from_latents)" in words
