"""What of a lake's catalog differs from a copy of it: read from Postgres by COPY, for `catalog_copy` to write.

By content, so that nothing depends on how DuckLake changes its tables. A table whose live rows have another digest is
read whole. Lists of files are read whole, by id, and when they begin as before only the rest is written. What describes a
file (bounds of its columns, its partition) never changes while the file's own row stays as it is: it is read for the
files that came, or whole when one went.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import asyncpg

from duckmesh_runtime.domain.lakesql import quote_name

LISTS: Final = {"ducklake_data_file": "data_file_id", "ducklake_delete_file": "delete_file_id"}
"""Lists of files, and their ids; an id is never used again."""

_OF_FILES: Final = frozenset(
    {"ducklake_file_column_stats", "ducklake_file_partition_value", "ducklake_file_variant_stats"}
)
_FOLDERS: Final = frozenset({"ducklake_table", "ducklake_schema"})
# Not needed to read: what was deleted, who committed what.
_LEFT_EMPTY: Final = frozenset(
    {"ducklake_files_scheduled_for_deletion", "ducklake_snapshot_changes"}
)
# Of the newest snapshot, without history: a later type's bounds mean nothing to the column as it was.
_NEWEST_ONLY: Final = frozenset({"ducklake_table_column_stats"})
_LIVE: Final = "{x}begin_snapshot <= {s} AND ({x}end_snapshot IS NULL OR {x}end_snapshot > {s})"
_BEFORE_ALL: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Rows as COPY wrote them: how long they are, and their digest."""

    size_bytes: int = 0
    digest: bytes = hashlib.blake2b().digest()

    @classmethod
    def of(cls, rows: bytes) -> Text:
        """Of these."""
        return cls(size_bytes=len(rows), digest=hashlib.blake2b(rows).digest())

    def begins(self, rows: bytes) -> bool:
        """Whether these begin with them."""
        return hashlib.blake2b(memoryview(rows)[: self.size_bytes]).digest() == self.digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a copy holds.

    Attributes:
        digests: Of tables that have rows; of lists of files and of what describes files only that they have.
        lists: By table.
        last: The highest id in each list.
    """

    digests: Mapping[str, str] = field(default_factory=dict)
    lists: Mapping[str, Text] = field(default_factory=dict)
    last: Mapping[str, int] = field(default_factory=dict)


NOTHING: Final = Held()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    r"""Rows for a table of a copy.

    Attributes:
        table: Its name.
        rows: CSV; NULL is an unquoted `\N`.
        added: They come to those that are there; else they are all.
    """

    table: str
    rows: bytes
    added: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """From what a copy holds to what it is to hold: `digests` and `lists` as in `Held`."""

    changes: Sequence[Change]
    digests: Mapping[str, str]
    lists: Mapping[str, Text]

    @property
    def only_adds_files(self) -> bool:
        """Whether all files that were there are there, under the same paths."""
        whole = {change.table for change in self.changes if not change.added}
        return not whole & (LISTS.keys() | _FOLDERS)


class CatalogRows:
    """Reads one lake's catalog.

    Args:
        lake: Catalog schema.
        tables: DuckLake's tables -> their columns.
    """

    def __init__(self, lake: str, tables: Mapping[str, Sequence[str]]) -> None:
        self._lake = lake
        self._tables = tables
        self._digests_sql = self._build_digests()

    async def plan(
        self, connection: asyncpg.Connection, snapshot_id: int, held: Held, *, past: bool
    ) -> Plan:
        """Read what differs; the connection is in a REPEATABLE READ transaction.

        Args:
            connection: In that transaction.
            snapshot_id: There must be such a snapshot.
            held: By the copy.
            past: The snapshot may not be the newest.
        """
        skipped = _LEFT_EMPTY | _NEWEST_ONLY if past else _LEFT_EMPTY
        record = await connection.fetchrow(self._digests_sql, snapshot_id)
        digests = {name: d for name, d in record.items() if d is not None and name not in skipped}
        changes, lists = [], {}
        for table in LISTS:
            rows = await self._rows(connection, table, snapshot_id) if table in digests else b""
            lists[table] = Text.of(rows)
            if (change := _of_list(table, held.lists.get(table, Text()), rows)) is not None:
                changes.append(change)
        files = next((c for c in changes if c.table == "ducklake_data_file"), None)
        for table in sorted((digests.keys() | held.digests.keys()) - LISTS.keys()):
            added = table in _OF_FILES and table in digests and files is not None and files.added
            same = digests.get(table) == held.digests.get(table)
            if same and (table not in _OF_FILES or files is None):
                continue
            after = held.last.get("ducklake_data_file", _BEFORE_ALL) if added else _BEFORE_ALL
            rows = (
                await self._rows(connection, table, snapshot_id, after=after)
                if table in digests
                else b""
            )
            changes.append(Change(table=table, rows=rows, added=added))
        return Plan(changes=changes, digests=digests, lists=lists)

    async def _rows(
        self,
        connection: asyncpg.Connection,
        table: str,
        snapshot_id: int,
        *,
        after: int = _BEFORE_ALL,
    ) -> bytes:
        """The live rows of a table; of one about files those of files with a higher id."""
        rows = bytearray()

        async def take(data: bytes) -> None:
            rows.extend(data)

        sql = self._select(table, f"{snapshot_id:d}", after=after)
        await connection.copy_from_query(sql, output=take, format="csv", null="\\N")
        return bytes(rows)

    def _build_digests(self) -> str:
        """A statement: the digest of the live rows of each table, NULL when it has none."""
        parts = []
        for name in self._tables:
            if name in LISTS or name in _OF_FILES:
                of = f"SELECT 'some' WHERE EXISTS (SELECT FROM {self._table(name)})"  # noqa: S608 - quoted
            else:
                rows = self._select(name, "$1::bigint")
                of = f"SELECT encode(sha256(convert_to(string_agg(r::text, ''), 'UTF8')), 'hex') FROM ({rows}) r"  # noqa: S608 - quoted
            parts.append(f"({of}) AS {quote_name(name)}")
        return f"SELECT {', '.join(parts)}"

    def _select(self, name: str, snapshot: str, *, after: int = _BEFORE_ALL) -> str:
        columns = self._tables[name]
        names = ", ".join(f"x.{quote_name(column)}" for column in columns)
        source = f"SELECT {names} FROM {self._table(name)} x"  # noqa: S608 - quoted names, numbers
        if name == "ducklake_snapshot":
            return f"{source} WHERE x.snapshot_id = {snapshot}"
        if name in _OF_FILES:
            live = _LIVE.format(x="d.", s=snapshot)
            return (
                f"{source} JOIN {self._table('ducklake_data_file')} d USING (data_file_id) "
                f"WHERE d.data_file_id > {after:d} AND {live}"
            )
        if "end_snapshot" in columns:
            source = f"{source} WHERE {_LIVE.format(x='x.', s=snapshot)}"
        return f"{source} ORDER BY x.{LISTS[name]}" if name in LISTS else source

    def _table(self, name: str) -> str:
        return f"{quote_name(self._lake)}.{quote_name(name)}"


def _of_list(table: str, known: Text, rows: bytes) -> Change | None:
    if not known.begins(rows):
        return Change(table=table, rows=rows)
    if len(rows) == known.size_bytes:
        return None
    return Change(table=table, rows=rows[known.size_bytes :], added=True)
