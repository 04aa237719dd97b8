"""The scheduler classes of diffusers that are linear in the data: sampler, noise schedule and what each takes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastkl import samplers
from fastkl._sampler_base import Sampler
from fastkl.integrations._path import Path, table_levels
from fastkl.schedule import NoiseSchedule

__all__ = [
    "CLASSES",
    "check_class",
    "check_options",
    "custom_argument",
    "flow_shift",
    "noise_schedule",
    "sampler_of",
]

Config = Any


def ddim(config: Config, path: Path, eta: float) -> Sampler:
    """DDIM; eta is given to its step, not to the class."""
    return samplers.ddim(eta)


def ddpm(config: Config, path: Path, eta: float) -> Sampler:
    """DDPM adds noise on its last step too, unless the timestep is 0."""
    kind = {"fixed_small_log": "fixed_small"}.get(config.variance_type, config.variance_type)
    return samplers.ddpm(kind, bool(path.timesteps[-1] > 0))


def pndm(config: Config, path: Path, eta: float) -> Sampler:
    """PNDM with Runge-Kutta steps or without."""
    return samplers.plms() if config.skip_prk_steps else samplers.prk(path.middles)


def multistep(config: Config, path: Path, eta: float) -> Sampler:
    """DPM-Solver(++) and its SDE versions, with upstream's sign in the third order of sde-dpmsolver++."""
    algorithm, order = config.algorithm_type, config.solver_order
    return samplers.multistep(
        algorithm, order, config.solver_type,
        lower_order_final=config.lower_order_final, euler_at_final=config.euler_at_final,
        as_shipped=(algorithm, order) == ("sde-dpmsolver++", 3),
    )  # fmt: skip


def singlestep(config: Config, path: Path, eta: float) -> Sampler:
    """DPM-Solver(++) singlestep; set_timesteps has put lower_order_final right where it must be True."""
    algorithm, order, form = config.algorithm_type, config.solver_order, config.solver_type
    shipped = (algorithm, order, form) == ("sde-dpmsolver++", 3, "heun")
    return samplers.singlestep(algorithm, order, form, config.lower_order_final, as_shipped=shipped)


def deis(config: Config, path: Path, eta: float) -> Sampler:
    """DEIS."""
    return samplers.deis(config.solver_order, config.lower_order_final)


def unipc(config: Config, path: Path, eta: float) -> Sampler:
    """UniPC."""
    return samplers.unipc(config.solver_order, config.solver_type, "data" if config.predict_x0 else "noise")


def flow_euler(config: Config, path: Path, eta: float) -> Sampler:
    """Euler's step on rectified flow, or fresh noise at every step."""
    return samplers.get("flow_stochastic" if config.stochastic_sampling else "flow_euler")


def named(name: str) -> Callable[[Config, Path, float], Sampler]:
    """Return what makes a sampler that depends on nothing."""
    return lambda config, path, eta: samplers.get(name)


# class: its sampler, and the argument of set_timesteps that sets the levels (None: there is none that does)
CLASSES: dict[str, tuple[Callable[[Config, Path, float], Sampler], str | None]] = {
    "DDIMScheduler": (ddim, None),
    "DDPMScheduler": (ddpm, "timesteps"),
    "PNDMScheduler": (pndm, None),
    "EulerDiscreteScheduler": (named("euler"), "timesteps"),
    "EulerAncestralDiscreteScheduler": (named("euler_ancestral"), None),
    "HeunDiscreteScheduler": (named("heun"), "timesteps"),
    "LMSDiscreteScheduler": (named("lms"), None),
    "DPMSolverMultistepScheduler": (multistep, "timesteps"),
    "DPMSolverSinglestepScheduler": (singlestep, "timesteps"),
    "UniPCMultistepScheduler": (unipc, "sigmas"),
    "DEISMultistepScheduler": (deis, None),
    "EDMEulerScheduler": (named("euler"), "sigmas"),
    "EDMDPMSolverMultistepScheduler": (multistep, None),
    "FlowMatchEulerDiscreteScheduler": (flow_euler, "sigmas"),
    "FlowMatchHeunDiscreteScheduler": (named("flow_heun"), None),
}


def sampler_of(name: str, path: Path, eta: float) -> Sampler:
    """Return the sampler of a class whose options have been checked, on a path."""
    return CLASSES[name][0](path.config, path, eta)


GRIDS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


def check_class(name: str) -> None:
    """Raise unless a class is known to be linear and has been checked against its own code."""
    if name not in CLASSES:
        raise ValueError(f"scheduler class {name!r}: is not supported; these are: {', '.join(CLASSES)}")


def check_options(name: str, config: Config) -> None:
    """Raise for options under which the output is no linear function of the noise, or is another one than is known."""
    for option in ("clip_sample", "thresholding"):
        if config.get(option, False):
            raise ValueError(
                f"{option} = True of {name}: clips what the network returns, so that the sampler is not linear and has "
                f"no exact variance; set {option}=False"
            )
    refused = {
        "variance_type": ("learned", "learned_range", "fixed_large_log"),
        "timestep_type": ("continuous",),
        "invert_sigmas": (True,),
    }
    reasons = {
        "variance_type": "takes a variance that no formula here has",
        "timestep_type": "tells the network the logarithm of sigma, which is not read here",
        "invert_sigmas": "runs the levels upwards",
    }
    for option, reason in reasons.items():
        value = config.get(option)
        if value is not None and value in refused[option]:
            raise ValueError(f"{option} = {value!r} of {name}: {reason}")
    if name == "PNDMScheduler" and config.prediction_type != "epsilon":
        raise ValueError(
            f"prediction_type = {config.prediction_type!r} of {name}: averages the network's outputs at different "
            "levels, which is another map than for 'epsilon'"
        )
    if name == "UniPCMultistepScheduler":
        usual = {"lower_order_final": True, "disable_corrector": [], "solver_p": None}
        for option, value in usual.items():
            given = config.get(option, value)
            if given != value and not (option == "disable_corrector" and len(given) == 0):
                shown = type(given).__name__ if option == "solver_p" else repr(given)
                raise ValueError(f"{option} = {shown} of {name}: only {value!r} is read here")


def noise_schedule(scheduler: Any, shift: float | None) -> NoiseSchedule:
    """Return what the model was trained on: by name where the options have one, else from the table of alphas."""
    name, config = type(scheduler).__name__, scheduler.config
    if shift is not None:
        return NoiseSchedule.flow(shift)
    if name.startswith("EDM"):
        return NoiseSchedule.edm(config.sigma_min, config.sigma_max, config.rho)
    schedule = by_name(config)
    table = table_levels(scheduler)
    if schedule is not None:
        levels = schedule.sigmas(np.arange(len(table)))
        if np.allclose(levels, table, rtol=2e-3):  # 1 - abar in float32 has few digits near data
            return schedule
        raise ValueError(
            f"beta_schedule = {config.beta_schedule!r} of {name}: its table is another than fastkl's"
        )
    return NoiseSchedule.from_alphas_cumprod(np.asarray(scheduler.alphas_cumprod.tolist()))


def by_name(config: Config) -> NoiseSchedule | None:
    """Return the schedule of a name; None where betas are given or rescaled."""
    if config.trained_betas is not None or config.get("rescale_betas_zero_snr", False):
        return None
    count, ends = config.num_train_timesteps, (config.beta_start, config.beta_end)
    if config.beta_schedule == "squaredcos_cap_v2":
        return NoiseSchedule.cosine(count)
    makers = {"linear": NoiseSchedule.ddpm_linear, "scaled_linear": NoiseSchedule.scaled_linear,
              "sigmoid": NoiseSchedule.sigmoid}  # fmt: skip
    maker = makers.get(config.beta_schedule)
    return None if maker is None else maker(count, *ends)


def flow_shift(scheduler: Any, mu: float | None) -> float | None:
    """Return the factor by which a flow-matching scheduler shifts, None for other schedulers."""
    name, config = type(scheduler).__name__, scheduler.config
    is_flow = name.startswith("FlowMatch") or bool(config.get("use_flow_sigmas", False))
    dynamic = bool(config.get("use_dynamic_shifting", False))
    if dynamic and mu is None:
        raise ValueError("mu: must be given, as the pipeline gives it: use_dynamic_shifting is True")
    if mu is not None and not dynamic:
        raise ValueError(
            f"mu = {mu!r}: is for schedulers with use_dynamic_shifting, which this {name} has not"
        )
    if not is_flow:
        return None
    if dynamic and mu is not None:
        return math.exp(mu) if config.time_shift_type == "exponential" else float(mu)
    # set_shift changes the object and not its configuration
    return float(
        config.flow_shift if "flow_shift" in config else vars(scheduler).get("_shift", config.get("shift"))
    )


def custom_argument(scheduler: Any) -> str:
    """Return the argument of set_timesteps that sets the levels of this object, or raise and say why none does."""
    name, config = type(scheduler).__name__, scheduler.config
    argument = CLASSES[name][1]
    known = inspect.signature(scheduler.set_timesteps).parameters
    if argument is None or argument not in known:
        raise ValueError(f"{name}: its set_timesteps({', '.join(known)}) takes no schedule; {instead(name)}")
    grids = [option for option in GRIDS if config.get(option, False)]
    if name == "EulerDiscreteScheduler" and (grids or config.interpolation_type != "linear"):
        return "sigmas"  # which it takes as they are, whatever these options say
    if grids:
        raise ValueError(
            f"{grids[0]} = True of {name}: makes levels of its own in place of a schedule; set it to False"
        )
    if name == "UniPCMultistepScheduler" and not config.use_flow_sigmas:
        raise ValueError(
            f"use_flow_sigmas = False of {name}: it takes sigmas for flow matching only; {instead(name)}"
        )
    if name.startswith("DPMSolver") and config.use_flow_sigmas:
        other = "FlowMatchEulerDiscreteScheduler takes sigmas"
        raise ValueError(f"use_flow_sigmas = True of {name}: replaces the timesteps that are given; {other}")
    if name == "EDMEulerScheduler" and config.sigma_schedule != "karras":
        raise ValueError(
            f"sigma_schedule = {config.sigma_schedule!r} of {name}: only counts the sigmas; set it to 'karras'"
        )
    if config.get("shift_terminal"):
        raise ValueError(
            f"shift_terminal = {config.shift_terminal!r} of {name}: stretches every schedule; set it to None"
        )
    return argument


def instead(name: str) -> str:
    """Name a class that does much the same and takes a schedule."""
    other = {
        "DDIMScheduler": "EulerDiscreteScheduler is the same sampler and takes timesteps",
        "FlowMatchHeunDiscreteScheduler": "FlowMatchEulerDiscreteScheduler takes sigmas",
        "EDMDPMSolverMultistepScheduler": "EDMEulerScheduler takes a schedule",
    }.get(
        name, "DPMSolverMultistepScheduler takes timesteps (FlowMatchEulerDiscreteScheduler sigmas, for flow)"
    )
    return other
