"""Make or renew one lake: the catalog's migrations, DuckLake's schema, the bus, rights, the registry entry.

With `purge` the only code that sees the catalog's admin credential; called by `duckmesh migrate` and `duckmesh dev`.
Every step is its own transaction and finds out what is done: a run that was ended at any point is finished by the
next, and a run on a finished lake changes nothing. Runs for several lakes of one database may overlap.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import asyncpg
import duckdb

from duckmesh_runtime.adapters import duckdb_engine, postgres
from duckmesh_runtime.adapters.postgres import catalog_errors
from duckmesh_runtime.domain import lakesql
from duckmesh_runtime.errors import Unauthorized, Unavailable
from duckmesh_runtime.settings import MigrateSettings, read_secret
from duckmesh_runtime.sql import MIGRATION, Migration, pending

logger = logging.getLogger(__name__)

_STATEMENT_TIMEOUT_MS: Final = 120_000
_LOCK_TIMEOUT_MS: Final = 60_000
_DUCKLAKE_TIMEOUT_S: Final = 120.0

#: Lock of what all lakes of a database share: its migrations, rights on common tables. With a name behind, of that lake.
DATABASE: Final = "duckmesh.migrate"
_OWNED: Final = "DM005"

_HAS_MIGRATIONS: Final = "SELECT to_regclass('duckmesh.schema_migration') IS NOT NULL"
_APPLIED: Final = "SELECT number, checksum FROM duckmesh.schema_migration"
_RECORD: Final = (
    "INSERT INTO duckmesh.schema_migration (number, name, checksum) VALUES ($1, $2, $3)"
)
_REGISTER: Final = "SELECT duckmesh.register_lake($1, $2, $3, $4, $5)"
_INLINING: Final = (
    "SELECT count(*) FROM {schema}.ducklake_metadata WHERE key = 'data_inlining_row_limit'"
)


async def migrate(settings: MigrateSettings) -> None:
    """Bring the catalog database and the lake to this release.

    Raises:
        Unauthorized: FORBIDDEN, the lake belongs to another uid or has its data elsewhere.
        Corrupt: A migration was edited after it was applied.
        Unavailable: The catalog does not answer; run it again.
    """
    with catalog_errors():
        connection = await postgres.connect(
            settings.admin_dir,
            application_name="duckmesh-migrate",
            statement_timeout_ms=_STATEMENT_TIMEOUT_MS,
            lock_timeout_ms=_LOCK_TIMEOUT_MS,
        )
        try:
            await apply_migrations(connection)
            async with alone(connection, f"{DATABASE} {settings.lake}"):
                await _register(connection, settings, 0)
                await _make_lake(settings)
                # Grants of two lakes meet on rows of the database and shared tables; Postgres refuses the later.
                async with alone(connection, DATABASE):
                    await _install(connection, settings)
                await _register(connection, settings, MIGRATION)
        finally:
            await connection.close()
    logger.info("lake is up to date", extra={"lake": settings.lake, "migration": MIGRATION})


async def apply_migrations(connection: asyncpg.Connection) -> None:
    """Bring the catalog database to this release.

    Raises:
        Corrupt: A migration was edited after it was applied.
    """
    async with alone(connection, DATABASE):
        applied: dict[int, str] = {}
        if await connection.fetchval(_HAS_MIGRATIONS):
            applied = {row["number"]: row["checksum"] for row in await connection.fetch(_APPLIED)}
        for migration in pending(applied):
            await _apply(connection, migration)


async def _apply(connection: asyncpg.Connection, migration: Migration) -> None:
    async with connection.transaction():
        await connection.execute(migration.text)
        await connection.execute(_RECORD, migration.number, migration.name, migration.checksum)
    logger.info("migration applied", extra={"migration": migration.name})


async def _register(
    connection: asyncpg.Connection, settings: MigrateSettings, migration: int
) -> None:
    try:
        await connection.execute(
            _REGISTER,
            settings.lake,
            settings.tenant,
            settings.tenant_uid,
            settings.store.url,
            migration,
        )
    except asyncpg.PostgresError as error:
        if error.sqlstate != _OWNED:
            raise
        raise Unauthorized(
            "FORBIDDEN",
            f"lake {settings.lake} belongs to another tenant or has its data elsewhere: "
            "let the platform team adopt or remove it",
        ) from error


async def _make_lake(settings: MigrateSettings) -> None:
    """DuckLake's own tables, owned by duckmesh_admin, with inlining off for good."""
    options = lakesql.options_text({"role": "duckmesh_admin"})
    conninfo = lakesql.conninfo(
        read_secret(settings.admin_dir, "dsn"),
        application_name="duckmesh-migrate",
        options=options,
    )
    path = duckdb_engine.data_path(settings.store)
    if settings.store.url.startswith("file:"):
        await asyncio.to_thread(Path(path).mkdir, parents=True, exist_ok=True)
    attach = lakesql.attach_lake(conninfo, schema=settings.lake, data_path=path)

    def make(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute(attach)
        known = _INLINING.format(schema=lakesql.quote_name(settings.lake))
        query = "SELECT * FROM postgres_query($1, $2)"
        metadata = f"__ducklake_metadata_{lakesql.LAKE}"
        row = connection.execute(query, [metadata, known]).fetchone()
        if row is None or row[0] == 0:
            connection.execute(lakesql.store_inlining_off())

    engine = duckdb_engine.Engine(duckdb_engine.connect(threads=1), name="migrate")
    try:
        await engine.run(make, timeout_s=_DUCKLAKE_TIMEOUT_S)
    except (duckdb.Error, TimeoutError) as error:
        # The engine's text may hold the connection string, so it goes neither into the message nor into the chain.
        logger.error("DuckLake schema not made", extra={"error_type": type(error).__name__})
        raise Unavailable(
            "CATALOG_UNAVAILABLE", "the lake's schema could not be made: run the migration again"
        ) from None
    finally:
        await engine.close()


async def _install(connection: asyncpg.Connection, settings: MigrateSettings) -> None:
    """Fence, bus, pins, restore, reports and rights, in one transaction."""
    logins = (settings.writer, settings.maintenance, settings.reader)
    async with connection.transaction():
        await connection.execute(
            "SELECT duckmesh.install_lake($1, $2, $3, $4)", settings.lake, *logins
        )
        await connection.execute(
            "SELECT duckmesh.install_bus($1, $2, $3, $4)", settings.lake, *logins
        )
        await connection.execute(
            "SELECT duckmesh.install_pins($1, $2, $3)", settings.lake, *logins[:2]
        )
        await connection.execute(
            "SELECT duckmesh.install_restore($1, $2)", settings.lake, settings.writer
        )
        await connection.execute(
            "SELECT duckmesh.install_reports($1, $2)", settings.lake, settings.writer
        )
        await connection.execute(
            "SELECT duckmesh.install_maintenance($1, $2, $3, $4)", settings.lake, *logins
        )
        await connection.execute(
            "SELECT duckmesh.install_ledger($1, $2)", settings.lake, settings.maintenance
        )


@asynccontextmanager
async def alone(connection: asyncpg.Connection, what: str) -> AsyncIterator[None]:
    """Hold an advisory lock of this database; it goes with the connection if the process ends."""
    await connection.execute("SELECT pg_advisory_lock(hashtextextended($1, 0))", what)
    try:
        yield
    finally:
        if not connection.is_closed():
            await connection.execute("SELECT pg_advisory_unlock(hashtextextended($1, 0))", what)
