"""The bus under test, in memory and in Postgres, with what a test must do behind its back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from duckmesh_runtime.adapters.postgres import open_pool
from duckmesh_runtime.adapters.postgres_bus import PostgresBus
from duckmesh_runtime.ports import DeadLetters, IngestBus
from duckmesh_runtime.sql import migrations
from tests.fakes.bus import FakeBus

LAKE: Final = "lake_test"
_SNAPSHOTS: Final = f"""
CREATE TABLE {LAKE}.ducklake_snapshot (snapshot_id bigint PRIMARY KEY, snapshot_time timestamptz);
CREATE TABLE {LAKE}.ducklake_snapshot_changes (snapshot_id bigint PRIMARY KEY, commit_extra_info text);
CREATE TABLE {LAKE}.ducklake_files_scheduled_for_deletion (data_file_id bigint);
GRANT USAGE ON SCHEMA {LAKE} TO duckmesh_admin;
GRANT SELECT ON {LAKE}.ducklake_snapshot TO {LAKE}_w;
ALTER TABLE {LAKE}.ducklake_files_scheduled_for_deletion OWNER TO duckmesh_admin;
ALTER TABLE {LAKE}.ducklake_snapshot OWNER TO duckmesh_admin;
ALTER TABLE {LAKE}.ducklake_snapshot_changes OWNER TO duckmesh_admin;
"""


class StillPinned(Exception):
    """The snapshot cannot go."""


class Bus(IngestBus, DeadLetters, Protocol):
    """All that a bus is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BusUnderTest:
    """A bus and its back door.

    Attributes:
        bus: The bus.
        slow_transaction: Another writer that took the numbers after the head and commits at the block's end.
        waits: Whether an append waits for that writer now.
        move_watermark: Stands for the committer; also says which number its running commit aims at.
        set_aside: Stands for the committer too: `(prev, tok, payload, error)`, and the watermark moves.
        set_aside_change: Likewise, for a table change: `(tok, error)`.
        snapshot: The lake gets a snapshot: its id, and the token that its commit names, if it was the committer's.
        expire: A snapshot goes, or is refused to.
    """

    bus: Bus
    slow_transaction: Callable[[], AbstractAsyncContextManager[None]]
    waits: Callable[[], Awaitable[bool]]
    move_watermark: Callable[[int, int], Awaitable[None]]
    set_aside: Callable[[int, int, bytes | None, str], Awaitable[None]]
    set_aside_change: Callable[[int, str], Awaitable[None]]
    snapshot: Callable[[int, int | None], Awaitable[None]]
    expire: Callable[[int], Awaitable[None]]


@asynccontextmanager
async def fake_bus() -> AsyncIterator[BusUnderTest]:
    bus = FakeBus()

    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        async with bus.lock:
            yield

    async def waits() -> bool:
        return bus.lock.locked() and bus.arrived.is_set()

    async def move(token: int, inflight_to: int) -> None:
        bus.token, bus.inflight_to = token, inflight_to

    async def set_aside(prev: int, tok: int, payload: bytes | None, error: str) -> None:
        bus.set_aside(prev, tok, payload, error)
        bus.token = tok

    async def set_aside_change(tok: int, error: str) -> None:
        bus.set_aside_change(tok, error)
        bus.token = tok

    async def snapshot(id_: int, token: int | None) -> None:
        bus.snapshots[id_] = token

    async def expire(id_: int) -> None:
        if id_ in bus.pinned.values():
            raise StillPinned
        del bus.snapshots[id_]

    yield BusUnderTest(
        bus=bus,
        slow_transaction=slow,
        waits=waits,
        move_watermark=move,
        set_aside=set_aside,
        set_aside_change=set_aside_change,
        snapshot=snapshot,
        expire=expire,
    )


@asynccontextmanager
async def postgres_bus(dsn: str, folder: Path) -> AsyncIterator[BusUnderTest]:
    """A bus in the fresh database of this superuser DSN, under its writer login."""
    await install_bus(dsn)
    pool = await open_pool(write_secret(folder, dsn), application_name="test-bus", size=8)
    admin = await asyncpg.connect(dsn)

    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        connection = await asyncpg.connect(dsn)
        try:
            async with connection.transaction():
                await connection.execute(f"UPDATE {LAKE}_bus.head SET last = last")
                yield
        finally:
            await connection.close()

    async def waits() -> bool:
        found: bool = await admin.fetchval(
            "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted)"
        )
        return found

    async def move(token: int, inflight_to: int) -> None:
        await admin.execute("UPDATE duckmesh.lake_status SET token = $1", token)
        await admin.execute(
            "INSERT INTO duckmesh.heartbeat (lake, role, epoch, expires_at, inflight_to) "
            "VALUES ($1, 'w', 1, now() + interval '1 minute', $2) "
            "ON CONFLICT (lake, role) DO UPDATE SET inflight_to = EXCLUDED.inflight_to",
            LAKE,
            inflight_to,
        )

    async def set_aside(prev: int, tok: int, payload: bytes | None, error: str) -> None:
        query = "SELECT duckmesh.set_aside($1, 1, $2, $3, $4, $5)"
        await admin.execute(query, LAKE, prev, tok, payload, error)

    async def set_aside_change(tok: int, error: str) -> None:
        query = "SELECT duckmesh.set_aside_change($1, 1, $2, $3, $4)"
        await admin.execute(query, LAKE, tok - 1, tok, error)

    async def snapshot(id_: int, token: int | None) -> None:
        said = None if token is None else json.dumps({"role": "w", "prev": 0, "tok": token})
        await admin.execute(f"INSERT INTO {LAKE}.ducklake_snapshot VALUES ($1)", id_)
        query = f"INSERT INTO {LAKE}.ducklake_snapshot_changes VALUES ($1, $2)"
        await admin.execute(query, id_, said)

    async def expire(id_: int) -> None:
        try:
            query = f"DELETE FROM {LAKE}.ducklake_snapshot WHERE snapshot_id = $1"
            await admin.execute(query, id_)
        except asyncpg.ForeignKeyViolationError as error:
            raise StillPinned from error

    try:
        yield BusUnderTest(
            bus=PostgresBus(pool, LAKE),
            slow_transaction=slow,
            waits=waits,
            move_watermark=move,
            set_aside=set_aside,
            set_aside_change=set_aside_change,
            snapshot=snapshot,
            expire=expire,
        )
    finally:
        await admin.close()
        await pool.close()


async def install_bus(dsn: str) -> None:
    """The catalog's migrations, logins of one lake, its bus, and a lake without tables."""
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            for migration in migrations():
                await connection.execute(migration.text)
            logins = [f"{LAKE}_{role}" for role in "wmr"]
            for login in logins:
                await connection.execute(
                    f"DO $do$ BEGIN IF to_regrole('{login}') IS NULL THEN "
                    f"CREATE ROLE {login} LOGIN PASSWORD 'secret'; END IF; END $do$"
                )
            await connection.execute("SELECT duckmesh.install_bus($1, $2, $3, $4)", LAKE, *logins)
            await connection.execute(
                f"GRANT CONNECT ON DATABASE {urlsplit(dsn).path[1:]} TO {', '.join(logins)};"
                f"CREATE SCHEMA {LAKE}; GRANT USAGE ON SCHEMA {LAKE} TO {', '.join(logins)};"
                f"GRANT SELECT ON duckmesh.lake_status, duckmesh.heartbeat TO {', '.join(logins)}"
            )
            await connection.execute(_SNAPSHOTS)
            await connection.execute("SELECT duckmesh.install_pins($1, $2, $3)", LAKE, *logins[:2])
            await connection.execute("SELECT duckmesh.install_restore($1, $2)", LAKE, logins[0])
            await connection.execute("INSERT INTO duckmesh.lake_status (lake) VALUES ($1)", LAKE)
            await connection.execute(
                "INSERT INTO duckmesh.lease (lake, role, epoch) VALUES ($1, 'w', 1)", LAKE
            )
    finally:
        await connection.close()


def write_secret(folder: Path, dsn: str, role: str = "w") -> Path:
    """A mounted Secret with the DSN of one of the lake's logins."""
    url = urlsplit(dsn)
    where = f"{LAKE}_{role}:secret@{url.hostname}:{url.port}"
    secret = folder / role
    secret.mkdir(exist_ok=True)
    (secret / "dsn").write_text(urlunsplit(url._replace(netloc=where)))
    return secret


async def eventually(condition: Callable[[], Awaitable[bool]], deadline_s: float = 60) -> None:
    """Wait until it holds; TimeoutError past the deadline."""
    async with asyncio.timeout(deadline_s):
        while not await condition():
            await asyncio.sleep(0.005)
