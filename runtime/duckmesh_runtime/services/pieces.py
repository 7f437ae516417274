"""Pieces of input on their way into the lake: runs of numbers, each of one entry, that can be halved down to one record.

Used by `services/commit.py`. The watermark may stand inside an entry, so what is left of it is a piece too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec
import pyarrow as pa

from duckmesh_runtime.domain.rhythm import halves
from duckmesh_runtime.errors import Invalid
from duckmesh_runtime.ports import Entry, EntryKind, StagedFile, TableFile, TableRows

UNREADABLE: Final = (
    Invalid,
    msgspec.MsgspecError,
    pa.ArrowInvalid,
    pa.ArrowTypeError,
    pa.ArrowKeyError,
    pa.ArrowIndexError,
    pa.ArrowCapacityError,
    pa.ArrowSerializationError,
    pa.ArrowNotImplementedError,
    OSError,
)
"""What a payload raises that cannot be read. Arrow's want of memory is not among them: that is no fault of the content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The numbers `first..last` of an entry."""

    entry: Entry
    first: int
    last: int

    @property
    def rows(self) -> int:
        """How many numbers."""
        return self.last - self.first + 1

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its entry."""
        return (self.first, self.last) == (self.entry.first, self.entry.last)

    @property
    def can_be_cut(self) -> bool:
        """Whether a part of it can be written without the rest."""
        return self.entry.kind is EntryKind.ROWS and self.first < self.last


def pieces_after(entries: Sequence[Entry], token: int) -> list[Piece]:
    """What of the entries comes after the watermark."""
    return [
        Piece(entry=entry, first=max(entry.first, token + 1), last=entry.last)
        for entry in entries
        if entry.last > token
    ]


def beyond(pieces: Sequence[Piece], token: int) -> Sequence[Piece]:
    """Those that the watermark has not passed."""
    return pieces if pieces[0].last > token else [piece for piece in pieces if piece.last > token]


def row_count(pieces: Sequence[Piece]) -> int:
    """Numbers in all of them."""
    return sum(piece.rows for piece in pieces)


def split(pieces: Sequence[Piece], most: int) -> tuple[Sequence[Piece], Sequence[Piece]]:
    """The first pieces with `most` numbers together, the last one cut to fit, and the rest.

    A piece that cannot be cut stays whole, so the first part may have more; it is never empty.
    """
    room = most
    for i, piece in enumerate(pieces):
        if piece.rows <= room:
            room -= piece.rows
        elif room and piece.can_be_cut:
            head, tail = _cut(piece, room)
            return [*pieces[:i], head], [tail, *pieces[i + 1 :]]
        else:
            return (pieces[:i], pieces[i:]) if i else (pieces[:1], pieces[1:])
    return pieces, []


def halve(pieces: Sequence[Piece]) -> tuple[Sequence[Piece], Sequence[Piece]] | None:
    """Two parts in order: halves of the list, or of the rows of a lone piece; None when there is nothing to halve."""
    if len(pieces) > 1:
        return halves(pieces)
    (piece,) = pieces
    if not piece.can_be_cut:
        return None
    head, tail = _cut(piece, piece.rows // 2)
    return [head], [tail]


def parts_of(pieces: Sequence[Piece]) -> list[TableRows | TableFile]:
    """What to write: the rows of each table in token order, and its files.

    Rows of one table are one part as long as their schemas are the same, metadata included: it names the key.
    A table that takes files has none, so it does not matter that rows after a file may come before it.

    Raises:
        UNREADABLE: A payload cannot be read.
    """
    return [
        part
        if isinstance(part, TableFile)
        else TableRows(table=part.table, rows=pa.concat_tables(part.rows))
        for part in _grouped(pieces)
    ]


def letter_of(piece: Piece) -> tuple[Piece, bytes | None]:
    """What to set aside for a piece, and an Arrow stream of its rows alone; None for a whole entry, which has its own.

    Of an entry that cannot be read no rows can be told apart: all that is left of it is set aside, with all it holds.
    """
    if piece.is_whole:
        return piece, None
    try:
        return piece, _stream(_rows(piece))
    except UNREADABLE:
        rest = replace(piece, last=piece.entry.last)
        return rest, None if rest.is_whole else piece.entry.payload


@dataclass(slots=True, kw_only=True)
class _Group:
    table: str
    rows: list[pa.Table]


def _grouped(pieces: Sequence[Piece]) -> Iterator[_Group | TableFile]:
    found: list[_Group | TableFile] = []
    latest: dict[str, _Group] = {}
    for piece in pieces:
        table = piece.entry.table
        if piece.entry.kind is EntryKind.FILE:
            staged = msgspec.json.decode(piece.entry.payload, type=StagedFile)
            found.append(TableFile(table=table, file=staged))
            continue
        rows = _rows(piece)
        group = latest.get(table)
        if group is None or not group.rows[0].schema.equals(rows.schema, check_metadata=True):
            latest[table] = group = _Group(table=table, rows=[])
            found.append(group)
        group.rows.append(rows)
    return iter(found)


def _rows(piece: Piece) -> pa.Table:
    with pa.ipc.open_stream(piece.entry.payload) as reader:
        rows = reader.read_all()
    return rows.slice(piece.first - piece.entry.first, piece.rows)


def _stream(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def _cut(piece: Piece, rows: int) -> tuple[Piece, Piece]:
    middle = piece.first + rows
    return replace(piece, last=middle - 1), replace(piece, first=middle)
