"""What the query process, the sandbox's supervisor and its slots say to each other. Pure.

A connection carries one statement. Every message is a frame: one byte kind, four bytes length, body.

    client -> supervisor -> slot    JOB and with it a socket (SCM_RIGHTS), later perhaps CANCEL
    slot -> client, by that socket  HEAD, SCHEMA, ROWS..., and its end
    slot -> supervisor -> client    READY (once, to the supervisor), then per job: END | ERROR

So rows cross one border only, while how a statement ended is said by the supervisor, which outlives its slots.
or, in place of a statement, PREPARE, answered by READY | ERROR.

SCHEMA and each ROWS body is a whole Arrow IPC stream, so that dictionaries travel with the batch that needs them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeVar

import msgspec
import pyarrow as pa

from duckmesh_runtime.domain.flatbuffers import root, table_in

T = TypeVar("T")

HEADER_BYTES: Final = 5
MAX_BODY_BYTES: Final = 64 * 2**20
"""Longest body. A batch that is larger is cut into smaller ones; a row that is larger is refused."""

BUFFER_BYTES: Final = 4 * 2**20
"""What an asyncio reader holds before it stops its sender; with the default of 64 KiB a batch takes many turns."""

MAX_ROWS: Final = 2**16
"""Most rows of a body: columns of nothing but NULL take no bytes. An engine's batches have a quarter of it."""

_ARROW_BYTES: Final = 2**20
"""Room in a body for what an IPC stream has besides the values: schema and padding."""

_HEADER: Final = struct.Struct(">BI")

# Fields of Arrow's metadata: Message.header, RecordBatch.compression, DictionaryBatch.data.
_MESSAGE_HEADER: Final = 2
_BATCH_COMPRESSION: Final = 3
_DICTIONARY_DATA: Final = 1


class Kind(IntEnum):
    """What a frame is."""

    JOB = 1
    CANCEL = 2
    READY = 3
    HEAD = 4
    SCHEMA = 5
    ROWS = 6
    END = 7
    ERROR = 8
    PREPARE = 9


class WireError(Exception):
    """The other side does not speak this protocol."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Body of JOB; fields as `ports.QueryJob`.

    Attributes:
        threads: At most; the supervisor says it, by what else runs. 0 leaves it as it is.
    """

    sql: str
    params: Sequence[object]
    catalog_path: str
    data_url: str
    row_limit: int
    timeout_ms: int
    snapshot_version: int | None = None
    threads: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """Body of PREPARE: a catalog that the next jobs will name, to be attached by a slot that has nothing to do."""

    catalog_path: str
    data_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Body of HEAD: the DuckDB type name of each column."""

    type_names: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Body of END; fields as `ports.QueryStats`.

    DuckDB counts files and bytes when a statement has run to its end, so both are 0 for a truncated one. Bytes are
    those that were fetched; what a slot still holds from an earlier statement is not among them.
    """

    duration_ms: int = 0
    rows: int = 0
    truncated: bool = False
    scanned_files: int = 0
    scanned_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Body of ERROR: a code of the catalogue and a message for the caller.

    Attributes:
        doubtful: The slot should not run another statement.
        line: Of the statement, where it is wrong, from 1; None when nobody can tell.
        column: In that line, from 1, in characters.
    """

    code: str
    message: str
    doubtful: bool = False
    line: int | None = None
    column: int | None = None


def encode(kind: Kind, body: bytes | pa.Buffer = b"") -> bytes:
    """One frame.

    Raises:
        WireError: The body is too long.
    """
    size = len(body)
    if size > MAX_BODY_BYTES:
        raise WireError(f"a body of {size} bytes is too long")
    return b"".join((_HEADER.pack(kind, size), body))


def encode_message(kind: Kind, message: Job | Prepare | Head | End | Failure) -> bytes:
    """A frame with a JSON body."""
    return encode(kind, msgspec.json.encode(message))


def parse_header(data: bytes) -> tuple[Kind, int]:
    """Kind and body length from the `HEADER_BYTES` before a body.

    Raises:
        WireError: Unknown kind, or a body that is too long.
    """
    number, size = _HEADER.unpack(data)
    try:
        kind = Kind(number)
    except ValueError:
        raise WireError(f"there is no frame kind {number}") from None
    if size > MAX_BODY_BYTES:
        raise WireError(f"a body of {size} bytes is too long")
    return kind, size


def decode(body: bytes | bytearray, message: type[T]) -> T:
    """A JSON body.

    Raises:
        WireError: It is not such a message.
    """
    try:
        return msgspec.json.decode(body, type=message)
    except (msgspec.DecodeError, RecursionError) as error:
        raise WireError(f"a {message.__name__} cannot be read: {error}") from error


def encode_schema(schema: pa.Schema) -> bytes:
    """The SCHEMA frame."""
    return encode(Kind.SCHEMA, _stream(schema, None))


def encode_rows(batch: pa.RecordBatch) -> list[bytes]:
    """The ROWS frames of a batch: one, or more when it is large.

    Raises:
        WireError: A single row does not fit a frame.
    """
    if batch.num_rows == 1 and batch.nbytes > MAX_BODY_BYTES:
        raise WireError(f"a row of {batch.nbytes} bytes is too long")
    # Its length is known before, so that a large batch is not copied to find out.
    if batch.nbytes <= MAX_BODY_BYTES - _ARROW_BYTES or batch.num_rows == 1:
        return [encode(Kind.ROWS, _stream(batch.schema, batch))]
    half = batch.num_rows // 2
    return encode_rows(batch.slice(0, half)) + encode_rows(batch.slice(half))


def decode_schema(body: bytes | bytearray) -> pa.Schema:
    """The schema of a SCHEMA frame.

    Raises:
        WireError: It is not Arrow.
    """
    try:
        with pa.ipc.open_stream(body) as reader:
            return reader.schema
    except (pa.ArrowInvalid, OSError) as error:
        raise WireError("a schema cannot be read") from error


def decode_rows(body: bytes | bytearray) -> pa.RecordBatch:
    """The batch of a ROWS frame; shares the body's memory.

    Its sender may have been taken over by a statement: an offset beyond the body would show the memory of this process,
    and what grows when it is unpacked would take all of that.

    Raises:
        WireError: It is not Arrow, or points out of itself.
    """
    try:
        _check_plain(body)
        with pa.ipc.open_stream(body) as reader:
            batch = reader.read_next_batch()
        if batch.num_rows > MAX_ROWS:
            raise WireError(f"a body of {batch.num_rows} rows is too long")
        for column in batch.columns:
            column.view(_without_precision(column.type)).validate(full=True)
        return batch
    except (pa.ArrowException, OSError, StopIteration, struct.error) as error:
        raise WireError("rows cannot be read") from error


def _check_plain(body: bytes | bytearray) -> None:
    """Refuse compressed values, of which a body may hold a thousand times its length.

    https://github.com/apache/arrow/blob/main/format/Message.fbs
    """
    for message in pa.ipc.MessageReader.open_stream(body):
        found = memoryview(message.metadata)
        table = table_in(found, root(found), _MESSAGE_HEADER)
        if message.type == "dictionary" and table is not None:
            table = table_in(found, table, _DICTIONARY_DATA)
        if table is None or message.type == "schema":
            continue
        if table_in(found, table, _BATCH_COMPRESSION) is not None:
            raise WireError("rows are compressed")


def _without_precision(kind: pa.DataType) -> pa.DataType:
    """The type with decimals and times as mere bytes.

    DuckDB has values there that Arrow's checks refuse: a HUGEINT has up to 39 digits, a day ends at 24:00.
    """

    def inner(field: pa.Field) -> pa.Field:
        return field.with_type(_without_precision(field.type))

    if pa.types.is_decimal(kind) or pa.types.is_time(kind):
        return pa.binary(kind.byte_width)
    if pa.types.is_map(kind):
        return pa.map_(inner(kind.key_field), inner(kind.item_field))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(inner(kind.value_field), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(inner(kind.value_field))
    if pa.types.is_struct(kind):
        return pa.struct([inner(field) for field in kind.fields])
    if pa.types.is_union(kind):
        return pa.union(
            [inner(kind.field(i)) for i in range(kind.num_fields)], kind.mode, kind.type_codes
        )
    return kind


def _stream(schema: pa.Schema, batch: pa.RecordBatch | None) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        if batch is not None:
            writer.write_batch(batch)
    return sink.getvalue()
