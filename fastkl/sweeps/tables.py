"""Tables of results: their schema with units, and their rows from candidates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fastkl import __version__
from fastkl.sweeps.config import Search
from fastkl.sweeps.generation import PARAMETERS, parameters_of
from fastkl.sweeps.plan import Cell, Part, Plan

__all__ = ["NAMES", "chunk_schema", "rows_of_cell", "serialised", "top_schema"]

Integers = NDArray[np.int64]

NAMES = ("spectrum", "schedule", "sampler", "family", "metric", "prior", "spacing")  # columns of strings
VALUE_UNIT = "nats; for metric w2 squared data units"
LEVEL_UNIT = "noise-to-signal ratio sigma_t/alpha_t"
UNITS = {
    "index": "number of the candidate in the sweep",
    "steps": "transitions between levels",
    "power": "exponent of time",
    "rho": "exponent of Karras' law",
    "gamma": "squared data units",
    "sigma_min": LEVEL_UNIT,
    "sigma_max": LEVEL_UNIT,
    "value": f"{VALUE_UNIT}; null where the candidate's levels cannot be evaluated",
    "lower_bound": VALUE_UNIT,
    "sigmas": LEVEL_UNIT,
    "timesteps": "timesteps of the discrete schedule",
    "rank": "1 is the least value of the group",
}
TEXT = pa.dictionary(pa.int32(), pa.string())


def field(name: str, kind: Any) -> pa.Field:
    """Return a field with its unit."""
    return pa.field(name, kind, metadata={"unit": UNITS[name]} if name in UNITS else None)


def fields() -> list[pa.Field]:
    """Return the columns that all tables have."""
    columns = [field("index", pa.int64())]
    columns += [field(name, TEXT) for name in NAMES[:4]] + [field("steps", pa.int32())]
    columns += [field(name, TEXT) for name in NAMES[4:]]
    columns += [field(name, pa.float64()) for name in (*PARAMETERS, "value", "lower_bound")]
    return [*columns, field("proved_optimal", pa.bool_()), field("sigmas", pa.list_(pa.float64()))]


def metadata(plan: Plan, **more: Any) -> dict[str, str]:
    """Return what every file says of its sweep."""
    return {"fastkl.version": __version__, "fastkl.config_hash": plan.config_hash} | {
        f"fastkl.{key}": str(value) for key, value in more.items()
    }


def chunk_schema(plan: Plan, **more: Any) -> pa.Schema:
    """Return the schema of a chunk."""
    return pa.schema(fields(), metadata=metadata(plan, **more))


def top_schema(plan: Plan) -> pa.Schema:
    """Return the schema of the best candidates."""
    columns = [field("rank", pa.int32()), *fields(), field("timesteps", pa.list_(pa.int64()))]
    return pa.schema(columns, metadata=metadata(plan))


def rows_of_cell(
    plan: Plan, part: Part, cell: Cell, places: Integers, indices: Integers, values: Any, **columns: Any
) -> dict[str, Any]:
    """Return the columns of candidates of one cell as Arrow arrays by name; `columns` are those not yet known."""
    generator, count = plan.generator(part, cell), len(indices)
    schedule = plan.schedules[cell.schedule]
    searched = isinstance(generator, Search)
    own = {} if searched else parameters_of(generator, schedule, places)
    names = {
        "spectrum": plan.spectrum_names[cell.spectrum],
        "schedule": plan.schedule_names[cell.schedule],
        "sampler": plan.sampler_of(part, cell)[0],
        "family": "search" if searched else generator.family,  # type: ignore[union-attr]
        "metric": plan.metrics[cell.metric],
        "prior": plan.prior(cell),
    }
    made: dict[str, Any] = {"index": pa.array(indices), "value": pa.array(values, from_pandas=True)}
    made |= {name: repeated(text, count) for name, text in names.items()}
    made["steps"] = pa.array(np.full(count, plan.steps(part, cell), dtype=np.int32))
    made |= {name: pa.array(own[name]) for name in PARAMETERS if name in own}
    if "spacing" in own:
        made["spacing"] = pa.array(own["spacing"]).dictionary_encode()
    return made | columns


def repeated(text: str, count: int) -> pa.Array:
    """Return a dictionary array of one text."""
    return pa.DictionaryArray.from_arrays(np.zeros(count, dtype=np.int32), pa.array([text], pa.string()))


def table_of(batches: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return a table of columns by name, with nulls where a batch has no such column."""
    tables = []
    for columns in batches:
        count = len(columns["index"])
        arrays = [
            columns[f.name].cast(f.type) if f.name in columns else pa.nulls(count, f.type) for f in schema
        ]
        tables.append(pa.Table.from_arrays(arrays, schema=schema))
    if not tables:
        return schema.empty_table()
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def serialised(table: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file, the same for the same table."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=1,
        use_dictionary=[*NAMES, *PARAMETERS, "steps"],
        column_encoding={"index": "DELTA_BINARY_PACKED"},
        write_page_checksum=True,
    )
    return bytes(sink.getvalue())
