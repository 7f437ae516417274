"""Decoded rows as appends: pieces of bounded size behind their table's schema. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

import msgspec
import pyarrow as pa

from duckmesh_runtime.domain.bus_rows import bus_schema
from duckmesh_runtime.domain.schema import TableDef
from duckmesh_runtime.ports import Append, EntryKind, KeyHash, Part, StagedFile

PART_ROWS: Final = 65_536
PART_BYTES: Final = 2 * 2**20


def rows_append(
    table: TableDef,
    version: int,
    parts: Sequence[Part],
    keys: Sequence[KeyHash | None] = (),
) -> Append:
    """An append of rows that were checked against the table at this schema version."""
    return Append(
        kind=EntryKind.ROWS,
        table=table.name,
        header=_header(table),
        parts=parts,
        schema_version=version,
        keys=keys,
    )


def file_append(
    table: TableDef, version: int, file: StagedFile, keys: Sequence[KeyHash | None] = ()
) -> Append:
    """An append of rows that lie in the store."""
    return Append(
        kind=EntryKind.FILE,
        table=table.name,
        parts=[Part(rows=file.rows, payload=msgspec.json.encode(file))],
        schema_version=version,
        keys=keys,
    )


def parts_of(batches: Sequence[pa.RecordBatch]) -> list[Part]:
    """The rows serialised; a single row is one part however large it is."""
    return [part for batch in batches for part in _parts(batch)]


def taken_parts_of(batches: list[pa.RecordBatch]) -> list[Part]:
    """The same, taking the batches out of the list one by one: rows of a large body are not in memory twice."""
    parts: list[Part] = []
    batches.reverse()
    while batches:
        parts += _parts(batches.pop())
    return parts


def _parts(batch: pa.RecordBatch) -> Iterator[Part]:
    if batch.num_rows <= PART_ROWS:
        part = Part(rows=batch.num_rows, payload=batch.serialize().to_pybytes())
        if len(part.payload) <= PART_BYTES or part.rows == 1:
            yield part
            return
    middle = batch.num_rows // 2
    yield from _parts(batch.slice(0, middle))
    yield from _parts(batch.slice(middle))


@lru_cache(maxsize=1024)
def _header(table: TableDef) -> bytes:
    return bytes(bus_schema(table).serialize())
