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

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastkl._sampler_base import Sampler
from fastkl._search import SearchResult
from fastkl._validation import boolean, choice, integer
from fastkl.evaluate import METRICS
from fastkl.integrations._classes import custom_argument
from fastkl.integrations._levels import best_levels, check_options, constrained, with_variance
from fastkl.integrations._path import Path, table_levels
from fastkl.integrations._predict import divergence_of, predict
from fastkl.integrations._reading import Reading, read
from fastkl.spectrum import Spectrum

__all__ = ["Optimized", "Reading", "optimize", "read"]

Array = NDArray[np.float64]
HONOURED = 3e-3  # relative difference of levels that float32 tables and truncated timesteps make


@dataclass(frozen=True, eq=False)
class Optimized:
    """A schedule for a pipeline: ``pipe(prompt, **best.arguments)``.

    Parameters
    ----------
    arguments : dict
        ``timesteps`` or ``sigmas``, as the scheduler's ``set_timesteps`` takes them; ``num_inference_steps`` where
        what it does by itself is better than what can be set.
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
        Where the levels come from: "search", or, where that has no proof and something else is better, the family of
        `fastkl rank`, or "as shipped"; "ddim" if `levels_of` asked for them.
    reading : Reading
        What the scheduler is.
    search : SearchResult
        What the search found: for the sampler itself, or for DDIM where the sampler needs a finite first level or a
        last level above 0, or has more than 50 steps, or `levels_of` says so.
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

        Examples
        --------
        >>> from diffusers import EulerDiscreteScheduler
        >>> scheduler = EulerDiscreteScheduler()
        >>> best = optimize(scheduler, [1.0, 0.01], steps=3)
        >>> best.apply(scheduler)
        >>> scheduler.timesteps.tolist() == best.arguments["timesteps"]
        True
        """
        if type(scheduler).__name__ != self.reading.name:
            raise TypeError(f"scheduler: must be a {self.reading.name}, got {type(scheduler).__name__}")
        more = {} if self.reading.mu is None else {"mu": self.reading.mu}
        scheduler.set_timesteps(**self.arguments, **more, device=device)


def optimize(
    scheduler: Any,
    spectrum: Spectrum | ArrayLike,
    steps: int,
    metric: str = "w2",
    *,
    mu: float | None = None,
    prove: bool = False,
    free_start: bool = False,
    levels_of: str = "sampler",
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
        Whether to prove that no choice is better, as in `fastkl.search`; seconds for `w2`, some ten with
        `free_start`.
    free_start : bool
        Whether the first level is chosen too, for which the spectrum should have the data's mean: better for trained
        networks and few steps. For classes that scale their first noise by the first level of the schedule: of those
        that take one all but EDMEulerScheduler.
    levels_of : {"sampler", "ddim"}
        "ddim": the levels of DDIM's least divergence that go down to the lowest of the table. For DPM-Solver++ 2M and
        the networks that were tried, with `free_start` and the effective spectrum, they made better images than
        levels of its own least divergence, which may be far less: `value` and `shipped_value` then do not judge. Of no
        effect where the sampler is DDIM; not for flow matching.
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
        As `read` and `fastkl.search`; or if the class takes no schedule, if options of it override one, if it would
        start a free one from noise of the wrong scale, or if the installed version does not do what it was told.

    Notes
    -----
    The levels are those of `fastkl.search` for the scheduler's own sampler. With `prove` they are proved for DDIM and
    Euler's step, and for "heun", "flow_heun", "dpm_2" and "dpmpp_2s" with `kl`, `reverse_kl` and `jeffreys`, not with
    `w2`. For all others, up to 50 steps, they are a local optimum, found in a second or so (some ten at 50), and the
    scheduler's own levels and the families of `fastkl rank` compete with it. Best levels of samplers with a memory may
    be neighbours, or make errors cancel that a network does not make: `min_spacing` keeps them apart, and `levels_of`
    avoids them.

    `value` is that of the scheduler as it then runs: sampler, prior, last step and the timesteps that it tells the
    network. Schedules for flow matching are as they are before the shift, which the scheduler applies.

    Examples
    --------
    >>> from diffusers import FlowMatchEulerDiscreteScheduler
    >>> import fastkl
    >>> best = optimize(FlowMatchEulerDiscreteScheduler(shift=3.0), fastkl.Spectrum.power_law(1000, 1.0), steps=4)
    >>> len(best.arguments["sigmas"]), best.sigmas[-1]
    (4, np.float64(0.0))
    >>> from diffusers import EulerDiscreteScheduler
    >>> digits = fastkl.Spectrum.preset("digits")  # which has a mean
    >>> best = optimize(EulerDiscreteScheduler(), digits, steps=4, free_start=True)
    >>> best.arguments["timesteps"][0] < 999
    True
    """
    check_options(options)
    reading = read(scheduler, mu=mu)
    argument = custom_argument(reading.scheduler)
    data = with_variance(spectrum)
    choice("metric", metric, METRICS)
    steps = integer("steps", steps)
    if boolean("free_start", free_start):
        check_start(reading, argument)
    own = reading.path(steps)
    if levels_of == "ddim" and not own.levels[-1] == 0.0:
        raise ValueError(
            f"levels_of = 'ddim': {reading.name} must end at 0, got a last level of {own.levels[-1]:.6g}"
        )
    found = best_levels(
        reading.schedule, data, steps, metric, reading.sampler(own), reading.prior,
        rival=rival_of(reading, own, steps), first=noisiest(reading, own), prove=prove, free_start=free_start,
        levels_of=levels_of, **options,
    )  # fmt: skip
    arguments, origin = {argument: as_argument(reading, argument, found.levels)}, found.origin
    path = reading.path_of(arguments)
    check_honoured(reading, found.levels, path)
    as_shipped, value = shipped(reading, data, own, metric), shipped(reading, data, path, metric)
    usable = own.steps == steps and np.isfinite(as_shipped) and not constrained(options) and origin != "ddim"
    if usable and not value <= as_shipped:  # such as levels that begin below the noisiest
        arguments, origin, path, value = {"num_inference_steps": steps}, "as shipped", own, as_shipped
    best = Optimized(
        arguments, path.levels, value, as_shipped, metric, reading.sampler(path), origin, reading, found.search
    )  # fmt: skip
    if apply:
        best.apply(getattr(scheduler, "scheduler", scheduler))
    return best


def rival_of(reading: Reading, path: Path, steps: int) -> Array | None:
    """Return the scheduler's own levels, if they are among those that it can be given: all from the noisiest to 0."""
    levels, schedule = path.levels, reading.schedule
    if path.steps != steps or not path.is_chain:
        return None
    if schedule.num_train_timesteps is not None:
        t = path.timesteps
        usual = t[0] == schedule.num_train_timesteps - 1 and t[-1] >= 0.0 and bool((np.diff(t) < 0.0).all())
        return np.append(schedule.sigmas(t), 0.0) if usual and np.array_equal(t, np.rint(t)) else None
    high = min(schedule.sigma_max, 1e4)  # of flow matching: float32 has no infinite ratio
    return (
        levels
        if levels[-1] == 0.0 and levels[0] >= high * (1.0 - 1e-6) and (np.diff(levels) < 0.0).all()
        else None
    )


def noisiest(reading: Reading, path: Path) -> float:
    """Return the noisiest level as the scheduler has it, in float32, whatever its own first timestep is."""
    if reading.schedule.num_train_timesteps is None:
        return float(path.here[0])
    return float(table_levels(reading.scheduler)[-1])


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


def check_start(reading: Reading, argument: str) -> None:
    """Raise unless the scheduler scales its first noise by the first level that it is given."""
    schedule = reading.schedule
    middle = 0.5 if schedule.num_train_timesteps is None else schedule.num_train_timesteps // 2
    level = float(schedule.sigmas(middle))
    path = reading.path_of({argument: as_argument(reading, argument, np.array([level, 0.0]))})
    variance = {"vp": 1.0 + level**2, "ve": level**2, "flow": (1.0 + level) ** 2}[reading.prior]
    if not np.isclose(path.start_variance, variance, rtol=2.0 * HONOURED, atol=0.0):
        raise ValueError(
            f"free_start = True of {reading.name}: it draws its first noise with a standard deviation of "
            f"{path.start_variance**0.5:.6g} where its first level is {level:.6g}, which takes {variance**0.5:.6g}; "
            "it must start at its noisiest level"
        )


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
