"""What a sampler is to the rest of the library: a name, the function that writes its tape, and a few facts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl._sampler_tape import Point, Tape
from fastkl._validation import integer

__all__ = ["Sampler", "write_tape"]

Array = NDArray[np.float64]
Draw = Callable[..., list[Point]]


@dataclass(frozen=True)
class Sampler:
    """A sampler: the update rule between noise levels, as `fastkl.divergence` and its siblings take it.

    Made by the functions of `fastkl.samplers`; `fastkl.samplers.get(name)` returns the ones with a name.

    Parameters
    ----------
    name : str
        What made it, such as "ddim".
    draw : callable
        draw(tape, **options) writes the steps and returns the points at the N+1 levels.
    options : tuple of (str, object)
        The options that `draw` is called with.
    order : int
        Order of convergence: on a smooth path to a last level above 0, the error of the output's standard deviation (of
        the output's variance, for a stochastic sampler) falls as N^-order.
    stochastic : bool
        Whether fresh noise enters.
    finite_start : bool
        Whether it needs a finite first level.
    above_zero : bool
        Whether it needs a last level above 0.
    least_steps : int
        The fewest steps that it can do.
    one_step : bool
        Whether a step multiplies the state by a gain that its two levels alone decide: no noise, no memory.
    check : callable, optional
        check(levels, **options) raises where the options do not go with the candidates (M, N+1).
    allowed : callable, optional
        allowed(levels, **options) returns conditions (M,) all of which must hold, or `check` raises. Arrays on a GPU
        need it beside a `check`: there a candidate for which one does not hold gives NaN.
    """

    name: str
    draw: Draw = field(repr=False)
    options: tuple[tuple[str, Any], ...] = ()
    order: int = 1
    stochastic: bool = False
    finite_start: bool = False
    above_zero: bool = False
    least_steps: int = 1
    one_step: bool = False
    check: Callable[..., None] | None = field(default=None, repr=False)
    allowed: Callable[..., list[Any]] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options)
        return f"fastkl.samplers.{self.name}({options})"

    @property
    def is_ddim(self) -> bool:
        """Whether this is DDIM with eta = 0, which has kernels of its own."""
        return self.name == "ddim" and dict(self.options)["eta"] == 0.0

    def nfe(self, steps: int) -> int:
        """Return how many times `steps` steps, the last one to level 0, evaluate the network.

        Parameters
        ----------
        steps : int
            N, at least `least_steps`.

        Returns
        -------
        int
            The number of evaluations.

        Examples
        --------
        >>> import fastkl
        >>> fastkl.samplers.heun().nfe(5)
        9
        """
        steps = integer("steps", steps, minimum=self.least_steps)
        return _evaluations(self, steps)

    def steps_for(self, nfe: int) -> int:
        """Return the most steps that evaluate the network at most `nfe` times.

        Parameters
        ----------
        nfe : int
            The evaluations that may be used.

        Returns
        -------
        int
            The number of steps.

        Raises
        ------
        ValueError
            If not even the fewest steps of this sampler fit.

        Examples
        --------
        >>> import fastkl
        >>> fastkl.samplers.heun().steps_for(10)
        5
        """
        nfe = integer("nfe", nfe)
        fewest = self.nfe(self.least_steps)
        if nfe < fewest:
            raise ValueError(f"nfe = {nfe}: {self!r} needs at least {fewest} evaluations")
        low, high = self.least_steps, nfe  # no sampler has fewer evaluations than steps
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.nfe(middle) <= nfe else (low, middle - 1)
        return low


def write_tape(sampler: Sampler, levels: Array) -> tuple[Tape, list[Point]]:
    """Return the tape of candidates (M, N+1) that all end at 0 or all above, and its points at the levels."""
    tape = Tape(levels)
    with np.errstate(all="ignore"):  # limits at inf and 0 are chosen by np.where
        points = sampler.draw(tape, **dict(sampler.options))
    return tape, points


@lru_cache(maxsize=4096)
def _evaluations(sampler: Sampler, steps: int) -> int:
    """Count the points whose function value a tape of `steps` steps to 0 uses."""
    last = [0.5**steps] if sampler.above_zero else [0.0]
    levels = np.append(2.0 ** np.linspace(0.0, -1.0, steps), last)[None, :]
    tape, _ = write_tape(sampler, levels)
    used = {step.function.index for step in tape.steps}
    return len(used | {point.index for step in tape.steps for point, _ in step.terms})
