"""Arrow columns from outside to those of a table: by name, cast where no value can change its meaning. Pure.

Used for Arrow and Parquet bodies. A column of a type that could not hold the table's values refuses the body; a value that
does not fit refuses its row. The arrays must have been validated.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from duckmesh_runtime.domain.columns import ColumnType, canonical_documents
from duckmesh_runtime.domain.schema import ColumnDef, TableDef
from duckmesh_runtime.domain.sift import (
    Harvest,
    Op,
    Problems,
    check_names,
    default_column,
    deleted_column,
    good_rows,
    incompatible,
    is_read,
    rows_at_once,
    shown,
    sift,
    too_large,
)
from duckmesh_runtime.domain.texts import check_text, check_years, parse_uuids


def add_rows(table: TableDef, batch: pa.RecordBatch, op: Op, harvest: Harvest) -> None:
    """Convert a batch whose columns are checked, a block of rows at a time.

    Raises:
        Invalid: PAYLOAD_TOO_LARGE, VALIDATION_FAILED when too many rows are wrong.
    """
    harvest.expect(len(batch))
    size = rows_at_once(table)
    for start in range(0, len(batch), size):
        problems: Problems = {}
        block = batch.slice(start, size)
        harvest.add(_conform(table, block, op, harvest.room_bytes, problems), problems)


def check_columns(table: TableDef, schema: pa.Schema, op: Op) -> None:
    """Check that the columns are the table's and can be cast.

    Raises:
        Conflict: SCHEMA_INCOMPATIBLE naming the column.
    """
    check_names(table, schema.names, op)
    columns = {column.name: column for column in table.columns}
    for field in schema:
        column = columns[field.name]
        if is_read(table, column, op) and not _fits(_plain(field.type), column.kind):
            raise incompatible(
                field.name, f"{field.type} does not fit {column.type}: cast it before sending"
            )


def _plain(source: pa.DataType, *, inside: bool = False) -> pa.DataType:
    """The type without dictionaries of plain values, which `_unfold` unfolds, and without known extensions.

    UUIDs inside others are text, as they are in the table's own type.
    """
    if isinstance(source, pa.BaseExtensionType) and source.extension_name in _EXTENSIONS:
        return pa.string() if inside and _is_uuid(source) else _plain(source.storage_type)
    if pt.is_dictionary(source) and not pt.is_nested(source.value_type):
        return source.value_type
    if pt.is_struct(source):
        return pa.struct([field.with_type(_plain(field.type, inside=True)) for field in source])
    if pt.is_map(source):
        return pa.map_(_plain(source.key_type), _plain(source.item_type, inside=True))
    if pt.is_list(source):
        return pa.list_(source.value_field.with_type(_plain(source.value_type, inside=True)))
    return source


def _is_uuid(source: pa.DataType) -> bool:
    return isinstance(source, pa.BaseExtensionType) and source.extension_name == "arrow.uuid"


_EXTENSIONS: Final = ("arrow.uuid", "arrow.json")


def _fits(source: pa.DataType, kind: ColumnType) -> bool:
    return _castable(source, kind.arrow) or (kind.name == "UUID" and source == pa.binary(16))


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


def _conform(
    table: TableDef, batch: pa.RecordBatch, op: Op, room_bytes: int, problems: Problems
) -> pa.RecordBatch:
    arrays: list[pa.Array] = []
    for column in table.columns:
        if is_read(table, column, op):
            arrays.append(_column(column, batch, room_bytes, problems))
        else:
            arrays.append(pa.nulls(len(batch), column.kind.arrow))
        room_bytes -= arrays[-1].nbytes
        _check_room(0, room_bytes)
    return good_rows(table, arrays, deleted_column(table, op, len(batch)), problems)


def _column(
    column: ColumnDef, batch: pa.RecordBatch, room_bytes: int, problems: Problems
) -> pa.Array:
    at = batch.schema.get_field_index(column.name)
    if at < 0:
        return default_column(column, len(batch))
    source = _unfold(batch.column(at), room_bytes)
    return sift(column, partial(_convert, column.kind), source, partial(_show_at, source), problems)


def _convert(kind: ColumnType, source: pa.Array) -> pa.Array:
    if kind.name == "UUID" and source.type == pa.binary(16):
        source = pa.array([v if v is None else v.hex() for v in source.to_pylist()], pa.string())
    array = _cast(source, kind.arrow)
    for part in _parts(array):
        _check(part)
    if kind.name == "UUID":
        return parse_uuids(array)
    if kind.name == "JSON":
        return canonical_documents(array)
    return array


def _show_at(source: pa.Array, i: int) -> str:
    try:
        value = source[i].as_py()
    except (
        ValueError,
        OverflowError,
        KeyError,
        pa.ArrowException,
    ):  # years, zones unknown to Python
        return f"a value of {source.type} out of range"
    return shown(
        value if isinstance(value, int | float | str | bytes | list | dict) else str(value)
    )


def _unfold(source: pa.Array, room_bytes: int) -> pa.Array:
    plain = _plain(source.type)
    if plain == source.type:
        return source
    if isinstance(source, pa.ExtensionArray):
        return _unfold(source.storage, room_bytes)
    folded = [leaf for leaf in _leaves(source) if pt.is_dictionary(leaf.type)]
    _check_room(sum(map(_unfolded_bytes, folded)), room_bytes)
    return pc.cast(_spelled(source), plain)


def _spelled(source: pa.Array) -> pa.Array:
    """The same with UUIDs inside as text, which no cast does."""
    if _is_uuid(source.type):
        return pa.array([v if v is None else str(v) for v in source.to_pylist()], pa.string())
    mask = pc.is_null(source)
    if pt.is_struct(source.type):
        children = [_spelled(child) for child in source.flatten()]
        fields = [f.with_type(c.type) for f, c in zip(source.type, children, strict=True)]
        return pa.StructArray.from_arrays(children, fields=fields, mask=mask)
    if pt.is_map(source.type):
        offsets = pc.add(source.offsets, pa.scalar(0, pa.int32()))
        return pa.MapArray.from_arrays(offsets, source.keys, _spelled(source.items), mask=mask)
    if pt.is_list(source.type):
        return _lists(source, _spelled(source.values))
    return source


def _unfolded_bytes(folded: pa.DictionaryArray) -> int:
    values = folded.dictionary
    if _is_text(values.type) or _is_bytes(values.type):
        lengths = pc.take(pc.binary_length(values), folded.indices)
        return int(pc.sum(lengths, min_count=0).as_py())
    return len(folded) * 16


def _check_room(size: int, room_bytes: int) -> None:
    if size > room_bytes:
        raise too_large("more bytes than the limit when unfolded")


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


def _parts(array: pa.Array) -> Iterator[pa.Array]:
    """The array and what is inside it."""
    yield array
    if pt.is_struct(array.type):
        for child in array.flatten():
            yield from _parts(child)
    elif pt.is_map(array.type):
        yield from _parts(_lists(array, array.keys).flatten())
        yield from _parts(_lists(array, array.items).flatten())
    elif _is_list(array.type):
        yield from _parts(array.flatten())


def _leaves(array: pa.Array) -> Iterator[pa.Array]:
    return (part for part in _parts(array) if not pt.is_nested(part.type))


def _lists(maps: pa.MapArray | pa.ListArray, children: pa.Array) -> pa.ListArray:
    """The keys or the items of maps; those of a slice alone, where the children are of the whole."""
    offsets = pc.add(
        maps.offsets, pa.scalar(0, pa.int32())
    )  # a copy: pyarrow takes no slice beside a mask
    return pa.ListArray.from_arrays(offsets, children, mask=pc.is_null(maps))


def _check(array: pa.Array) -> None:
    if pt.is_string(array.type):
        check_text(array)
    elif pt.is_date32(array.type) or pt.is_timestamp(array.type):
        check_years(array)
    elif pt.is_map(array.type):
        _check_keys(array)


def _check_keys(maps: pa.MapArray) -> None:
    """Refuse a key that is there twice in one map: the lake takes no such map."""
    lists = _lists(maps, maps.keys).drop_null()
    keys = pa.table({"map": pc.list_parent_indices(lists), "key": lists.flatten()})
    if keys.group_by(["map", "key"]).aggregate([]).num_rows != keys.num_rows:
        raise ValueError
