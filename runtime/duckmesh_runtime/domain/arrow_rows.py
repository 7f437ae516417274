"""Arrow bodies: an IPC stream to batches of the table's rows. Pure.

The bytes come from outside: buffers are checked before anything reads through them, and whatever a few bytes could unfold
(compressed buffers, dictionaries, columns without buffers) is bounded before it unfolds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import pyarrow as pa

from duckmesh_runtime.domain.casts import add_rows, check_columns
from duckmesh_runtime.domain.schema import TableDef
from duckmesh_runtime.domain.sift import Harvest, Op
from duckmesh_runtime.errors import Invalid


def read_arrow(table: TableDef, body: bytes, op: Op, harvest: Harvest) -> None:
    """Decode a stream into `harvest`.

    Raises:
        Invalid: VALIDATION_FAILED for a broken stream, PAYLOAD_TOO_LARGE.
        Conflict: SCHEMA_INCOMPATIBLE naming the column that does not fit.
    """
    for batch in _batches(body):
        check_columns(table, batch.schema, op)
        add_rows(table, batch, op, harvest)


def _batches(body: bytes) -> Iterator[pa.RecordBatch]:
    try:
        for message in pa.ipc.MessageReader.open_stream(body):
            if _is_compressed(message.metadata.to_pybytes()):
                raise Invalid(
                    "VALIDATION_FAILED",
                    "body: Arrow buffers are compressed: send them plain, and use Content-Encoding: gzip or zstd",
                )
        with pa.ipc.open_stream(body) as stream:
            _ = stream.schema.names  # decodes them: a broken name is a broken stream
            for batch in stream:
                batch.validate(full=True)
                yield batch
    except _BROKEN as error:
        raise Invalid(
            "VALIDATION_FAILED", "body: is not a complete Arrow IPC stream (not the file format)"
        ) from error


_BROKEN: Final = (
    pa.ArrowException,
    OSError,
    struct.error,
    IndexError,
    UnicodeDecodeError,
    EOFError,
)

# Tables of https://github.com/apache/arrow/blob/main/format/Message.fbs, which pyarrow does not show.
_DICTIONARY_BATCH: Final = 2
_RECORD_BATCH: Final = 3


def _is_compressed(metadata: bytes) -> bool:
    (message,) = struct.unpack_from("<I", metadata)
    kind_at, header_at = _field(metadata, message, 1), _field(metadata, message, 2)
    kind = metadata[kind_at] if kind_at else 0
    if kind not in (_DICTIONARY_BATCH, _RECORD_BATCH) or not header_at:
        return False
    batch = _follow(metadata, header_at)
    if kind == _DICTIONARY_BATCH:
        batch = _follow(metadata, _field(metadata, batch, 1))
    return _field(metadata, batch, 3) != 0


def _field(data: bytes, table: int, number: int) -> int:
    """Position of a flatbuffer table's field, 0 when it is not there."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    (size,) = struct.unpack_from("<H", data, vtable)
    if 4 + 2 * number >= size:
        return 0
    (offset,) = struct.unpack_from("<H", data, vtable + 4 + 2 * number)
    return table + offset if offset else 0


def _follow(data: bytes, at: int) -> int:
    return at + int(struct.unpack_from("<I", data, at)[0])
