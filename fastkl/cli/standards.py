"""The standard schedules that a search is compared with, as tools ship them, for one noise schedule and N."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl import discretize
from fastkl.cli.candidates import can_be_scored
from fastkl.schedule import NoiseSchedule
from fastkl.spectrum import Spectrum

__all__ = ["Standard", "standards"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Standard:
    """A standard schedule: fastkl.discretize.<function>(**parameters), or why there is none here."""

    name: str
    function: str
    parameters: dict[str, Any]
    levels: Array | None
    why_not: str | None = None


def standards(schedule: NoiseSchedule, spectrum: Spectrum, steps: int, grid: int) -> list[Standard]:
    """Return all of them, on the timesteps of a discrete schedule, between the ends of a continuous one.

    Where a schedule ends at 0 or inf, laws that need other ends take those of `grid` times, evenly spaced.
    """
    return [
        made(schedule, spectrum, steps, name, function, parameters)
        for name, function, parameters in recipes(schedule, spectrum, grid)
    ]


def recipes(
    schedule: NoiseSchedule, spectrum: Spectrum, grid: int
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield names, functions of fastkl.discretize and their parameters."""
    count = schedule.num_train_timesteps
    second = 1.0 - 1.0 / grid if count is None else count - 2
    high = {} if np.isfinite(schedule.sigma_max) else {"sigma_max": schedule.sigmas(second)}
    low = {} if schedule.sigma_min > 0.0 else {"sigma_min": schedule.sigmas(1.0 / grid)}
    for spacing in ("linspace", "leading", "trailing") if schedule.is_discrete else ("linspace",):
        yield f"uniform {spacing}", "uniform", {"spacing": spacing}
    yield "quadratic", "quadratic", {}
    yield "karras", "karras", {"rho": 7.0, **low, **high}
    yield "exponential", "exponential", {**low, **high}
    if spectrum.eigenvalues.min() > 0.0:
        from fastkl.theory import tangent_gamma

        yield "tangent gamma*", "tangent", {"gamma": tangent_gamma(spectrum), "sigma_min": 0.0}
    yield "tangent gamma 1", "tangent", {"gamma": 1.0, "sigma_min": 0.0}
    if schedule.sigma_min > 0.0:  # else it is the one above
        yield "tan/arctan", "tangent", {"gamma": 1.0, "sigma_min": schedule.sigma_min}
    if spectrum.eigenvalues.min() > 0.0:
        yield "geodesic", "geodesic", {}


def made(
    schedule: NoiseSchedule,
    spectrum: Spectrum,
    steps: int,
    name: str,
    function: str,
    parameters: dict[str, Any],
) -> Standard:
    """Return one of them; some have too many levels for float64, or levels that the model does not know."""
    law: Callable[..., Array] = getattr(discretize, function)
    given = {**parameters, "spectrum": spectrum} if function == "geodesic" else parameters
    try:
        levels = law(schedule, steps, **given)
        if schedule.is_discrete:
            levels = discretize.snap(schedule, levels)
    except ValueError as error:
        return Standard(name, function, parameters, None, str(error))
    if levels[-2] < schedule.sigma_min:
        reason = f"has levels below {schedule.sigma_min:g}, the schedule's least"
        return Standard(name, function, parameters, None, reason)
    if not can_be_scored(levels):
        return Standard(name, function, parameters, None, "has levels out of the evaluator's range")
    return Standard(name, function, parameters, levels)
