"""The one place where a backend is chosen."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from fastkl._validation import choice

__all__ = ["BACKENDS", "backend_for"]

BACKENDS = ("auto", "cpu", "gpu")


def backend_for(backend: Any) -> ModuleType:
    """Return the module that evaluates validated problems; it is imported here, so that Numba loads on first use."""
    if choice("backend", backend, BACKENDS) == "gpu":
        raise RuntimeError("backend = 'gpu': this version of fastkl has no GPU kernels; use 'auto' or 'cpu'")
    from fastkl import _cpu

    return _cpu
