"""diffusers: every supported class is read right, predicted as its own step code runs, and takes its best schedule."""

import copy
import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers_runs import output_variance

import fastkl
from fastkl.integrations._classes import CLASSES
from fastkl.integrations._predict import predict
from fastkl.integrations.diffusers import optimize, read

torch.set_num_threads(1)
LAMBDAS = np.array([0.01, 0.1, 1.0, 10.0, 100.0])
SPECTRUM = fastkl.Spectrum(np.geomspace(20.0, 0.005, 40))
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
SDE = {"algorithm_type": "sde-dpmsolver++"}

# class, options, and what `read` says: prior, spacing, last step
CASES = [
    ("DDIM", {"clip_sample": False}, ("vp", "leading", "zero")),
    ("DDIM", {"clip_sample": False, "timestep_spacing": "linspace"}, ("vp", "linspace", "zero")),
    ("DDIM", {"clip_sample": False, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True,
              "prediction_type": "v_prediction"}, ("vp", "trailing", "zero")),
    ("DDIM", {"clip_sample": False, "set_alpha_to_one": False, "prediction_type": "sample"},
     ("vp", "leading", "alphas_cumprod[0]")),
    ("DDPM", {"clip_sample": False}, ("vp", "leading", "zero")),
    ("DDPM", {"clip_sample": False, "variance_type": "fixed_large", "timestep_spacing": "trailing"},
     ("vp", "trailing", "zero")),
    ("PNDM", {"skip_prk_steps": True, "steps_offset": 1}, ("vp", "leading", "alphas_cumprod[0]")),
    ("PNDM", {}, ("vp", "leading", "alphas_cumprod[0]")),
    ("EulerDiscrete", {}, ("ve", "linspace", "zero")),
    ("EulerDiscrete", {"use_karras_sigmas": True, "prediction_type": "v_prediction"}, ("ve", "karras", "zero")),
    ("EulerDiscrete", {"interpolation_type": "log_linear"}, ("ve", "linspace", "zero")),
    ("EulerDiscrete", {"final_sigmas_type": "sigma_min"}, ("ve", "linspace", "sigma_min")),
    ("EulerDiscrete", {"timestep_spacing": "leading"}, ("vp", "leading", "zero")),
    ("EulerAncestralDiscrete", {}, ("ve", "linspace", "zero")),
    ("HeunDiscrete", {}, ("ve", "linspace", "zero")),
    ("LMSDiscrete", {"use_karras_sigmas": True}, ("ve", "karras", "zero")),
    ("DPMSolverMultistep", {}, ("vp", "linspace", "zero")),
    ("DPMSolverMultistep", {"use_karras_sigmas": True, "solver_order": 3}, ("vp", "karras", "zero")),
    ("DPMSolverMultistep", {**SDE, "solver_order": 3}, ("vp", "linspace", "zero")),
    ("DPMSolverMultistep", FLOW, ("flow", "linspace", "zero")),
    ("DPMSolverMultistep", {"final_sigmas_type": "sigma_min", "use_lu_lambdas": True}, ("vp", "lu", "sigma_min")),
    ("DPMSolverSinglestep", {}, ("vp", "linspace", "zero")),
    ("DPMSolverSinglestep", {**SDE, "solver_order": 3, "solver_type": "heun"}, ("vp", "linspace", "zero")),
    ("UniPCMultistep", {}, ("vp", "linspace", "zero")),
    ("UniPCMultistep", FLOW, ("flow", "linspace", "zero")),
    ("UniPCMultistep", {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}, ("vp", "karras", "sigma_min")),
    ("DEISMultistep", {}, ("vp", "linspace", "sigma_min")),
    ("DEISMultistep", {"use_exponential_sigmas": True, "solver_order": 3}, ("vp", "exponential", "sigma_min")),
    ("EDMEuler", {}, ("vp", "karras", "zero")),
    ("EDMEuler", {"prediction_type": "v_prediction", "sigma_schedule": "exponential"}, ("vp", "exponential", "zero")),
    ("EDMDPMSolverMultistep", {}, ("vp", "karras", "zero")),
    ("FlowMatchEulerDiscrete", {"shift": 3.0}, ("flow", "linspace", "zero")),
    ("FlowMatchEulerDiscrete", {"stochastic_sampling": True}, ("flow", "linspace", "zero")),
    ("FlowMatchEulerDiscrete", {"use_dynamic_shifting": True, "shift_terminal": 0.1}, ("flow", "linspace", "zero")),
    ("FlowMatchHeunDiscrete", {"shift": 3.0}, ("flow", "linspace", "zero")),
]  # fmt: skip
IDS = [f"{name}-{'-'.join(f'{k}={v}' for k, v in options.items())}" for name, options, _ in CASES]


def made(name, options):
    """A scheduler, Stable Diffusion's betas where it has betas, and mu where it needs one."""
    kind = getattr(diffusers, f"{name}Scheduler")
    betas = {} if name.startswith(("EDM", "FlowMatch")) else SCALED
    return kind(**betas, **options), 1.15 if options.get("use_dynamic_shifting") else None


def timesteps_set(scheduler, mu, **arguments):
    """A copy with its timesteps set."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(**arguments, **({} if mu is None else {"mu": mu}))
    return scheduler


def test_every_supported_class_is_among_the_cases():
    assert {f"{name}Scheduler" for name, _, _ in CASES} == set(CLASSES)


@pytest.mark.parametrize("steps", [10, 7])
@pytest.mark.parametrize(("name", "options", "facts"), CASES, ids=IDS)
def test_the_prediction_is_what_the_real_scheduler_returns(name, options, facts, steps):
    """The network is told the scheduler's timesteps, and answers for the levels of those."""
    scheduler, mu = made(name, options)
    reading = read(scheduler, mu=mu)
    assert (reading.prior, reading.spacing, reading.last_step) == facts
    path = reading.path(steps)
    predicted = predict(path, reading.sampler(path), LAMBDAS, reading.prediction)
    variance = output_variance(timesteps_set(scheduler, mu, num_inference_steps=steps), LAMBDAS)
    tolerance = (
        2e-3 if "DEIS" in name and options.get("solver_order") == 3 else 2e-5
    )  # of float32 coefficients
    np.testing.assert_allclose(predicted.variance, variance, rtol=tolerance)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_noise(eta):
    scheduler, _ = made("DDIM", {"clip_sample": False, "timestep_spacing": "trailing"})
    reading = read(scheduler, eta=eta)
    path = reading.path(7)  # which does not divide 1000: steps end at other levels than the next begins at
    assert not path.is_chain
    variance = output_variance(timesteps_set(scheduler, None, num_inference_steps=7), LAMBDAS, eta=eta)
    predicted = predict(path, reading.sampler(path), LAMBDAS)
    np.testing.assert_allclose(predicted.variance, variance, rtol=1e-5)


def test_a_chain_is_what_the_library_computes():
    """The step-by-step prediction is that of fastkl.output_variance where the network is told the truth."""
    for name, sampler in (("EulerDiscrete", "euler"), ("DPMSolverMultistep", "dpmpp_2m"), ("UniPCMultistep", "unipc_2"),
                          ("EulerAncestralDiscrete", "euler_ancestral")):  # fmt: skip
        reading = read(made(name, {})[0])
        path = reading.path(10)
        expected = fastkl.output_variance(LAMBDAS, path.levels, sampler, reading.prior)
        predicted = predict(path, reading.sampler(path), LAMBDAS, as_told=False).variance
        np.testing.assert_allclose(predicted, expected, rtol=1e-6)  # of the float32 prior


TAKERS = [
    ("DDPM", {"clip_sample": False}, "timesteps"),
    ("EulerDiscrete", {}, "timesteps"),
    ("EulerDiscrete", {"use_karras_sigmas": True}, "sigmas"),
    ("HeunDiscrete", {}, "timesteps"),
    ("DPMSolverMultistep", {}, "timesteps"),
    ("DPMSolverMultistep", {"final_sigmas_type": "sigma_min"}, "timesteps"),
    ("DPMSolverSinglestep", {}, "timesteps"),
    ("UniPCMultistep", FLOW, "sigmas"),
    ("EDMEuler", {}, "sigmas"),
    ("FlowMatchEulerDiscrete", {"shift": 3.0}, "sigmas"),
    ("FlowMatchEulerDiscrete", {"use_dynamic_shifting": True}, "sigmas"),
    ("FlowMatchEulerDiscrete", {"use_dynamic_shifting": True, "time_shift_type": "linear"}, "sigmas"),
]


@pytest.mark.parametrize(("name", "options", "argument"), TAKERS)
def test_the_best_schedule_is_set_and_is_worth_what_is_said(name, options, argument):
    scheduler, mu = made(name, options)
    best = optimize(scheduler, SPECTRUM, 8, mu=mu)
    assert list(best.arguments) == [argument]
    assert best.value < 0.95 * best.shipped_value
    best.apply(scheduler)
    variance = output_variance(scheduler, SPECTRUM.eigenvalues)
    w2 = np.square(np.sqrt(variance) - np.sqrt(SPECTRUM.eigenvalues)).sum()
    # levels that are neighbours leave few digits to the float32 of the scheduler
    assert w2 == pytest.approx(best.value, rel=2e-3 if "Singlestep" in name else 1e-4)


def test_flow_sigmas_are_shifted_once():
    scheduler, _ = made("FlowMatchEulerDiscrete", {"shift": 3.0})
    best = optimize(scheduler, SPECTRUM, 6, apply=True)
    found = best.search.refined_sigmas
    wanted = np.append(1.0, found[1:-1] / (1.0 + found[1:-1]))
    np.testing.assert_allclose(scheduler.sigmas[:-1].numpy(), wanted, rtol=1e-6)


def test_euler_takes_the_proved_optimum():
    scheduler, _ = made("EulerDiscrete", {})
    best = optimize(scheduler, SPECTRUM, 4, "kl", prove=True)
    own = fastkl.search(SPECTRUM, fastkl.NoiseSchedule.scaled_linear(), 4, prior="ve")
    assert best.search.proved_optimal
    assert best.arguments["timesteps"] == own.timesteps.tolist()
    assert best.value == pytest.approx(own.value, rel=1e-4)
    assert best.origin == "search"


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "HeunDiscrete"])
def test_other_samplers_get_levels_that_are_best_for_them(name):
    """No worse than DDIM's best levels."""
    scheduler, _ = made(name, {})
    best = optimize(scheduler, SPECTRUM, 6)
    reading = best.reading
    ddim = fastkl.search(SPECTRUM, reading.schedule, 6, metric="w2", prior=reading.prior, prove=False)
    path = reading.path_of({"timesteps": ddim.timesteps.tolist()})
    variance = predict(path, best.sampler, SPECTRUM.eigenvalues).variance
    w2 = np.square(np.sqrt(variance) - np.sqrt(SPECTRUM.eigenvalues)).sum()
    assert best.value < 0.8 * w2


def test_many_steps_are_searched_for_ddim_only():
    scheduler, _ = made("DPMSolverMultistep", {})
    few, many = (optimize(scheduler, [1.0, 0.1], steps) for steps in (5, 60))
    assert few.search.sampler != "ddim"
    assert many.search.sampler == "ddim"
    assert many.value <= many.shipped_value
    assert optimize(made("EulerDiscrete", {})[0], [1.0, 0.1], 60).origin == "search"


def test_constraints_of_search_are_kept():
    best = optimize(made("DPMSolverMultistep", {})[0], SPECTRUM, 6, visit=[500], min_spacing=20)
    timesteps = np.array(best.arguments["timesteps"])
    assert 500 in timesteps
    assert np.diff(-timesteps).min() >= 20


@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps(steps):
    best = optimize(made("EulerDiscrete", {})[0], SPECTRUM, steps)
    assert best.arguments["timesteps"][0] == 999
    assert len(best.arguments["timesteps"]) == steps


REFUSED = [
    ("DDIM", {"clip_sample": False}, "takes no schedule; EulerDiscreteScheduler is the same sampler"),
    ("PNDM", {}, "takes no schedule"),
    ("LMSDiscrete", {}, "takes no schedule; DPMSolverMultistepScheduler takes timesteps"),
    ("EulerAncestralDiscrete", {}, "takes no schedule"),
    ("DEISMultistep", {}, "takes no schedule"),
    ("EDMDPMSolverMultistep", {}, "takes no schedule; EDMEulerScheduler takes a schedule"),
    ("FlowMatchHeunDiscrete", {}, "takes no schedule; FlowMatchEulerDiscreteScheduler takes sigmas"),
    (
        "UniPCMultistep",
        {},
        "use_flow_sigmas = False of UniPCMultistepScheduler: it takes sigmas for flow matching only",
    ),
    (
        "DPMSolverMultistep",
        {"use_karras_sigmas": True},
        "use_karras_sigmas = True .*: makes levels of its own",
    ),
    ("DPMSolverMultistep", FLOW, "use_flow_sigmas = True .*: replaces the timesteps"),
    ("HeunDiscrete", {"use_beta_sigmas": True}, "use_beta_sigmas = True .*: makes levels of its own"),
    (
        "EDMEuler",
        {"sigma_schedule": "exponential"},
        "sigma_schedule = 'exponential' .*: only counts the sigmas",
    ),
    ("FlowMatchEulerDiscrete", {"shift_terminal": 0.1}, "shift_terminal = 0.1 .*: stretches every schedule"),
    ("DDPM", {}, "clip_sample = True of DDPMScheduler: clips"),
    (
        "DPMSolverMultistep",
        {"thresholding": True},
        "thresholding = True of DPMSolverMultistepScheduler: clips",
    ),
    ("DDPM", {"clip_sample": False, "variance_type": "learned"}, "variance_type = 'learned'"),
    ("PNDM", {"prediction_type": "v_prediction"}, "prediction_type = 'v_prediction'"),
    ("EulerDiscrete", {"timestep_type": "continuous"}, "timestep_type = 'continuous'"),
    ("FlowMatchEulerDiscrete", {"invert_sigmas": True}, "invert_sigmas = True"),
    ("FlowMatchEulerDiscrete", {"use_dynamic_shifting": True}, "mu: must be given"),
    ("LCM", {}, "scheduler class 'LCMScheduler': is not supported"),
]


@pytest.mark.parametrize(
    ("name", "options", "message"), REFUSED, ids=[f"{n}-{m[:30]}" for n, _, m in REFUSED]
)
def test_what_cannot_be_optimised_is_refused_with_the_reason(name, options, message):
    with pytest.raises(ValueError, match=message):
        optimize(made(name, options)[0], SPECTRUM, 5)


@pytest.mark.parametrize(("name", "arguments"), [
    ("EDMEuler", {"sigmas": torch.linspace(0.0, 1.0, 5, dtype=torch.float64)}),
    ("FlowMatchEulerDiscrete", {"sigmas": [1.0, 0.75, 0.5, 0.25]}),
    ("DPMSolverMultistep", {"timesteps": [999, 500, 100]}),
])  # fmt: skip
def test_classes_that_are_refused_really_do_not_honour_a_schedule_and_others_do(name, arguments):
    """What the table of classes says is what the installed version does."""
    path = read(made(name, {})[0]).path_of(arguments)
    count = len(next(iter(arguments.values())))
    assert path.steps == count
    exponential, _ = made("EDMEuler", {"sigma_schedule": "exponential"})
    one = read(exponential).path_of({"sigmas": torch.tensor([0.0, 0.1, 1.0])}).levels
    other = read(exponential).path_of({"sigmas": torch.tensor([0.0, 0.9, 1.0])}).levels
    np.testing.assert_array_equal(one, other)


def test_a_version_that_does_something_else_is_noticed(monkeypatch):
    kind = diffusers.EulerDiscreteScheduler
    original = kind.set_timesteps

    def off_by_one(self, num_inference_steps=None, device=None, timesteps=None, sigmas=None):
        moved = None if timesteps is None else [max(t - 40, 0) for t in timesteps]
        return original(self, num_inference_steps, device, moved, sigmas)

    monkeypatch.setattr(kind, "set_timesteps", off_by_one)
    with pytest.raises(ValueError, match="EulerDiscreteScheduler: the installed version of diffusers visits"):
        optimize(made("EulerDiscrete", {})[0], SPECTRUM, 5)


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_schedules_are_read_by_name(betas):
    reading = read(diffusers.EulerDiscreteScheduler(beta_schedule=betas))
    expected = {"linear": fastkl.NoiseSchedule.ddpm_linear(),
                "scaled_linear": fastkl.NoiseSchedule.scaled_linear(beta_start=1e-4, beta_end=0.02),
                "squaredcos_cap_v2": fastkl.NoiseSchedule.cosine()}[betas]  # fmt: skip
    assert reading.schedule == expected


def test_schedules_without_a_name_are_read_from_the_table():
    betas = np.linspace(1e-3, 0.03, 50)
    reading = read(
        diffusers.DDIMScheduler(trained_betas=betas.tolist(), num_train_timesteps=50, clip_sample=False)
    )
    expected = fastkl.NoiseSchedule.from_betas(betas)
    np.testing.assert_allclose(
        reading.schedule.sigmas(np.arange(50)), expected.sigmas(np.arange(50)), rtol=1e-4
    )
    zero = read(diffusers.DDIMScheduler(rescale_betas_zero_snr=True, clip_sample=False))
    assert np.isinf(zero.schedule.sigma_max)
    edm = read(diffusers.EDMEulerScheduler(sigma_max=40.0)).schedule
    assert edm == fastkl.NoiseSchedule.edm(sigma_max=40.0)
    moved = diffusers.FlowMatchEulerDiscreteScheduler()
    moved.set_shift(2.5)
    assert read(moved).schedule == fastkl.NoiseSchedule.flow(2.5)


def test_a_saved_configuration_is_read_like_the_object(tmp_path):
    scheduler, _ = made("DPMSolverMultistep", {"use_karras_sigmas": True})
    scheduler.save_pretrained(tmp_path)
    file = tmp_path / "scheduler_config.json"
    one = read(scheduler)
    for source in (file, str(file), json.loads(file.read_text())):
        other = read(source)
        np.testing.assert_array_equal(one.path(9).levels, other.path(9).levels)
        assert (one.name, one.schedule, one.spacing) == (other.name, other.schedule, other.spacing)


def test_reading_and_optimising_leave_the_scheduler_alone():
    scheduler, _ = made("DPMSolverSinglestep", {})
    before = (dict(scheduler.config), scheduler.timesteps.clone(), scheduler.sigmas.clone())
    optimize(scheduler, SPECTRUM, 5)
    assert dict(scheduler.config) == before[0]
    assert torch.equal(scheduler.timesteps, before[1])
    assert torch.equal(scheduler.sigmas, before[2])


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: read(3), TypeError, "scheduler: must be a diffusers scheduler"),
    (lambda: read({}), ValueError, "must have _class_name"),
    (lambda: read({"_class_name": "os"}), ValueError, "scheduler class 'os': is not supported"),
    (lambda: read(made("EulerDiscrete", {})[0], eta=0.5), ValueError, r"eta = 0.5: is an option of DDIM"),
    (lambda: read(made("EulerDiscrete", {})[0], mu=1.0), ValueError, "mu = 1.0: is for schedulers with"),
    (lambda: optimize(made("EulerDiscrete", {})[0], SPECTRUM, 0), ValueError, "steps"),
    (lambda: optimize(made("EulerDiscrete", {})[0], SPECTRUM, 5, "l2"), ValueError, "metric = 'l2'"),
    (lambda: optimize(made("EulerDiscrete", {})[0], SPECTRUM, 5, prior="ve"), TypeError, "prior: is no option here"),
    (lambda: optimize(made("EulerDiscrete", {})[0], SPECTRUM, 5, free_start=1), TypeError, "free_start: must be True"),
    (lambda: optimize(made("EulerDiscrete", {})[0], SPECTRUM, 5).apply(made("DDPM", {})[0]), TypeError,
     "scheduler: must be a EulerDiscreteScheduler, got DDPMScheduler"),
])  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_file_that_is_no_configuration(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"scheduler: not a scheduler_config\.json"):
        read(tmp_path / "config.json")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nowhere.json")


def test_more_timesteps_than_asked_for_are_not_optimised():
    """Trailing spacing makes 62 timesteps of 61 steps; the best schedule has 61."""
    best = optimize(made("EulerDiscrete", {"timestep_spacing": "trailing"})[0], SPECTRUM, 61)
    assert len(best.arguments["timesteps"]) == 61


def test_a_thousand_steps_with_noise_are_predicted():
    """Rows of a thousand noises: memory and time stay within reason."""
    reading = read(made("DDPM", {"clip_sample": False})[0])
    path = reading.path(1000)
    predicted = predict(path, reading.sampler(path), LAMBDAS).variance
    expected = fastkl.output_variance(LAMBDAS, path.levels, "ddpm_fixed_small", "vp")
    np.testing.assert_allclose(predicted, expected, rtol=1e-5)


@pytest.mark.parametrize("options", [{"use_flow_sigmas": True}, {"prediction_type": "flow_prediction"}])
def test_flow_levels_go_with_flow_predictions(options):
    with pytest.raises(ValueError, match="goes with use_flow_sigmas"):
        read(made("DPMSolverMultistep", options)[0])
