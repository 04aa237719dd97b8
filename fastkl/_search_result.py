"""What a search found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SearchResult"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What `search` found for one number of steps.

    Parameters
    ----------
    steps : int
        Number of steps N.
    timesteps : ndarray of int, shape (N,), or None
        Timesteps in descending order, as diffusers' ``set_timesteps(timesteps=...)`` takes them; None for continuous
        schedules.
    sigmas : ndarray, shape (N+1,)
        Levels in descending order, ending in 0, as k-diffusion and ComfyUI take them; for samplers that need a last
        level above 0, in the lowest level of the grid.
    value : float
        Divergence of `sigmas` on the whole spectrum.
    lower_bound : float or None
        No choice of N levels from the grid that keeps to the constraints has a divergence below this; None where no
        bound is known.
    proved_optimal : bool
        Whether every other choice of levels has been excluded: `sigmas` has the least divergence of all.
    refined_sigmas : ndarray, shape (N+1,), or None
        For continuous schedules: all levels moved off the grid to a local optimum, but those that must be visited.
        `min_spacing` counts levels of the grid and says nothing about these; of other samplers than DDIM no two are
        closer than 1 %, or than the two closest of the grid.
    refined_value : float or None
        Divergence of `refined_sigmas`, never above `value`.
    metric, prior, sampler : str
        What was minimised.
    candidates : int or None
        How many choices of levels there are; None where some must be visited.
    iterations : int
        Shortest paths that were computed; in a local search, batches of candidates that were evaluated.
    seconds : float
        Time that it took.
    """

    steps: int
    timesteps: NDArray[np.int64] | None
    sigmas: Array
    value: float
    lower_bound: float | None
    proved_optimal: bool
    refined_sigmas: Array | None
    refined_value: float | None
    metric: str
    prior: str
    sampler: str
    candidates: int | None
    iterations: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, strings and lists, for JSON.

        Returns
        -------
        dict
            The attributes by name.

        Examples
        --------
        >>> import fastkl
        >>> best = fastkl.search([1.0, 0.1], fastkl.NoiseSchedule.edm(), steps=3)
        >>> best.as_dict()["proved_optimal"]
        True
        """
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(self).items()}
