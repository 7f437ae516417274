"""Arrow bodies: an IPC stream to batches of the table's schema, or a refusal of the whole body. Pure.

Columns go by name and are cast where no value can change its meaning. The bytes come from outside: buffers are checked
before anything reads through them, and whatever a few bytes could unfold (compressed buffers, dictionaries, columns
without buffers) is bounded before it unfolds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from duckmesh_runtime.domain.columns import BAD_VALUE, check_text, check_uuids, check_years
from duckmesh_runtime.domain.schema import ColumnDef, TableDef, arrow_schema
from duckmesh_runtime.errors import Conflict, Invalid

SLICE_ROWS: Final = 65_536
"""Rows converted at a time, which bounds what one dictionary can unfold before it is counted."""

_MOST_ROWS: Final = 10_000_000


def decode_arrow(table: TableDef, body: bytes, *, max_bytes: int) -> Sequence[pa.RecordBatch]:
    """Read, check and cast a body; no batch has more than `SLICE_ROWS` rows.

    Raises:
        Invalid: VALIDATION_FAILED for a broken stream or a value that the column does not take, PAYLOAD_TOO_LARGE when
            the rows take more than `max_bytes`.
        Conflict: SCHEMA_INCOMPATIBLE naming the column that does not fit.
    """
    taken = rows = 0
    decoded: list[pa.RecordBatch] = []
    for batch in _batches(body):
        _check_columns(table, batch.schema)
        rows += batch.num_rows
        if rows > _MOST_ROWS:
            raise _too_large(f"more than {_MOST_ROWS} rows")
        for start in range(0, batch.num_rows, SLICE_ROWS):
            part = _conform(table, batch.slice(start, SLICE_ROWS), max_bytes - taken)
            taken += part.nbytes
            if taken > max_bytes:
                raise _too_large(f"more than {max_bytes} bytes when unfolded")
            decoded.append(part)
    return decoded


def _batches(body: bytes) -> Iterator[pa.RecordBatch]:
    try:
        for message in pa.ipc.MessageReader.open_stream(body):
            if _is_compressed(message.metadata.to_pybytes()):
                raise Invalid(
                    "VALIDATION_FAILED",
                    "body: Arrow buffers are compressed: send them plain, and use Content-Encoding: gzip",
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


def _check_columns(table: TableDef, schema: pa.Schema) -> None:
    columns = {column.name: column for column in table.columns}
    seen: set[str] = set()
    for field in schema:
        if field.name not in columns:
            known = ", ".join(list(columns)[:20]) + (", ..." if len(columns) > 20 else "")
            raise _incompatible(field.name, f"no such column; the table has {known}")
        if field.name in seen:
            raise _incompatible(field.name, "is there twice")
        seen.add(field.name)
        target = columns[field.name]
        if not _castable(_plain(field.type), target.kind.arrow):
            raise _incompatible(
                field.name, f"{field.type} does not fit {target.type}: cast it before sending"
            )
    for column in table.columns:
        if column.name not in seen and not column.nullable and column.default is None:
            raise _incompatible(column.name, "is missing, and the column is NOT NULL")


def _plain(source: pa.DataType) -> pa.DataType:
    return source.value_type if pt.is_dictionary(source) else source


def _castable(source: pa.DataType, target: pa.DataType) -> bool:
    """Whether a cast keeps every value it lets pass; what does not pass (overflow, lost digits) is refused by value."""
    if pt.is_struct(source) and pt.is_struct(target):
        wanted = {field.name: field.type for field in target}
        return len(source) == len(wanted) and all(
            field.name in wanted and _castable(field.type, wanted[field.name]) for field in source
        )
    if pt.is_map(source) and pt.is_map(target):
        return _castable(source.key_type, target.key_type) and _castable(
            source.item_type, target.item_type
        )
    if _is_list(source) and _is_list(target):
        return _castable(source.value_type, target.value_type)
    return source == target or any(is_a(source) and becomes(target) for is_a, becomes in _CASTS)


def _is_list(found: pa.DataType) -> bool:
    return bool(pt.is_list(found) or pt.is_large_list(found) or pt.is_fixed_size_list(found))


def _is_text(found: pa.DataType) -> bool:
    return bool(pt.is_string(found) or pt.is_large_string(found) or pt.is_string_view(found))


def _is_bytes(found: pa.DataType) -> bool:
    return bool(
        pt.is_binary(found)
        or pt.is_large_binary(found)
        or pt.is_binary_view(found)
        or pt.is_fixed_size_binary(found)
    )


_CASTS: Final = (
    (pt.is_null, lambda target: not pt.is_nested(target)),
    (pt.is_integer, pt.is_integer),
    (pt.is_integer, pt.is_floating),
    (pt.is_integer, pt.is_decimal),
    (pt.is_floating, pt.is_floating),
    (pt.is_floating, pt.is_integer),  # whole numbers only: what pandas makes of integers with gaps
    (pt.is_decimal, pt.is_decimal),
    (_is_text, _is_text),
    (_is_bytes, _is_bytes),
    (pt.is_date, pt.is_date),
    (pt.is_date, pt.is_timestamp),
    (pt.is_timestamp, pt.is_timestamp),  # without a zone it is UTC
    (pt.is_time, pt.is_time),
)


def _conform(table: TableDef, batch: pa.RecordBatch, room_bytes: int) -> pa.RecordBatch:
    arrays = [_column(column, batch, room_bytes) for column in table.columns]
    return pa.RecordBatch.from_arrays(arrays, schema=arrow_schema(table))


def _column(column: ColumnDef, batch: pa.RecordBatch, room_bytes: int) -> pa.Array:
    kind = column.kind
    at = batch.schema.get_field_index(column.name)
    if at < 0:
        one = kind.build([column.default])
        _check_room(one.nbytes * batch.num_rows, room_bytes)
        return pc.take(one, pa.array([0] * batch.num_rows, pa.int32()))
    source = batch.column(at)
    if pt.is_dictionary(source.type):
        source = _unfold(source, room_bytes)
    try:
        array = _cast(source, kind.arrow)
        for leaf in _leaves(array):
            _check_leaf(leaf)
        if column.type == "UUID":
            check_uuids(array)
        elif column.type == "JSON":
            _check_documents(array)
    except BAD_VALUE:
        raise Invalid(
            "VALIDATION_FAILED", f"{column.name}: holds a value that is not {kind.expects}"
        ) from None
    if array.null_count and not column.nullable:
        raise Invalid("VALIDATION_FAILED", f"{column.name}: holds NULL, and the column is NOT NULL")
    return array


def _unfold(source: pa.DictionaryArray, room_bytes: int) -> pa.Array:
    values = source.dictionary
    if _is_text(values.type) or _is_bytes(values.type):
        lengths = pc.take(pc.binary_length(values), source.indices)
        _check_room(pc.sum(lengths, min_count=0).as_py(), room_bytes)
    return source.dictionary_decode()


def _check_room(size: int, room_bytes: int) -> None:
    if size > room_bytes:
        raise _too_large("more bytes than the limit when unfolded")


def _cast(source: pa.Array, target: pa.DataType) -> pa.Array:
    if source.type == target:
        return source
    if pt.is_integer(source.type) and pt.is_decimal(target):
        wide = pc.cast(source, pa.decimal256(20 + target.scale, target.scale))
        return pc.cast(wide, target)
    array = pc.cast(source, target)
    if pt.is_float32(target) and pt.is_floating(source.type):
        before, after = pc.is_inf(source), pc.is_inf(array)
        if not pc.all(pc.equal(before, after), min_count=0).as_py():
            raise OverflowError
    return array


def _leaves(array: pa.Array) -> Iterator[pa.Array]:
    if pt.is_struct(array.type):
        for child in array.flatten():
            yield from _leaves(child)
    elif pt.is_map(array.type):
        yield from _leaves(array.keys)
        yield from _leaves(array.items)
    elif _is_list(array.type):
        yield from _leaves(array.flatten())
    else:
        yield array


def _check_leaf(leaf: pa.Array) -> None:
    if pt.is_string(leaf.type):
        check_text(leaf)
    elif pt.is_date32(leaf.type) or pt.is_timestamp(leaf.type):
        check_years(leaf)


def _check_documents(array: pa.Array) -> None:
    for text in array.to_pylist():
        if text is not None:
            msgspec.json.decode(text)  # DecodeError is a ValueError


def _incompatible(column: str, problem: str) -> Conflict:
    return Conflict(
        "SCHEMA_INCOMPATIBLE", f"{column[:64]}: {problem}", context={"column": column[:64]}
    )


def _too_large(how: str) -> Invalid:
    return Invalid("PAYLOAD_TOO_LARGE", f"body: {how}: send it in smaller parts")
