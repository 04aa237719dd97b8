"""What the families of `fastkl.discretize` share: parameters that may be arrays, ends, endings and the last check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastkl._schedule_base import check_elements
from fastkl._validation import integer, real_array
from fastkl.schedule import NoiseSchedule

__all__ = [
    "check_schedule",
    "columns",
    "distinct",
    "ends",
    "exponential_law",
    "from_law",
    "intervals",
    "karras_law",
    "law_levels",
    "positive",
    "power_levels",
    "power_times",
    "strict",
    "tangent_law",
    "uniform_timesteps",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def check_schedule(schedule: NoiseSchedule) -> None:
    """Raise unless `schedule` is a NoiseSchedule."""
    if not isinstance(schedule, NoiseSchedule):
        raise TypeError(
            f"schedule: must be a fastkl.NoiseSchedule, got {schedule!r} ({type(schedule).__name__})"
        )


def _scalar_or_row(name: str, value: Any) -> Floats:
    array = real_array(name, value, ndim=(0, 1))
    return array.reshape(np.shape(value))


def positive(name: str, value: float | ArrayLike) -> Floats:
    """A parameter, scalar or 1-D, whose elements are finite and above 0."""
    array = _scalar_or_row(name, value)
    check_elements(name, array, (array > 0.0) & np.isfinite(array), "must be finite and above 0")
    return array


def ends(
    schedule: NoiseSchedule,
    sigma_min: float | ArrayLike | None,
    sigma_max: float | ArrayLike | None,
    *,
    zero: bool,
    infinite: bool,
) -> tuple[Floats, Floats]:
    """The two ends of a law, by default the schedule's; `zero` and `infinite` say which ends the law can reach."""
    check_schedule(schedule)
    first, last = schedule.sigma_max, schedule.sigma_min
    high = _scalar_or_row("sigma_max", first if sigma_max is None else sigma_max)
    low = _scalar_or_row("sigma_min", last if sigma_min is None else sigma_min)
    rule = f"must be above 0 and at most {first!r}, the schedule's sigma_max"
    check_elements("sigma_max", high, (high > 0.0) & (high <= first), rule)
    rule = "must be finite for this law; pass a finite sigma_max"
    check_elements("sigma_max", high, infinite | np.isfinite(high), rule)
    rule = "must be above 0, the law never reaches 0; pass a sigma_min"
    check_elements("sigma_min", low, (low != 0.0) | zero, rule)
    rule = f"must be {'0 or ' if zero else ''}at least {last!r}, the schedule's sigma_min"
    check_elements("sigma_min", low, (low == 0.0) | (low >= last), rule)
    columns(sigma_min=low, sigma_max=high)
    lows, highs = np.broadcast_arrays(low, high)
    check_elements("sigma_min", lows, lows <= highs, "must not be above sigma_max")
    return low, high


def columns(**parameters: Floats) -> tuple[list[Floats], bool]:
    """Parameters as (M, 1) columns, and whether any was an array."""
    sizes = {name: array.size for name, array in parameters.items() if array.ndim}
    if len(set(sizes.values())) > 1:
        lengths = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise ValueError(f"{', '.join(sizes)}: arrays must have one length, but {lengths}")
    rows = max(sizes.values(), default=1)
    whole = [np.broadcast_to(array.reshape(-1, 1), (rows, 1)).copy() for array in parameters.values()]
    return whole, bool(sizes)


def intervals(steps: int, last: Any) -> Any:
    """How many intervals of the law the levels span: the last one drops to 0 unless the law ends at 0 itself."""
    return np.where(np.equal(last, 0.0), steps, max(steps - 1, 1))


def karras_law(fractions: Floats, low: Floats, high: Floats, rho: Floats) -> Floats:
    """(a + f (b - a))**rho over high, with exp and log so that no rho overflows or cancels."""
    return high * np.exp(rho * np.log1p(fractions * np.expm1(np.log(low / high) / rho)))


def exponential_law(fractions: Floats, low: Floats, high: Floats) -> Floats:
    """Equal steps in log sigma."""
    return high * np.exp(fractions * np.log(low / high))


def tangent_law(fractions: Floats, low: Floats, high: Floats, gamma: Floats) -> Floats:
    """Equal steps in the angle arctan(sigma/sqrt(gamma))."""
    root = np.sqrt(gamma)
    angles = (1.0 - fractions) * np.arctan2(high, root) + fractions * np.arctan2(low, root)
    # pi/2 - angle from its own ends: large levels keep their digits
    others = (1.0 - fractions) * np.arctan2(root, high) + fractions * np.arctan2(root, low)
    return root * np.where(angles <= others, np.tan(angles), 1.0 / np.tan(others))


def law_levels(law: Callable[..., Floats], steps: int, low: Floats, high: Floats, *rest: Floats) -> Floats:
    """Levels law(f, low, high, ...) for equally spaced f from 0 (`high`) to 1 (`low`), both ends exact, then 0.

    Parameters are columns (M, 1). Where two levels coincide in float64, or `low` is above `high`, they do not fall.
    """
    fractions = np.minimum(np.arange(steps + 1) / intervals(steps, low), 1.0)
    with np.errstate(all="ignore"):  # the ends of a law may be 0 * inf or log(0); they are set below
        levels = law(fractions, low, high, *rest)
    levels[:, -2:-1] = np.where(low > 0.0, low, levels[:, -2:-1])
    levels[:, :1] = high
    levels[:, -1] = 0.0
    return levels


def from_law(
    law: Callable[..., Floats], steps: int, parameters: list[Floats], batch: bool, remedy: str
) -> Floats:
    """`law_levels` that fall strictly, or raise; `parameters` are low, high and the law's own."""
    steps = integer("steps", steps)
    levels = strict(law_levels(law, steps, *parameters), steps, remedy)
    return levels if batch else levels[0]


def power_levels(schedule: NoiseSchedule, steps: int, powers: Floats, snap: bool) -> Floats:
    """Levels at a power of equally spaced times, then 0, one row a power; they may coincide. `powers` is a column."""
    count = schedule.num_train_timesteps
    t = power_times(steps, powers)
    if count is not None:
        t = (count - 1) * t
        if snap:
            t = distinct(np.rint(t).astype(np.int64), count).astype(np.float64)
        if np.isinf(schedule.sigma_max) and np.any((t > count - 2) & (t < count - 1)):
            raise ValueError(
                f"snap = {snap}: no level is defined between the last two timesteps of {schedule!r}"
            )
    return np.concatenate([schedule.sigmas(t), np.zeros((t.shape[0], 1))], axis=1)


def uniform_timesteps(count: int, steps: int, spacing: str) -> Floats:
    """`steps` of the timesteps 0..count-1, descending."""
    if spacing == "linspace":
        rising = np.linspace(0.0, count - 1.0, steps) if steps > 1 else np.array([count - 1.0])
        return np.asarray(np.rint(rising[::-1]))
    if spacing == "leading":
        return np.arange(steps - 1.0, -1.0, -1.0) * (count // steps)
    # rounding makes arange one element too long for some step counts
    falling: Floats = np.arange(count, 0, -count / steps)[:steps]
    return np.rint(falling) - 1.0


def power_times(steps: int, powers: Floats) -> Floats:
    """(1 - k/N)**power for k = 0..N-1, one row a power; `powers` is a column."""
    shape = (powers.size, steps)
    fractions = np.broadcast_to((steps - np.arange(steps)) / steps, shape)
    with np.errstate(under="ignore"):
        # whole arrays on both sides, so that a row does not depend on the rows beside it
        return np.asarray(np.power(fractions.copy(), np.broadcast_to(powers, shape).copy()))


def strict(levels: Floats, steps: int, remedy: str) -> Floats:
    """Return levels that fall strictly, or raise and say what to change."""
    falls = levels[..., 1:] < levels[..., :-1]
    if not falls.all():
        *row, k = (int(i) for i in np.unravel_index(int(np.argmin(falls)), falls.shape))
        where = f" of row {row[0]}" if row else ""
        raise ValueError(
            f"steps = {steps}: levels {k} and {k + 1}{where} coincide in float64 "
            f"(near {levels[(*row, k)].item()!r}); use {remedy}"
        )
    return levels


def distinct(timesteps: Integers, count: int) -> Integers:
    """Strictly decreasing integers in 0..count-1 whose largest distance from the given ones is least.

    Adding k to the k-th turns "strictly decreasing" into "not increasing", where the midpoint of the lower and upper
    monotone envelopes is a minimax solution; clipping keeps it one within the bounds.
    """
    shifts = np.arange(timesteps.shape[1])
    raised = timesteps + shifts
    upper = np.maximum.accumulate(raised[:, ::-1], axis=1)[:, ::-1]
    lower = np.minimum.accumulate(raised, axis=1)
    middle: Integers = np.clip((upper + lower) // 2, timesteps.shape[1] - 1, count - 1)
    return middle - shifts
