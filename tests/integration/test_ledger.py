"""The ledger of committed rows: what it counts is what the lake has, whatever was committed, and it never hinders a commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import asyncpg
import pytest

from duckmesh_runtime.domain.changes import AddColumn
from duckmesh_runtime.domain.schema import ColumnDef, TableDef
from duckmesh_runtime.ports import CommitOutcome, CommitResult, TableFile, TableRows
from tests.direct import lake_writer
from tests.inspecting import maintain
from tests.lakes import EVENTS, KEYED, LakeView, changes_of, elected_writer, rows_of, stage
from tests.services import Lake
from tests.upkeep import behind_the_fence

DONE = CommitOutcome.DONE


async def ledger(lake: Lake) -> Mapping[str, int]:
    """Rows by table, as the ledger has them."""
    rows = await LakeView(lake).fetch(
        "SELECT table_name, row_count FROM duckmesh.ledger WHERE lake = $1", lake.name
    )
    return dict(map(tuple, rows))


async def began_with(lake: Lake) -> int | None:
    query = "SELECT ledger_from FROM duckmesh.lake_status WHERE lake = $1"
    found: int | None = await LakeView(lake).fetchval(query, lake.name)
    return found


async def differences(lake: Lake) -> Sequence[tuple[str, int | None, int | None]]:
    rows = await LakeView(lake).fetch("SELECT * FROM duckmesh.compare_ledger($1)", lake.name)
    return [tuple(row) for row in rows]


def counts(lake: Lake, *tables: str) -> Mapping[str, int]:
    """Rows by table, as a query counts them."""
    view = LakeView(lake)
    return {
        name: view.query(f"SELECT count(*) FROM (SELECT * FROM {name})")[0][0] for name in tables
    }


def rows(*ids: int, table: TableDef = EVENTS) -> TableRows:
    return TableRows(table=table.name, rows=rows_of(ids, table))


def changes(*each: Mapping[str, object] | tuple[object, ...]) -> TableRows:
    return TableRows(table="keyed", rows=changes_of(*each))


def done(*results: CommitResult) -> None:
    assert [each.outcome for each in results] == [DONE] * len(results)


async def test_every_kind_of_commit_is_counted(lake: Lake) -> None:
    file = await stage(lake, rows_of(range(100, 130)))
    other = await stage(lake, rows_of(range(200, 207)), "elsewhere.parquet", folder="inbox/")
    wider = replace(EVENTS, columns=(*EVENTS.columns, ColumnDef(name="more", type="BIGINT")))
    async with elected_writer(lake) as writer:
        done(
            await writer.create_table(0, 1, EVENTS),
            await writer.create_table(1, 2, KEYED),
            await writer.commit(2, 5, [rows(1, 2, 3)]),
            # Two parts of one table, two tables, a file that is registered and one whose rows are read.
            await writer.commit(
                5,
                50,
                [
                    rows(4, 5),
                    changes(
                        {"id": 1, "value": "a"}, {"id": 2, "value": "b"}, {"id": 1, "value": "c"}
                    ),
                    TableFile(table="events", file=file),
                    TableFile(table="events", file=replace(other, rows=7)),
                    rows(6),
                ],
            ),
        )
        assert await ledger(lake) == counts(lake, "events", "keyed") == {"events": 43, "keyed": 2}
        done(
            await writer.commit(50, 55, [changes({"id": 2, "value": "d"}, (1,), (7,), {"id": 3})]),
            await writer.commit(55, 56, [changes({"id": 9}), changes((9,), {"id": 2})]),
            await writer.alter_table(56, 57, wider, [AddColumn(column=wider.columns[-1])]),
            # Nothing at all changes: there is no snapshot.
            await writer.commit(57, 58, [changes((77,))]),
            await writer.create_table(58, 59, KEYED),
            await writer.drop_table(59, 60, "never"),
        )
        assert await ledger(lake) == counts(lake, "events", "keyed") == {"events": 43, "keyed": 2}
        done(await writer.drop_table(60, 61, "events"))
        assert await ledger(lake) == {"keyed": 2}
        done(
            await writer.create_table(61, 62, EVENTS),
            await writer.commit(62, 63, [rows(1)]),
        )

    assert await ledger(lake) == counts(lake, "events", "keyed") == {"events": 1, "keyed": 2}
    assert await differences(lake) == []
    assert await began_with(lake) == 1


async def test_a_restore_is_counted(lake: Lake) -> None:
    async with elected_writer(lake) as writer:
        done(
            await writer.create_table(0, 1, EVENTS),
            await writer.create_table(1, 2, KEYED),
            await writer.commit(2, 5, [rows(1, 2, 3), changes({"id": 1}, {"id": 2})]),
        )
        then = LakeView(lake).query("SELECT max(snapshot_id) FROM ducklake_snapshots('lake')")
        done(
            await writer.commit(
                5, 7, [changes((1,), {"id": 2, "value": "x"}, {"id": 3}, {"id": 4})]
            ),
            await writer.drop_table(7, 8, "events"),
            await writer.create_table(8, 9, replace(EVENTS, name="newer")),
            await writer.commit(9, 10, [rows(1, table=replace(EVENTS, name="newer"))]),
        )
        assert await ledger(lake) == {"keyed": 3, "newer": 1}

        done(await writer.restore(10, 11, then[0][0], [EVENTS, KEYED]))

    assert await ledger(lake) == counts(lake, "events", "keyed") == {"events": 3, "keyed": 2}
    assert await differences(lake) == []


async def test_merges_and_rewrites_leave_it_as_it_is(lake: Lake) -> None:
    async with elected_writer(lake) as writer:
        done(await writer.create_table(0, 1, KEYED))
        for number in range(1, 7):
            keys = ({"id": number}, {"id": number + 1, "value": "x"}, (number - 1,))
            done(await writer.commit(number, number + 1, [changes(*keys)]))
    before = await ledger(lake)
    await maintain(
        lake,
        "ducklake_merge_adjacent_files('lake', 'keyed')",
        "ducklake_rewrite_data_files('lake', 'keyed', delete_threshold => 0)",
    )

    assert await ledger(lake) == before == counts(lake, "keyed") == {"keyed": 2}
    assert await differences(lake) == []


async def test_a_commit_that_tells_nothing_ends_it_and_the_next_that_does_begins_it_anew(
    lake: Lake,
) -> None:
    async with elected_writer(lake) as writer:
        done(
            await writer.create_table(0, 1, EVENTS),
            await writer.create_table(1, 2, KEYED),
            await writer.commit(2, 5, [rows(1, 2, 3), changes({"id": 1}, {"id": 2})]),
        )
    release_before = await lake_writer(lake)
    release_before.token = 5
    try:
        release_before.commit("DELETE FROM lake.events WHERE id = 1")
    finally:
        release_before.connection.close()
    assert (await ledger(lake), await began_with(lake)) == ({}, None)
    assert await differences(lake) == []

    async with elected_writer(lake) as writer:
        done(await writer.commit(6, 7, [changes({"id": 1, "value": "x"}, {"id": 3})]))

    newest = LakeView(lake).query("SELECT max(snapshot_id) FROM ducklake_snapshots('lake')")
    assert await ledger(lake) == counts(lake, "events", "keyed") == {"events": 2, "keyed": 3}
    assert await began_with(lake) == newest[0][0]


async def test_what_the_catalog_lost_or_gained_is_told(lake: Lake) -> None:
    async with elected_writer(lake) as writer:
        done(
            await writer.create_table(0, 1, EVENTS),
            await writer.create_table(1, 2, KEYED),
            await writer.create_table(2, 3, replace(EVENTS, name="third")),
            await writer.commit(3, 6, [rows(1, 2, 3), changes({"id": 1}, {"id": 2})]),
        )
    await behind_the_fence(
        lake, "UPDATE {lake}.ducklake_data_file SET record_count = 1 WHERE record_count = 3"
    )
    await behind_the_fence(
        lake, "UPDATE {lake}.ducklake_table SET table_name = 'gone' WHERE table_name = 'third'"
    )

    assert await differences(lake) == [("events", 1, 3), ("gone", 0, None), ("third", None, 0)]


async def test_maintenance_reads_it_and_does_not_write_it(lake: Lake) -> None:
    connection = await asyncpg.connect((lake.maintenance_dir / "dsn").read_text())
    try:
        assert await connection.fetch("SELECT * FROM duckmesh.ledger") == []
        for statement in (
            "DELETE FROM duckmesh.ledger",
            "UPDATE duckmesh.ledger SET row_count = 0",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    finally:
        await connection.close()
