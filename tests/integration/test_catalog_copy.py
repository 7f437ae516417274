"""A catalog brought forward by what differs holds, table by table and row by row, what one that is copied whole holds."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import duckdb
import pytest

from duckmesh_runtime.adapters.catalog_copy import CatalogCopier
from tests.direct import Writer, attach, lake_writer, take_over
from tests.services import Lake

STEPS = 24
TABLES = "SELECT table_name FROM duckdb_tables() WHERE database_name = 'c' ORDER BY table_name"


class World:
    """A lake that changes at random in every way there is, and its state as of a backup."""

    def __init__(
        self,
        lake: Lake,
        writer: Writer,
        upkeep: duckdb.DuckDBPyConnection,
        admin: asyncpg.Connection,
        seed: int,
    ) -> None:
        self.lake, self.writer, self.upkeep, self.admin = lake, writer, upkeep, admin
        self.random = random.Random(seed)  # noqa: S311 - repeatable choices
        self.made = 0

    async def step(self, number: int) -> str:
        """One change; what it was."""
        if number in (STEPS // 3, 2 * STEPS // 3):
            await (self._back_up() if number == STEPS // 3 else self._restore())
            return "backup or restore of the catalog"
        tables = [
            str(name)
            for (name,) in self.writer.rows(
                "SELECT table_name FROM duckdb_tables() WHERE database_name = 'lake'"
            )
        ]
        statement = self._create() if not tables else self._change(self.random.choice(tables))
        if statement.startswith("ducklake_"):
            self._maintain(statement)
        else:
            self.writer.commit(statement)
            await self._read_token()  # what changed nothing was no commit
        return statement

    def _create(self) -> str:
        self.made += 1
        return f"CREATE TABLE lake.t{self.made} (id BIGINT, part INTEGER, v VARCHAR)"

    def _change(self, table: str) -> str:
        low = self.random.randrange(300)
        self.made += 1
        changes = {
            f"INSERT INTO lake.{table} BY NAME SELECT i AS id, i % 3 AS part FROM range({low}, {low + 40}) r(i)": 8,
            f"DELETE FROM lake.{table} WHERE id BETWEEN {low} AND {low + 20}": 4,
            f"DELETE FROM lake.{table} WHERE part = {low % 3}": 2,
            f"UPDATE lake.{table} SET part = 7 WHERE id % 17 = {low % 17}": 2,
            f"DELETE FROM lake.{table}": 1,
            f"ducklake_merge_adjacent_files('lake', '{table}')": 3,
            f"ducklake_rewrite_data_files('lake', '{table}', delete_threshold => 0.0)": 2,
            "ducklake_expire_snapshots('lake', older_than => now())": 2,
            "ducklake_cleanup_old_files('lake', cleanup_all => true)": 1,
            f"ALTER TABLE lake.{table} ADD COLUMN c{self.made} VARCHAR DEFAULT 'x,\"y'": 1,
            f"ALTER TABLE lake.{table} RENAME TO n{self.made}": 1,
            f"ALTER TABLE lake.{table} SET PARTITIONED BY (part)": 2,
            f"COMMENT ON TABLE lake.{table} IS 'c{low}'": 1,
            f"DROP TABLE lake.{table}": 1,
            self._create(): 2,
        }
        (found,) = self.random.choices(list(changes), list(changes.values()))
        return found

    def _maintain(self, call: str) -> None:
        self.upkeep.execute("BEGIN")
        self.upkeep.execute(
            "CALL lake.set_commit_message('test', 'upkeep', extra_info => '{\"role\":\"m\"}')"
        )
        self.upkeep.execute(f"CALL {call}").to_arrow_table()
        self.upkeep.execute("COMMIT")

    async def _read_token(self) -> None:
        self.writer.token = await self.admin.fetchval(
            "SELECT token FROM duckmesh.lake_status WHERE lake = $1", self.lake.name
        )

    async def _back_up(self) -> None:
        await self.admin.execute("CREATE SCHEMA backup")
        for name in await self._names():
            await self.admin.execute(
                f'CREATE TABLE backup."{name}" AS TABLE {self.lake.name}."{name}"'
            )
        self.token = self.writer.token

    async def _restore(self) -> None:
        """To the backup, as from a dump: ids are given again, to other files."""
        async with self.admin.transaction():
            await self.admin.execute("SET LOCAL session_replication_role = replica")
            for name in await self._names():
                await self.admin.execute(f'DELETE FROM {self.lake.name}."{name}"')
                await self.admin.execute(
                    f'INSERT INTO {self.lake.name}."{name}" TABLE backup."{name}"'
                )
            await self.admin.execute(
                "UPDATE duckmesh.lake_status SET token = $2 WHERE lake = $1",
                self.lake.name,
                self.token,
            )
        self.writer.connection.close()
        self.upkeep.close()
        self.writer = await lake_writer(self.lake)
        await self._read_token()
        self.upkeep = attach(self.lake, "m", await take_over(self.lake, "m"))

    async def _names(self) -> list[str]:
        found = await self.admin.fetch(
            "SELECT table_name FROM information_schema.tables "
            "WHERE table_schema = $1 AND table_name LIKE 'ducklake%'",
            self.lake.name,
        )
        return [row["table_name"] for row in found]


@pytest.mark.parametrize("seed", [1])
async def test_what_is_brought_forward_is_what_is_copied_whole(
    make_lake: Callable[..., Awaitable[Lake]], tmp_path: Path, seed: int
) -> None:
    lake = await make_lake()
    admin = await asyncpg.connect(lake.catalog_dsn)
    upkeep = attach(lake, "m", await take_over(lake, "m"))
    world = World(lake, await lake_writer(lake), upkeep, admin, seed)
    copiers = []
    for name in ("forward", "whole"):
        (tmp_path / name).mkdir()
        copiers.append(CatalogCopier(lake.name, tmp_path / name, data_url="http://x/"))
    done = []

    try:
        for number in range(STEPS):
            done.append(await world.step(number))
            copiers[1]._working = None  # it knows nothing of the copy before
            found = [await _copied(copier, admin, lake) for copier in copiers]
            assert found[0] == found[1], "; ".join(done)
    finally:
        for copier in copiers:
            await copier.close()
        world.writer.connection.close()
        world.upkeep.close()
        await admin.close()


async def _copied(copier: CatalogCopier, admin: asyncpg.Connection, lake: Lake) -> object:
    """The files of a copy of the newest snapshot, and all rows of its tables."""
    async with admin.transaction(isolation="repeatable_read", readonly=True):
        newest = await admin.fetchval(f"SELECT max(snapshot_id) FROM {lake.name}.ducklake_snapshot")
        made = await copier.copy(admin, newest)
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{made.path}' AS c (READ_ONLY)")
        names = [name for (name,) in connection.execute(TABLES).fetchall()]
        rows = " UNION ALL ".join(
            f"SELECT '{name}' AS n, t::VARCHAR AS r FROM c.{name} t" for name in names
        )
        found = connection.execute(f"FROM ({rows}) ORDER BY ALL").fetchall()
    made.path.unlink()
    return dict(made.files), names, found
