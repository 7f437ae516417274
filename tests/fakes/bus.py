"""An `IngestBus` with its `DeadLetters` in memory, for tests of services.

tests/contract/test_bus.py holds it to the real one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import msgspec

from duckmesh_runtime.domain.restore import refused, restore_json
from duckmesh_runtime.domain.schema import TableDef, parse_table
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import (
    Append,
    AppendResult,
    Backlog,
    DeadLetter,
    Entry,
    EntryKind,
    Head,
    KeyHash,
    KeyHorizon,
    KnownKey,
    Progress,
    Receipt,
    StagedFile,
    TableBacklog,
    TableVersion,
)

END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
KEY_BYTES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    """A key that is known."""

    hash: KeyHash
    number: int
    at: datetime

    @property
    def content(self) -> bytes:
        return self.hash.content


@dataclass(frozen=True, slots=True, kw_only=True)
class _Version:
    """A definition, and the one it was accepted on top of."""

    kept: TableVersion
    base: int | None
    number: int


class FakeBus:
    """One lake's input in memory.

    Attributes:
        lock: Held by an append; take it to stand for a slow transaction.
        arrived: Set when an append was called.
        token: The watermark: `backlog` reports it, and restores up to it have landed.
        inflight_to: What the committer's heartbeat says.
        groups: Every group appended, for assertions.
        failures: Popped by one append each: `before` fails with nothing written, `after` with all of it written.
        aged: Added to the age of every key.
        entries: What waits.
        kept: Dead letters by their first number.
        snapshots: Of the lake: id -> token that its commit names; ids below the newest that are missing have expired.
        pinned: Snapshots that restores hold, by number.
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
        self.kept: dict[int, DeadLetter] = {}
        self.snapshots: dict[int, int | None] = {}
        self.pinned: dict[int, int] = {}
        self._restored: dict[int, int] = {}
        self._every_key: list[_Key] = []
        self._head = Head(last=0, schema_version=0, timeline=1)
        self._keys: dict[tuple[bool, bytes], _Key] = {}
        self._forgotten: dict[bool, datetime] = {}
        self._tables: dict[str, TableDef] = {}
        self._versions: dict[str, list[_Version]] = {}

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
        known, conflicts = self._known(append.keys)
        if conflicts or any(number is not None for number in known):
            return Receipt(
                result=AppendResult.KNOWN,
                timeline=timeline,
                known=known,
                conflicts=conflicts,
            )
        if append.replays is not None and self.kept.pop(append.replays, None) is None:
            return Receipt(result=AppendResult.GONE, timeline=timeline)
        self._write(append, now)
        return Receipt(
            result=AppendResult.ACCEPTED, last=self._head.last, timeline=timeline, accepted_at=now
        )

    def _known(self, keys: Sequence[KeyHash | None]) -> tuple[list[int | None], list[int]]:
        self._forget_keys()
        used = {name: (key.content, key.number) for name, key in self._keys.items()}
        known: list[int | None] = []
        conflicts: list[int] = []
        for i, key in enumerate(keys):
            earlier = used.get((key.request, key.key)) if key else None
            if key and earlier is None:
                used[key.request, key.key] = (key.content, 0)
            if key and earlier and earlier[0] != key.content:
                conflicts.append(i)
                earlier = None
            known.append(earlier[1] if earlier else None)
        return known, conflicts

    def _write(self, append: Append, now: datetime) -> None:
        first = self._head.last + 1
        last = self._head.last + append.rows
        for i, key in enumerate(append.keys):
            if key:
                number = last if len(append.keys) == 1 else first + i
                self._keep_key(_Key(hash=key, number=number, at=now))
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
        if append.kind.is_change:
            self._change(append, now)

    def _change(self, append: Append, now: datetime) -> None:
        version = self._head.schema_version + 1
        self._head = replace(self._head, schema_version=version)
        before = self._tables.pop(append.table, None)
        table = None
        if append.kind is not EntryKind.DROP_TABLE:
            raw = msgspec.json.decode(append.parts[0].payload)
            if append.kind is EntryKind.ALTER_TABLE:
                table = replace(parse_table(raw["table"]), version=before.version if before else 0)
            else:
                table = replace(parse_table(raw), version=version)
            self._tables[append.table] = table
        history = self._versions.setdefault(append.table, [])
        base = history[-1].kept.schema_version if history and table else None
        kept = TableVersion(schema_version=version, table=table, changed_at=now)
        history.append(_Version(kept=kept, base=base, number=self._head.last))

    async def restore(self, snapshot_id: int, key: KeyHash | None = None) -> Receipt:
        async with self.lock:
            await asyncio.sleep(0)
            timeline = self._head.timeline
            self._forget_keys()
            if key and (found := self._keys.get((key.request, key.key))):
                if found.content != key.content:
                    raise refused("conflict", snapshot_id)
                return Receipt(result=AppendResult.KNOWN, timeline=timeline, known=[found.number])
            token = self._restorable(snapshot_id)
            now = datetime.now(UTC)
            number = self._head.last + 1
            self._restore_tables(token, number, now)
            payload = msgspec.json.encode(restore_json(snapshot_id, list(self._tables.values())))
            self.entries.append(
                Entry(
                    first=number,
                    last=number,
                    kind=EntryKind.RESTORE,
                    table="*",
                    schema_version=self._head.schema_version,
                    payload=payload,
                    accepted_at=now,
                )
            )
            self._head = replace(
                self._head, last=number, schema_version=self._head.schema_version + 1
            )
            self._restored[number] = token
            self.pinned[number] = snapshot_id
            if key:
                self._keep_key(_Key(hash=key, number=number, at=now))
            return Receipt(
                result=AppendResult.ACCEPTED, last=number, timeline=timeline, accepted_at=now
            )

    def _restorable(self, snapshot_id: int) -> int:
        """The token to go back to."""
        if snapshot_id not in self.snapshots:
            newest, oldest = max(self.snapshots, default=-1), min(self.snapshots, default=0)
            raise refused("missing", snapshot_id, newest=newest, oldest=oldest)
        token = self.snapshots[snapshot_id]
        if token is None:
            before = [s for s, t in self.snapshots.items() if t is not None and s < snapshot_id]
            raise refused("no_token", snapshot_id, nearest=max(before, default=None))
        for key in self._every_key:
            if key.hash.request and key.number - (key.hash.accepted or 0) < token < key.number:
                raise refused("in_request", snapshot_id)
        return token

    def _restore_tables(self, token: int, number: int, now: datetime) -> None:
        version = self._head.schema_version + 1
        for name in sorted(self._versions):
            then = [v.kept for v in self._versions[name] if v.number <= token]
            table = then[-1].table if then else None
            if table is None and name not in self._tables:
                continue
            kept = TableVersion(schema_version=version, table=table, changed_at=now)
            self._versions[name].append(_Version(kept=kept, base=None, number=number))
            self._define(name)

    def _define(self, name: str) -> None:
        """The table is what its newest version says."""
        self._tables.pop(name, None)
        history = self._versions[name]
        if history and (table := history[-1].kept.table) is not None:
            self._tables[name] = table
        self._tables = dict(sorted(self._tables.items()))

    def _keep_key(self, key: _Key) -> None:
        self._every_key.append(key)
        self._keys[key.hash.request, key.hash.key] = key

    def _forget_keys(self) -> None:
        """Know those keys whose numbers no restore took back that holds: those that have landed count."""
        if not self._restored and len(self._keys) == len(self._every_key):
            return
        holding: list[tuple[int, int]] = []
        point = self.token
        for number in sorted(self._restored, reverse=True):
            if number <= point:
                point = self._restored[number]
                holding.append((point, number))
        self._keys = {
            (key.hash.request, key.hash.key): key
            for key in self._every_key
            if not any(token < key.number < number for token, number in holding)
        }

    def set_aside(self, prev: int, tok: int, payload: bytes | None, error: str) -> None:
        """What `duckmesh.set_aside` does, but for the watermark."""
        entry = next(e for e in self.entries if e.first <= prev + 1 and tok <= e.last)
        assert not entry.kind.is_change
        assert payload is not None or (prev + 1, tok) == (entry.first, entry.last)
        is_part = entry.kind is EntryKind.FILE and payload not in (None, entry.payload)
        kind = EntryKind.ROWS if is_part else entry.kind
        self._keep(prev + 1, tok, kind, entry, entry.payload if payload is None else payload, error)

    def set_aside_change(self, tok: int, error: str) -> None:
        """What `duckmesh.set_aside_change` does, but for the watermark."""
        entry = next(e for e in self.entries if e.last == tok)
        assert entry.kind.is_change
        self._keep(tok, tok, entry.kind, entry, entry.payload, error)
        self._head = replace(self._head, schema_version=self._head.schema_version + 1)
        is_restore = entry.kind is EntryKind.RESTORE
        for name in list(self._versions) if is_restore else [entry.table]:
            self._take_back(name, entry.schema_version + 1)
        if is_restore:
            del self._restored[tok]

    def _take_back(self, name: str, version: int) -> None:
        """Remove a version of a table, and those that were accepted on top of it."""
        gone = {version}
        history = []
        for each in self._versions.get(name, []):
            if each.kept.schema_version in gone or each.base in gone:
                gone.add(each.kept.schema_version)
            else:
                history.append(each)
        self._versions[name] = history
        self._define(name)

    def _keep(
        self, first: int, last: int, kind: EntryKind, entry: Entry, payload: bytes, error: str
    ) -> None:
        self.kept[first] = DeadLetter(
            first=first,
            last=last,
            kind=kind,
            table=entry.table,
            payload=payload,
            error=error,
            accepted_at=entry.accepted_at,
            set_aside_at=datetime.now(UTC),
        )

    async def known(self, keys: Sequence[KeyHash]) -> Sequence[KnownKey | None]:
        await asyncio.sleep(0)
        self._forget_keys()
        found = [self._keys.get((key.request, key.key)) for key in keys]
        return [None if each is None else self._kept(each) for each in found]

    def _kept(self, key: _Key) -> KnownKey:
        return KnownKey(
            content=key.content,
            number=key.number,
            timeline=self._head.timeline,
            accepted=key.hash.accepted,
            rejected=key.hash.rejected,
        )

    async def read(self, after: int, *, max_rows: int, max_bytes: int) -> Sequence[Entry]:
        await asyncio.sleep(0)
        found: list[Entry] = []
        rows = size = 0
        for entry in self.entries:
            if entry.last <= after:
                continue
            rows += entry.last - max(entry.first - 1, after)
            size += len(entry.payload)
            if found and (rows > max_rows or size > max_bytes):
                break
            found.append(entry)
        return found

    async def trim(self, upto: int) -> int:
        kept = [entry for entry in self.entries if entry.last > upto]
        self.pinned = {number: id_ for number, id_ in self.pinned.items() if number > upto}
        removed = len(self.entries) - len(kept)
        self.entries = kept
        return removed

    async def expire_keys(
        self, *, record_age_s: float, request_age_s: float, max_bytes: int
    ) -> KeyHorizon:
        now = datetime.now(UTC)
        ages = {False: record_age_s, True: request_age_s}
        for name, key in list(self._keys.items()):
            if (now - key.at + self.aged).total_seconds() > ages[name[0]]:
                self._every_key.remove(self._keys.pop(name))
        while len(self._keys) * KEY_BYTES > max_bytes:
            name = next(iter(self._keys))
            key = self._keys.pop(name)
            self._every_key.remove(key)
            self._forgotten[name[0]] = key.at
        for request, at in self._forgotten.items():
            ages[request] = min(ages[request], (now - at).total_seconds())
        return KeyHorizon(record_s=ages[False], request_s=ages[True])

    async def head(self) -> Head:
        return self._head

    async def backlog(self) -> Backlog:
        pending = [entry for entry in self.entries if entry.last > self.token]
        tables = [
            _table_backlog(
                name, [e for e in pending if e.table == name], self.token, self.inflight_to
            )
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
            claimed_rows=sum(table.claimed_rows for table in tables),
            claimed_bytes=sum(table.claimed_bytes for table in tables),
            snapshot_id=max(self.snapshots, default=None),
            tables=tables,
            dead_letters=len(self.kept),
        )

    async def tables(self) -> tuple[int, Sequence[TableDef]]:
        found = [self._tables[name] for name in sorted(self._tables)]
        return self._head.schema_version, found

    async def table_versions(self, name: str) -> Sequence[TableVersion]:
        return [each.kept for each in self._versions.get(name, [])]

    async def letters(
        self, after: int, *, limit: int, max_bytes: int, table: str | None = None
    ) -> Sequence[DeadLetter]:
        found: list[DeadLetter] = []
        for first in sorted(self.kept):
            letter = self.kept[first]
            if first <= after or table not in (None, letter.table):
                continue
            max_bytes -= len(letter.payload)
            if len(found) == limit or (found and max_bytes < 0):
                break
            found.append(letter)
        return found

    async def letter(self, first: int) -> DeadLetter | None:
        return self.kept.get(first)

    async def drop_letter(self, first: int) -> bool:
        return self.kept.pop(first, None) is not None


def _table_backlog(name: str, entries: Sequence[Entry], token: int, upto: int) -> TableBacklog:
    claimed = [e for e in entries if max(e.first - 1, token) < upto]
    return TableBacklog(
        table=name,
        pending_rows=sum(e.last - max(e.first - 1, token) for e in entries if not e.kind.is_change),
        pending_bytes=sum(_bytes(e) for e in entries),
        claimed_rows=sum(
            min(e.last, upto) - max(e.first - 1, token) for e in claimed if not e.kind.is_change
        ),
        claimed_bytes=sum(_bytes(e) for e in claimed),
        oldest_pending_at=min(e.accepted_at for e in entries),
    )


def _bytes(entry: Entry) -> int:
    if entry.kind is EntryKind.FILE:
        return msgspec.json.decode(entry.payload, type=StagedFile).size
    return len(entry.payload)
