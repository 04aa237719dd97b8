"""The best candidates of a whole sweep out of its chunks, evaluated again on the whole spectrum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastkl.schedule import NoiseSchedule
from fastkl.sweeps.best import Record
from fastkl.sweeps.config import Geodesic, Search
from fastkl.sweeps.evaluation import Groups, cell_levels, cut_to_cells, evaluated, problem_of
from fastkl.sweeps.plan import Plan
from fastkl.sweeps.tables import rows_of_cell, table_of, top_schema

__all__ = ["top_table"]

Array = NDArray[np.float64]
ROWS = 1 << 16  # rows whose levels are made at a time


def top_table(plan: Plan, chunks: Iterable[pa.Table]) -> pa.Table:
    """Return the best candidates of each group by their exact values, equal ones in order of index."""
    groups = Groups(plan)
    searches: dict[int, tuple[float | None, bool | None]] = {}
    for chunk in chunks:
        for at in range(0, len(chunk), ROWS):
            take_in(plan, groups, chunk.slice(at, ROWS).combine_chunks(), searches)
    found: list[tuple[int, int, float, Record]] = []
    for number, key in enumerate(sorted(groups.best)):
        records = groups.best[key].records()
        exact = sorted(
            zip(exact_values(plan, records), records, strict=True), key=lambda p: (p[0], p[1].index)
        )
        ranked = enumerate(exact[: plan.config.top], 1)
        found += [(number, rank, value, record) for rank, (value, record) in ranked]
    return rows_of(plan, found, searches)


def take_in(plan: Plan, groups: Groups, rows: pa.Table, searches: dict[int, Any]) -> None:
    """Report the rows of a chunk to their groups."""
    indices = rows["index"].to_numpy()
    values = rows["value"].to_numpy()  # null becomes nan
    for cell, places, some, which in cut_to_cells(plan, indices):
        part = plan.part_of(int(some[0]))
        best, generator = groups.of(part, cell), plan.generator(part, cell)
        found = values[which.start : which.stop]
        kept = np.flatnonzero(found <= best.bar)
        if not kept.size:
            continue
        if isinstance(generator, Search | Geodesic):  # a cell of these is one row, and has its levels with it
            row = rows.slice(which.start, 1).to_pylist()[0]
            levels = np.array([row["sigmas"]])
            searches[int(some[0])] = row["lower_bound"], row["proved_optimal"]
        else:
            levels = cell_levels(plan, part, cell, places[kept])[0]
        best.add(found[kept], some[kept], problem_of(plan, part, cell), levels)


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
        levels = np.stack([records[i].levels for i in rows])
        values[rows] = evaluated(plan, part, cell, levels, 0.0)
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
    batches = []
    for cell, places, some, which in cut_to_cells(plan, indices):
        rows = [found[by_index[i]] for i in which]
        proofs = [searches.get(record.index, (None, None)) for *_, record in rows]
        schedule = plan.schedules[cell.schedule]
        columns = {
            "rank": pa.array([rank for _, rank, _, _ in rows], pa.int32()),
            "sigmas": pa.array([record.levels for *_, record in rows], pa.list_(pa.float64())),
            "timesteps": pa.array([timesteps(schedule, r.levels) for *_, r in rows], pa.list_(pa.int64())),
            "lower_bound": pa.array([bound for bound, _ in proofs], pa.float64()),
            "proved_optimal": pa.array([proved for _, proved in proofs], pa.bool_()),
        }
        values = np.array([value for _, _, value, _ in rows])
        part = plan.part_of(int(some[0]))
        batches.append(rows_of_cell(plan, part, cell, places, some, values, **columns))
    return table_of(batches, top_schema(plan)).take(np.argsort(by_index))


def timesteps(schedule: NoiseSchedule, levels: Array) -> NDArray[np.int64] | None:
    """Return the timesteps of levels that are all levels of a discrete schedule, else None."""
    if not schedule.is_discrete or levels[-2] < schedule.sigma_min:
        return None
    nearest: NDArray[np.int64] = schedule.timesteps(levels[:-1])
    return nearest if np.array_equal(schedule.sigmas(nearest), levels[:-1]) else None
