"""Which sampler a caller means, whether it can run on the candidates, and the kernels of those that are not DDIM."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl._dispatch import GUARD
from fastkl._sampler_base import Sampler
from fastkl.samplers import get

__all__ = ["checked_sampler", "refuse_few_steps", "sampler_kernels"]


def checked_sampler(sampler: Any, levels: NDArray[np.float64]) -> Sampler:
    """Return the sampler of a name or object, or raise if it does not exist or cannot run on candidates (M, N+1)."""
    found = get(sampler)
    refuse_few_steps(sampler, levels.shape[1] - 1)
    infinite, zero = np.isinf(levels[:, 0]), levels[:, -1] == 0.0
    if found.finite_start and infinite.any():
        row = int(np.argmax(infinite))
        raise ValueError(
            f"sampler = {sampler!r}: needs a finite first level, row {row} of sigmas starts at inf"
        )
    if found.above_zero and zero.any():
        row = int(np.argmax(zero))
        raise ValueError(f"sampler = {sampler!r}: needs a last level above 0, row {row} of sigmas ends at 0")
    if found.check is not None:
        found.check(levels, **dict(found.options))
    return found


def refuse_few_steps(sampler: Any, steps: int) -> None:
    """Raise if a sampler, by its name or the object, cannot do as few steps."""
    least = get(sampler).least_steps
    if steps < least:
        raise ValueError(f"sampler = {sampler!r}: needs at least {least} steps, sigmas has {steps}")


def sampler_kernels(kernels: ModuleType) -> ModuleType:
    """Return the module that evaluates any sampler where `kernels` evaluates DDIM; it is imported here."""
    with GUARD.importing:
        if kernels.__name__ == "fastkl._gpu":
            from fastkl import _gpu_sampler

            return _gpu_sampler
        from fastkl import _sampler_cpu
    return _sampler_cpu
