"""An `IngestBus` in memory, for tests of services; tests/contract/test_bus.py holds it to the real one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec

from duckmesh_runtime.domain.schema import TableDef, parse_table
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import (
    Append,
    AppendResult,
    Backlog,
    Entry,
    EntryKind,
    Head,
    KeyHash,
    Progress,
    Receipt,
    TableBacklog,
)

END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class FakeBus:
    """One lake's input in memory.

    Attributes:
        lock: Held by an append; take it to stand for a slow transaction.
        arrived: Set when an append was called.
        token: The watermark that `backlog` reports.
        inflight_to: What the committer's heartbeat says.
        groups: Every group appended, for assertions.
        failures: Popped by one append each: `before` fails with nothing written, `after` with all of it written.
        aged: Added to the age of every key.
    """

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.arrived = asyncio.Event()
        self.token = 0
        self.inflight_to = 0
        self.groups: list[Sequence[Append]] = []
        self.failures: list[str] = []
        self.aged = timedelta()
        self.entries: list[Entry] = []
        self._head = Head(last=0, schema_version=0, timeline=1)
        self._keys: dict[bytes, tuple[KeyHash, int, datetime]] = {}
        self._tables: dict[str, TableDef] = {}

    async def append(self, group: Sequence[Append]) -> Sequence[Receipt]:
        self.arrived.set()
        async with self.lock:
            await asyncio.sleep(0)
            failure = self.failures.pop(0) if self.failures else None
            if failure == "before":
                raise Unavailable("CATALOG_UNAVAILABLE", "planted: nothing written")
            self.groups.append(group)
            now = datetime.now(UTC)
            receipts = [self._append(append, now) for append in group]
            if failure == "after":
                raise Unavailable("CATALOG_UNAVAILABLE", "planted: all written")
            return receipts

    def _append(self, append: Append, now: datetime) -> Receipt:
        timeline = self._head.timeline
        if append.schema_version != self._head.schema_version:
            return Receipt(result=AppendResult.STALE_SCHEMA, timeline=timeline)
        used = {key: (entry.content, number) for key, (entry, number, _) in self._keys.items()}
        known: list[int | None] = []
        conflicts: list[int] = []
        for i, key in enumerate(append.keys):
            earlier = used.get(key.key) if key else None
            if key and earlier is None:
                used[key.key] = (key.content, 0)
            if key and earlier and earlier[0] != key.content:
                conflicts.append(i)
                earlier = None
            known.append(earlier[1] if earlier else None)
        if conflicts or any(number is not None for number in known):
            return Receipt(
                result=AppendResult.KNOWN,
                timeline=timeline,
                known=known,
                conflicts=conflicts,
            )
        self._write(append, now)
        return Receipt(
            result=AppendResult.ACCEPTED, last=self._head.last, timeline=timeline, accepted_at=now
        )

    def _write(self, append: Append, now: datetime) -> None:
        first = self._head.last + 1
        last = self._head.last + append.rows
        for i, key in enumerate(append.keys):
            if key:
                number = last if len(append.keys) == 1 else first + i
                self._keys[key.key] = (key, number, now)
        for part in append.parts:
            is_rows = append.kind is EntryKind.ROWS
            self.entries.append(
                Entry(
                    first=first,
                    last=first + part.rows - 1,
                    kind=append.kind,
                    table=append.table,
                    schema_version=append.schema_version,
                    payload=append.header + part.payload + (END_OF_STREAM if is_rows else b""),
                    accepted_at=now,
                )
            )
            first += part.rows
        self._head = replace(self._head, last=last)
        if append.kind is not EntryKind.ROWS:
            self._change(append)

    def _change(self, append: Append) -> None:
        version = self._head.schema_version + 1
        self._head = replace(self._head, schema_version=version)
        self._tables.pop(append.table, None)
        if append.kind is EntryKind.CREATE_TABLE:
            table = parse_table(msgspec.json.decode(append.parts[0].payload))
            self._tables[append.table] = replace(table, version=version)

    async def read(self, after: int, *, max_rows: int, max_bytes: int) -> Sequence[Entry]:
        await asyncio.sleep(0)
        found: list[Entry] = []
        rows = size = 0
        for entry in self.entries:
            if entry.first <= after:
                continue
            rows += entry.last - entry.first + 1
            size += len(entry.payload)
            if found and (rows > max_rows or size > max_bytes):
                break
            found.append(entry)
        return found

    async def trim(self, upto: int) -> int:
        kept = [entry for entry in self.entries if entry.last > upto]
        removed = len(self.entries) - len(kept)
        self.entries = kept
        return removed

    async def forget_keys(self, *, record_age_s: float, request_age_s: float, max_keys: int) -> int:
        now = datetime.now(UTC)
        old = [
            key
            for key, (entry, _, at) in self._keys.items()
            if (now - at + self.aged).total_seconds()
            > (request_age_s if entry.request else record_age_s)
        ]
        for key in old[:max_keys]:
            del self._keys[key]
        return len(old[:max_keys])

    async def head(self) -> Head:
        return self._head

    async def backlog(self) -> Backlog:
        pending = [entry for entry in self.entries if entry.last > self.token]
        tables = [
            _table_backlog(name, [entry for entry in pending if entry.table == name])
            for name in sorted({entry.table for entry in pending})
        ]
        return Backlog(
            head=self._head,
            progress=Progress(
                token=self.token, snapshot_id=None, committed_at=None, now=datetime.now(UTC)
            ),
            pending_rows=sum(table.pending_rows for table in tables),
            pending_bytes=sum(table.pending_bytes for table in tables),
            oldest_pending_at=min((entry.accepted_at for entry in pending), default=None),
            claimed=max(0, self.inflight_to - self.token),
            tables=tables,
        )

    async def tables(self) -> tuple[int, Sequence[TableDef]]:
        found = [self._tables[name] for name in sorted(self._tables)]
        return self._head.schema_version, found


def _table_backlog(name: str, entries: Sequence[Entry]) -> TableBacklog:
    return TableBacklog(
        table=name,
        pending_rows=sum(e.last - e.first + 1 for e in entries if e.kind is EntryKind.ROWS),
        pending_bytes=sum(len(e.payload) for e in entries),
        oldest_pending_at=min(e.accepted_at for e in entries),
    )
