"""The bus stays small under steady load: what was consumed is vacuumed as fast as new input comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import asyncpg
import pytest

from duckmesh_runtime.adapters.postgres import open_pool
from duckmesh_runtime.adapters.postgres_bus import PostgresBus
from duckmesh_runtime.dev.postgres import PostgresServer
from duckmesh_runtime.ports import Append, EntryKind, Part
from tests.buses import LAKE, install_bus, write_secret
from tests.services import create_database

LOAD_S: Final = 9.0
_SIZES: Final = f"""
SELECT pg_relation_size('{LAKE}_bus.head') AS head, pg_total_relation_size('{LAKE}_bus.entry') AS entry,
       (SELECT sum(autovacuum_count) FROM pg_stat_all_tables
         WHERE relid = '{LAKE}_bus.entry'::regclass
            OR relid = (SELECT reltoastrelid FROM pg_class WHERE oid = '{LAKE}_bus.entry'::regclass)) AS vacuumed
"""


@pytest.fixture
def busy_server(services_dir: Path) -> Iterator[PostgresServer]:
    """One that looks for dead rows every second, so that seconds here stand for minutes elsewhere."""
    settings = {"autovacuum_naptime": "1s"}
    with PostgresServer(services_dir / "busy", settings=settings) as server:
        yield server


async def test_steady_input_does_not_grow_the_bus(
    busy_server: PostgresServer, tmp_path: Path
) -> None:
    dsn = await create_database(busy_server)
    await install_bus(dsn)
    pool = await open_pool(write_secret(tmp_path, dsn), application_name="test-flat")
    admin = await asyncpg.connect(dsn)
    bus = PostgresBus(pool, LAKE)
    try:
        appended = await _load(bus, LOAD_S)
        middle = await admin.fetchrow(_SIZES)
        appended += await _load(bus, LOAD_S)
        end = await admin.fetchrow(_SIZES)
    finally:
        await admin.close()
        await pool.close()

    assert appended > 1_000
    assert end["vacuumed"] > middle["vacuumed"] > 0
    assert end["head"] <= 16 * 8192
    # Each load wrote several times what the first left behind.
    assert end["entry"] < 2 * middle["entry"]
    assert end["entry"] < appended * _SIZE / 4


_SIZE: Final = 16_384
_PER_S: Final = 200


async def _load(bus: PostgresBus, seconds: float) -> int:
    """Append steadily and consume every 100 ms, as a committer does; vacuum needs the processor too."""
    part = Part(rows=1, payload=bytes(_SIZE))
    append = Append(
        kind=EntryKind.ROWS, table="t", parts=[part], schema_version=0, header=b"header"
    )
    begun, consumed = time.monotonic(), 0.0
    appended = 0
    while (due := begun + appended / _PER_S) < begun + seconds:
        await asyncio.sleep(due - time.monotonic())
        (receipt,) = await bus.append([append])
        appended += 1
        if time.monotonic() - consumed > 0.1:
            await bus.trim(receipt.last)
            consumed = time.monotonic()
    return appended


async def test_the_head_is_one_page_after_many_appends(
    busy_server: PostgresServer, tmp_path: Path
) -> None:
    dsn = await create_database(busy_server)
    await install_bus(dsn)
    pool = await open_pool(write_secret(tmp_path, dsn), application_name="test-flat")
    bus = PostgresBus(pool, LAKE)
    part = Part(rows=1, payload=b"x")
    append = Append(kind=EntryKind.ROWS, table="t", parts=[part], schema_version=0)
    try:
        for _ in range(100):
            await asyncio.gather(*(bus.append([append]) for _ in range(4)))
        size = await pool.fetchval(f"SELECT pg_relation_size('{LAKE}_bus.head')")
    finally:
        await pool.close()

    assert size <= 2 * 8192
