"""Values that a table is partitioned by: each becomes a folder in the names of the table's files. Pure.

DuckLake writes `column=value/` with all but ASCII letters, digits and `-_.~` percent-encoded. Stores bound such names (file
systems 255 bytes a folder, S3 1,024 bytes in all) and refuse a longer one whenever it is tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from duckmesh_runtime.domain.schema import ColumnDef, TableDef

MOST_BYTES: Final = 200
"""Of one value, percent-encoded; less behind a column's name of more than 54 characters."""

MOST_TOGETHER_BYTES: Final = 700
"""Of all folders of text: leaves S3's names 324 bytes for the lake's prefix, the table, plain partitions and the file."""

_FOLDER_BYTES: Final = 255
_WORST: Final = {pa.string(): 3, pa.binary(): 6}
"""Bytes that a byte becomes at most, by the types that can be long: a byte that is no text is spelt `\\xFF` before."""

_PLAIN: Final = "[-_.~0-9A-Za-z]"
_SPELT_AS_IS: Final = r"[ !#-&(-\[\]-~]"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Folder:
    column: ColumnDef
    array: pa.Array
    bytes: pa.Array

    @property
    def name_bytes(self) -> int:
        return len(self.column.name) + 2

    @property
    def most(self) -> int:
        return min(MOST_BYTES, _FOLDER_BYTES - len(self.column.name) - 1)

    @property
    def worst(self) -> int:
        return _WORST[self.array.type] * (pc.max(self.bytes).as_py() or 0)


def long_partitions(
    table: TableDef, arrays: Sequence[pa.Array], deleted: pa.Array | None
) -> Iterator[tuple[int, str]]:
    """Rows, by their places, that would go into too long a folder, and what is wrong with each.

    Args:
        table: Whose rows they are.
        arrays: One for each column.
        deleted: For a keyed table, which rows are deletes: those make no file.
    """
    folders = [
        _Folder(column=column, array=array, bytes=_lengths(array, deleted))
        for column, array in zip(table.columns, arrays, strict=True)
        if column.name in table.partition_by and array.type in _WORST
    ]
    if all(folder.worst <= folder.most for folder in folders) and (
        sum(folder.worst + folder.name_bytes for folder in folders) <= MOST_TOGETHER_BYTES
    ):
        return
    together: pa.Array | None = None
    for folder in folders:
        encoded = _encoded(folder)
        for i in pc.indices_nonzero(pc.greater(encoded, folder.most)).to_pylist():
            yield i, _too_long(folder)
        whole = pc.add(encoded, folder.name_bytes)
        together = whole if together is None else pc.add(together, whole)
    for i in pc.indices_nonzero(pc.greater(together, MOST_TOGETHER_BYTES)).to_pylist():
        yield i, _too_long_together(folders)


def _lengths(array: pa.Array, deleted: pa.Array | None) -> pa.Array:
    lengths = pc.fill_null(pc.binary_length(array), 0)
    return lengths if deleted is None else pc.if_else(deleted, 0, lengths)


def _encoded(folder: _Folder) -> pa.Array:
    """Bytes of the values as they stand in a path; of those that are too long anyway, their own."""
    measured = pc.and_(pc.greater(folder.bytes, 0), pc.less_equal(folder.bytes, folder.most))
    short = pc.if_else(measured, folder.array, pa.scalar(None, folder.array.type))
    encoded = pc.add(folder.bytes, pc.multiply(_others(short, _PLAIN), 2))
    if folder.array.type == pa.binary():
        encoded = pc.add(encoded, pc.multiply(_others(short, _SPELT_AS_IS), 3))
    return encoded


def _others(array: pa.Array, pattern: str) -> pa.Array:
    """How many bytes of each value are none of these."""
    left = pc.replace_substring_regex(array, pattern=pattern, replacement="")
    return pc.fill_null(pc.binary_length(left), 0)


def _too_long(folder: _Folder) -> str:
    return (
        f"{folder.column.name}: the table is partitioned by it, and the value takes more than {folder.most} bytes "
        "percent-encoded: send a shorter one, or end the partitions by it"
    )


def _too_long_together(folders: Sequence[_Folder]) -> str:
    names = ", ".join(folder.column.name for folder in folders)
    return (
        f"{names[:400]}: the table is partitioned by these, and their names and values take more than "
        f"{MOST_TOGETHER_BYTES} bytes percent-encoded: send shorter ones, or end the partitions by some"
    )
