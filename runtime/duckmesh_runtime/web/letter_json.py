"""A dead letter as JSON: what it is, why it was refused, and its values as far as they are small. Used by `dead_letters`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import pyarrow as pa

from duckmesh_runtime.domain.bus_rows import DELETED, key_of
from duckmesh_runtime.domain.letters import read_letter
from duckmesh_runtime.domain.tokens import Token
from duckmesh_runtime.errors import Invalid
from duckmesh_runtime.ports import DeadLetter, EntryKind, StagedFile
from duckmesh_runtime.web.render import objects


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What the values of one letter may take.

    Attributes:
        rows: Rows shown.
        value_bytes: Of one value as JSON; a longer one is shown as the beginning of its JSON text.
        total_bytes: Of all values as JSON.
    """

    rows: int
    value_bytes: int
    total_bytes: int


IN_A_LIST: Final = Room(rows=3, value_bytes=256, total_bytes=8 * 2**10)
ALONE: Final = Room(rows=1_000, value_bytes=64 * 2**10, total_bytes=2**20)
CUT: Final = "... (cut)"
"""The mark at the end of a value that is not shown whole."""


def letter_json(letter: DeadLetter, token: Token, room: Room) -> dict[str, object]:
    """The letter; `token` is that of its number."""
    values: list[Mapping[str, object]] = []
    cut = False
    op: str | None = None
    file: StagedFile | None = None
    if letter.kind is EntryKind.FILE:
        file = msgspec.json.decode(letter.payload, type=StagedFile)
    elif letter.kind is EntryKind.ROWS:
        rows = read_letter(letter.payload)
        op = _op(rows)
        values, cut = _fitted(_objects(rows, room.rows), room)
        cut = cut or rows.num_rows > len(values)
    elif letter.payload:
        values, cut = _fitted(iter([msgspec.json.decode(letter.payload)]), room)
    return {
        "number": letter.first,
        "token": str(token),
        "kind": letter.kind,
        "op": op,
        "table": letter.table,
        "rows": 0 if letter.kind.is_change else letter.last - letter.first + 1,
        "error": letter.error,
        "accepted_at": letter.accepted_at,
        "set_aside_at": letter.set_aside_at,
        "values": values,
        "values_cut": cut,
        "file": None if file is None else {"path": file.path, "size_bytes": file.size},
    }


def _op(rows: pa.Table) -> str:
    if not key_of(rows.schema):
        return "insert"
    deletes = set(rows.column(DELETED).to_pylist())
    return "mixed" if len(deletes) > 1 else "delete" if True in deletes else "upsert"


def _objects(rows: pa.Table, most: int) -> Iterator[Mapping[str, object]]:
    """The first rows one by one, a delete as its key alone."""
    key = key_of(rows.schema)
    for i in range(min(most, rows.num_rows)):
        (batch,) = rows.slice(i, 1).combine_chunks().to_batches()
        if key:
            deleted = batch.column(DELETED)[0].as_py()
            batch = batch.select(key) if deleted else batch.drop_columns([DELETED])
        try:
            yield objects(batch, [""] * batch.num_columns)[0]
        except Invalid:  # a date that JSON cannot say
            yield dict.fromkeys(batch.schema.names, CUT)


def _fitted(
    objects: Iterator[Mapping[str, Any]], room: Room
) -> tuple[list[Mapping[str, object]], bool]:
    """As much of the objects as there is room for, and whether something is left out."""
    left, cut = room.total_bytes, False
    fitted: list[Mapping[str, object]] = []
    for each in objects:
        shown: dict[str, object] = {}
        for name, value in each.items():
            text = msgspec.json.encode(value)
            if len(text) > room.value_bytes:
                text, cut = text[: room.value_bytes], True
                value = text.decode(errors="ignore") + CUT
            left -= len(name) + len(text)
            if left < 0:
                return [*fitted, shown] if shown else fitted, True
            shown[name] = value
        fitted.append(shown)
    return fitted, cut
