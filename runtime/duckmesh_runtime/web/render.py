"""Arrow batches as bytes of an answer: JSON, NDJSON, CSV, Arrow, Parquet. Used by `query`; no I/O.

How values look is in `json_values` for the texts and in `columnar` for the others.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from duckmesh_runtime.web.columnar import Columnar
from duckmesh_runtime.web.json_values import json_column, sayable, times

# A row group is held until it is full, so these bound what an answer takes here; readers like groups of this size.
_GROUP_ROWS: Final = 131_072
_GROUP_BYTES: Final = 16 * 2**20

_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines


class Writer(Protocol):
    """One answer format."""

    def start(self) -> bytes:
        """What comes before the first row."""
        ...

    def batch(self, batch: pa.RecordBatch) -> bytes:
        """The rows of a batch."""
        ...

    def end(self) -> bytes:
        """What comes after the last row."""
        ...


def json_rows(batch: pa.RecordBatch, type_names: Sequence[str]) -> bytes:
    """The rows as JSON arrays, comma-separated and without the outer brackets; empty for no rows."""
    columns = _columns(batch, type_names)
    return _encode(list(zip(*columns, strict=True)))[1:-1]


def objects(batch: pa.RecordBatch, type_names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows as JSON-ready objects; a repeated column name gets a number."""
    names = unique_names(batch.schema.names)
    columns = _columns(batch, type_names)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


class NdjsonWriter:
    """One JSON object a row; a repeated column name gets a number."""

    def __init__(self, schema: pa.Schema, type_names: Sequence[str]) -> None:
        self._names = unique_names(schema.names)
        self._type_names = type_names

    def start(self) -> bytes:
        """Nothing."""
        return b""

    def batch(self, batch: pa.RecordBatch) -> bytes:
        """One line a row."""
        columns = _columns(batch, self._type_names)
        names = self._names
        return _encode_lines(
            [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        )

    def end(self) -> bytes:
        """Nothing."""
        return b""


class CsvWriter:
    """RFC 4180 with a header line; NULL is an empty field, empty text is quoted, nested values are JSON."""

    def __init__(self, schema: pa.Schema, type_names: Sequence[str]) -> None:
        self._names = schema.names
        self._type_names = type_names

    def start(self) -> bytes:
        """The header line."""
        empty = pa.table([pa.array([], pa.string()) for _ in self._names], names=self._names)
        return self._write(empty, header=True)

    def batch(self, batch: pa.RecordBatch) -> bytes:
        """The rows."""
        flat = [_flat(c, t) for c, t in zip(batch.columns, self._type_names, strict=True)]
        return self._write(pa.table(flat, names=self._names), header=False)

    def end(self) -> bytes:
        """Nothing."""
        return b""

    def _write(self, table: pa.Table, *, header: bool) -> bytes:
        sink = io.BytesIO()
        options = pa.csv.WriteOptions(include_header=header)
        pa.csv.write_csv(table, sink, options)
        return sink.getvalue()


class ArrowWriter:
    """An Arrow IPC stream.

    Raises:
        Invalid: SQL_ERROR: a column or value cannot be kept; also `ParquetWriter`.
    """

    def __init__(self, schema: pa.Schema, type_names: Sequence[str]) -> None:
        self._columnar = Columnar(schema, type_names)
        self._sink = _Sink()
        self._writer = pa.ipc.new_stream(self._sink, self._columnar.schema)

    def start(self) -> bytes:
        """Nothing: Arrow writes the schema with the first batch, or at the end."""
        return self._sink.take()

    def batch(self, batch: pa.RecordBatch) -> bytes:
        """The batch's messages."""
        self._writer.write_batch(self._columnar.batch(batch))
        return self._sink.take()

    def end(self) -> bytes:
        """The end-of-stream mark."""
        self._writer.close()
        return self._sink.take()


class ParquetWriter:
    """A Parquet file, row group by row group; a repeated column name gets a number."""

    def __init__(self, schema: pa.Schema, type_names: Sequence[str]) -> None:
        self._columnar = Columnar(schema, type_names, parquet=True)
        names = unique_names(schema.names)
        fields = [f.with_name(name) for f, name in zip(self._columnar.schema, names, strict=True)]
        self._schema = pa.schema(fields)
        self._sink = _Sink()
        self._writer = pq.ParquetWriter(self._sink, self._schema, compression="zstd")
        self._group: list[pa.RecordBatch] = []

    def start(self) -> bytes:
        """The mark at the beginning of a file."""
        return self._sink.take()

    def batch(self, batch: pa.RecordBatch) -> bytes:
        """A row group when one is full, else nothing."""
        columns = self._columnar.batch(batch).columns
        self._group.append(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        rows = sum(part.num_rows for part in self._group)
        size = sum(part.nbytes for part in self._group)
        return self._flushed() if rows >= _GROUP_ROWS or size >= _GROUP_BYTES else b""

    def end(self) -> bytes:
        """What is left, and the footer."""
        last = self._flushed()
        self._writer.close()
        return last + self._sink.take()

    def _flushed(self) -> bytes:
        table = pa.Table.from_batches(self._group, self._schema)
        self._group = []
        if table.num_rows:
            self._writer.write_table(table, row_group_size=table.num_rows)
        return self._sink.take()


class _Sink(io.RawIOBase):
    """Hands over what was written and forgets it."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[Any] = []  # as Arrow hands them over: small ones copied, values not
        self._at = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, data: Any, /) -> int:
        self._parts.append(data)
        self._at += len(data)
        return len(data)

    def take(self) -> bytes:
        taken, self._parts = b"".join(self._parts), []
        return taken


def unique_names(names: Sequence[str]) -> list[str]:
    """The names with `_1`, `_2`, ... after repeated ones, so that no value of an object is lost."""
    taken, unique = set(names), []
    seen: set[str] = set()
    for name in names:
        new, number = name, 0
        while new in seen or (number and new in taken):
            number += 1
            new = f"{name}_{number}"
        seen.add(new)
        unique.append(new)
    return unique


def _columns(batch: pa.RecordBatch, type_names: Sequence[str]) -> list[list[Any]]:
    return [json_column(c, t) for c, t in zip(batch.columns, type_names, strict=True)]


def _flat(column: pa.Array, type_name: str) -> pa.Array:
    """A column that a CSV writer takes: numbers and text as they are, all else as the text of its JSON value."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        with sayable(type_name):
            return times(column)
    if pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_boolean(kind):
        return column
    if pa.types.is_floating(kind) and pc.all(pc.is_finite(column)).as_py() is not False:
        return column
    values = json_column(column, type_name)
    return pa.array(
        [v if v is None or isinstance(v, str) else _encode(v).decode() for v in values], pa.string()
    )
