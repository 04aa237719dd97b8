"""diffusers (the extra `diffusers`): read a scheduler and find its best schedule; `audit` beside this file judges it.

>>> from diffusers import EulerDiscreteScheduler
>>> import fastkl
>>> from fastkl.integrations.diffusers import optimize
>>> scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
>>> best = optimize(scheduler, fastkl.Spectrum.power_law(1000, 1.0), steps=8)
>>> list(best.arguments)  # image = pipe(prompt, **best.arguments)
['timesteps']
>>> best.value < best.shipped_value
True
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastkl._sampler_base import Sampler
from fastkl._search import SearchResult
from fastkl._validation import choice, integer, real_number
from fastkl.evaluate import METRICS
from fastkl.integrations._classes import (
    check_class,
    check_options,
    custom_argument,
    flow_shift,
    noise_schedule,
    sampler_of,
)
from fastkl.integrations._levels import best_levels
from fastkl.integrations._levels import check_options as check_search
from fastkl.integrations._path import Path, read_path
from fastkl.integrations._predict import divergence_of, predict
from fastkl.schedule import NoiseSchedule
from fastkl.spectrum import Spectrum, as_spectrum

__all__ = ["Optimized", "Reading", "optimize", "read"]

Array = NDArray[np.float64]
HONOURED = 3e-3  # relative difference of levels that float32 tables and truncated timesteps make


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
        >>> read(EulerDiscreteScheduler()).path_of({"timesteps": [999, 100]}).levels.round(3)
        array([157.407,   0.339,   0.   ])
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
        >>> reading = read(DPMSolverMultistepScheduler())
        >>> reading.sampler(reading.path(10)).order
        2
        """
        return sampler_of(self.name, path, self.eta)


@dataclass(frozen=True, eq=False)
class Optimized:
    """A schedule for a pipeline: ``pipe(prompt, **best.arguments)``.

    Parameters
    ----------
    arguments : dict
        ``timesteps`` or ``sigmas``, as the scheduler's ``set_timesteps`` takes them.
    sigmas : ndarray, shape (N+1,)
        The noise-to-signal ratios that the scheduler then visits, read off it.
    value : float
        Divergence of what the scheduler makes of them, with its own sampler, prior and last step.
    shipped_value : float
        That of the schedule that it would choose itself for as many steps; nan where it cannot be run.
    metric : str
        Which divergence.
    sampler : Sampler
        The update rule.
    origin : str
        Where the levels come from: "search", or, under a sampler that `fastkl.search` does not know, the family of
        `fastkl rank` that is better, or "as shipped".
    reading : Reading
        What the scheduler is.
    search : SearchResult
        What the search found, for DDIM where the sampler is not one that it knows.
    """

    arguments: dict[str, Any]
    sigmas: Array
    value: float
    shipped_value: float
    metric: str
    sampler: Sampler
    origin: str
    reading: Reading
    search: SearchResult

    def apply(self, scheduler: Any, device: Any = None) -> None:
        """Set the schedule on a scheduler: ``scheduler.set_timesteps(**arguments)``.

        Parameters
        ----------
        scheduler : object
            A scheduler of the class that was read, for a loop of your own; a pipeline calls set_timesteps itself and
            takes `arguments`.
        device : torch.device, optional
            Where its timesteps go.

        Raises
        ------
        TypeError
            If the scheduler is of another class.
        """
        if type(scheduler).__name__ != self.reading.name:
            raise TypeError(f"scheduler: must be a {self.reading.name}, got {type(scheduler).__name__}")
        more = {} if self.reading.mu is None else {"mu": self.reading.mu}
        scheduler.set_timesteps(**self.arguments, **more, device=device)


def failure_of(scheduler: Any) -> str | None:
    """Return what goes wrong in the step code of a scheduler whose timesteps are set, None if nothing does."""
    import torch

    x = torch.ones((1, 1, 1, 2)) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    try:
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
        prediction="flow" if shift is not None else config.prediction_type,
        prior=prior_of(found, shift), spacing=spacing_of(config), last_step=last_step_of(name, config),
        shift=shift, mu=mu, eta=eta,
    )  # fmt: skip


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


def optimize(
    scheduler: Any,
    spectrum: Spectrum | ArrayLike,
    steps: int,
    metric: str = "w2",
    *,
    mu: float | None = None,
    prove: bool = False,
    apply: bool = False,
    **options: Any,
) -> Optimized:
    """Find the schedule of a diffusers scheduler with the least divergence for a number of steps.

    Parameters
    ----------
    scheduler : scheduler, pipeline, mapping, str or path
        As in `read`.
    spectrum : Spectrum or array_like, shape (d,)
        Covariance spectrum of what the model generates, latents where it generates those (`Spectrum.from_latents`).
    steps : int
        N, at least 1.
    metric : {"w2", "kl", "reverse_kl", "jeffreys"}
        Which divergence. `w2` counts variance, and so what one sees.
    mu : float, optional
        Of dynamic shifting, as in `read`.
    prove : bool
        Whether to prove that no choice is better, as in `fastkl.search`; seconds for `w2`.
    apply : bool
        Whether to set the schedule on `scheduler` itself too.
    **options
        More options of `fastkl.search`: time_limit, grid, visit, min_spacing.

    Returns
    -------
    Optimized
        `arguments` for ``pipe(...)`` and what they are worth.

    Raises
    ------
    TypeError, ValueError
        As `read` and `fastkl.search`; or if the class takes no schedule, if options of it override one, or if the
        installed version does not do what it was told.

    Notes
    -----
    For DDIM and Euler's step the levels are those of `fastkl.search`; for other samplers the best, under the sampler
    itself, of DDIM's best levels and all families of `fastkl rank`. `value` is that of the scheduler as it then runs:
    sampler, prior, last step and the timesteps that it tells the network. Schedules for flow matching are as they are
    before the shift, which the scheduler applies.

    Examples
    --------
    >>> from diffusers import FlowMatchEulerDiscreteScheduler
    >>> import fastkl
    >>> best = optimize(FlowMatchEulerDiscreteScheduler(shift=3.0), fastkl.Spectrum.power_law(1000, 1.0), steps=4)
    >>> len(best.arguments["sigmas"]), best.sigmas[-1]
    (4, np.float64(0.0))
    """
    check_search(options)
    reading = read(scheduler, mu=mu)
    argument = custom_argument(reading.scheduler)
    data = as_spectrum("spectrum", spectrum)
    choice("metric", metric, METRICS)
    own = reading.path(steps)
    found = best_levels(
        reading.schedule, data, own.steps, metric, reading.sampler(own), reading.prior,
        rival=rival_of(reading, own), first=float(own.here[0]), prove=prove, **options,
    )  # fmt: skip
    arguments = {argument: as_argument(reading, argument, found.levels)}
    path = reading.path_of(arguments)
    check_honoured(reading, found.levels, path)
    sampler = reading.sampler(path)
    output = predict(path, sampler, data.eigenvalues, reading.prediction)
    best = Optimized(
        arguments, path.levels, divergence_of(data, output, metric), shipped(reading, data, own, metric), metric,
        sampler, found.origin, reading, found.search,
    )  # fmt: skip
    if apply:
        best.apply(getattr(scheduler, "scheduler", scheduler))
    return best


def rival_of(reading: Reading, path: Path) -> Array | None:
    """Return the scheduler's own levels, if they are among those that it can be given: all from the noisiest to 0."""
    levels, schedule = path.levels, reading.schedule
    if not path.is_chain or levels[-1] != 0.0:
        return None
    if schedule.num_train_timesteps is not None:
        t = path.timesteps
        usual = t[0] == schedule.num_train_timesteps - 1 and t[-1] >= 0.0 and bool((np.diff(t) < 0.0).all())
        return np.append(schedule.sigmas(t), 0.0) if usual and np.array_equal(t, np.rint(t)) else None
    high = min(schedule.sigma_max, 1e4)  # of flow matching: float32 has no infinite ratio
    return levels if levels[0] >= high * (1.0 - 1e-6) and (np.diff(levels) < 0.0).all() else None


def as_argument(reading: Reading, argument: str, levels: Array) -> Any:
    """Return levels in the form that set_timesteps takes."""
    if argument == "timesteps":
        return reading.schedule.timesteps(levels[:-1]).tolist()
    if reading.name == "EulerDiscreteScheduler":
        return levels.tolist()
    if reading.name == "EDMEulerScheduler":
        return edm_ramp(reading.scheduler.config, levels[:-1])
    shares = np.where(np.isinf(levels), 1.0, levels / (1.0 + np.where(np.isinf(levels), 0.0, levels)))[:-1]
    assert reading.shift is not None
    before = shares / (reading.shift - (reading.shift - 1.0) * shares)  # the scheduler shifts it to `shares`
    return before if reading.name == "UniPCMultistepScheduler" else before.tolist()


def edm_ramp(config: Any, levels: Array) -> Any:
    """Return the places of levels on the ramp from 0 (sigma_max) to 1 (sigma_min), which EDMEuler calls sigmas."""
    import torch

    high, low = config.sigma_max ** (1.0 / config.rho), config.sigma_min ** (1.0 / config.rho)
    ramp = (high - levels ** (1.0 / config.rho)) / (high - low)
    return torch.tensor(ramp, dtype=torch.float64)


def check_honoured(reading: Reading, wanted: Array, path: Path) -> None:
    """Raise unless the scheduler visits the levels that it was given."""
    inside = np.isfinite(wanted) & (wanted > 0.0)
    same = len(path.levels) == len(wanted) and np.allclose(path.levels[inside], wanted[inside], rtol=HONOURED)
    if not same:
        raise ValueError(
            f"{reading.name}: the installed version of diffusers visits {path.levels.tolist()} where it was told "
            f"{wanted.tolist()}"
        )


def shipped(reading: Reading, data: Spectrum, path: Path, metric: str) -> float:
    """Return the divergence of the scheduler's own schedule, nan where there is none to predict."""
    try:
        output = predict(path, reading.sampler(path), data.eigenvalues, reading.prediction)
    except ValueError:  # of options and numbers of steps that the formulas refuse
        return float("nan")
    return divergence_of(data, output, metric)
