"""Which noise levels should a diffusion sampler visit? Exact divergences of discretizations of a Gaussian model.

Everything is imported on first use: ``import fastkl`` loads neither Numba nor CuPy nor SciPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastkl import discretize, samplers, theory
    from fastkl._denoising import DenoisingFit, PoorFitWarning, fit_denoising_errors
    from fastkl._exhaustive import ExhaustiveResult, exhaustive
    from fastkl._rank import RankDeficientWarning
    from fastkl._search import SearchResult, search
    from fastkl._warmup import warmup
    from fastkl.evaluate import divergence, output_variance, trajectory
    from fastkl.moments import SpectrumMoments
    from fastkl.schedule import NoiseSchedule
    from fastkl.spectrum import Spectrum
    from fastkl.sweeps import sweep
    from fastkl.sweeps.result import SweepResult
    from fastkl.theory import best_gamma, expansion, tangent_gamma

__version__ = "0.1.0"

_HOMES = {
    "DenoisingFit": "fastkl._denoising",
    "ExhaustiveResult": "fastkl._exhaustive",
    "NoiseSchedule": "fastkl.schedule",
    "PoorFitWarning": "fastkl._denoising",
    "RankDeficientWarning": "fastkl._rank",
    "SearchResult": "fastkl._search",
    "Spectrum": "fastkl.spectrum",
    "SpectrumMoments": "fastkl.moments",
    "SweepResult": "fastkl.sweeps.result",
    "best_gamma": "fastkl.theory",
    "divergence": "fastkl.evaluate",
    "exhaustive": "fastkl._exhaustive",
    "expansion": "fastkl.theory",
    "fit_denoising_errors": "fastkl._denoising",
    "output_variance": "fastkl.evaluate",
    "search": "fastkl._search",
    "sweep": "fastkl.sweeps",
    "tangent_gamma": "fastkl.theory",
    "trajectory": "fastkl.evaluate",
    "warmup": "fastkl._warmup",
}

__all__ = ["DenoisingFit", "ExhaustiveResult", "NoiseSchedule", "PoorFitWarning", "RankDeficientWarning",
           "SearchResult", "Spectrum", "SpectrumMoments", "SweepResult", "__version__", "best_gamma", "discretize",
           "divergence", "exhaustive", "expansion", "fit_denoising_errors", "output_variance", "samplers", "search",
           "sweep", "tangent_gamma", "theory", "trajectory", "warmup"]  # fmt: skip


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
