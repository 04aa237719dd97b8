"""Passing over arrays that are mapped from disk without keeping them in memory."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

__all__ = ["release"]


def release(array: Any, begin: int, end: int) -> None:
    """Let go of the pages of array[begin:end] if it maps a file read-only; they are read again when used again."""
    base = getattr(array, "_mmap", None)
    if not isinstance(base, mmap.mmap) or array.mode != "r" or not array.flags.c_contiguous:
        return
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = array[begin:end].ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
    stop = start + array[begin:end].nbytes
    page = mmap.PAGESIZE
    start, stop = start // page * page, stop // page * page
    if stop > start:
        base.madvise(mmap.MADV_DONTNEED, start, stop - start)
