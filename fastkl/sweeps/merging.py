"""The best candidates of a whole sweep out of its chunks, evaluated again on the whole spectrum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

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
    batches = []
    for key in sorted(groups.best):
        records = groups.best[key].records()
        exact = sorted(
            zip(exact_values(plan, records), records, strict=True), key=lambda p: (p[0], p[1].index)
        )
        for rank, (value, record) in enumerate(exact[: plan.config.top], 1):
            batches.append(row_of(plan, rank, value, record, searches.get(record.index, (None, None))))
    return table_of(batches, top_schema(plan))


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


def row_of(
    plan: Plan, rank: int, value: float, record: Record, proof: tuple[float | None, bool | None]
) -> dict[str, Any]:
    """Return the columns of one of the best."""
    part = plan.part_of(record.index)
    cell, place = part.product.locate(record.index - part.first_index)
    schedule = plan.schedules[cell.schedule]
    levels = record.levels
    timesteps = None
    if schedule.is_discrete and levels[-2] >= schedule.sigma_min:
        nearest = schedule.timesteps(levels[:-1])
        timesteps = nearest if np.array_equal(schedule.sigmas(nearest), levels[:-1]) else None
    return rows_of_cell(
        plan,
        part,
        cell,
        np.array([place]),
        np.array([record.index]),
        np.array([value]),
        rank=pa.array([rank], pa.int32()),
        sigmas=pa.array([levels], pa.list_(pa.float64())),
        timesteps=pa.array([timesteps], pa.list_(pa.int64())),
        lower_bound=pa.array([proof[0]], pa.float64()),
        proved_optimal=pa.array([proof[1]], pa.bool_()),
    )
