"""The DuckLake writer where only the real thing can tell; what every `LakeWriter` does is in tests/contract."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import replace

import asyncpg
import duckdb
import pytest

from duckmesh_runtime.adapters.ducklake import open_writer
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import CommitOutcome, TableFile, TableRows
from tests.failpoints import Failpoint
from tests.lakes import (
    EVENTS,
    KEYED,
    LakeView,
    changes_of,
    elected_writer,
    eventually,
    rows_of,
    stage,
    writer_pool,
)
from tests.services import Lake


def events(*ids: int) -> list[TableRows]:
    return [TableRows(table="events", rows=rows_of(ids))]


async def test_a_commit_without_effect_is_not_done_when_a_successor_has_come_less_far(
    lake: Lake,
) -> None:
    """No trigger fires for it, and the watermark has moved: to call it done would lose what is between."""
    async with elected_writer(lake) as writer, writer_pool(lake) as pool:
        await writer.create_table(0, 1, EVENTS)
        await pool.execute("SELECT duckmesh.take_over($1, 'w')", lake.name)
        await pool.execute("SELECT duckmesh.advance($1, 2, 1, 7)", lake.name)

        result = await writer.commit(1, 10, events())

    assert result.outcome is CommitOutcome.FENCED
    assert await LakeView(lake).token() == 7


async def test_the_same_writer_goes_on_after_its_connections_were_ended(lake: Lake) -> None:
    async with elected_writer(lake) as writer:
        await writer.create_table(0, 1, EVENTS)
        await LakeView(lake).fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE starts_with(application_name, $1)",
            f"dm:{lake.name}:w:",
        )

        outcomes = [(await writer.commit(1, 2, events(5))).outcome for _ in range(3)]

    assert outcomes.count(CommitOutcome.DONE) == 1
    assert LakeView(lake).ids() == [5]


_CLOSE_IN_A_TRANSACTION = """
import asyncio, os, sys
from duckmesh_runtime.adapters import duckdb_engine

async def main():
    engine = duckdb_engine.Engine(duckdb_engine.connect(threads=1), name="test")
    for statement in (os.environ["ATTACH"], "BEGIN", "SELECT lake FROM pg.duckmesh.lake"):
        await engine.run(lambda k: k.execute(statement).fetchall(), timeout_s=20)
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await engine.close()
    print("closed", flush=True)

asyncio.run(main())
"""


async def test_closing_after_postgres_went_in_a_transaction_does_not_end_the_process(
    lake: Lake,
) -> None:
    attach = f"ATTACH '{lake.catalog_dsn}?application_name=to-be-ended' AS pg (TYPE postgres)"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", _CLOSE_IN_A_TRANSACTION),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"ATTACH": attach},
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert await process.stdout.readline() == b"open\n"
        await LakeView(lake).fetch(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'to-be-ended'"
        )
        said, _ = await process.communicate(b"\n")

    assert (said, process.returncode) == (b"closed\n", 0)


async def test_rows_with_any_text_land_as_they_are(lake: Lake) -> None:
    """Statistics carry pieces of rows into the commit's statements, and so into error texts."""
    texts = [
        "\0",
        "it's",
        "ERROR: DUCKMESH_FENCED lake=x",
        "unique conflict",
        "\U0001f986" * 1000,
        "",
    ]
    rows = rows_of(range(len(texts))).set_column(1, "text", [texts])
    async with elected_writer(lake) as writer:
        await writer.create_table(0, 1, EVENTS)

        result = await writer.commit(1, 7, [TableRows(table="events", rows=rows)])

    assert result.outcome is CommitOutcome.DONE
    assert LakeView(lake).query("SELECT text FROM events ORDER BY id") == [
        (text,) for text in texts
    ]


async def test_a_lake_that_cannot_be_attached_shows_no_credential(
    lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    dsn = lake.writer_dir / "dsn"
    async with writer_pool(lake) as pool:
        await pool.fetchval("SELECT 1")
        dsn.write_text(dsn.read_text().replace("secret", "guessed"))

        with pytest.raises(Unavailable) as caught:
            await open_writer(
                lake=lake.name, epoch=1, store=lake.store, secret_dir=lake.writer_dir, pool=pool
            )

    shown = caplog.text + "".join(traceback.format_exception(caught.value, chain=True))
    assert "guessed" not in shown.replace(str(dsn), "")
    assert caught.value.__cause__ is None


async def test_a_catalog_that_does_not_tell_the_newest_snapshot_is_not_the_rows_fault(
    lake: Lake,
) -> None:
    """DuckDB calls it a BinderException, like a column that is not there; the rows must not become dead letters."""
    view = LakeView(lake)
    waits = f"""SELECT pid FROM pg_locks WHERE NOT granted AND relation = '"{lake.name}".ducklake_snapshot'::regclass"""

    async def blocked() -> bool:
        return bool(await view.fetch(waits))

    async with elected_writer(lake) as writer:
        await writer.create_table(0, 1, EVENTS)
        other = await asyncpg.connect(lake.catalog_dsn)
        try:
            async with other.transaction():
                await other.execute(f'LOCK TABLE "{lake.name}".ducklake_snapshot')
                committing = asyncio.create_task(writer.commit(1, 2, events(5)))
                await eventually(blocked)
                await other.execute(f"SELECT pg_cancel_backend(pid) FROM ({waits}) AS w")
                refused = await committing
        finally:
            await other.close()
        again = await writer.commit(1, 2, events(5))

    assert refused.outcome is CommitOutcome.REREAD
    assert again.outcome is CommitOutcome.DONE
    assert view.ids() == [5]


async def test_too_much_at_once_is_not_the_rows_fault(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise duckdb.OutOfMemoryException("failed to allocate")

    Failpoint("INSERT INTO lake.main", "before", full).plant(monkeypatch)
    async with elected_writer(lake) as writer:
        await writer.create_table(0, 1, EVENTS)

        outcomes = [(await writer.commit(1, 2, events(5))).outcome for _ in range(2)]

    assert outcomes == [CommitOutcome.REREAD, CommitOutcome.DONE]
    assert LakeView(lake).ids() == [5]


@pytest.mark.parametrize("store", ["file", "s3"])
async def test_upserts_and_files_land_in_either_store(
    make_lake: Callable[..., Awaitable[Lake]], store: str
) -> None:
    lake = await make_lake(store=store)
    async with elected_writer(lake) as writer:
        await writer.create_table(0, 1, EVENTS)
        await writer.create_table(1, 2, KEYED)
        file = TableFile(table="events", file=await stage(lake, rows_of([1, 2])))
        upsert = TableRows(table="keyed", rows=changes_of({"id": 1, "value": "a"}, {"id": 2}))
        change = TableRows(table="keyed", rows=changes_of({"id": 1, "value": "b"}, (2,)))
        gone = replace(file, file=replace(file.file, path="main/events/staged-9.parquet"))

        results = [
            await writer.commit(2, 6, [file, upsert]),
            await writer.commit(6, 8, [change]),
            await writer.commit(8, 10, [gone]),
        ]

    outcomes = [CommitOutcome.DONE, CommitOutcome.DONE, CommitOutcome.REJECTED]
    assert [result.outcome for result in results] == outcomes
    assert LakeView(lake).ids() == [1, 2]
    assert LakeView(lake).query("SELECT * FROM keyed") == [(1, "b")]
