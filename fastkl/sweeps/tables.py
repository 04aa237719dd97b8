"""Tables of results: their schema with units, and their rows from candidates."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fastkl import __version__
from fastkl.sweeps.config import Family, Search
from fastkl.sweeps.generation import PARAMETERS, parameters_of
from fastkl.sweeps.plan import Cell, Part, Plan

__all__ = ["LEFT_OUT", "NAMES", "NUMERICS", "Rows", "chunk_schema", "serialised", "top_schema"]

Integers = NDArray[np.int64]

NAMES = ("spectrum", "schedule", "sampler", "family", "generator", "metric", "prior")  # columns of strings
AT_ONCE = 1 << 16  # rows that are made into one Arrow table
LEFT_OUT, NUMERICS = b"fastkl.left_out", b"fastkl.numerics"  # of a chunk, in its metadata
VALUE_UNIT = "nats; for metric w2 squared data units"
LEVEL_UNIT = "noise-to-signal ratio sigma_t/alpha_t"
UNITS = {
    "index": "number of the candidate in the sweep",
    "generator": "place in the configuration",
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
    columns += [field(name, TEXT) for name in NAMES[:5]] + [field("steps", pa.int32())]
    columns += [field(name, TEXT) for name in (*NAMES[5:], "spacing")]
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


class Some(NamedTuple):
    """Candidates of one cell; `columns` are lists of what is not known from the plan."""

    part: Part
    cell: Cell
    places: Integers
    indices: Integers
    values: NDArray[np.float64]
    columns: dict[str, list[Any]]


class Rows:
    """A table that grows by candidates of one cell at a time; many cells of few rows cost no more than one of many."""

    def __init__(self, plan: Plan, schema: pa.Schema) -> None:
        self._plan, self._schema = plan, schema
        self._tables: list[pa.Table] = []
        self._some: list[Some] = []
        self._waiting = 0

    def add(
        self, part: Part, cell: Cell, places: Integers, indices: Integers, values: Any, **columns: list[Any]
    ) -> None:
        """Add candidates of a cell, at places of its grid."""
        self._some.append(Some(part, cell, places, indices, values, columns))
        self._waiting += len(indices)
        if self._waiting >= AT_ONCE:
            self._convert()

    def table(self, **more: Any) -> pa.Table:
        """Return all rows; `more` goes into the metadata."""
        if self._some:
            self._convert()
        schema = self._schema.with_metadata(metadata(self._plan, **more))
        if not self._tables:
            return schema.empty_table()
        whole = pa.concat_tables(self._tables).unify_dictionaries().combine_chunks()
        return whole.replace_schema_metadata(schema.metadata)

    def _convert(self) -> None:
        """Make an Arrow table of the rows that wait, column by column."""
        counts = np.array([len(some.indices) for some in self._some])
        made: dict[str, pa.Array] = {
            "index": pa.array(np.concatenate([some.indices for some in self._some])),
            "value": pa.array(np.concatenate([some.values for some in self._some]), from_pandas=True),
            "steps": pa.array(np.repeat([self._plan.steps(s.part, s.cell) for s in self._some], counts)),
        }
        named = [names_of(self._plan, some.part, some.cell) for some in self._some]
        for name in NAMES:
            made[name] = texts(np.array([names[name] for names in named], dtype=object), counts)
        made |= self._parameters(counts)
        arrays = [
            made[f.name].cast(f.type) if f.name in made else listed(self._some, f.name, f.type)
            for f in self._schema
        ]
        self._tables.append(pa.Table.from_arrays(arrays, schema=self._schema))
        self._some, self._waiting = [], 0

    def _parameters(self, counts: Integers) -> dict[str, pa.Array]:
        """Return the columns of parameters, null where a family has none."""
        own = [
            parameters_of(generator, self._plan.schedules[some.cell.schedule], some.places)
            if isinstance(generator := self._plan.generator(some.part, some.cell), Family)
            else {}
            for some in self._some
        ]
        made = {}
        for name in PARAMETERS:
            pieces = [
                values[name] if name in values else np.full(count, np.nan)
                for values, count in zip(own, counts, strict=True)
            ]
            made[name] = pa.array(np.concatenate(pieces), from_pandas=True)
        words = [
            values["spacing"] if "spacing" in values else np.full(count, None)
            for values, count in zip(own, counts, strict=True)
        ]
        made["spacing"] = texts(np.concatenate(words).astype(object), 1)
        return made


def names_of(plan: Plan, part: Part, cell: Cell) -> dict[str, str]:
    """Return a cell's names by column."""
    generator = plan.generator(part, cell)
    return {
        "spectrum": plan.spectrum_names[cell.spectrum],
        "schedule": plan.schedule_names[cell.schedule],
        "sampler": plan.sampler_of(part, cell)[0],
        "family": "search" if isinstance(generator, Search) else generator.family,  # type: ignore[attr-defined]
        "generator": plan.path_of(part, cell),
        "metric": plan.metrics[cell.metric],
        "prior": plan.prior(cell),
    }


def texts(words: Any, counts: Any) -> pa.Array:
    """Return words, each repeated, as a dictionary array."""
    few = pa.array(words, pa.string()).dictionary_encode()
    numbers = few.indices.to_numpy(zero_copy_only=False)
    if few.null_count:
        return few
    return pa.DictionaryArray.from_arrays(np.repeat(numbers.astype(np.int32), counts), few.dictionary)


def listed(some: list[Some], name: str, kind: Any) -> pa.Array:
    """Return a column that some candidates have in a list, and null for the others."""
    count = sum(len(one.indices) for one in some)
    if not any(name in one.columns for one in some):
        return pa.nulls(count, kind)
    values: list[Any] = []
    for one in some:
        values += one.columns[name] if name in one.columns else [None] * len(one.indices)
    return pa.array(values, kind)


def serialised(table: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file, the same for the same table."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=1,
        use_dictionary=[*NAMES, "spacing", *PARAMETERS, "steps"],
        column_encoding={"index": "DELTA_BINARY_PACKED"},
        write_page_checksum=True,
    )
    return bytes(sink.getvalue())
