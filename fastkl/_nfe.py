"""Discretizations by the number of evaluations instead of steps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl._sampler_base import Sampler
from fastkl._validation import choice

__all__ = ["for_nfe"]


def for_nfe(
    family: str, schedule: Any, nfe: int, sampler: str | Sampler = "ddim", **parameters: Any
) -> NDArray[np.float64]:
    """Levels of a family with as many steps as a sampler can do with a number of evaluations of the network.

    Parameters
    ----------
    family : {"uniform", "quadratic", "power_uniform", "karras", "exponential", "tangent", "geodesic"}
        The function of `fastkl.discretize` to call.
    schedule : NoiseSchedule
        The model's noise levels.
    nfe : int
        Evaluations that may be used: the steps are `fastkl.samplers.steps_for` of them, such as 5 steps of Heun for 10.
    sampler : str or Sampler
        The sampler that the levels are for.
    **parameters
        What else the function takes.

    Returns
    -------
    (N+1,) or (M, N+1) ndarray of float64
        Levels, strictly decreasing.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range, or the evaluations are too few for the sampler.

    Examples
    --------
    >>> import fastkl
    >>> schedule = fastkl.NoiseSchedule.edm()
    >>> fastkl.discretize.for_nfe("karras", schedule, 8, "heun").round(4).tolist()
    [80.0, 9.7232, 0.47, 0.002, 0.0]
    """
    from fastkl import discretize, samplers

    choice("family", family, (*discretize.FAMILIES, "geodesic"))
    function = getattr(discretize, family)
    levels: NDArray[np.float64] = function(schedule, steps=samplers.steps_for(sampler, nfe), **parameters)
    return levels
