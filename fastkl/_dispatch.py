"""The one place where a backend is chosen."""

from __future__ import annotations

import logging  # noqa: F401 - it has hooks for forks too, which must be there before ours can make a fork wait
import os
import sys
from threading import RLock
from types import ModuleType
from typing import Any

import numpy as np

from fastkl._validation import choice

__all__ = ["BACKENDS", "backend_for", "is_device_array"]

BACKENDS = ("auto", "cpu", "gpu")
CUDA, CUDA_MANAGED = 2, 13  # device types of DLPack


class ForkGuard:
    """Makes a fork wait while another thread loads or compiles kernels, or the child would inherit locks held for ever.

    One lock covers the import of the kernels; the other is Numba's own, around compilation, once Numba is there.
    """

    def __init__(self) -> None:
        self.importing = RLock()
        self._compiling: Any = None

    def acquire(self) -> None:
        """Wait for both locks."""
        self.importing.acquire()
        self._compiling = getattr(sys.modules.get("numba.core.compiler_lock"), "global_compiler_lock", None)
        if self._compiling is not None:
            self._compiling.acquire()

    def release(self) -> None:
        """Release what was acquired."""
        if self._compiling is not None:
            self._compiling.release()
        self.importing.release()


GUARD = ForkGuard()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=GUARD.acquire, after_in_parent=GUARD.release, after_in_child=GUARD.release)


def is_device_array(value: Any, name: str) -> bool:
    """Return whether an argument holds data on a CUDA device: a CuPy array, a PyTorch CUDA tensor, ..."""
    if isinstance(value, np.ndarray | list | tuple | str | bytes | int | float) or value is None:
        return False
    try:
        if hasattr(value, "__cuda_array_interface__"):
            return True
        asks = getattr(value, "__dlpack_device__", None)
        return asks is not None and int(asks()[0]) in (CUDA, CUDA_MANAGED)
    except Exception as error:  # a PyTorch tensor that requires a gradient raises a RuntimeError here
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(f"{name}: cannot be read as an array, got {kind}: {error}") from error


def backend_for(backend: Any, work: float = 0.0, moved: float = 0.0, threads: int = 1) -> ModuleType:
    """Return the module that evaluates validated problems; it is imported here, so that Numba loads on first use.

    "auto" is the GPU only where one is there, and its cost was measured and is less for `work` (eigenvalue, step) pairs
    and `moved` bytes to and from it than that of `threads` threads here.
    """
    choice("backend", backend, BACKENDS)
    if backend == "gpu":
        return gpu_kernels()
    if backend == "auto" and gpu_pays(work, moved, threads):
        from fastkl import _gpu_costs

        try:
            return gpu_kernels()
        except Exception as error:  # "auto" is a wish for speed, so no reason to fail
            _gpu_costs.give_up(error)
    with GUARD.importing:
        from fastkl import _cpu
    return _cpu


def gpu_kernels() -> ModuleType:
    """Return the GPU's module, or raise a RuntimeError that says what is missing."""
    from fastkl import _gpu_device

    with GUARD.importing:
        _gpu_device.current_device()  # says what is missing before anything heavy is loaded
        from fastkl import _gpu
    return _gpu


def gpu_pays(work: float, moved: float, threads: int) -> bool:
    """Return whether a GPU is there and expected to be faster; nothing is imported where no costs were measured."""
    if not work:
        return False
    from fastkl import _gpu_costs

    return _gpu_costs.gpu_pays(work, moved, threads)
