"""A data file as request bodies of bounded size, in the file's own format where the API takes it; used by `ingest`.

Where a body ends depends on the file's content only, so the same file makes the same bodies again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from duckmesh_runtime.cli.files import BadFile, DataFile, readable

BODY_BYTES: Final = 16 * 2**20
"""Of text in one body, more only for a line that is longer: large enough to be staged, far below the API's limit."""

ARROW: Final = "application/vnd.apache.arrow.stream"
PARQUET: Final = "application/vnd.apache.parquet"
_TEXT: Final = {"ndjson": "application/x-ndjson", "csv": "text/csv"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """One request: its media type, its bytes, and how many rows they are, None when only the server will tell."""

    content_type: str
    content: bytes
    rows: int | None = None


def bodies(file: DataFile, schema: pa.Schema | None) -> Iterator[Body]:
    """The file's rows.

    Args:
        file: What to send.
        schema: Of the table; needed for what is not sent as it is.

    Raises:
        BadFile: It cannot be read, or does not fit the schema.
    """
    if file.is_sent_as_it_is:
        with readable(file):
            yield from _texts(file)
    elif schema is None:
        raise BadFile(f"{file.path.name}: the table's definition is needed to send it")
    elif (whole := _whole_parquet(file, schema)) is not None:
        yield whole
    else:
        for piece in file.pieces(schema):
            yield Body(content_type=ARROW, content=_stream(piece), rows=piece.num_rows)


def _whole_parquet(file: DataFile, schema: pa.Schema) -> Body | None:
    """A small Parquet file of the table's own types as it is."""
    if file.format != "parquet" or file.path.stat().st_size > BODY_BYTES:
        return None
    with readable(file):
        found = pq.read_metadata(file.path)
        unfolded = sum(found.row_group(i).total_byte_size for i in range(found.num_row_groups))
        fits = _types(found.schema.to_arrow_schema()) <= _types(schema)
        if unfolded > BODY_BYTES or not found.num_rows or not fits:
            return None
        content = file.path.read_bytes()
    return Body(content_type=PARQUET, content=content, rows=int(found.num_rows))


def _types(schema: pa.Schema) -> set[tuple[str, pa.DataType]]:
    return set(zip(schema.names, schema.types, strict=True))


def _texts(file: DataFile) -> Iterator[Body]:
    """Whole lines, for CSV whole records behind the header."""
    quoted = file.format == "csv"
    with pa.input_stream(str(file.path), compression="detect") as source:
        header = _first_record(source) if quoted else (b"", b"")
        head, held = header
        while True:
            block = source.read(BODY_BYTES - len(held) if len(held) < BODY_BYTES else BODY_BYTES)
            held += block
            end = _end(held, quoted) if block else len(held)
            if held[:end].strip():
                yield Body(content_type=_TEXT[file.format], content=head + held[:end])
            held = held[end:]
            if not block:
                return


def _first_record(source: Any) -> tuple[bytes, bytes]:
    """The header with its line end, and what was read behind it."""
    held = b""
    while block := source.read(BODY_BYTES):
        held += block
        end = held.find(b"\n") + 1
        while end and held.count(b'"', 0, end) % 2:
            end = held.find(b"\n", end) + 1
        if end:
            return held[:end], held[end:]
    return held, b""


def _end(text: bytes, quoted: bool) -> int:
    """Behind the last line end, for CSV the last one that is not inside quotes; 0 without any."""
    end = text.rfind(b"\n") + 1
    if not quoted:
        return end
    odd = text.count(b'"', 0, end) % 2
    while end and odd:
        before = text.rfind(b"\n", 0, end - 1) + 1
        odd ^= text.count(b'"', before, end) % 2
        end = before
    return end


def _stream(piece: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, piece.schema) as writer:
        writer.write_table(piece)
    return bytes(sink.getvalue())
