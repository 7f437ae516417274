"""The bus in Postgres: `IngestBus` and `DeadLetters` over the tables of `duckmesh.install_bus`. Nothing else knows.

An append locks the lake's head row and holds it to COMMIT, so numbers come in commit order and what an append looks up
(schema version, known keys) cannot change under it. `append_plan` then decides what is written. An append of rows is
planned beforehand, as if no key were known and the head stood at 0, and is one round trip when that holds: `append_rows`
looks, counts from the head and writes. Otherwise it is planned again under the lock.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

import asyncpg
import msgspec

from duckmesh_runtime.adapters import bus_statements as sql
from duckmesh_runtime.adapters.append_plan import (
    AppendPlan,
    Known,
    PlannedEntry,
    moved,
    plan_append,
)
from duckmesh_runtime.adapters.postgres import catalog_errors
from duckmesh_runtime.domain.restore import refused
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
    TableBacklog,
    TableVersion,
)

_BYTES_A_STATEMENT: Final = 2 * 2**20
"""Encoding a statement holds up the event loop: about 3 ms for these, twice the bytes took 6 to 7 (measured 2026-11-24)."""
_BYTES_A_READ: Final = 8 * 2**20
"""Keeps one statement well below its timeout, also over a slow network."""
_ENTRIES_A_READ: Final = 10_000
_ENTRIES_A_DELETE: Final = 10_000
_BYTES_A_DELETE: Final = 128 * 2**20
# Tables and rights come in one transaction, the last of a lake that is made.
_NOT_MADE: Final = (asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError)
_MOST_TOLD: Final = 2**31 - 1  # of entry.byte_count


class PostgresBus:
    """`IngestBus` and `DeadLetters` of one lake.

    Args:
        pool: Connections under the lake's writer login; the caller closes it.
        lake: Name of the lake.
    """

    def __init__(self, pool: asyncpg.Pool, lake: str) -> None:
        self._pool = pool
        self._lake = lake
        self._bus = _quoted(f"{lake}_bus")

    async def append(self, group: Sequence[Append]) -> Sequence[Receipt]:
        """See `IngestBus.append`."""
        with catalog_errors():
            try:
                return await self._append(group)
            except asyncpg.CheckViolationError:
                # A generation of keys was opened this very moment: Postgres shows its row a little before its partition.
                return await self._append(group)

    async def restore(self, snapshot_id: int, key: KeyHash | None = None) -> Receipt:
        """See `IngestBus.restore`."""
        used = (None, None) if key is None else (key.key, key.content)
        (row,) = await self._fetch(sql.RESTORE, self._lake, snapshot_id, *used)
        if row["problem"] is not None:
            raise refused(
                row["problem"],
                snapshot_id,
                nearest=row["nearest"],
                newest=row["newest"],
                oldest=row["oldest"],
            )
        known = row["known"]
        return Receipt(
            result=AppendResult.KNOWN if known else AppendResult.ACCEPTED,
            last=0 if known else row["number"],
            timeline=row["timeline"],
            known=[row["number"]] if known else (),
            accepted_at=row["accepted_at"],
        )

    async def known(self, keys: Sequence[KeyHash]) -> Sequence[KnownKey | None]:
        """See `IngestBus.known`."""
        rows = await self._fetch(sql.KEPT_OF, *_by_kind(keys))
        found = {(row["request"], row["key"]): _known(row) for row in rows}
        return [found.get((key.request, key.key)) for key in keys]

    async def read(self, after: int, *, max_rows: int, max_bytes: int) -> Sequence[Entry]:
        """See `IngestBus.read`."""
        found: list[Entry] = []
        while True:
            piece = await self._fetch(
                sql.READ, after, max_rows, max_bytes, _ENTRIES_A_READ, not found, _BYTES_A_READ
            )
            found += [_entry(row) for row in piece]
            if not piece or piece[0]["fitting"] == len(piece):
                return found
            max_rows -= sum(row["last"] - max(row["first"] - 1, after) for row in piece)
            max_bytes -= sum(len(row["payload"]) for row in piece)
            after = piece[-1]["last"]

    async def trim(self, upto: int) -> int:
        """See `IngestBus.trim`."""
        removed: int = 0
        while True:
            (row,) = await self._fetch(sql.TRIM, upto, _ENTRIES_A_DELETE, _BYTES_A_DELETE)
            removed += row["gone"]
            if row["gone"] == row["found"] < _ENTRIES_A_DELETE:
                return removed

    async def expire_keys(
        self, *, record_age_s: float, request_age_s: float, max_bytes: int
    ) -> KeyHorizon:
        """See `IngestBus.expire_keys`. Raises Unavailable too when a lock is not free at once: repeat it later."""
        while True:
            (row,) = await self._fetch(
                sql.EXPIRE, self._lake, record_age_s, request_age_s, max_bytes
            )
            if not row["more"]:
                return KeyHorizon(record_s=row["record_s"], request_s=row["request_s"])

    async def head(self) -> Head:
        """See `IngestBus.head`."""
        try:
            (row,) = await self._fetch(sql.HEAD)
        except _NOT_MADE as error:
            problem = "the lake is not made yet: repeat the request"
            raise Unavailable("CATALOG_UNAVAILABLE", problem, retry_after_s=2) from error
        return Head(**dict(row))

    async def backlog(self) -> Backlog:
        """See `IngestBus.backlog`."""
        rows = await self._fetch(sql.BACKLOG, self._lake)
        first = rows[0]
        tables = [_table_backlog(row) for row in rows if row["table_name"] is not None]
        return Backlog(
            head=Head(
                last=first["last"],
                schema_version=first["schema_version"],
                timeline=first["timeline"],
            ),
            progress=Progress(
                token=first["token"],
                snapshot_id=first["snapshot_id"],
                committed_at=first["committed_at"],
                now=first["now"],
            ),
            pending_rows=sum(table.pending_rows for table in tables),
            pending_bytes=sum(table.pending_bytes for table in tables),
            oldest_pending_at=min((table.oldest_pending_at for table in tables), default=None),
            claimed=max(0, first["inflight_to"] - first["token"]),
            claimed_rows=sum(table.claimed_rows for table in tables),
            claimed_bytes=sum(table.claimed_bytes for table in tables),
            snapshot_id=first["newest_id"],
            snapshot_at=first["newest_at"],
            tables=tables,
            dead_letters=first["dead_letters"],
        )

    async def tables(self) -> tuple[int, Sequence[TableDef]]:
        """See `IngestBus.tables`."""
        rows = await self._fetch(sql.TABLES)
        tables = [_table(row) for row in rows if row["definition"] is not None]
        return rows[0]["schema_version"], tables

    async def table_versions(self, name: str) -> Sequence[TableVersion]:
        """See `IngestBus.table_versions`."""
        return [_version(row) for row in await self._fetch(sql.VERSIONS, name)]

    async def letters(
        self, after: int, *, limit: int, max_bytes: int, table: str | None = None
    ) -> Sequence[DeadLetter]:
        """See `DeadLetters.letters`."""
        rows = await self._fetch(sql.KEPT_AFTER, after, limit, max_bytes, table)
        return [_letter(row) for row in rows]

    async def letter(self, first: int) -> DeadLetter | None:
        """See `DeadLetters.letter`."""
        rows = await self._fetch(sql.KEPT + "WHERE first = $1", first)
        return _letter(rows[0]) if rows else None

    async def drop_letter(self, first: int) -> bool:
        """See `DeadLetters.drop_letter`."""
        return await self._delete(sql.DROP_LETTER, first) == 1

    async def _append(self, group: Sequence[Append]) -> Sequence[Receipt]:
        plan = _guess(group)
        async with self._pool.acquire() as connection:
            if plan is not None:
                receipts = await self._append_guessed(connection, plan)
                if receipts is not None:
                    return receipts
            return await self._append_locked(connection, group)

    async def _append_guessed(
        self, connection: asyncpg.Connection, plan: AppendPlan
    ) -> Sequence[Receipt] | None:
        """The receipts, or None when the plan's guess was wrong and nothing is written."""
        first, last, kinds, tables, _, _, sizes, payloads = _columns(plan.entries)
        row = await connection.fetchrow(
            self._sql(sql.APPEND),
            *(plan.schema_version, plan.last),
            *(first, last, kinds, tables, sizes, payloads),
            *_key_columns(plan),
        )
        if row["accepted_at"] is None:
            return None
        base, timeline, at = row
        return [moved(each, base, timeline=timeline, accepted_at=at) for each in plan.receipts]

    async def _append_locked(
        self, connection: asyncpg.Connection, group: Sequence[Append]
    ) -> Sequence[Receipt]:
        async with connection.transaction():
            head = Head(**dict(await connection.fetchrow(self._sql(sql.LOCK))))
            known = await self._known(connection, group)
            letters = await self._letters(connection, group)
            plan = plan_append(group, head, known, letters)
            now = await self._write(connection, plan) if plan.entries else None
        return [
            replace(receipt, accepted_at=now)
            if receipt.result is AppendResult.ACCEPTED
            else receipt
            for receipt in plan.receipts
        ]

    async def _known(self, connection: asyncpg.Connection, group: Sequence[Append]) -> Known:
        keys = [key for append in group for key in append.keys if key is not None]
        if not keys:
            return {}
        rows = await connection.fetch(self._sql(sql.KNOWN), *_by_kind(keys))
        return {(row["request"], row["key"]): (row["content"], row["number"]) for row in rows}

    async def _letters(
        self, connection: asyncpg.Connection, group: Sequence[Append]
    ) -> Collection[int]:
        """Those of the dead letters to replay that are there."""
        wanted = [append.replays for append in group if append.replays is not None]
        if not wanted:
            return ()
        return {row["first"] for row in await connection.fetch(self._sql(sql.LETTERS), wanted)}

    async def _write(self, connection: asyncpg.Connection, plan: AppendPlan) -> datetime:
        for change in plan.changes:
            await self._define(connection, change)
        if plan.replayed:
            await connection.execute(
                self._sql(sql.REPLAYED), *zip(*plan.replayed.items(), strict=True)
            )
        first, *more = _statements(plan.entries)
        now: datetime = await connection.fetchval(
            self._sql(sql.WRITE),
            *(plan.last, plan.schema_version),
            *_columns(first),
            *_key_columns(plan),
        )
        for entries in more:
            await connection.execute(self._sql(sql.MORE), *_columns(entries), now)
        return now

    async def _define(self, connection: asyncpg.Connection, change: PlannedEntry) -> None:
        version = change.schema_version + 1
        if change.kind is EntryKind.DROP_TABLE:
            await connection.execute(self._sql(sql.DROP), change.table, version)
        else:
            query = sql.CREATE if change.kind is EntryKind.CREATE_TABLE else sql.ALTER
            text = change.payload.decode()
            await connection.execute(self._sql(query), change.table, text, version)

    async def _fetch(self, query: str, *args: object) -> Sequence[asyncpg.Record]:
        with catalog_errors():
            rows: Sequence[asyncpg.Record] = await self._pool.fetch(self._sql(query), *args)
        return rows

    async def _delete(self, query: str, *args: object) -> int:
        with catalog_errors():
            status: str = await self._pool.execute(self._sql(query), *args)
        return int(status.rsplit(" ", 1)[1])

    def _sql(self, text: str) -> str:
        return text.replace("{bus}", self._bus).replace("{lake}", _quoted(self._lake))


def _quoted(name: str) -> str:
    """A Postgres identifier: the only way a name gets into a statement here."""
    return '"' + name.replace('"', '""') + '"'


def _guess(group: Sequence[Append]) -> AppendPlan | None:
    """What is written if no key is known, counted from 0; None for what `append_rows` does not do."""
    if not group or any(a.kind.is_change or a.replays is not None for a in group):
        return None
    version = max(append.schema_version for append in group)
    plan = plan_append(group, Head(last=0, schema_version=version, timeline=1), {})
    return plan if plan.entries and plan.size <= _BYTES_A_STATEMENT else None


def _statements(entries: Sequence[PlannedEntry]) -> Sequence[Sequence[PlannedEntry]]:
    """The entries, in order, as many to a statement as its bytes allow."""
    found: list[list[PlannedEntry]] = []
    room = 0
    for entry in entries:
        if not found or entry.size > room:
            found.append([])
            room = _BYTES_A_STATEMENT
        found[-1].append(entry)
        room -= entry.size
    return found


def _columns(entries: Sequence[PlannedEntry]) -> Sequence[Sequence[object]]:
    return (
        [e.first for e in entries],
        [e.last for e in entries],
        [e.kind.value for e in entries],
        [e.table for e in entries],
        [e.schema_version for e in entries],
        [e.last - e.first + 1 for e in entries],
        [min(e.size, _MOST_TOLD) for e in entries],
        [e.payload for e in entries],
    )


def _by_kind(keys: Sequence[KeyHash]) -> tuple[Sequence[bytes], Sequence[bytes]]:
    """Keys of records, and of requests."""
    return [k.key for k in keys if not k.request], [k.key for k in keys if k.request]


def _key_columns(plan: AppendPlan) -> Sequence[Sequence[object]]:
    return (
        [key.key for key, _ in plan.keys],
        [key.content for key, _ in plan.keys],
        [number for _, number in plan.keys],
        [key.request for key, _ in plan.keys],
        [key.accepted for key, _ in plan.keys],
        [key.rejected for key, _ in plan.keys],
    )


def _entry(row: asyncpg.Record) -> Entry:
    return Entry(
        first=row["first"],
        last=row["last"],
        kind=EntryKind(row["kind"]),
        table=row["table_name"],
        schema_version=row["schema_version"],
        payload=row["payload"],
        accepted_at=row["accepted_at"],
    )


def _known(row: asyncpg.Record) -> KnownKey:
    return KnownKey(
        content=row["content"],
        number=row["number"],
        timeline=row["timeline"],
        accepted=row["accepted"],
        rejected=row["rejected"],
    )


def _letter(row: asyncpg.Record) -> DeadLetter:
    return DeadLetter(
        first=row["first"],
        last=row["last"],
        kind=EntryKind(row["kind"]),
        table=row["table_name"],
        payload=row["payload"],
        error=row["error"],
        accepted_at=row["accepted_at"],
        set_aside_at=row["at"],
    )


def _table(row: asyncpg.Record) -> TableDef:
    return replace(parse_table(msgspec.json.decode(row["definition"])), version=row["version"])


def _version(row: asyncpg.Record) -> TableVersion:
    return TableVersion(
        schema_version=row["schema_version"],
        table=None if row["definition"] is None else _table(row),
        changed_at=row["changed_at"],
    )


def _table_backlog(row: asyncpg.Record) -> TableBacklog:
    return TableBacklog(
        table=row["table_name"],
        pending_rows=row["rows"],
        pending_bytes=row["bytes"],
        claimed_rows=row["claimed_rows"],
        claimed_bytes=row["claimed_bytes"],
        oldest_pending_at=row["oldest"],
    )
