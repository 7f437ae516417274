"""What one append transaction writes: receipts, numbers, entries, keys. Pure; called under the lock of a lake's head.

Small appends of one table that follow each other share an entry and a large one is cut: the committer reads few,
bounded entries whatever the sizes of requests.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

import msgspec

from duckmesh_runtime.ports import (
    Append,
    AppendResult,
    EntryKind,
    Head,
    KeyHash,
    Part,
    Receipt,
    StagedFile,
)

Known = dict[tuple[bool, bytes], tuple[bytes, int]]
"""Idempotency key (whether of a request, digest) -> the content it was used with and the number it got."""

ENTRY_ROWS: Final = 100_000
ENTRY_BYTES: Final = 2 * 2**20
"""What parts are packed up to. One part may be larger: a row is never cut."""

_END_OF_STREAM: Final = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # of an Arrow IPC stream


@dataclass(slots=True, kw_only=True)
class PlannedEntry:
    """An entry being packed: a table change, a file, or parts of one table that follow each other.

    `size` is in bytes: what it takes, on the bus or, when it names a file, in the store.
    """

    kind: EntryKind
    table: str
    schema_version: int
    header: bytes
    first: int
    last: int
    size: int = 0
    parts: list[bytes] = field(default_factory=list)

    @property
    def payload(self) -> bytes:
        """As `ports.Entry.payload`."""
        end = _END_OF_STREAM if self.kind is EntryKind.ROWS else b""
        return b"".join((self.header, *self.parts, end))

    def takes(self, append: Append, part: Part) -> bool:
        """Whether the part fits behind those that are there."""
        return (
            self.kind is append.kind is EntryKind.ROWS
            and (self.table, self.schema_version) == (append.table, append.schema_version)
            and self.header == append.header
            and self.last - self.first + 1 + part.rows <= ENTRY_ROWS
            and self.size + len(part.payload) <= ENTRY_BYTES
        )

    def add(self, part: Part) -> None:
        """Put a part behind the others."""
        self.last += part.rows
        self.size += _size(self.kind, part)
        self.parts.append(part.payload)


@dataclass(slots=True, kw_only=True)
class AppendPlan:
    """What to write: `last` and `schema_version` of the head, a receipt per append, entries, keys with numbers.

    `replayed` are the dead letters that go, each with the last number of its rows from here on.
    """

    last: int
    schema_version: int
    receipts: list[Receipt] = field(default_factory=list)
    entries: list[PlannedEntry] = field(default_factory=list)
    keys: list[tuple[KeyHash, int]] = field(default_factory=list)
    replayed: dict[int, int] = field(default_factory=dict)

    @property
    def changes(self) -> Sequence[PlannedEntry]:
        """The table changes among the entries."""
        return [entry for entry in self.entries if entry.kind.is_change]

    @property
    def size(self) -> int:
        """Bytes of all payloads."""
        return sum(len(part) for entry in self.entries for part in entry.parts)

    def accept(self, append: Append) -> None:
        """Number an append and pack its parts."""
        first = self.last + 1
        for part in append.parts:
            if not self.entries or not self.entries[-1].takes(append, part):
                self.entries.append(
                    PlannedEntry(
                        kind=append.kind,
                        table=append.table,
                        schema_version=append.schema_version,
                        header=append.header,
                        first=self.last + 1,
                        last=self.last,
                        size=len(append.header),
                    )
                )
            self.entries[-1].add(part)
            self.last += part.rows
        if append.kind.is_change:
            self.schema_version += 1
        if append.replays is not None:
            self.replayed[append.replays] = self.last
        one_key = len(append.keys) == 1
        self.keys += [
            (key, self.last if one_key else first + i)
            for i, key in enumerate(append.keys)
            if key is not None
        ]


def plan_append(
    group: Sequence[Append], head: Head, known: Known, letters: Collection[int] = ()
) -> AppendPlan:
    """Decide under the lock.

    Args:
        group: What is to be appended.
        head: Where input ends.
        known: What is known of the group's keys; grows by what is accepted.
        letters: Those of the dead letters to replay that are there.
    """
    plan = AppendPlan(last=head.last, schema_version=head.schema_version)
    for append in group:
        if append.schema_version != plan.schema_version:
            receipt = Receipt(result=AppendResult.STALE_SCHEMA)
        elif (found := _known_keys(append.keys, known)) is not None:
            receipt = found
        elif append.replays is not None and (
            append.replays in plan.replayed or append.replays not in letters
        ):
            receipt = Receipt(result=AppendResult.GONE)
        else:
            before = len(plan.keys)
            plan.accept(append)
            known.update({(k.request, k.key): (k.content, n) for k, n in plan.keys[before:]})
            receipt = Receipt(result=AppendResult.ACCEPTED, last=plan.last)
        plan.receipts.append(replace(receipt, timeline=head.timeline))
    return plan


def moved(receipt: Receipt, by: int, *, timeline: int, accepted_at: datetime) -> Receipt:
    """The receipt of a plan that was made as if the head stood at 0."""
    receipt = replace(receipt, timeline=timeline)
    if receipt.result is AppendResult.ACCEPTED:
        return replace(receipt, last=receipt.last + by, accepted_at=accepted_at)
    if receipt.result is AppendResult.KNOWN:
        return replace(receipt, known=[n + by if n else n for n in receipt.known])
    return receipt


def _size(kind: EntryKind, part: Part) -> int:
    if kind is EntryKind.FILE:
        return msgspec.json.decode(part.payload, type=StagedFile).size
    return len(part.payload)


def _known_keys(keys: Sequence[KeyHash | None], known: Known) -> Receipt | None:
    """The receipt of an append some of whose keys are taken, or None when all are free."""
    numbers: list[int | None] = []
    conflicts: list[int] = []
    mine: Known = {}
    for i, key in enumerate(keys):
        name = None if key is None else (key.request, key.key)
        found = None if name is None else known.get(name) or mine.get(name)
        if key is not None and name is not None and found is None:
            mine[name] = (key.content, 0)
        if key is not None and found is not None and found[0] != key.content:
            conflicts.append(i)
            found = None
        numbers.append(None if found is None else found[1])
    if not conflicts and all(number is None for number in numbers):
        return None
    return Receipt(result=AppendResult.KNOWN, known=numbers, conflicts=conflicts)
