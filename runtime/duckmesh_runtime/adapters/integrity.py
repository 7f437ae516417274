"""What a lake's catalog says of its files and rows, under the maintenance login. See `ports.LakeCheck`.

Nothing here changes the lake: only the reports of what was found are written.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

import asyncpg
import msgspec

from duckmesh_runtime.adapters import postgres
from duckmesh_runtime.adapters.postgres import catalog_errors, quoted
from duckmesh_runtime.domain.integrity import Difference, Hit, LakeFile

_STATEMENT_TIMEOUT_MS: Final = 60_000
_PAGE: Final = 2_000
_BEFORE_ALL: Final = -1

# A table's folder stays what it was when the table was made, whatever it is called later.
_FOLDERS: Final = """
  JOIN (SELECT DISTINCT ON (table_id) * FROM {lake}.ducklake_table ORDER BY table_id, begin_snapshot DESC) AS t USING (table_id)
  JOIN (SELECT DISTINCT ON (schema_id) * FROM {lake}.ducklake_schema ORDER BY schema_id, begin_snapshot DESC) AS s
    ON s.schema_id = t.schema_id
"""
_PATH: Final = """CASE WHEN NOT f.path_is_relative THEN f.path
            WHEN NOT t.path_is_relative THEN t.path || f.path
            WHEN NOT s.path_is_relative THEN s.path || t.path || f.path
            ELSE s.path || t.path || f.path END"""

# Whatever has a row is of a kept snapshot: expiry takes the rows of the others away. By id, so that no transaction lasts.
_DATA_FILES: Final = f"""
SELECT f.data_file_id AS id, {_PATH} AS path, f.file_size_bytes, f.record_count, f.footer_size, f.file_format
  FROM {{lake}}.ducklake_data_file AS f {_FOLDERS} WHERE f.data_file_id > $1 ORDER BY f.data_file_id LIMIT $2
"""  # noqa: S608 - constants only
_DELETE_FILES: Final = f"""
SELECT f.delete_file_id AS id, {_PATH} AS path, f.file_size_bytes, f.delete_count, f.footer_size, f.format
  FROM {{lake}}.ducklake_delete_file AS f {_FOLDERS} WHERE f.delete_file_id > $1 ORDER BY f.delete_file_id LIMIT $2
"""  # noqa: S608 - constants only

# A delete file takes all rows of its data file with it: which of them are deleted is not known any more.
_HITS: Final = f"""
SELECT {_PATH} AS path, t.table_name,
       f.record_count - coalesce((SELECT sum(d.delete_count) FROM {{lake}}.ducklake_delete_file AS d
                                   WHERE d.data_file_id = f.data_file_id AND d.end_snapshot IS NULL), 0) AS rows,
       (SELECT count(*) FROM {{lake}}.ducklake_snapshot AS n
         WHERE n.snapshot_id >= f.begin_snapshot AND (f.end_snapshot IS NULL OR n.snapshot_id < f.end_snapshot)) AS snapshots,
       f.end_snapshot IS NULL AS live
  FROM (SELECT table_id, data_file_id, path, path_is_relative, record_count, begin_snapshot, end_snapshot
          FROM {{lake}}.ducklake_data_file
        UNION ALL
        SELECT d.table_id, d.data_file_id, d.path, d.path_is_relative, y.record_count, d.begin_snapshot,
               least(d.end_snapshot, y.end_snapshot)
          FROM {{lake}}.ducklake_delete_file AS d JOIN {{lake}}.ducklake_data_file AS y USING (data_file_id)) AS f {_FOLDERS}
 WHERE {_PATH} = ANY($1) ORDER BY path
"""  # noqa: S608 - constants only
_DIFFERENCES: Final = "SELECT table_name, catalog, ledger FROM duckmesh.compare_ledger($1)"

_NAMED: Final = f"""
SELECT {_PATH} AS path
  FROM (SELECT table_id, path, path_is_relative FROM {{lake}}.ducklake_data_file
        UNION ALL SELECT table_id, path, path_is_relative FROM {{lake}}.ducklake_delete_file) AS f {_FOLDERS}
 WHERE {_PATH} = ANY($1)
UNION ALL SELECT path FROM {{lake}}.ducklake_files_scheduled_for_deletion WHERE path = ANY($1)
"""  # noqa: S608 - constants only
_STAGED: Final = """
SELECT payload FROM {bus}.entry WHERE kind = 'file' UNION ALL SELECT payload FROM {bus}.dead_letter WHERE kind = 'file'
"""
_NOW: Final = "SELECT clock_timestamp()"
_REPORT_INTEGRITY: Final = "SELECT duckmesh.report_integrity($1, $2)"
_REPORT_ORPHANS: Final = "SELECT duckmesh.report_orphans($1, $2)"


class _Staged(msgspec.Struct):
    """Of an entry's or a letter's payload, what counts here."""

    path: str


_STAGED_FILE: Final = msgspec.json.Decoder(_Staged)


@asynccontextmanager
async def open_check(*, lake: str, secret_dir: Path) -> AsyncIterator[PostgresCheck]:
    """Connect to a lake's catalog.

    Args:
        lake: Catalog schema.
        secret_dir: Folder with `dsn` of the maintenance login, read now.

    Raises:
        Unavailable: The catalog does not answer.
    """
    with catalog_errors():
        connection = await postgres.connect(
            secret_dir,
            application_name=f"duckmesh:{lake}:integrity",
            statement_timeout_ms=_STATEMENT_TIMEOUT_MS,
        )
    try:
        yield PostgresCheck(connection, lake)
    finally:
        connection.terminate()


class PostgresCheck:
    """`LakeCheck` over one connection; made by `open_check`."""

    def __init__(self, connection: asyncpg.Connection, lake: str) -> None:
        self._connection = connection
        self._lake = lake

    async def files(self) -> AsyncIterator[Sequence[LakeFile]]:
        """See `LakeCheck.files`."""
        for query in (_DATA_FILES, _DELETE_FILES):
            after = _BEFORE_ALL
            while True:
                with catalog_errors():
                    rows = await self._connection.fetch(self._sql(query), after, _PAGE)
                if not rows:
                    break
                yield [_file(row) for row in rows]
                after = rows[-1]["id"]

    async def hits(self, paths: Sequence[str]) -> Sequence[Hit]:
        """See `LakeCheck.hits`."""
        with catalog_errors():
            rows = await self._connection.fetch(self._sql(_HITS), list(paths))
        return [
            Hit(path=path, table=table, rows=int(count), snapshots=snapshots, live=live)
            for path, table, count, snapshots, live in rows
        ]

    async def differences(self) -> Sequence[Difference]:
        """See `LakeCheck.differences`."""
        with catalog_errors():
            rows = await self._connection.fetch(_DIFFERENCES, self._lake)
        return [Difference(table=table, catalog=c, ledger=n) for table, c, n in rows]

    async def unnamed(self, paths: Sequence[str]) -> Sequence[str]:
        """See `LakeCheck.unnamed`."""
        with catalog_errors():
            async with self._connection.transaction(isolation="repeatable_read", readonly=True):
                rows = await self._connection.fetch(self._sql(_NAMED), list(paths))
                staged = await self._connection.fetch(self._sql(_STAGED))
        named = {row["path"] for row in rows}
        named |= {_STAGED_FILE.decode(row["payload"]).path for row in staged}
        return [path for path in paths if path not in named]

    async def now(self) -> datetime:
        """See `LakeCheck.now`."""
        with catalog_errors():
            found: datetime = await self._connection.fetchval(_NOW)
        return found

    async def report_integrity(self, report: Mapping[str, object]) -> None:
        """See `LakeCheck.report_integrity`."""
        await self._report(_REPORT_INTEGRITY, report)

    async def report_orphans(self, report: Mapping[str, object]) -> None:
        """See `LakeCheck.report_orphans`."""
        await self._report(_REPORT_ORPHANS, report)

    async def _report(self, query: str, report: Mapping[str, object]) -> None:
        text = msgspec.json.encode(report).decode()
        with catalog_errors():
            await self._connection.execute(query, self._lake, text)

    def _sql(self, text: str) -> str:
        return text.format(lake=quoted(self._lake), bus=quoted(f"{self._lake}_bus"))


def _file(row: asyncpg.Record) -> LakeFile:
    _, path, size, rows, footer, kind = row
    return LakeFile(path=path, size=size, rows=rows, footer=footer, parquet=kind == "parquet")
