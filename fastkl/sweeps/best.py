"""The best candidates of a group, in order of value, then of index, in whatever order they are reported."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Best", "Record"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]


class Record(NamedTuple):
    """A candidate that may be among the best; `key` tells which problem and which levels it is."""

    value: float
    index: int
    key: tuple[Any, bytes]

    @property
    def levels(self) -> Array:
        """Its levels, (N+1,)."""
        return np.frombuffer(self.key[1])


class Best:
    """The `keep` least values, and all that are within a factor `slack` of the last of them.

    Of candidates with the same levels on the same problem, `copies` count. What is reported before or after, and in
    how many pieces, makes no difference to `records`.
    """

    def __init__(self, keep: int, copies: int, slack: float) -> None:
        self._keep, self._copies, self._slack = keep, copies, slack
        self._records: list[Record] = []
        self._limit = keep + max(64, keep // 2)
        self.bar = math.inf  # values above it need not be reported

    def add(self, values: Array, indices: Integers, problem: Any, levels: Array) -> None:
        """Take in candidates of one problem: values (M,), indices (M,), levels (M, N+1)."""
        rows = np.flatnonzero(values <= self.bar)  # False for nan, which stands for what was left out
        if not rows.size:
            return
        order = rows[np.lexsort((indices[rows], values[rows]))]
        if self._copies == 1:  # equal levels have equal values, and so mostly stand side by side now
            again = (levels[order[1:]] == levels[order[:-1]]).all(axis=1)
            order = order[np.append(True, ~again)]
        found = (Record(float(values[i]), int(indices[i]), (problem, levels[i].tobytes())) for i in order)
        kept, _ = self._walk(found)
        self._records += kept
        if len(self._records) > self._limit:
            self._prune()

    def records(self) -> list[Record]:
        """Return what is kept, the best first."""
        self._prune()
        return self._records

    def _prune(self) -> None:
        self._records, self.bar = self._walk(iter(sorted(self._records)))
        self._limit = len(self._records) + max(64, self._keep // 2)

    def _walk(self, ascending: Any) -> tuple[list[Record], float]:
        """Return the records to keep of ascending ones, and the value up to which they were kept."""
        seen: dict[tuple[Any, bytes], int] = {}
        kept: list[Record] = []
        bar = math.inf
        for record in ascending:
            if record.value > bar:
                break
            copies = seen.get(record.key, 0)
            if copies < self._copies:
                seen[record.key] = copies + 1
                kept.append(record)
                if len(kept) == self._keep:
                    bar = record.value * self._slack
        return kept, bar
