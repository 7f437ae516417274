"""Changes of tables, and staged files, in a real DuckLake: what `tests/contract` cannot show."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import pyarrow as pa
import pytest

from duckmesh_runtime.adapters.lake_files import table_folder
from duckmesh_runtime.domain.changes import (
    AddColumn,
    Change,
    DropColumn,
    PartitionBy,
    RenameColumn,
    SetDefault,
    SortBy,
    WidenType,
    apply_changes,
)
from duckmesh_runtime.domain.columns import SCALARS
from duckmesh_runtime.domain.schema import ColumnDef, TableDef, arrow_schema
from duckmesh_runtime.ports import CommitOutcome, StagedFile, TableFile, TableRows
from tests.lakes import EVENTS, LakeView, elected_writer, rows_of, stage, writer_pool
from tests.services import Lake

DONE, REJECTED = CommitOutcome.DONE, CommitOutcome.REJECTED

DEFAULTS: dict[str, Any] = {
    "BOOLEAN": True,
    "TINYINT": -5,
    "UTINYINT": 255,
    "SMALLINT": -1,
    "USMALLINT": 65535,
    "INTEGER": -7,
    "UINTEGER": 7,
    "BIGINT": -(2**63),
    "UBIGINT": 2**64 - 1,
    "FLOAT": 0.1,
    "DOUBLE": -1e300,
    "VARCHAR": 'it\'s \\ "this"\n\U0001f986',
    "BLOB": "qgAn",
    "DATE": "0001-01-01",
    "TIME": "23:59:59.999999",
    "TIMESTAMP": "2024-01-31T12:00:00.000001+02:00",
    "TIMESTAMP_S": "2024-01-31T12:00:00",
    "TIMESTAMP_MS": "2024-01-31T12:00:00.123",
    "TIMESTAMP_NS": "2024-01-31T12:00:00.123456789",
    "TIMESTAMP WITH TIME ZONE": "2024-01-31T12:00:00+02:00",
    "UUID": "00000000-0000-0000-0000-00000000000a",
    "JSON": "null",
    "DECIMAL(38,10)": "0.0000000001",
    "DECIMAL(4,2)": -99.99,
}


async def test_old_rows_take_the_default_of_an_added_column_of_every_type(lake: Lake) -> None:
    assert DEFAULTS.keys() >= SCALARS.keys()
    changes = [
        AddColumn(column=ColumnDef(name=f"c{i}", type=type_name, default=default))
        for i, (type_name, default) in enumerate(DEFAULTS.items())
    ]
    table = apply_changes(EVENTS, changes)
    async with elected_writer(lake) as writer:
        await writer.create_table(0, 1, EVENTS)
        await writer.commit(1, 2, [TableRows(table="events", rows=rows_of([1]))])

        result = await writer.alter_table(2, 3, table, changes)

    assert result.outcome is DONE
    (found,) = LakeView(lake).dicts("SELECT * EXCLUDE (id, text) FROM events")
    wanted = pa.Table.from_arrays(
        [column.kind.build([column.default]) for column in table.columns[2:]],
        schema=pa.schema(list(arrow_schema(table))[2:]),
    )
    assert {name: _plain(value) for name, value in found.items()} == {
        name: _plain(value) for name, value in wanted.to_pylist()[0].items()
    }


def _plain(value: object) -> object:
    return str(value) if not isinstance(value, bytes) else value


async def _changed(
    lake: Lake, table: TableDef, rows: Sequence[dict[str, object]], *changes: Sequence[Change]
) -> TableDef:
    """Make a table with rows and change it, one entry for each list."""
    async with elected_writer(lake) as writer:
        await writer.create_table(0, 1, table)
        content = pa.Table.from_pylist(list(rows), schema=arrow_schema(table))
        await writer.commit(1, 2, [TableRows(table=table.name, rows=content)])
        for token, some in enumerate(changes, 2):
            table = apply_changes(table, some)
            result = await writer.alter_table(token, token + 1, table, some)
            assert result.outcome is DONE, result
        content = pa.Table.from_pylist([{}], schema=arrow_schema(table))
        token = 2 + len(changes)
        result = await writer.commit(token, token + 1, [TableRows(table=table.name, rows=content)])
        assert result.outcome is DONE, result
    return table


PLAIN = TableDef(
    name="t",
    columns=(
        ColumnDef(name="a", type="INTEGER"),
        ColumnDef(name="b", type="VARCHAR"),
        ColumnDef(name="day", type="DATE"),
    ),
)
ROW: dict[str, object] = {"a": 1, "b": "x", "day": date(2024, 1, 31)}


async def test_all_kinds_of_changes_in_one_entry(lake: Lake) -> None:
    await _changed(
        lake,
        PLAIN,
        [ROW],
        [
            RenameColumn(name="a", to="tmp"),
            RenameColumn(name="b", to="a"),
            RenameColumn(name="tmp", to="b"),
            WidenType(name="b", type="BIGINT"),
            AddColumn(column=ColumnDef(name="c", type="INTEGER", default=5)),
            SetDefault(name="c", default=6),
            SetDefault(name="a", default="it's"),
            WidenType(name="c", type="BIGINT"),
            PartitionBy(columns=("day",)),
            SortBy(columns=("b", "c")),
            DropColumn(name="a"),
            AddColumn(column=ColumnDef(name="a", type="DATE")),
        ],
    )

    first, added = LakeView(lake).dicts("SELECT * FROM t ORDER BY b NULLS LAST")
    assert first == {"b": 1, "day": ROW["day"], "c": 5, "a": None}
    assert added == {"b": None, "day": None, "c": None, "a": None}


async def test_old_rows_keep_the_default_of_their_time_over_later_changes(lake: Lake) -> None:
    await _changed(
        lake,
        PLAIN,
        [ROW],
        [AddColumn(column=ColumnDef(name="c", type="INTEGER", default=5))],
        [SetDefault(name="c", default=6)],
        [RenameColumn(name="c", to="d"), WidenType(name="d", type="BIGINT")],
        [SetDefault(name="d", default=None)],
    )

    assert LakeView(lake).query("SELECT d FROM t WHERE a = 1 AND d = 5") == [(5,)]


async def test_partition_and_sort_columns_are_renamed_widened_and_given_up(lake: Lake) -> None:
    table = TableDef(name="t", columns=PLAIN.columns, partition_by=("a",), sort_by=("b", "day"))
    await _changed(
        lake,
        table,
        [ROW],
        [RenameColumn(name="a", to="part"), WidenType(name="part", type="BIGINT")],
        [RenameColumn(name="b", to="sort")],
        [PartitionBy(columns=()), DropColumn(name="part")],
        [SortBy(columns=("day",)), DropColumn(name="sort")],
        [SortBy(columns=())],
    )

    assert LakeView(lake).query("SELECT * FROM t ORDER BY day NULLS LAST") == [
        (ROW["day"],),
        (None,),
    ]


async def test_defaults_of_every_type_can_be_set(lake: Lake) -> None:
    types = {name: default for name, default in DEFAULTS.items() if name != "JSON"}
    columns = tuple(ColumnDef(name=f"c{i}", type=type_name) for i, type_name in enumerate(types))
    defaults = [
        SetDefault(name=f"c{i}", default=default) for i, default in enumerate(types.values())
    ]
    await _changed(lake, TableDef(name="t", columns=columns), [], defaults)


async def test_a_table_of_nested_columns_is_known_again(lake: Lake) -> None:
    kinds = ['STRUCT("end" INTEGER, "b" VARCHAR)', "MAP(VARCHAR, BIGINT)[]", "JSON"]
    columns = tuple(
        ColumnDef(name=f"c{i}", type=SCALARS[kind].name if kind in SCALARS else kind)
        for i, kind in enumerate(kinds)
    )
    table = TableDef(name="t", columns=columns)
    async with elected_writer(lake) as writer:
        outcomes = [(await writer.create_table(i, i + 1, table)).outcome for i in range(2)]

    assert outcomes == [DONE, DONE]


# -- staged files


async def test_a_registered_file_belongs_to_the_table_s_folder(lake: Lake) -> None:
    async with elected_writer(lake) as writer, writer_pool(lake) as pool:
        assert await table_folder(pool, lake.name, "events") is None
        await writer.create_table(0, 1, EVENTS)
        assert await table_folder(pool, lake.name, "events") == "main/events/"
        file = TableFile(table="events", file=await stage(lake, rows_of([1, 2])))

        result = await writer.commit(1, 3, [file])

    assert result.outcome is DONE
    view = LakeView(lake)
    assert view.ids() == [1, 2]
    files = await view.fetch(f"SELECT path, path_is_relative FROM {lake.name}.ducklake_data_file")
    assert [tuple(file) for file in files] == [("staged-1.parquet", True)]


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("main/elsewhere/", "staged-1.parquet"),
        ("main/events/below/", "staged-1.parquet"),
        ("main/events/", "staged-[1].parquet"),
    ],
    ids=["another folder", "a folder below", "a pattern"],
)
async def test_a_file_that_cannot_be_registered_is_read(lake: Lake, folder: str, name: str) -> None:
    async with elected_writer(lake) as writer:
        await writer.create_table(0, 1, EVENTS)
        staged = await stage(lake, rows_of([1, 2]), name, folder=folder)

        result = await writer.commit(1, 3, [TableFile(table="events", file=staged)])

    assert result.outcome is DONE
    assert LakeView(lake).ids() == [1, 2]
    (path,) = await LakeView(lake).fetch(f"SELECT path FROM {lake.name}.ducklake_data_file")
    assert "staged" not in path["path"]


async def test_a_partitioned_table_gets_the_rows_of_a_file_not_the_file(lake: Lake) -> None:
    table = TableDef(name="events", columns=EVENTS.columns, partition_by=("id",))
    async with elected_writer(lake) as writer, writer_pool(lake) as pool:
        await writer.create_table(0, 1, table)
        assert await table_folder(pool, lake.name, "events") is None
        staged = TableFile(table="events", file=await stage(lake, rows_of([1, 2])))
        result = await writer.commit(1, 3, [staged])
        await writer.alter_table(3, 4, EVENTS, [PartitionBy(columns=())])
        assert await table_folder(pool, lake.name, "events") == "main/events/"

    assert result.outcome is DONE
    query = f"SELECT count(*) FROM {lake.name}.ducklake_data_file WHERE partition_id IS NOT NULL"
    assert await LakeView(lake).fetchval(query) == 2


async def test_a_file_of_other_types_is_cast_or_refused(lake: Lake) -> None:
    narrow = pa.table({"id": pa.array([1], pa.int8()), "text": pa.array(["x"])})
    wrong = pa.table({"id": ["no number"], "text": ["x"]})
    extra = pa.table({"id": [1], "text": ["x"], "more": [1]})
    async with elected_writer(lake) as writer:
        await writer.create_table(0, 1, EVENTS)
        results = []
        for number, rows in enumerate((narrow, wrong, extra)):
            staged = await stage(lake, rows, f"staged-{number}.parquet")
            files = [TableFile(table="events", file=staged)]
            results.append(await writer.commit(number + 1, number + 2, files))
            if results[-1].outcome is REJECTED:
                await writer.commit(number + 1, number + 2, [])

    assert [result.outcome for result in results] == [DONE, REJECTED, REJECTED]
    assert LakeView(lake).ids() == [1]


async def test_a_file_is_part_of_its_table_once(lake: Lake) -> None:
    async with elected_writer(lake) as writer:
        await writer.create_table(0, 1, EVENTS)
        file = TableFile(table="events", file=await stage(lake, rows_of([1, 2])))
        await writer.commit(1, 3, [file])

        result = await writer.commit(3, 5, [file])

    assert (result.outcome, result.whole) == (REJECTED, True)
    assert LakeView(lake).ids() == [1, 2]


async def test_a_damaged_file_is_refused(lake: Lake) -> None:
    async with elected_writer(lake) as writer:
        await writer.create_table(0, 1, EVENTS)
        file = await stage(lake, rows_of(range(1000)))
        path = lake.store.url.removeprefix("file://") + file.path
        with open(path, "r+b") as parquet:  # noqa: ASYNC230 - a test's own file
            parquet.truncate(500)

        result = await writer.commit(1, 1001, [TableFile(table="events", file=file)])

    assert result.outcome is REJECTED
    assert "main/events/staged-1.parquet" in (result.error or "")
    assert lake.store.url.removeprefix("file://") not in (result.error or "")
    assert LakeView(lake).ids() == []


async def test_a_store_that_does_not_answer_is_no_reason_to_refuse_a_file(lake: Lake) -> None:
    file = TableFile(
        table="events", file=StagedFile(path="main/events/staged-1.parquet", rows=1, size=1)
    )
    async with elected_writer(lake) as writer:
        await writer.create_table(0, 1, EVENTS)
        folder = lake.store.url.removeprefix("file://") + "main"
        with open(folder, "w"):  # noqa: ASYNC230 - what should be a folder is a file
            pass

        result = await writer.commit(1, 2, [file])

    assert result.outcome is CommitOutcome.REREAD
