"""Which noise levels should a diffusion sampler visit? Exact divergences of discretizations of a Gaussian model.

Everything is imported on first use: ``import fastkl`` loads neither Numba nor CuPy nor SciPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastkl import discretize, samplers, theory
    from fastkl._warmup import warmup
    from fastkl.evaluate import divergence, output_variance, trajectory
    from fastkl.schedule import NoiseSchedule
    from fastkl.spectrum import Spectrum
    from fastkl.theory import best_gamma, expansion, tangent_gamma

__version__ = "0.1.0"

_HOMES = {
    "NoiseSchedule": "fastkl.schedule",
    "Spectrum": "fastkl.spectrum",
    "best_gamma": "fastkl.theory",
    "divergence": "fastkl.evaluate",
    "expansion": "fastkl.theory",
    "output_variance": "fastkl.evaluate",
    "tangent_gamma": "fastkl.theory",
    "trajectory": "fastkl.evaluate",
    "warmup": "fastkl._warmup",
}

__all__ = ["NoiseSchedule", "Spectrum", "__version__", "best_gamma", "discretize", "divergence", "expansion",
           "output_variance", "samplers", "tangent_gamma", "theory", "trajectory", "warmup"]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in ("discretize", "samplers", "theory"):
        return importlib.import_module(f"fastkl.{name}")
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fastkl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
