"""Moving levels onto the grid of a discrete schedule."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastkl._families import check_schedule, distinct
from fastkl._validation import check_all, decreasing, real_array
from fastkl.schedule import NoiseSchedule

__all__ = ["snap", "snapped"]

Floats = NDArray[np.float64]


def snap(schedule: NoiseSchedule, sigmas: ArrayLike) -> Floats:
    """Move levels to distinct levels of a discrete schedule.

    Each level goes to its nearest timestep in log sigma. Levels that fall on one timestep, or are pushed by such, are
    spread so that the largest shift from the nearest timestep, counted in timesteps, is as small as possible.

    Parameters
    ----------
    schedule : NoiseSchedule
        A discrete one with T timesteps.
    sigmas : (K,) or (M, K) array_like
        Strictly decreasing levels above 0; one outside the schedule's range goes to the nearest end. A final 0 stays,
        in all rows or in none.

    Returns
    -------
    ndarray of float64
        Shaped like `sigmas`, strictly decreasing; all levels but a final 0 are levels of the schedule.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range, or a row has more levels than the schedule.

    Notes
    -----
    O(M K) after the look-up of the levels. A row whose nearest timesteps are distinct gets exactly these.

    Examples
    --------
    >>> schedule = NoiseSchedule.ddpm_linear()
    >>> levels = snap(schedule, [100.0, 1.0001, 1.0, 0.0])
    >>> schedule.timesteps(levels[:-1]).tolist()
    [953, 258, 257]
    """
    check_schedule(schedule)
    count = schedule.num_train_timesteps
    if count is None:
        raise ValueError(f"schedule = {schedule!r}: must be discrete, there are no timesteps to snap to")
    levels = real_array("sigmas", sigmas, ndim=(1, 2))
    check_all("sigmas", levels, levels >= 0.0, "a noise level must be a number >= 0")
    decreasing("sigmas", levels)
    zero = bool(levels[..., -1].flat[0] == 0.0)
    valid = np.ones(levels.shape, dtype=np.bool_)
    valid[..., -1] = (levels[..., -1] == 0.0) == zero
    check_all("sigmas", levels, valid, "all rows must end in 0, or none")
    kept = levels.shape[-1] - zero
    if kept > count:
        raise ValueError(f"sigmas: {kept} levels cannot have a timestep each, the schedule has {count}")
    return snapped(schedule, levels, kept)


def snapped(schedule: NoiseSchedule, levels: Floats, kept: int) -> Floats:
    """Return falling levels moved to distinct timesteps, the first `kept` of each row (at most T); the rest stays."""
    result = levels.copy()
    if kept:
        inside = np.clip(levels[..., :kept], schedule.sigma_min, schedule.sigma_max)
        nearest = np.atleast_2d(schedule.timesteps(inside))
        timesteps = distinct(nearest, schedule.num_train_timesteps or 0)
        result[..., :kept] = schedule.sigmas(timesteps).reshape(levels[..., :kept].shape)
    return result
