"""Lakes by the hundred, as far as an operator sees them: the registry, and the tables that the sweep reads."""

from __future__ import annotations

from typing import Final

import asyncpg

from duckmesh_runtime.settings import MigrateSettings
from duckmesh_runtime.sql import MIGRATION

#: Schema suffix and table of all that `duckmesh.sweep()` reads of a lake.
_SWEPT: Final = (
    ("", "ducklake_snapshot"),
    ("", "ducklake_data_file"),
    ("_bus", "head"),
    ("_bus", "entry"),
    ("_bus", "dead_letter"),
)
_STATUS: Final = """
INSERT INTO duckmesh.lake_status (lake) VALUES ('{lake}');
INSERT INTO duckmesh.lease (lake, role) VALUES ('{lake}', 'w');
"""
#: What an ingest pod would tell of itself, for a day.
_BEAT: Final = """
INSERT INTO duckmesh.heartbeat (lake, role, epoch, holder, expires_at)
SELECT lake, role, epoch, 'committer-0', clock_timestamp() + interval '1 day' FROM duckmesh.lease
 WHERE lake = $1 AND role = 'w' ON CONFLICT DO NOTHING
"""


async def start_committer(connection: asyncpg.Connection, lake: str) -> None:
    """Let a lake have a living committer, as far as the sweep can tell."""
    await connection.execute(_BEAT, lake)


async def make_light_lake(
    connection: asyncpg.Connection, template: MigrateSettings, settings: MigrateSettings
) -> None:
    """Make a lake that nobody can write to; in one transaction; nothing happens when it is there.

    A real one takes seconds of processor time; an operator cannot tell them apart.

    Args:
        connection: Of the catalog's administrator.
        template: A lake that the real migration made in this database; empty.
        settings: The lake to make.
    """
    known = "SELECT 1 FROM duckmesh.lake WHERE lake = $1 AND migration = $2"
    if await connection.fetchval(known, settings.lake, MIGRATION):
        return
    copies = "".join(
        f'CREATE TABLE "{settings.lake}{suffix}"."{table}" '
        f'(LIKE "{template.lake}{suffix}"."{table}" INCLUDING ALL);\n'
        f'INSERT INTO "{settings.lake}{suffix}"."{table}" '
        f'SELECT * FROM "{template.lake}{suffix}"."{table}";\n'
        for suffix, table in _SWEPT
    )
    logins = f'"{settings.writer}", "{settings.maintenance}", "{settings.reader}"'
    async with connection.transaction():
        # Grants of two lakes meet on the database's row: the migrate Job takes turns by the same lock.
        await connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('duckmesh.migrate', 0))"
        )
        await connection.execute(
            f"GRANT CONNECT ON DATABASE {await connection.fetchval('SELECT current_database()')} TO {logins}"
        )
        await connection.execute("SET LOCAL ROLE duckmesh_admin")
        await connection.execute(
            f'CREATE SCHEMA "{settings.lake}"; CREATE SCHEMA "{settings.lake}_bus";\n{copies}'
        )
        await connection.execute(_STATUS.format(lake=settings.lake))
        await connection.execute(
            "SELECT duckmesh.register_lake($1, $2, $3, $4, $5)",
            *(settings.lake, settings.tenant, settings.tenant_uid, settings.store.url, MIGRATION),
        )


#: One second in the life of some lakes: a row comes in, what is older than two seconds becomes visible.
_MOVE: Final = """
DO $do$
DECLARE one text; n bigint;
BEGIN
  FOR one IN SELECT unnest(string_to_array('{lakes}', ',')) LOOP
    EXECUTE format('UPDATE %1$I.head SET last = last + 1 RETURNING last', one || '_bus') INTO n;
    EXECUTE format('INSERT INTO %1$I.entry (last, first, kind, table_name, schema_version, row_count, byte_count, payload)
                    VALUES ($1, $1, ''rows'', ''events'', 1, 1, 1, '''')', one || '_bus') USING n;
    EXECUTE format('DELETE FROM %1$I.entry WHERE accepted_at < clock_timestamp() - interval ''2 s''', one || '_bus');
    EXECUTE format('SELECT coalesce(min(last) - 1, $1) FROM %1$I.entry', one || '_bus') INTO n USING n;
    UPDATE duckmesh.lake_status AS s SET token = n, committed_at = clock_timestamp() WHERE s.lake = one;
  END LOOP;
END $do$;
"""


#: A row comes in, and stays on the bus; or all that wait become visible.
_WAIT: Final = """
DO $do$
DECLARE n bigint;
BEGIN
  UPDATE "{lake}_bus".head SET last = last + 1 RETURNING last INTO n;
  INSERT INTO "{lake}_bus".entry (last, first, kind, table_name, schema_version, row_count, byte_count, payload)
  VALUES (n, n, 'rows', 'events', 1, 1, 1, '');
END $do$;
"""
_CATCH_UP: Final = """
DO $do$
DECLARE n bigint;
BEGIN
  DELETE FROM "{lake}_bus".entry;
  SELECT last FROM "{lake}_bus".head INTO n;
  UPDATE duckmesh.lake_status AS s SET token = n, committed_at = clock_timestamp() WHERE s.lake = '{lake}';
END $do$;
"""


async def let_a_row_wait(connection: asyncpg.Connection, lake: str) -> None:
    """Let a row come into a light lake; it waits until `catch_up`."""
    await connection.execute(_WAIT.format(lake=lake))


async def catch_up(connection: asyncpg.Connection, lake: str) -> None:
    """Let all that waits in a light lake become visible."""
    await connection.execute(_CATCH_UP.format(lake=lake))


async def move_lakes(connection: asyncpg.Connection, lakes: list[str]) -> None:
    """Let input come into lakes and leave the bus again, as under steady load; call it every second."""
    await connection.execute(_MOVE.format(lakes=",".join(lakes)))
