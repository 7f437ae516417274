"""Rows of any kind as request bodies of bounded size. Where a body ends depends on the rows only.

So the same rows make the same bytes again, however they lie in memory, and a body that was sent before is known by its
idempotency key.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

import msgspec

from duckmesh.errors import Invalid
from duckmesh.extras import need_polars, need_pyarrow

NDJSON: Final = "application/x-ndjson"
ARROW: Final = "application/vnd.apache.arrow.stream"

PIECE_ROWS: Final = 131_072
PIECE_BYTES: Final = 8 * 2**20
"""Of one body: large enough to be written to the store at once (4 MiB), small enough for a slow line (a minute at 1.1
Mbit/s, which is what the service waits for a body). A change would change the bodies of calls that are repeated."""

WHOLE_BYTES: Final = 48 * 2**20
"""Of a body that must not be cut; the service takes 64 MiB, the envelope of Arrow included."""

_BLOCK_ROWS: Final = 16_384


@runtime_checkable
class ArrowStream(Protocol):
    """Anything that gives its rows as Arrow: pyarrow, polars, pandas, DuckDB and more.

    https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html
    """

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """A capsule with the stream."""


Rows: TypeAlias = ArrowStream | Iterable[Mapping[str, object]]
"""What `ingest` takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One request body, and how many rows it has."""

    content: bytes
    content_type: str
    rows: int


def pieces(data: Rows, *, whole: bool) -> Iterator[Piece]:
    """The rows as bodies, one at least; as they are asked for, so that a stream of any length can be sent.

    Args:
        data: The rows.
        whole: In one body, or not at all.

    Raises:
        Invalid: It is no rows, or a value that cannot be sent; with `whole`, too much for one body.
        ImportError: pyarrow is needed and not installed.
    """
    made = _from_arrow(data, whole) if _is_arrow(data) else _from_dicts(data, whole)
    first = next(made)
    if whole and next(made, None) is not None:
        raise _invalid(
            f"data: more than {WHOLE_BYTES:,} bytes, which is the most that atomic=True can take: send it in parts"
        )
    yield first
    yield from made


def _is_arrow(data: object) -> bool:
    kind = type(data)
    if kind.__module__.split(".")[0] == "polars" and kind.__name__ == "LazyFrame":
        raise _invalid("data: is a LazyFrame: collect() it first")
    return isinstance(data, ArrowStream) or hasattr(data, "__arrow_c_array__")


# ---------------------------------------------------------------- dicts


def _from_dicts(data: Any, whole: bool) -> Iterator[Piece]:
    if isinstance(data, str | bytes | Mapping) or not isinstance(data, Iterable):
        raise _invalid(f"data: want a list of dicts, or a table, not a {type(data).__name__}")
    most_bytes, most_rows = (WHOLE_BYTES, 2**62) if whole else (PIECE_BYTES, PIECE_ROWS)
    held, rows, sent = bytearray(), 0, False
    for number, row in enumerate(data):
        line = _line(number, row)
        if rows and (rows == most_rows or len(held) + len(line) > most_bytes):
            yield Piece(content=bytes(held), content_type=NDJSON, rows=rows)
            held, rows, sent = bytearray(), 0, True
        held += line
        rows += 1
    if rows or not sent:
        yield Piece(content=bytes(held), content_type=NDJSON, rows=rows)


def _line(number: int, row: object) -> bytes:
    if not isinstance(row, Mapping):
        kind = type(row).__name__
        raise _invalid(f"data[{number}]: want a dict of columns and values, not a {kind}")
    try:
        line = _JSON.encode(row if type(row) is dict else dict(row))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _invalid(f"data[{number}]: {error}") from error
    if b"null" in line and (name := _not_finite(row)):
        raise _invalid(
            f"data[{number}]: {name} is not a finite number: None means NULL; a table of pyarrow keeps NaN"
        )
    return line + b"\n"


def _plain(value: Any) -> object:
    """What JSON says for a value of another library."""
    name = type(value).__name__
    if name in ("NAType", "NaTType"):
        return None
    if isinstance(value, datetime):  # of pandas, which counts nanoseconds
        return value.isoformat()
    if name == "datetime64":
        return None if str(value) == "NaT" else str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):  # arrays and numbers of numpy
        found = value.tolist()
        if isinstance(found, float) and not math.isfinite(found):
            raise ValueError(f"{found} is not a finite number: None means NULL")
        return found
    raise TypeError(f"a {name} cannot be sent: convert it first")


_JSON: Final = msgspec.json.Encoder(decimal_format="number", enc_hook=_plain)


def _not_finite(row: Mapping[Any, object]) -> str:
    """The first column with a float that JSON cannot say, which it would make a NULL."""
    return next((str(name) for name, value in row.items() if _holds_not_finite(value)), "")


def _holds_not_finite(value: object) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return any(map(_holds_not_finite, value.values()))
    return isinstance(value, list | tuple) and any(map(_holds_not_finite, value))


# ---------------------------------------------------------------- Arrow


def _from_arrow(data: Any, whole: bool) -> Iterator[Piece]:
    pa = need_pyarrow()
    try:
        reader = _reader(pa, data)
        schema = pa.schema([_plain_field(pa, field) for field in reader.schema])
        most_bytes, most_rows = (WHOLE_BYTES, 2**62) if whole else (PIECE_BYTES, PIECE_ROWS)
        held: list[Any] = []
        rows = size = 0
        sent = False
        for block in _bounded(_blocks(pa, reader, schema), most_bytes):
            if held and (rows + block.num_rows > most_rows or size + block.nbytes > most_bytes):
                yield _arrow_piece(pa, held)
                held, rows, size, sent = [], 0, 0, True
            held.append(block)
            rows += block.num_rows
            size += block.nbytes
        if held or not sent:
            yield _arrow_piece(pa, held or [schema.empty_table()])
    except pa.ArrowException as error:
        raise _invalid(f"data: {str(error)[:300]}") from error


def _reader(pa: Any, data: Any) -> Any:
    library = type(data).__module__.split(".")[0]
    if library == "pandas":
        return _from_pandas(pa, data).to_reader()
    if library == "polars":
        return data.to_arrow(compat_level=need_polars().CompatLevel.oldest()).to_reader()
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data]).to_reader()
    return pa.RecordBatchReader.from_stream(data)


def _from_pandas(pa: Any, frame: Any) -> Any:
    """The columns, and the index where it has a name; a NaN is a NULL, as pandas has it."""
    if not hasattr(frame, "columns"):
        raise _invalid(f"data: want a DataFrame, not a {type(frame).__name__}: to_frame() it")
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    return pa.Table.from_pandas(frame, preserve_index=False)


def _plain_field(pa: Any, field: Any) -> Any:
    """The field without what only this side knows, and of a type that every reader takes."""
    kind = field.type
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        kind = kind.value_type
    if pa.types.is_string_view(kind):
        kind = pa.large_string()
    if pa.types.is_binary_view(kind):
        kind = pa.large_binary()
    return pa.field(field.name, kind, nullable=True)


def _blocks(pa: Any, reader: Any, schema: Any) -> Iterator[Any]:
    """The rows in tables of equal length, whatever batches they came in."""
    held: list[Any] = []
    count = 0
    for batch in reader:
        start = 0
        while start < batch.num_rows:
            part = batch.slice(start, _BLOCK_ROWS - count)
            held.append(part)
            count += part.num_rows
            start += part.num_rows
            if count == _BLOCK_ROWS:
                yield _canonical(pa, held, schema)
                held, count = [], 0
    if held:
        yield _canonical(pa, held, schema)


def _canonical(pa: Any, parts: list[Any], schema: Any) -> Any:
    """The rows in new memory: nothing of what lay around them, or below a NULL, is in it."""
    table = pa.Table.from_batches(parts)
    columns = [
        _storage(pa, column).cast(field.type).combine_chunks()
        for column, field in zip(table.columns, schema, strict=True)
    ]
    whole = pa.Table.from_arrays(columns, schema=schema)
    return whole.take(pa.array(range(whole.num_rows), pa.int64()))


def _storage(pa: Any, column: Any) -> Any:
    if not isinstance(column.type, pa.BaseExtensionType):
        return column
    chunks = [chunk.storage for chunk in column.chunks]
    return pa.chunked_array(chunks, column.type.storage_type)


def _bounded(blocks: Iterator[Any], most_bytes: int) -> Iterator[Any]:
    for block in blocks:
        yield from _halved(block, most_bytes)


def _halved(block: Any, most_bytes: int) -> Iterator[Any]:
    if block.nbytes <= most_bytes or block.num_rows < 2:
        yield block
        return
    middle = block.num_rows // 2
    yield from _halved(block.slice(0, middle), most_bytes)
    yield from _halved(block.slice(middle), most_bytes)


def _arrow_piece(pa: Any, blocks: list[Any]) -> Piece:
    table = pa.concat_tables(blocks).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return Piece(content=bytes(sink.getvalue()), content_type=ARROW, rows=table.num_rows)


def _invalid(message: str) -> Invalid:
    return Invalid("VALIDATION_FAILED", message, context={"field": message.split(":")[0]})
