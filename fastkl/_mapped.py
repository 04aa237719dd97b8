"""Passing over arrays that are mapped from disk without keeping them in memory."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["let_go", "read_only_map"]


def read_only_map(array: NDArray[Any]) -> mmap.mmap | None:
    """Return the map below an array if nothing but reading is done with it, so that its pages can be let go."""
    base: Any = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    if not isinstance(base, mmap.mmap) or not hasattr(base, "madvise"):
        return None
    with memoryview(base) as view:
        return base if view.readonly else None


def let_go(mapped: mmap.mmap | None) -> None:
    """Give back the memory of a map's pages; what is read again comes from the file."""
    if mapped is not None:
        mapped.madvise(mmap.MADV_DONTNEED)
