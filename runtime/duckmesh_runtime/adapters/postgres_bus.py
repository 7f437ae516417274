"""The bus in Postgres: `IngestBus` over the tables of sql/catalog/0002_bus.sql. Nothing else knows that it is Postgres.

An append locks the lake's head row and holds it to COMMIT, so numbers come in commit order and what an append looks up
(schema version, known keys) cannot change under it. `append_plan` then decides what one statement writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

import asyncpg
import msgspec

from duckmesh_runtime.adapters.append_plan import AppendPlan, PlannedEntry, plan_append
from duckmesh_runtime.adapters.postgres import catalog_errors
from duckmesh_runtime.domain.schema import TableDef, parse_table
from duckmesh_runtime.ports import (
    Append,
    AppendResult,
    Backlog,
    Entry,
    EntryKind,
    Head,
    Progress,
    Receipt,
    TableBacklog,
)

_BYTES_A_STATEMENT: Final = (
    4 * 2**20
)  # encoding a statement holds up the event loop: about 4 ms for these
_ENTRIES_A_READ: Final = 10_000
_ROWS_A_DELETE: Final = 10_000  # keeps one statement of a clean-up well below the statement timeout

_LOCK: Final = "SELECT last, schema_version, timeline FROM {bus}.head FOR NO KEY UPDATE"

_KNOWN: Final = "SELECT key, content, number FROM {bus}.idempotency WHERE key = ANY($1::bytea[])"

_WRITE: Final = """
WITH t AS MATERIALIZED (SELECT clock_timestamp() AS now),
  h AS (UPDATE {bus}.head SET last = $1, schema_version = $2),
  e AS (INSERT INTO {bus}.entry
          (first, last, kind, table_name, schema_version, row_count, byte_count, payload, accepted_at)
        SELECT u.*, t.now FROM t, unnest($3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::bigint[], $8::int[],
                                         $9::int[], $10::bytea[]) AS u),
  i AS (INSERT INTO {bus}.idempotency (key, content, number, request, accepted_at)
        SELECT u.*, t.now FROM t, unnest($11::bytea[], $12::bytea[], $13::bigint[], $14::boolean[]) AS u)
SELECT now FROM t
"""

_MORE: Final = """
INSERT INTO {bus}.entry
  (first, last, kind, table_name, schema_version, row_count, byte_count, payload, accepted_at)
SELECT u.*, $9 FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::int[], $7::int[],
                           $8::bytea[]) AS u
"""

_DEFINE: Final = """
INSERT INTO {bus}.table_def (name, definition, version) VALUES ($1, $2::jsonb, $3)
ON CONFLICT (name) DO UPDATE SET definition = EXCLUDED.definition, version = EXCLUDED.version
"""

_UNDEFINE: Final = "DELETE FROM {bus}.table_def WHERE name = $1"

_READ: Final = """
WITH ahead AS (
  SELECT last, sum(row_count) OVER w AS rows, sum(byte_count) OVER w AS bytes, row_number() OVER w AS n
    FROM (SELECT last, row_count, byte_count FROM {bus}.entry
           WHERE last > $1 AND first > $1 ORDER BY last LIMIT $4) AS x
  WINDOW w AS (ORDER BY last))
SELECT e.first, e.last, e.kind, e.table_name, e.schema_version, e.payload, e.accepted_at
  FROM ahead AS a JOIN {bus}.entry AS e USING (last)
 WHERE a.n = 1 OR (a.rows <= $2 AND a.bytes <= $3) ORDER BY e.last
"""

_TRIM: Final = """
DELETE FROM {bus}.entry WHERE last IN (SELECT last FROM {bus}.entry WHERE last <= $1 ORDER BY last LIMIT $2)
"""

_FORGET: Final = """
DELETE FROM {bus}.idempotency WHERE key IN (
  SELECT key FROM {bus}.idempotency
   WHERE request = $1 AND accepted_at < clock_timestamp() - make_interval(secs => $2) ORDER BY accepted_at LIMIT $3)
"""

_HEAD: Final = "SELECT last, schema_version, timeline FROM {bus}.head"

_BACKLOG: Final = """
WITH s AS MATERIALIZED (
  SELECT coalesce(max(token), 0) AS token, max(token_snapshot_id) AS snapshot_id, max(committed_at) AS committed_at
    FROM duckmesh.lake_status WHERE lake = $1)
SELECT h.last, h.schema_version, h.timeline, s.token, s.snapshot_id, s.committed_at, clock_timestamp() AS now,
       (SELECT inflight_to FROM duckmesh.heartbeat
         WHERE lake = $1 AND role = 'w' AND expires_at > clock_timestamp()) AS inflight_to,
       e.table_name, e.rows, e.bytes, e.oldest
  FROM s CROSS JOIN {bus}.head AS h
  LEFT JOIN (SELECT table_name, coalesce(sum(row_count) FILTER (WHERE kind = 'rows'), 0)::bigint AS rows,
                    sum(byte_count)::bigint AS bytes, min(accepted_at) AS oldest
               FROM {bus}.entry WHERE last > (SELECT token FROM s) GROUP BY table_name) AS e ON true
 ORDER BY e.table_name COLLATE "C"
"""

_TABLES: Final = """
SELECT h.schema_version, d.definition, d.version
  FROM {bus}.head AS h LEFT JOIN {bus}.table_def AS d ON true ORDER BY d.name COLLATE "C"
"""


class PostgresBus:
    """`IngestBus` of one lake.

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
        keys = [key.key for append in group for key in append.keys if key is not None]
        with catalog_errors():
            async with self._pool.acquire() as connection, connection.transaction():
                head = Head(**dict(await connection.fetchrow(self._sql(_LOCK))))
                known = await self._known(connection, keys)
                plan = plan_append(group, head, known)
                now = await self._write(connection, plan) if plan.entries else None
        return [
            replace(receipt, accepted_at=now)
            if receipt.result is AppendResult.ACCEPTED
            else receipt
            for receipt in plan.receipts
        ]

    async def read(self, after: int, *, max_rows: int, max_bytes: int) -> Sequence[Entry]:
        """See `IngestBus.read`."""
        rows = await self._fetch(_READ, after, max_rows, max_bytes, _ENTRIES_A_READ)
        return [
            Entry(
                first=row["first"],
                last=row["last"],
                kind=EntryKind(row["kind"]),
                table=row["table_name"],
                schema_version=row["schema_version"],
                payload=row["payload"],
                accepted_at=row["accepted_at"],
            )
            for row in rows
        ]

    async def trim(self, upto: int) -> int:
        """See `IngestBus.trim`."""
        removed = 0
        while True:
            step = await self._delete(_TRIM, upto, _ROWS_A_DELETE)
            removed += step
            if step < _ROWS_A_DELETE:
                return removed

    async def forget_keys(self, *, record_age_s: float, request_age_s: float, max_keys: int) -> int:
        """See `IngestBus.forget_keys`."""
        records = await self._delete(_FORGET, False, record_age_s, max_keys)
        return records + await self._delete(_FORGET, True, request_age_s, max_keys - records)

    async def head(self) -> Head:
        """See `IngestBus.head`."""
        (row,) = await self._fetch(_HEAD)
        return Head(**dict(row))

    async def backlog(self) -> Backlog:
        """See `IngestBus.backlog`."""
        rows = await self._fetch(_BACKLOG, self._lake)
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
            claimed=max(0, (first["inflight_to"] or 0) - first["token"]),
            tables=tables,
        )

    async def tables(self) -> tuple[int, Sequence[TableDef]]:
        """See `IngestBus.tables`."""
        rows = await self._fetch(_TABLES)
        tables = [
            replace(parse_table(msgspec.json.decode(row["definition"])), version=row["version"])
            for row in rows
            if row["definition"] is not None
        ]
        return rows[0]["schema_version"], tables

    async def _known(
        self, connection: asyncpg.Connection, keys: Sequence[bytes]
    ) -> dict[bytes, tuple[bytes, int]]:
        if not keys:
            return {}
        rows = await connection.fetch(self._sql(_KNOWN), keys)
        return {row["key"]: (row["content"], row["number"]) for row in rows}

    async def _write(self, connection: asyncpg.Connection, plan: AppendPlan) -> datetime:
        for change in plan.changes:
            if change.kind is EntryKind.CREATE_TABLE:
                text = change.payload.decode()
                await connection.execute(
                    self._sql(_DEFINE), change.table, text, change.schema_version + 1
                )
            else:
                await connection.execute(self._sql(_UNDEFINE), change.table)
        first, *more = _statements(plan.entries)
        now: datetime = await connection.fetchval(
            self._sql(_WRITE),
            plan.last,
            plan.schema_version,
            *_columns(first),
            [k.key for k, _ in plan.keys],
            [k.content for k, _ in plan.keys],
            [number for _, number in plan.keys],
            [k.request for k, _ in plan.keys],
        )
        for entries in more:
            await connection.execute(self._sql(_MORE), *_columns(entries), now)
        return now

    async def _fetch(self, sql: str, *args: object) -> Sequence[asyncpg.Record]:
        with catalog_errors():
            rows: Sequence[asyncpg.Record] = await self._pool.fetch(self._sql(sql), *args)
        return rows

    async def _delete(self, sql: str, *args: object) -> int:
        with catalog_errors():
            status: str = await self._pool.execute(self._sql(sql), *args)
        return int(status.rsplit(" ", 1)[1])

    def _sql(self, text: str) -> str:
        return text.replace("{bus}", self._bus)


def _quoted(name: str) -> str:
    """A Postgres identifier: the only way a name gets into a statement here."""
    return '"' + name.replace('"', '""') + '"'


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
        [e.size for e in entries],
        [e.payload for e in entries],
    )


def _table_backlog(row: asyncpg.Record) -> TableBacklog:
    return TableBacklog(
        table=row["table_name"],
        pending_rows=row["rows"],
        pending_bytes=row["bytes"],
        oldest_pending_at=row["oldest"],
    )
