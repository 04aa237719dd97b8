"""The one place where a backend is chosen."""

from __future__ import annotations

import logging  # noqa: F401 - it has hooks for forks too, which must be there before ours can make a fork wait
import os
import sys
from threading import RLock
from types import ModuleType
from typing import Any

from fastkl._validation import choice

__all__ = ["BACKENDS", "backend_for"]

BACKENDS = ("auto", "cpu", "gpu")


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


def backend_for(backend: Any) -> ModuleType:
    """Return the module that evaluates validated problems; it is imported here, so that Numba loads on first use."""
    if choice("backend", backend, BACKENDS) == "gpu":
        raise RuntimeError("backend = 'gpu': this version of fastkl has no GPU kernels; use 'auto' or 'cpu'")
    with GUARD.importing:
        from fastkl import _cpu
    return _cpu
