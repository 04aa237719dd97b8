"""Levels of candidates by their places in the grid of a family, whole blocks at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl import discretize
from fastkl._candidates import LARGEST, LEAST
from fastkl._families import (
    exponential_law,
    karras_law,
    law_levels,
    power_levels,
    tangent_law,
    uniform_timesteps,
)
from fastkl._snapping import snapped
from fastkl.schedule import NoiseSchedule
from fastkl.sweeps.config import Family, Geodesic, Random, Uniform

__all__ = ["PARAMETERS", "levels_of", "parameters_of"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

PARAMETERS = ("power", "rho", "gamma", "sigma_min", "sigma_max")  # numbers that a row of results may have
LAWS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "karras": (karras_law, ("rho",)),
    "exponential": (exponential_law, ()),
    "tangent": (tangent_law, ("gamma",)),
}


def parameters_of(family: Family, schedule: NoiseSchedule, places: Integers) -> dict[str, Any]:
    """Return the parameters at places of the grid by name, (M,) each; ends that were left out are the schedule's."""
    axes = family.axes()
    values: dict[str, Any] = {}
    rest = places
    for name in reversed(axes):  # the last axis varies fastest
        rest, index = np.divmod(rest, axes[name].size)
        values[name] = axes[name].at(index)
    if isinstance(family, Random):
        values = {name: axis.at(np.zeros_like(places)) for name, axis in axes.items()}
    for name in ("sigma_min", "sigma_max"):
        if name in type(family).model_fields and name not in values:
            values[name] = np.full(places.shape, getattr(schedule, name))
    if isinstance(family, Uniform):
        values["spacing"] = np.asarray(family.spacing)[places]
    return values


def levels_of(
    family: Family, schedule: NoiseSchedule, steps: int, spectrum: Any, places: Integers
) -> tuple[Array, NDArray[np.bool_]]:
    """Return the levels of the candidates at places, (M, N+1), and which of them can be evaluated.

    The others have levels that coincide in float64, lie below the schedule's last or out of the evaluator's range, or
    ends the wrong way round. A candidate's levels do not depend on the others that are asked for with it.
    """
    snap = schedule.is_discrete if family.snap is None else family.snap
    levels = unchecked(family, schedule, steps, spectrum, places, snap)
    valid = np.asarray((levels[:, 1:] < levels[:, :-1]).all(axis=1))
    if snap:
        if not isinstance(family, Uniform) and family.family not in ("power_uniform", "quadratic"):
            levels[valid] = snapped(schedule, levels[valid], steps)
    else:
        valid &= levels[:, -2] >= schedule.sigma_min
    valid &= (levels[:, 0] <= LARGEST) | np.isinf(levels[:, 0])
    valid &= ((levels[:, 1] <= LARGEST) | (steps == 1)) & (levels[:, -2] >= LEAST)
    return levels, valid


def unchecked(
    family: Family, schedule: NoiseSchedule, steps: int, spectrum: Any, places: Integers, snap: bool
) -> Array:
    """Return levels as the family's law has them, falling or not."""
    if isinstance(family, Uniform):
        return np.stack([uniform(schedule, steps, family.spacing[i]) for i in places.tolist()])
    if isinstance(family, Geodesic):
        return np.tile(discretize.geodesic(schedule, steps, spectrum), (len(places), 1))
    values = parameters_of(family, schedule, places)
    if isinstance(family, Random):
        return random_levels(family, steps, values, places)
    name = family.family  # type: ignore[attr-defined]
    if name in ("power_uniform", "quadratic"):
        powers = values.get("power", np.full(places.shape, 2.0))
        return power_levels(schedule, steps, powers[:, None], snap)
    law, own = LAWS[name]
    columns = [values[key][:, None] for key in ("sigma_min", "sigma_max", *own)]
    return law_levels(law, steps, *columns)


def uniform(schedule: NoiseSchedule, steps: int, spacing: str) -> Array:
    """Return uniform levels, whether or not they fall."""
    if schedule.num_train_timesteps is None:
        return discretize.uniform(schedule, steps, spacing)
    return np.append(schedule.sigmas(uniform_timesteps(schedule.num_train_timesteps, steps, spacing)), 0.0)


def random_levels(family: Random, steps: int, values: dict[str, Any], places: Integers) -> Array:
    """Return levels between the ends, whose logarithms are sorted uniform numbers, N of them after sigma_max.

    Candidate i takes numbers i (N-1) to (i+1) (N-1) of a Philox stream, so that each can be drawn by itself.
    """
    low, high = values["sigma_min"][:, None], values["sigma_max"][:, None]
    levels = np.zeros((len(places), steps + 1))
    levels[:, :1] = high
    if steps > 1 and len(places):
        first, last = int(places[0]), int(places[0]) + len(places)
        run = np.array_equal(places, np.arange(first, last))
        runs = [(first, last)] if run else [(i, i + 1) for i in places.tolist()]
        drawn = np.concatenate([uniforms(family.seed, i * (steps - 1), j * (steps - 1)) for i, j in runs])
        shares = np.sort(drawn.reshape(len(places), steps - 1), axis=1)
        levels[:, 1:-1] = high * np.exp(shares * np.log(low / high))
    return levels


def uniforms(seed: int, begin: int, end: int) -> Array:
    """Return numbers `begin` to `end` of the uniform stream of a seed."""
    bits = np.random.Philox(key=seed)
    bits.advance(begin // 4)  # four numbers a block
    skip = begin % 4
    return np.random.Generator(bits).random(end - begin + skip)[skip:]
