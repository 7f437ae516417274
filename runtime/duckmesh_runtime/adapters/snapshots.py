"""Snapshots of a lake, their files and their pins, from DuckLake's catalog in Postgres under the writer's login.

Everything that one call tells is of one database snapshot. A file is live in snapshot S from its `begin_snapshot` on until
before its `end_snapshot`; files that were merged, and delete files that replaced others, reach back before S and mark each
row with the snapshot it came with (`partial_max` is the highest).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from itertools import groupby
from typing import Final

import asyncpg

from duckmesh_runtime.adapters.postgres import catalog_errors, quoted
from duckmesh_runtime.domain.moments import no_snapshot
from duckmesh_runtime.domain.snapshots import (
    ColumnRow,
    ColumnStatistics,
    DataFile,
    DeleteFile,
    FieldName,
    NameRow,
    PartitionValue,
    Pin,
    SnapshotFiles,
    SnapshotInfo,
    SnapshotTable,
    TableSize,
    column_tree,
    name_tree,
)
from duckmesh_runtime.errors import DuckmeshError, Invalid, NotFound, Unavailable

_MOST_PINS: Final = 1_000
_MOST_STATISTICS: Final = 50_000
"""Of one page of files: some 10 MB of JSON."""

_LIVE: Final = "{x}.begin_snapshot <= $1 AND ({x}.end_snapshot IS NULL OR {x}.end_snapshot > $1)"
_HOLDS: Final = "(p.expires_at IS NULL OR p.expires_at > clock_timestamp())"

_SNAPSHOTS: Final = """
SELECT s.snapshot_id, s.snapshot_time, s.schema_version,
       coalesce(s.schema_version <> (
         SELECT p.schema_version FROM {lake}.ducklake_snapshot AS p
          WHERE p.snapshot_id < s.snapshot_id ORDER BY p.snapshot_id DESC LIMIT 1), false) AS changed,
       coalesce(
         (SELECT (c.commit_extra_info::jsonb->>'tok')::bigint FROM {lake}.ducklake_snapshot_changes AS c
           WHERE c.snapshot_id <= s.snapshot_id AND c.commit_extra_info::jsonb ? 'tok'
           ORDER BY c.snapshot_id DESC LIMIT 1), 0) AS token
  FROM {lake}.ducklake_snapshot AS s WHERE s.snapshot_id BETWEEN $1 AND $2 ORDER BY s.snapshot_id DESC LIMIT $3
"""
_PINS: Final = f"""
SELECT p.snapshot_id, p.name, p.pinned_at, p.expires_at FROM {{bus}}.pin AS p
 WHERE p.snapshot_id = ANY($1::bigint[]) AND {_HOLDS} ORDER BY p.snapshot_id, p.pinned_at, p.name
"""  # noqa: S608 - constants only
_BOUNDS: Final = """
SELECT min(snapshot_id) AS oldest, max(snapshot_id) AS newest, clock_timestamp() AS now FROM {lake}.ducklake_snapshot
"""
_TABLES: Final = f"""
SELECT t.table_id, t.table_name FROM {{lake}}.ducklake_table AS t JOIN {{lake}}.ducklake_schema AS s USING (schema_id)
 WHERE {_LIVE.format(x="t")} AND {_LIVE.format(x="s")} AND s.schema_name = 'main'
   AND ($2::text IS NULL OR t.table_name = $2) ORDER BY t.table_name
"""  # noqa: S608 - constants only
_SIZES: Final = f"""
SELECT f.table_id, count(*) FILTER (WHERE f.data) AS files, count(*) FILTER (WHERE NOT f.data) AS delete_files,
       coalesce(sum(f.file_size_bytes) FILTER (WHERE f.data), 0)::bigint AS size
  FROM (SELECT table_id, file_size_bytes, begin_snapshot, end_snapshot, true AS data FROM {{lake}}.ducklake_data_file
        UNION ALL
        SELECT table_id, file_size_bytes, begin_snapshot, end_snapshot, false FROM {{lake}}.ducklake_delete_file) AS f
 WHERE {_LIVE.format(x="f")} GROUP BY f.table_id
"""  # noqa: S608 - constants only
_COLUMNS: Final = f"""
SELECT c.table_id, c.column_id, c.parent_column, c.column_name, c.column_type, c.nulls_allowed, c.initial_default
  FROM {{lake}}.ducklake_column AS c WHERE {_LIVE.format(x="c")} AND c.table_id = ANY($2::bigint[])
 ORDER BY c.table_id, c.column_order
"""  # noqa: S608 - constants only
_COUNT: Final = f"""
SELECT count(*) FROM {{lake}}.ducklake_data_file AS f
 WHERE {_LIVE.format(x="f")} AND f.table_id = ANY($2::bigint[]) AND f.data_file_id <= $3
"""  # noqa: S608 - constants only
_PATH: Final = """CASE WHEN NOT {x}.path_is_relative THEN {x}.path
            WHEN NOT t.path_is_relative THEN t.path || {x}.path
            ELSE s.path || t.path || {x}.path END"""
_FOLDERS: Final = "JOIN {lake}.ducklake_table AS t USING (table_id) JOIN {lake}.ducklake_schema AS s USING (schema_id)"
_FILES: Final = f"""
SELECT f.data_file_id, t.table_name, {_PATH.format(x="f")} AS path, f.file_size_bytes, f.record_count, f.partial_max,
       f.mapping_id
  FROM {{lake}}.ducklake_data_file AS f {_FOLDERS}
 WHERE {_LIVE.format(x="f")} AND {_LIVE.format(x="t")} AND {_LIVE.format(x="s")}
   AND f.table_id = ANY($2::bigint[]) AND f.data_file_id > $3 ORDER BY f.data_file_id LIMIT $4
"""  # noqa: S608 - constants only
_DELETES: Final = f"""
SELECT d.data_file_id, {_PATH.format(x="d")} AS path, d.file_size_bytes, d.delete_count, d.partial_max
  FROM {{lake}}.ducklake_delete_file AS d {_FOLDERS}
 WHERE {_LIVE.format(x="d")} AND {_LIVE.format(x="t")} AND {_LIVE.format(x="s")}
   AND d.data_file_id = ANY($2::bigint[]) ORDER BY d.data_file_id, d.delete_file_id
"""  # noqa: S608 - constants only
_PARTITIONS: Final = """
SELECT v.data_file_id, c.column_id, c.transform, v.partition_value
  FROM {lake}.ducklake_file_partition_value AS v
  JOIN {lake}.ducklake_data_file AS f USING (data_file_id)
  JOIN {lake}.ducklake_partition_column AS c
    ON c.partition_id = f.partition_id AND c.partition_key_index = v.partition_key_index
 WHERE v.data_file_id = ANY($1::bigint[]) ORDER BY v.data_file_id, v.partition_key_index
"""
_STATISTICS: Final = """
SELECT data_file_id, column_id, column_size_bytes, value_count, null_count, min_value, max_value, contains_nan
  FROM {lake}.ducklake_file_column_stats WHERE data_file_id = ANY($1::bigint[]) ORDER BY data_file_id, column_id
"""
_NAMES: Final = """
SELECT mapping_id, column_id, parent_column, target_field_id, source_name
  FROM {lake}.ducklake_name_mapping WHERE mapping_id = ANY($1::bigint[]) ORDER BY mapping_id, column_id
"""
_IN_TIME: Final = "SELECT $1::timestamptz IS NULL OR $1 > clock_timestamp()"
_OTHERS: Final = f"""
SELECT count(*) FROM {{bus}}.pin AS p WHERE {_HOLDS} AND (p.snapshot_id, p.name) <> ($1, $2)
"""  # noqa: S608 - constants only
_PIN: Final = """
INSERT INTO {bus}.pin (snapshot_id, name, expires_at) VALUES ($1, $2, $3)
ON CONFLICT (snapshot_id, name) DO UPDATE SET expires_at = EXCLUDED.expires_at
"""
_UNPIN: Final = "DELETE FROM {bus}.pin WHERE snapshot_id = $1 AND name = $2"
_HIGHEST: Final = 2**63 - 1


class PostgresSnapshots:
    """`ports.SnapshotStore` over a pool of the writer's login."""

    def __init__(self, pool: asyncpg.Pool, lake: str) -> None:
        self._pool = pool
        self._lake = lake

    async def page(self, before: int | None, *, limit: int) -> Sequence[SnapshotInfo]:
        """See `SnapshotStore.page`."""
        async with self._reading() as connection:
            below = _HIGHEST if before is None else before - 1
            return await self._snapshots(connection, 0, below, limit)

    async def find(self, snapshot_id: int) -> tuple[SnapshotInfo, Sequence[TableSize]]:
        """See `SnapshotStore.find`."""
        async with self._reading() as connection:
            snapshot = await self._find(connection, snapshot_id)
            tables = await connection.fetch(self._sql(_TABLES), snapshot_id, None)
            rows = await connection.fetch(self._sql(_SIZES), snapshot_id)
        sizes = {row["table_id"]: row for row in rows}
        return snapshot, [_size(row["table_name"], sizes.get(row["table_id"])) for row in tables]

    async def files(
        self, snapshot_id: int, *, table: str | None, after: int, limit: int
    ) -> SnapshotFiles:
        """See `SnapshotStore.files`."""
        async with self._reading() as connection:
            snapshot = await self._find(connection, snapshot_id)
            ids = await self._table_ids(connection, snapshot_id, table)
            tables, widest = await self._tables(connection, snapshot_id, ids)
            most = max(1, min(limit, _MOST_STATISTICS // max(1, widest)))
            wanted = (snapshot_id, list(ids), after)
            before = await connection.fetchval(self._sql(_COUNT), *wanted)
            rows = await connection.fetch(self._sql(_FILES), *wanted, most + 1)
            files = await self._files(connection, snapshot_id, rows[:most])
        return SnapshotFiles(
            snapshot=snapshot, tables=tables, files=files, more=len(rows) > most, before=before
        )

    async def pin(self, snapshot_id: int, name: str, expires_at: datetime | None) -> SnapshotInfo:
        """See `SnapshotStore.pin`."""
        with catalog_errors():
            async with self._pool.acquire() as connection:
                if not await connection.fetchval(_IN_TIME, expires_at):
                    raise Invalid(
                        "VALIDATION_FAILED",
                        "expires_at: is past: give a later time",
                        context={"field": "expires_at"},
                    )
                if await connection.fetchval(self._sql(_OTHERS), snapshot_id, name) >= _MOST_PINS:
                    raise Invalid(
                        "VALIDATION_FAILED",
                        f"snapshot_id: the lake has {_MOST_PINS} pins, which is the most: unpin others first",
                        context={"field": "snapshot_id", "limit": _MOST_PINS},
                    )
                try:
                    await connection.execute(self._sql(_PIN), snapshot_id, name, expires_at)
                except asyncpg.ForeignKeyViolationError:
                    raise await self._missing(connection, snapshot_id) from None
        return await self._one(snapshot_id)

    async def unpin(self, snapshot_id: int, name: str) -> tuple[SnapshotInfo, bool]:
        """See `SnapshotStore.unpin`."""
        with catalog_errors():
            done: str = await self._pool.execute(self._sql(_UNPIN), snapshot_id, name)
        return await self._one(snapshot_id), done == "DELETE 1"

    async def _one(self, snapshot_id: int) -> SnapshotInfo:
        async with self._reading() as connection:
            return await self._find(connection, snapshot_id)

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[asyncpg.Connection]:
        with catalog_errors():
            async with (
                self._pool.acquire() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                yield connection

    async def _find(self, connection: asyncpg.Connection, snapshot_id: int) -> SnapshotInfo:
        found = await self._snapshots(connection, snapshot_id, snapshot_id, 1)
        if not found:
            raise await self._missing(connection, snapshot_id)
        return found[0]

    async def _missing(self, connection: asyncpg.Connection, snapshot_id: int) -> DuckmeshError:
        row = await connection.fetchrow(self._sql(_BOUNDS))
        if row["newest"] is None:
            return Unavailable(
                "CATALOG_UNAVAILABLE", "the lake is not made yet: repeat the request"
            )
        return no_snapshot(snapshot_id, newest=row["newest"], oldest=row["oldest"], now=row["now"])

    async def _snapshots(
        self, connection: asyncpg.Connection, low: int, high: int, limit: int
    ) -> Sequence[SnapshotInfo]:
        rows = await connection.fetch(self._sql(_SNAPSHOTS), low, high, limit)
        pins = _grouped(
            await connection.fetch(self._sql(_PINS), [row["snapshot_id"] for row in rows])
        )
        return [
            SnapshotInfo(
                snapshot_id=row["snapshot_id"],
                snapshot_time=row["snapshot_time"],
                token=row["token"],
                schema_version=row["schema_version"],
                schema_changed=row["changed"],
                pins=[Pin(name=n, pinned_at=at, expires_at=end) for _, n, at, end in pinned],
            )
            for row in rows
            for pinned in [pins.get(row["snapshot_id"], ())]
        ]

    async def _table_ids(
        self, connection: asyncpg.Connection, snapshot_id: int, table: str | None
    ) -> Mapping[int, str]:
        rows = await connection.fetch(self._sql(_TABLES), snapshot_id, table)
        if table is not None and not rows:
            raise NotFound(
                "TABLE_NOT_FOUND",
                f"table: there is no table {table} in snapshot {snapshot_id}",
                context={"field": "table"},
            )
        return {row["table_id"]: row["table_name"] for row in rows}

    async def _tables(
        self, connection: asyncpg.Connection, snapshot_id: int, ids: Mapping[int, str]
    ) -> tuple[Sequence[SnapshotTable], int]:
        """Their columns, and how many fields the widest has."""
        found = _grouped(await connection.fetch(self._sql(_COLUMNS), snapshot_id, list(ids)))
        tables = [
            SnapshotTable(name=name, columns=column_tree(map(_column, found.get(key, ()))))
            for key, name in ids.items()
        ]
        return tables, max(map(len, found.values()), default=0)

    async def _files(
        self, connection: asyncpg.Connection, snapshot_id: int, rows: Sequence[asyncpg.Record]
    ) -> Sequence[DataFile]:
        ids = [row["data_file_id"] for row in rows]
        deletes = _grouped(await connection.fetch(self._sql(_DELETES), snapshot_id, ids))
        partitions = _grouped(await connection.fetch(self._sql(_PARTITIONS), ids))
        statistics = _grouped(await connection.fetch(self._sql(_STATISTICS), ids))
        mappings = {row["mapping_id"] for row in rows} - {None}
        names = _grouped(await connection.fetch(self._sql(_NAMES), list(mappings)))
        return [
            DataFile(
                file_id=key,
                table=row["table_name"],
                path=row["path"],
                size_bytes=row["file_size_bytes"],
                row_count=row["record_count"],
                upto_snapshot_id=_upto(snapshot_id, row["partial_max"]),
                delete_files=[_delete(snapshot_id, each) for each in deletes.get(key, ())],
                partition=[
                    PartitionValue(field_id=field_id, transform=transform, value=value)
                    for _, field_id, transform, value in partitions.get(key, ())
                ],
                statistics=[_statistics(each) for each in statistics.get(key, ())],
                names=_names(names, row["mapping_id"]),
            )
            for row in rows
            for key in [row["data_file_id"]]
        ]

    def _sql(self, text: str) -> str:
        return text.format(lake=quoted(self._lake), bus=quoted(f"{self._lake}_bus"))


def _grouped(rows: Sequence[asyncpg.Record]) -> Mapping[int, Sequence[asyncpg.Record]]:
    """Rows by their first column, by which they are sorted."""
    return {key: list(group) for key, group in groupby(rows, key=lambda row: row[0])}


def _size(name: str, row: asyncpg.Record | None) -> TableSize:
    if row is None:
        return TableSize(name=name, files=0, size_bytes=0, delete_files=0)
    return TableSize(
        name=name, files=row["files"], size_bytes=row["size"], delete_files=row["delete_files"]
    )


def _column(row: asyncpg.Record) -> ColumnRow:
    return ColumnRow(
        field_id=row["column_id"],
        parent=row["parent_column"],
        name=row["column_name"],
        type=row["column_type"],
        nullable=row["nulls_allowed"],
        initial_default=row["initial_default"],
    )


def _upto(snapshot_id: int, partial_max: int | None) -> int | None:
    """Where rows of a file that came later begin, if it has any."""
    return snapshot_id if partial_max is not None and partial_max > snapshot_id else None


def _delete(snapshot_id: int, row: asyncpg.Record) -> DeleteFile:
    return DeleteFile(
        path=row["path"],
        size_bytes=row["file_size_bytes"],
        row_count=row["delete_count"],
        upto_snapshot_id=_upto(snapshot_id, row["partial_max"]),
    )


def _statistics(row: asyncpg.Record) -> ColumnStatistics:
    return ColumnStatistics(
        field_id=row["column_id"],
        size_bytes=row["column_size_bytes"],
        value_count=row["value_count"],
        null_count=row["null_count"],
        min=row["min_value"],
        max=row["max_value"],
        contains_nan=row["contains_nan"],
    )


def _names(
    names: Mapping[int, Sequence[asyncpg.Record]], mapping_id: int | None
) -> Sequence[FieldName] | None:
    if mapping_id is None:
        return None
    return name_tree(
        NameRow(key=key, parent=parent, field_id=field_id, name=name)
        for _, key, parent, field_id, name in names.get(mapping_id, ())
    )
