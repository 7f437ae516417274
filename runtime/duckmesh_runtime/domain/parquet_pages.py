"""What the pages of a Parquet file would unfold to, by their headers, before anything reads them. Pure.

pyarrow is not asked: it ends the process when the footer's statistics are broken (pyarrow 26, `RowGroupMetaData.column`).
The footer's sizes are claims. The page headers bound what a reader takes: it decompresses a page into as many bytes as its
header says, no more (https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

Struct = dict[int, object]


class BrokenFile(ValueError):
    """A footer or a page header that cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page.

    Attributes:
        dictionary: Whether it holds the values of a dictionary.
        size_bytes: Its size when decompressed.
        values: How many values it holds, NULL included.
        encoding: How they are written, by number.
    """

    dictionary: bool
    size_bytes: int
    values: int
    encoding: int


DELTA_BYTE_ARRAY: Final = 7
"""Each value is written as what differs from the one before: a few bytes may be a million long values."""

_DATA_PAGE: Final = 0
_INDEX_PAGE: Final = 1
_DICTIONARY_PAGE: Final = 2
_DATA_PAGE_V2: Final = 3
_DETAILS: Final = {_DATA_PAGE: 5, _DICTIONARY_PAGE: 7, _DATA_PAGE_V2: 8}
_ENCODING: Final = {_DATA_PAGE: 2, _DICTIONARY_PAGE: 2, _DATA_PAGE_V2: 4}


def column_chunks(body: bytes) -> Iterator[Sequence[tuple[int, int]]]:
    """For each row group where the pages of each column begin and end, columns in the order of the schema's leaves.

    Raises:
        BrokenFile: The footer cannot be read, or says what only another footer would.
    """
    length = int.from_bytes(body[-8:-4], "little")
    if not 0 < length <= len(body) - 12:
        raise BrokenFile
    footer = _Reader(body, len(body) - 8 - length).struct()
    for group in _structs(footer.get(_ROW_GROUPS)):
        # Of a group without rows nothing reads the pages, and their places are often missing.
        empty = _number(group, _ROWS) == 0
        yield [(0, 0) if empty else _span(chunk) for chunk in _structs(group.get(_COLUMNS))]


def footer_rows(footer: bytes) -> int:
    """How many rows a footer says the file has, by itself and by its row groups.

    Raises:
        BrokenFile: It cannot be read, or the two do not agree.
    """
    reader = _Reader(footer, 0)
    found = reader.struct()
    rows = _number(found, _ROWS)
    if reader.at != len(footer) or rows != sum(
        _number(group, _ROWS) for group in _structs(found.get(_ROW_GROUPS))
    ):
        raise BrokenFile
    return rows


_ROW_GROUPS: Final = 4
_COLUMNS: Final = 1
_ROWS: Final = 3


def _structs(found: object) -> Sequence[Struct]:
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise BrokenFile
    return found


def _span(chunk: Struct) -> tuple[int, int]:
    meta = chunk.get(3)
    if not isinstance(meta, dict):
        raise BrokenFile
    start, size = _number(meta, 9), _number(meta, 7)
    if meta.get(11):
        start = min(start, _number(meta, 11))
    return start, start + size


def pages(body: bytes, start: int, stop: int) -> Iterator[Page]:
    """The pages of one column chunk.

    Raises:
        BrokenFile: What stands there is no sequence of pages.
    """
    if not 0 <= start <= stop <= len(body):
        raise BrokenFile
    while start < stop:
        header = _Reader(body, start)
        found = header.struct()
        kind, size, compressed = (_number(found, field) for field in (1, 2, 3))
        start = header.at + compressed
        if start > stop:
            raise BrokenFile
        if kind == _INDEX_PAGE:
            continue
        details = found.get(_DETAILS.get(kind, 0))
        if not isinstance(details, dict):
            raise BrokenFile
        yield Page(
            dictionary=kind == _DICTIONARY_PAGE,
            size_bytes=size,
            values=_number(details, 1),
            encoding=_number(details, _ENCODING[kind]),
        )


def _number(found: Struct, field: int) -> int:
    value = found.get(field)
    if not isinstance(value, int) or value < 0:
        raise BrokenFile
    return value


class _Reader:
    """Thrift's compact protocol.

    See https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
    """

    _DEEPEST = 12
    _MOST_VALUES = 2_000_000

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._left = self._MOST_VALUES
        self.at = at

    def struct(self, depth: int = 0) -> Struct:
        """The fields of a struct by id: numbers, structs and lists; None for others."""
        if depth > self._DEEPEST:
            raise BrokenFile
        found: Struct = {}
        field = 0
        while (head := self._byte()) != 0:
            delta, kind = head >> 4, head & 15
            field = field + delta if delta else self._zigzag()
            if field in found:
                raise BrokenFile  # readers differ in which counts
            # true and false are kinds of field without bytes of their own
            found[field] = None if kind in (1, 2) else self._value(kind, depth)
        return found

    def _value(self, kind: int, depth: int) -> object:
        self._left -= 1
        if self._left < 0:
            raise BrokenFile
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 12:
            return self.struct(depth + 1)
        if kind in (9, 10):
            return self._list(depth + 1)
        if kind not in (1, 2, 3, 7, 8):
            raise BrokenFile  # maps: Parquet has none
        length = {1: 1, 2: 1, 3: 1, 7: 8}.get(kind) or self._varint()  # moves on itself
        self.at += length
        return None

    def _list(self, depth: int) -> list[object]:
        if depth > self._DEEPEST:
            raise BrokenFile
        head = self._byte()
        size = self._varint() if head >> 4 == 15 else head >> 4
        return [self._value(head & 15, depth) for _ in range(size)]

    def _byte(self) -> int:
        if self.at >= len(self._data):
            raise BrokenFile
        self.at += 1
        return self._data[self.at - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise BrokenFile

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
