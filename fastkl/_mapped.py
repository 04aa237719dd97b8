"""Passing over arrays that are mapped from disk without keeping them in memory."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["let_go", "map_below", "read_only_map"]


def read_only_map(array: NDArray[Any]) -> mmap.mmap | None:
    """Return the map below an array if nothing but reading is done with it, so that its pages can be let go."""
    found = map_below(array)
    if found is None or not hasattr(found, "madvise"):
        return None
    with memoryview(found) as view:
        return found if view.readonly else None


def map_below(array: NDArray[Any]) -> mmap.mmap | None:
    """Return the memory map that an array is a view of, if any."""
    base: Any = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return base if isinstance(base, mmap.mmap) else None


def let_go(mapped: mmap.mmap | None) -> None:
    """Give back the memory of a map's pages; what is read again comes from the file."""
    if mapped is not None:
        mapped.madvise(mmap.MADV_DONTNEED)
