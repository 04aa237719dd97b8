"""How a problem is cut on the GPU: into threads, and into chunks of candidates and pieces of the spectrum that fit.

No cut for want of memory changes a bit of the result: what a thread adds up depends on the numbers of all candidates
and eigenvalues, and tiles' sums are added in one order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastkl.kernels.ddim_horner import TILE

__all__ = ["Layout", "Need", "in_chunks"]

BATCH = 8  # eigenvalues that a thread has in registers
LEAST_SLICES = 4  # of a tile: more threads than one for each candidate even out the end of the work
ENOUGH_THREADS = (
    1 << 16
)  # two rounds of what a large card runs at once; the same on any card, as are the bits
LARGEST_SCRATCH = 1 << 30  # bytes of a chunk's scratch


@dataclass(frozen=True)
class Layout:
    """How many threads share a tile of eigenvalues for each candidate."""

    slices: int

    @classmethod
    def of(cls, candidates: int, size: int) -> Layout:
        """Cut tiles until there are enough threads, into slices with equally many batches or one less."""
        tiles, batches = math.ceil(size / TILE), math.ceil(min(size, TILE) / BATCH)
        wanted = max(LEAST_SLICES, math.ceil(ENOUGH_THREADS / (tiles * candidates)))
        wanted = 1 << (wanted.bit_length() - 1)  # so that all slices of a whole tile are alike
        rounds = math.ceil(batches / min(wanted, batches))
        return cls(math.ceil(batches / rounds))


@dataclass(frozen=True)
class Need:
    """Bytes that a chunk needs: of each candidate; of each tile of a piece for each candidate; of each tile for all."""

    candidate: int
    tile: int
    shared: int
    tiles: int  # of the whole spectrum

    def cut(self, budget: int, candidates: int) -> tuple[int, int]:
        """Return for how many candidates half the budget has room, and for how many tiles of a piece the rest."""
        rows = max(1, min(candidates, budget // 2 // self.candidate))
        return rows, max(1, min(self.tiles, budget // 2 // (rows * self.tile + self.shared)))


def in_chunks(device: Any, total: int, need: Need, run: Callable[[int, int, int], None]) -> None:
    """Call run(begin, end, tiles of a piece) for chunks of `total` candidates that fit the free memory.

    Where memory runs out after all, half as much is taken and the work goes on.
    """
    budget = min(device.free_bytes() // 2, LARGEST_SCRATCH)
    begin = 0
    while begin < total:
        rows, piece = need.cut(budget, total)
        end = min(begin + rows, total)
        try:
            run(begin, end, piece)
        except device.OutOfMemory:
            if (rows, piece) == (1, 1):
                raise
            while need.cut(budget, total) == (rows, piece):
                budget //= 2
            continue
        begin = end
