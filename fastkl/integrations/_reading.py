"""Reading a diffusers scheduler: what it is in fastkl's terms, and what it does by itself."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from fastkl._sampler_base import Sampler
from fastkl._validation import integer, real_number
from fastkl.integrations._classes import check_class, check_options, flow_shift, noise_schedule, sampler_of
from fastkl.integrations._path import Path, read_path
from fastkl.schedule import NoiseSchedule

__all__ = ["Reading", "read"]


@dataclass(frozen=True, eq=False)
class Reading:
    """What a scheduler is in fastkl's terms.

    Parameters
    ----------
    scheduler : object
        A copy of the scheduler.
    name : str
        Its class.
    schedule : NoiseSchedule
        The noise levels that the model was trained on.
    prediction : str
        What the network predicts: "epsilon", "v_prediction", "sample" or "flow".
    prior : {"vp", "ve", "flow"}
        What sampling starts from: the prior of `fastkl.divergence` with the variance of its first state.
    spacing : str
        How it spaces timesteps, or the name of the grid that it makes instead.
    last_step : str
        Where its last step ends: "zero", or what stands for it.
    shift : float or None
        The factor by which a flow-matching scheduler shifts.
    mu : float or None
        Of dynamic shifting.
    eta : float
        Of DDIM's step.
    """

    scheduler: Any = field(repr=False)
    name: str
    schedule: NoiseSchedule
    prediction: str
    prior: str
    spacing: str
    last_step: str
    shift: float | None
    mu: float | None
    eta: float

    def path(self, steps: int) -> Path:
        """Return the levels that the scheduler visits by itself.

        Parameters
        ----------
        steps : int
            Its ``num_inference_steps``.

        Returns
        -------
        Path
            Levels, timesteps, and how the first state is drawn.

        Examples
        --------
        >>> from diffusers import DDIMScheduler
        >>> from fastkl.integrations.diffusers import read
        >>> read(DDIMScheduler(clip_sample=False)).path(4).timesteps
        array([750., 500., 250.,   0.])
        """
        more = {} if self.mu is None else {"mu": self.mu}
        return self._path({"num_inference_steps": integer("steps", steps), **more})

    def path_of(self, arguments: Mapping[str, Any]) -> Path:
        """Return the levels that the scheduler visits with these arguments of set_timesteps.

        Parameters
        ----------
        arguments : mapping
            Such as ``{"timesteps": [999, 500, 100]}``.

        Returns
        -------
        Path
            Levels, timesteps, and how the first state is drawn.

        Examples
        --------
        >>> from diffusers import EulerDiscreteScheduler
        >>> from fastkl.integrations.diffusers import read
        >>> read(EulerDiscreteScheduler()).path_of({"timesteps": [999, 100]}).levels.round(3)
        array([157.407,   0.342,   0.   ])
        """
        more = {} if self.mu is None else {"mu": self.mu}
        return self._path({**arguments, **more})

    def run(self, steps: int) -> tuple[Path, int, str | None]:
        """Run the scheduler's own code once on two numbers, to see what it does and whether it does it.

        Parameters
        ----------
        steps : int
            Its ``num_inference_steps``.

        Returns
        -------
        path : Path
            Levels, timesteps, and how the first state is drawn.
        evaluations : int
            How often it evaluates the network.
        failure : str or None
            What the step code raised, or that it returned nan.

        Examples
        --------
        >>> from diffusers import UniPCMultistepScheduler
        >>> from fastkl.integrations.diffusers import read
        >>> read(UniPCMultistepScheduler(solver_type="bh1")).run(5)[2]
        'its own step code returns nan'
        """
        more = {} if self.mu is None else {"mu": self.mu}
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(integer("steps", steps), **more)
        path = read_path(scheduler)
        return path, len(scheduler.timesteps), failure_of(scheduler)

    def _path(self, arguments: dict[str, Any]) -> Path:
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(**arguments)
        return read_path(scheduler)

    def sampler(self, path: Path) -> Sampler:
        """Return the sampler of a path; some options depend on the number of steps.

        Parameters
        ----------
        path : Path
            What `path` or `path_of` returned.

        Returns
        -------
        Sampler
            What ``sampler=`` of `fastkl.divergence` takes.

        Examples
        --------
        >>> from diffusers import DPMSolverMultistepScheduler
        >>> from fastkl.integrations.diffusers import read
        >>> reading = read(DPMSolverMultistepScheduler())
        >>> reading.sampler(reading.path(10)).order
        2
        """
        return sampler_of(self.name, path, self.eta)


def failure_of(scheduler: Any) -> str | None:
    """Return what goes wrong in the step code of a scheduler whose timesteps are set, None if nothing does."""
    import torch

    x = torch.ones((1, 1, 1, 2)) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    try:
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
            for t in scheduler.timesteps:
                scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
                x = scheduler.step(scaled / 2.0, t, x).prev_sample
    except Exception as error:  # whatever it is, it is what the user would see
        return f"its own step code raises {type(error).__name__}: {error}"
    return None if bool(torch.isfinite(x).all()) else "its own step code returns nan"


def read(scheduler: Any, *, mu: float | None = None, eta: float = 0.0) -> Reading:
    """Read a scheduler: its noise schedule, sampler, prior, spacing and last step.

    Parameters
    ----------
    scheduler : scheduler, pipeline, mapping, str or path
        A diffusers scheduler, a pipeline that has one, its configuration, or the file scheduler_config.json.
    mu : float, optional
        Of dynamic shifting, as the pipeline computes it from the size of the image; needed where that is switched on.
    eta : float
        Of DDIM's step, within [0, 1].

    Returns
    -------
    Reading
        What it is in fastkl's terms.

    Raises
    ------
    TypeError
        If it is no scheduler.
    ValueError
        If the class is not supported, or an option breaks linearity (clip_sample, thresholding) or is not read here.
    ImportError
        If diffusers is not installed.

    Examples
    --------
    >>> from diffusers import DDIMScheduler
    >>> reading = read(DDIMScheduler(clip_sample=False))
    >>> reading.schedule, reading.prior, reading.spacing, reading.last_step
    (NoiseSchedule.ddpm_linear(num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02), 'vp', 'leading', 'zero')
    """
    found = as_scheduler(scheduler)
    name, config = type(found).__name__, found.config
    check_class(name)
    check_options(name, config)
    eta = real_number("eta", eta, at_least=0.0, at_most=1.0)
    if eta > 0.0 and name != "DDIMScheduler":
        raise ValueError(f"eta = {eta!r}: is an option of DDIMScheduler's step, not of {name}")
    shift = flow_shift(found, None if mu is None else real_number("mu", mu))
    return Reading(
        scheduler=found, name=name, schedule=noise_schedule(found, shift),
        prediction=prediction_of(name, config),
        prior=prior_of(found, shift), spacing=spacing_of(config), last_step=last_step_of(name, config),
        shift=shift, mu=mu, eta=eta,
    )  # fmt: skip


def prediction_of(name: str, config: Any) -> str:
    """Return what the network predicts."""
    if name.startswith("FlowMatch"):
        return "flow"
    kind = str(config.prediction_type)
    flow_levels = bool(config.get("use_flow_sigmas", False))
    if (kind == "flow_prediction") != flow_levels and (flow_levels or kind == "flow_prediction"):
        raise ValueError(
            f"prediction_type = {kind!r} of {name}: goes with use_flow_sigmas, which is {flow_levels}, where it is "
            "'flow_prediction', and nowhere else"
        )
    return "flow" if flow_levels else kind


def as_scheduler(scheduler: Any) -> Any:
    """Return a copy of a scheduler, or the one that a configuration, a file or a pipeline stands for."""
    if isinstance(scheduler, str | FilePath):
        try:
            scheduler = json.loads(FilePath(scheduler).read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"scheduler: not a scheduler_config.json ({error})") from None
    if isinstance(scheduler, Mapping):
        name = scheduler.get("_class_name")
        if not isinstance(name, str):
            raise ValueError(
                "scheduler: the configuration must have _class_name, the name of a scheduler class"
            )
        check_class(name)
        return getattr(library(), name).from_config(dict(scheduler))
    found = getattr(scheduler, "scheduler", scheduler)
    if not (hasattr(found, "config") and callable(getattr(found, "set_timesteps", None))):
        raise TypeError(
            "scheduler: must be a diffusers scheduler, a pipeline, a configuration or a path, got "
            f"{type(scheduler).__name__}"
        )
    return copy.deepcopy(found)


def library() -> Any:
    """Return the module diffusers."""
    try:
        import diffusers
    except ImportError:
        raise ImportError('schedulers need diffusers: pip install "fastkl[diffusers]"') from None
    return diffusers


def prior_of(scheduler: Any, shift: float | None) -> str:
    """Return the prior whose first variance is the scheduler's, at its own first level."""
    if shift is not None:
        return "flow"
    spread = getattr(scheduler.config, "timestep_spacing", "")
    own = (
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "LMSDiscreteScheduler",
    )
    return "ve" if type(scheduler).__name__ in own and spread in ("linspace", "trailing") else "vp"


def spacing_of(config: Any) -> str:
    """Return how levels are chosen."""
    for option in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"):
        if config.get(option, False):
            return option.split("_")[1]
    for option in ("timestep_spacing", "sigma_schedule"):
        if option in config and not config.get("use_flow_sigmas", False):
            return str(config[option])
    return "linspace"


def last_step_of(name: str, config: Any) -> str:
    """Return where the last step ends."""
    if name == "DEISMultistepScheduler":
        return "sigma_min"
    if name in ("DDIMScheduler", "PNDMScheduler"):
        return "zero" if config.set_alpha_to_one else "alphas_cumprod[0]"
    return str(config.get("final_sigmas_type", "zero"))
