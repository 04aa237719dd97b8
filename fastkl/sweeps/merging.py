"""The best candidates of a whole sweep out of its chunks, evaluated again on the whole spectrum."""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastkl.schedule import NoiseSchedule
from fastkl.sweeps.best import Record
from fastkl.sweeps.config import Geodesic, Search
from fastkl.sweeps.evaluation import Groups, block_of, cell_levels, cut_to_cells, evaluated, problem_of
from fastkl.sweeps.plan import Plan
from fastkl.sweeps.tables import LEFT_OUT, NUMERICS, Rows, top_schema

__all__ = ["Merger"]

Array = NDArray[np.float64]
ROWS = 1 << 16  # rows whose levels are made at a time


class Merger:
    """The best candidates of a sweep, out of its chunks in whatever order they come; nothing else is kept of them."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._groups = plan, Groups(plan)
        self._searches: dict[int, tuple[float | None, bool | None]] = {}
        self._lock = Lock()
        self.left_out = 0
        self.numerics: set[str] = set()  # of the chunks

    def take(self, chunk: pa.Table) -> None:
        """Take in a chunk; any thread may call this."""
        said = chunk.schema.metadata
        with self._lock:
            self.left_out += int(said[LEFT_OUT])
            self.numerics.add(said[NUMERICS].decode())
            for at in range(0, len(chunk), ROWS):
                take_in(self._plan, self._groups, chunk.slice(at, ROWS).combine_chunks(), self._searches)

    def top(self) -> pa.Table:
        """Return the best candidates of each group by their exact values, equal ones in order of index."""
        groups, plan = self._groups, self._plan
        found: list[tuple[int, int, float, Record]] = []
        for number, key in enumerate(sorted(groups.best)):
            records = groups.best[key].records()
            values = exact_values(plan, records)
            valued = (pair for pair in zip(values, records, strict=True) if not np.isnan(pair[0]))
            exact = sorted(valued, key=lambda pair: (pair[0], pair[1].index))
            ranked = enumerate(exact[: plan.config.top], 1)
            found += [(number, rank, value, record) for rank, (value, record) in ranked]
        return rows_of(plan, found, self._searches)


def take_in(plan: Plan, groups: Groups, rows: pa.Table, searches: dict[int, Any]) -> None:
    """Report the rows of a chunk to their groups."""
    indices = rows["index"].to_numpy()
    values = rows["value"].to_numpy()  # null becomes nan
    for cell, places, some, which in cut_to_cells(plan, indices):
        part = plan.part_of(int(some[0]))
        best, generator = groups.of(part, cell), plan.generator(part, cell)
        found, problem = values[which.start : which.stop], problem_of(plan, part, cell)
        kept = np.flatnonzero(found <= best.bar)
        if not kept.size:
            continue
        if isinstance(generator, Search | Geodesic):  # a cell of these is one row, and has its levels with it
            row = rows.slice(which.start, 1).to_pylist()[0]
            searches[int(some[0])] = row["lower_bound"], row["proved_optimal"]
            best.add(found, some, problem, np.array([row["sigmas"]]))
            continue
        block = block_of(plan.steps(part, cell))
        for at in range(0, len(kept), block):
            these = kept[at : at + block]
            levels = cell_levels(plan, part, cell, places[these])[0]
            best.add(found[these], some[these], problem, levels)


def exact_values(plan: Plan, records: list[Record]) -> list[float]:
    """Return the candidates' exact values, those of one problem and number of steps together."""
    values = np.empty(len(records))
    alike: dict[Any, list[int]] = {}
    for i, record in enumerate(records):
        alike.setdefault((record.key[0], len(record.key[1])), []).append(i)
    for rows in alike.values():
        index = records[rows[0]].index
        part = plan.part_of(index)
        cell, _ = part.product.locate(index - part.first_index)
        block = block_of(plan.steps(part, cell))
        for at in range(0, len(rows), block):
            levels = np.stack([records[i].levels for i in rows[at : at + block]])
            values[rows[at : at + block]] = evaluated(plan, part, cell, levels, 0.0)
    return [float(value) for value in values]


def rows_of(
    plan: Plan,
    found: list[tuple[int, int, float, Record]],
    searches: dict[int, tuple[float | None, bool | None]],
) -> pa.Table:
    """Return the table of the best, given as group, rank, value and candidate in the order of the table.

    Rows are made cell by cell, in order of index, and put in order at the end.
    """
    by_index = sorted(range(len(found)), key=lambda i: found[i][3].index)
    indices = np.array([found[i][3].index for i in by_index], dtype=np.int64)
    made = Rows(plan, top_schema(plan))
    for cell, places, some, which in cut_to_cells(plan, indices):
        rows = [found[by_index[i]] for i in which]
        proofs = [searches.get(record.index, (None, None)) for *_, record in rows]
        schedule = plan.schedules[cell.schedule]
        values = np.array([value for _, _, value, _ in rows])
        made.add(
            plan.part_of(int(some[0])), cell, places, some, values,
            rank=[rank for _, rank, _, _ in rows],
            sigmas=[record.levels for *_, record in rows],
            timesteps=[timesteps(schedule, record.levels) for *_, record in rows],
            lower_bound=[bound for bound, _ in proofs],
            proved_optimal=[proved for _, proved in proofs],
        )  # fmt: skip
    return made.table().take(np.argsort(by_index))


def timesteps(schedule: NoiseSchedule, levels: Array) -> NDArray[np.int64] | None:
    """Return the timesteps of levels that are all levels of a discrete schedule, else None."""
    if not schedule.is_discrete or levels[-2] < schedule.sigma_min:
        return None
    nearest: NDArray[np.int64] = schedule.timesteps(levels[:-1])
    return nearest if np.array_equal(schedule.sigmas(nearest), levels[:-1]) else None
