"""The candidates that `fastkl rank` compares: every family of discretizations over a range of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl import discretize
from fastkl._candidates import LARGEST, LEAST
from fastkl.cli.errors import InputError
from fastkl.schedule import NoiseSchedule
from fastkl.spectrum import Spectrum

__all__ = ["Batch", "Candidates", "all_candidates", "can_be_scored", "uniform_levels"]

Array = NDArray[np.float64]

POWERS = (0.25, 16.0)
RHOS = (0.5, 50.0)
LAST_LEVELS = 8  # how many last non-zero levels Karras' law is tried with
LATEST, EARLIEST = 0.3, 1e-3  # times between which continuous schedules that reach 0 are stopped


@dataclass(frozen=True)
class Batch:
    """Candidates of one family: rows of levels, and the arguments of fastkl.discretize.<function> for each."""

    family: str
    function: str
    parameters: list[dict[str, Any]]
    levels: Array


@dataclass(frozen=True)
class Candidates:
    """Distinct candidates in a fixed order, with the arguments that made each, and what was left out."""

    levels: Array
    labels: list[tuple[str, str, dict[str, Any]]]
    generated: int
    outside: int
    duplicates: int

    def where(self, kept: NDArray[np.bool_]) -> Candidates:
        """Return the candidates marked in `kept`; the others count as out of range."""
        rows = np.flatnonzero(kept)
        labels = [self.labels[i] for i in rows.tolist()]
        outside = self.outside + len(self.labels) - len(labels)
        return Candidates(
            np.ascontiguousarray(self.levels[rows]), labels, self.generated, outside, self.duplicates
        )


def all_candidates(
    schedule: NoiseSchedule, spectrum: Spectrum, steps: int, per_family: int, snap: bool
) -> Candidates:
    """Return the candidates of every family that the schedule's model can run, without duplicates."""
    batches = list(_batches(schedule, spectrum, steps, per_family, snap))
    labels = [(batch.family, batch.function, row) for batch in batches for row in batch.parameters]
    levels = np.concatenate([batch.levels for batch in batches])
    if snap and schedule.is_discrete:
        levels = discretize.snap(schedule, levels)
        inside = np.flatnonzero(can_be_scored(levels))
    else:  # laws carried to 0 may ask for levels that the model has never seen
        inside = np.flatnonzero((levels[:, -2] >= schedule.sigma_min) & can_be_scored(levels))
    if not len(inside):
        raise InputError(f"{schedule!r}: no candidate has all its levels within [{LEAST:g}, {LARGEST:g}]")
    kept = levels[inside]
    _, first = np.unique(kept, axis=0, return_index=True)
    first.sort()
    return Candidates(
        levels=np.ascontiguousarray(kept[first]),
        labels=[labels[i] for i in inside[first].tolist()],
        generated=len(labels),
        outside=len(labels) - len(inside),
        duplicates=len(inside) - len(first),
    )


def can_be_scored(levels: Array) -> NDArray[np.bool_]:
    """Return for each row whether its levels, but for a first of inf and a last of 0, are in the evaluator's range."""
    first = (levels[..., 0] <= LARGEST) | np.isinf(levels[..., 0])
    return np.asarray(first & (levels[..., 1] <= LARGEST) & (levels[..., -2] >= LEAST))


def uniform_levels(schedule: NoiseSchedule, steps: int) -> dict[str, Array]:
    """Return the uniform discretizations by the name of their spacing; what everything is compared with."""
    spacings = ("linspace", "leading", "trailing") if schedule.is_discrete else ("linspace",)
    return {spacing: discretize.uniform(schedule, steps, spacing) for spacing in spacings}


def _batches(
    schedule: NoiseSchedule, spectrum: Spectrum, steps: int, per_family: int, snap: bool
) -> Iterator[Batch]:
    start = {} if np.isfinite(schedule.sigma_max) else {"sigma_max": schedule.sigmas(1.0 - EARLIEST)}
    snapped = {"snap": snap} if schedule.is_discrete else {}
    for spacing, levels in uniform_levels(schedule, steps).items():
        yield Batch("uniform", "uniform", [{"spacing": spacing}], levels[None, :])
    quadratic = discretize.quadratic(schedule, steps, **snapped)
    yield Batch("quadratic", "quadratic", [{}], quadratic[None, :])

    def family(name: str, function: Callable[..., Array], fixed: dict[str, Any], **arrays: Array) -> Batch:
        rows = _rows(lambda **values: function(schedule, steps, **values, **fixed), arrays)
        parameters = [{**row, **fixed} for row, _ in rows]
        levels = np.array([level for _, level in rows]).reshape(-1, steps + 1)
        return Batch(name, function.__name__, parameters, levels)

    yield family("power_uniform", discretize.power_uniform, snapped, power=np.geomspace(*POWERS, per_family))
    lows = _last_levels(schedule, LAST_LEVELS)
    rhos = np.geomspace(*RHOS, -(-per_family // len(lows)))
    grid = {"rho": np.tile(rhos, len(lows)), "sigma_min": np.repeat(lows, len(rhos))}
    yield family("karras", discretize.karras, start, **grid)
    yield family("exponential", discretize.exponential, start, sigma_min=_last_levels(schedule, per_family))
    gammas = _gammas(spectrum, per_family)
    yield family("tangent to 0", discretize.tangent, {"sigma_min": 0.0}, gamma=gammas)
    if schedule.sigma_min > 0.0:
        stop = {"sigma_min": schedule.sigma_min}
        yield family("tangent to sigma_min", discretize.tangent, stop, gamma=gammas)
    yield from _geodesic(schedule, spectrum, steps)


def _geodesic(schedule: NoiseSchedule, spectrum: Spectrum, steps: int) -> Iterator[Batch]:
    """The geodesic, which needs a spectrum without zeros where the schedule is carried to 0."""
    if spectrum.eigenvalues.min() > 0.0:
        levels = discretize.geodesic(schedule, steps, spectrum)
        yield Batch("geodesic", "geodesic", [{}], levels[None, :])


def _rows(function: Callable[..., Array], arrays: dict[str, Array]) -> list[tuple[dict[str, float], Array]]:
    """Each row's parameters and levels; rows whose levels coincide in float64 are left out by halving the arrays."""
    size = len(next(iter(arrays.values())))
    try:
        levels = function(**arrays)
    except ValueError:
        if size == 1:
            return []
        halves = (slice(None, size // 2), slice(size // 2, None))
        return [row for half in halves for row in _rows(function, {k: v[half] for k, v in arrays.items()})]
    names = list(arrays)
    values = zip(*(array.tolist() for array in arrays.values()), strict=True)
    return [(dict(zip(names, row, strict=True)), level) for row, level in zip(values, levels, strict=True)]


def _last_levels(schedule: NoiseSchedule, number: int) -> Array:
    """Levels near the clean end to stop at, ascending: distinct ones of the schedule, in equal ratios of time."""
    if schedule.num_train_timesteps is not None:
        half = max(schedule.num_train_timesteps // 2, 1)
        rungs = np.geomspace(1.0, half, max(number, 1)) if number < half else np.arange(1.0, half + 1.0)
        return np.asarray(schedule.sigmas(np.unique(np.rint(rungs)) - 1.0))
    if schedule.sigma_min > 0.0:
        return np.geomspace(schedule.sigma_min, np.sqrt(schedule.sigma_min * schedule.sigma_max), number)
    return np.asarray(schedule.sigmas(np.geomspace(EARLIEST, LATEST, number)))


def _gammas(spectrum: Spectrum, number: int) -> Array:
    """Coefficients between the least and the largest positive eigenvalue, and a little beyond both."""
    positive = spectrum.eigenvalues[spectrum.eigenvalues > 0.0]
    if positive.size == 0:
        return np.geomspace(0.1, 10.0, number)
    return np.geomspace(positive.min() / 10.0, positive.max() * 10.0, number)
