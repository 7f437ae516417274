"""Which files go when a lake transaction ends: those of a ROLLBACK, and none from a COMMIT on, whatever becomes of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest

from duckmesh_runtime.adapters import duckdb_engine, ducklake
from duckmesh_runtime.ports import CommitOutcome, TableRows
from tests.cuts import Relay, relayed
from tests.lakes import EVENTS, LakeView, elected_writer, eventually, rows_of
from tests.services import Lake

MakeLake = Callable[..., Awaitable[Lake]]

pytestmark = pytest.mark.parametrize("store", ["file", "s3"])


def events(*ids: int) -> list[TableRows]:
    return [TableRows(table="events", rows=rows_of(ids))]


def files(lake: Lake) -> set[str]:
    connection = duckdb_engine.connect(extensions=("httpfs",), threads=1)
    try:
        duckdb_engine.use_store(connection, lake.store)
        everything = f"{duckdb_engine.data_path(lake.store)}**/*.parquet"
        found = connection.execute(f"SELECT file FROM glob('{everything}')").fetchall()
    finally:
        connection.close()
    return {name for (name,) in found}


async def test_a_commit_that_is_refused_keeps_its_files(make_lake: MakeLake, store: str) -> None:
    lake = await make_lake(store=store)
    async with elected_writer(lake) as writer:
        await writer.create_table(0, 1, EVENTS)
        await writer.commit(1, 2, events(1))
        before = files(lake)
        async with elected_writer(lake) as heir:
            result = await writer.commit(2, 3, events(2))
            again = await heir.commit(2, 3, events(2))

    assert (result.outcome, again.outcome) == (CommitOutcome.FENCED, CommitOutcome.DONE)
    assert len(files(lake) - before) == 2
    assert LakeView(lake).ids() == [1, 2]


async def test_rows_beside_others_that_are_refused_leave_no_file(
    make_lake: MakeLake, store: str
) -> None:
    lake = await make_lake(store=store)
    async with elected_writer(lake) as writer:
        await writer.create_table(0, 1, EVENTS)
        await writer.commit(1, 2, events(1))
        before = files(lake)

        nowhere = TableRows(table="nowhere", rows=rows_of([3]))
        refused = await writer.commit(2, 4, [*events(2), nowhere])

        assert refused.outcome is CommitOutcome.REJECTED
        assert files(lake) == before
        assert (await writer.commit(2, 3, events(2))).outcome is CommitOutcome.DONE
    assert LakeView(lake).ids() == [1, 2]


async def test_a_commit_that_lands_after_it_was_given_up_keeps_its_files(
    make_lake: MakeLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    """And its answer is lost as well: DuckLake takes it for a failed one when nobody waits for it any more."""
    lake = await make_lake(store=store)
    view = LakeView(lake)
    async with relayed(lake, tmp_path) as (far, relay):
        other = await asyncpg.connect(lake.catalog_dsn)
        try:
            async with elected_writer(far) as writer:
                await writer.create_table(0, 1, EVENTS)
                await writer.commit(1, 2, events(1))
                monkeypatch.setattr(ducklake, "_COMMIT_TIMEOUT_S", 2.0)
                monkeypatch.setattr(duckdb_engine, "_AFTER_INTERRUPT_S", 0.2)
                relay.armed = True
                async with other.transaction():
                    await other.execute(
                        f"LOCK TABLE {lake.name}.ducklake_snapshot_changes IN SHARE MODE"
                    )
                    result = await writer.commit(2, 3, events(2))
                    assert result.outcome is CommitOutcome.REREAD
            await eventually(lambda: _lost(relay))
            await view.visible(3)
        finally:
            await other.close()

    assert view.ids() == [1, 2]


async def _lost(relay: Relay) -> bool:
    return relay.cuts == 1
