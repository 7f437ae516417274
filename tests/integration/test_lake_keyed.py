"""Upserts and deletes in a real DuckLake: what `tests/contract` cannot show of types, keys and files."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pytest

from duckmesh_runtime.adapters import ducklake
from duckmesh_runtime.domain.schema import ColumnDef, TableDef
from duckmesh_runtime.errors import Corrupt
from duckmesh_runtime.ports import CommitOutcome, TableRows
from tests.direct import attach, take_over
from tests.failpoints import Failpoint
from tests.lakes import KEYED, LakeView, changes_of, elected_writer, force_inlining
from tests.services import Lake

DONE = CommitOutcome.DONE

# Three keys of each type, the first two next to each other, as `ColumnType.build` takes them.
KEYS: dict[str, Sequence[object]] = {
    "BOOLEAN": [False, True],
    "TINYINT": [-128, -127, 127],
    "UTINYINT": [0, 1, 255],
    "SMALLINT": [-(2**15), 0, 2**15 - 1],
    "USMALLINT": [0, 1, 2**16 - 1],
    "INTEGER": [-(2**31), 0, 2**31 - 1],
    "UINTEGER": [0, 1, 2**32 - 1],
    "BIGINT": [2**63 - 2, 2**63 - 1, -(2**63)],
    "UBIGINT": [2**64 - 2, 2**64 - 1, 0],
    "FLOAT": [0.1, 0.2, -3.4e38],
    "DOUBLE": [0.1, 0.30000000000000004, 1e300],
    "VARCHAR": ["", " ", "na\u00efve \U0001f986 'x'" * 50],
    "BLOB": ["", "AA==", "/w=="],
    "DATE": ["0001-01-01", "0001-01-02", "9999-12-31"],
    "TIME": ["00:00:00", "00:00:00.000001", "23:59:59.999999"],
    "TIMESTAMP": ["2024-01-01T00:00:00", "2024-01-01T00:00:00.000001", "9999-12-31T00:00:00"],
    "TIMESTAMP_S": ["2024-01-01T00:00:00", "2024-01-01T00:00:01", "9999-12-31T00:00:00"],
    "TIMESTAMP_MS": ["2024-01-01T00:00:00", "2024-01-01T00:00:00.001", "9999-12-31T00:00:00"],
    "TIMESTAMP_NS": ["2024-01-01T00:00:00", "2024-01-01T00:00:00.000000001", "2200-01-01T00:00:00"],
    "TIMESTAMP WITH TIME ZONE": ["2024-01-01T00:00:00Z", "2024-01-01T00:00:01+00:00"],
    "UUID": ["00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"],
    "JSON": [{"a": 1}, {"a": 2}, 1.5],
    "DECIMAL(38,10)": ["0.0000000001", "0.0000000002", "-9999999999999999999999999999"],
    "DECIMAL(4,2)": ["0.01", "0.02", "99.99"],
}


def keyed(type_name: str, number: int) -> TableDef:
    columns = (
        ColumnDef(name="id", type=type_name, nullable=False),
        ColumnDef(name="value", type="VARCHAR", nullable=False),
    )
    return TableDef(name=f"t{number}", columns=columns, primary_key=("id",))


async def test_keys_of_every_plain_type_are_found_again(lake: Lake) -> None:
    view, wrong, token = LakeView(lake), [], 0
    async with elected_writer(lake) as writer:
        for number, (type_name, raw) in enumerate(KEYS.items()):
            table = keyed(type_name, number)
            keys = table.columns[0].kind.build(raw).to_pylist()
            first = [{"id": key, "value": "old"} for key in keys]
            second = [{"id": keys[0], "value": "new"}, (keys[1],)]
            await writer.create_table(token, token + 1, table)
            for changes in (first, second):
                part = TableRows(table=table.name, rows=changes_of(*changes, table=table))
                result = await writer.commit(token + 1, token + 2, [part])
                token += 1
                if result.outcome is not DONE:
                    wrong.append((type_name, result))
            token += 1

    for number, (type_name, raw) in enumerate(KEYS.items()):
        found = view.query(f"SELECT value FROM t{number} ORDER BY value")
        if found != [("new",), *[("old",)] * (len(raw) - 2)]:
            wrong.append((type_name, found))
    assert wrong == []


async def test_a_key_of_several_columns_is_all_of_them(lake: Lake) -> None:
    columns = (
        ColumnDef(name="value", type="VARCHAR"),
        ColumnDef(name='the "day"', type="DATE", nullable=False),
        ColumnDef(name="id", type="BIGINT", nullable=False),
    )
    table = TableDef(name="several", columns=columns, primary_key=("id", 'the "day"'))
    days = [columns[1].kind.build([day])[0].as_py() for day in ("2024-01-01", "2024-01-02")]

    def row(id_: int, day: int, value: str) -> dict[str, object]:
        return {"id": id_, 'the "day"': days[day], "value": value}

    def part(*changes: Mapping[str, object] | tuple[object, ...]) -> list[TableRows]:
        return [TableRows(table="several", rows=changes_of(*changes, table=table))]

    async with elected_writer(lake) as writer:
        await writer.create_table(0, 1, table)
        await writer.commit(1, 4, part(row(1, 0, "a"), row(1, 1, "b"), row(2, 0, "c")))
        await writer.commit(4, 6, part(row(1, 1, "d"), (2, days[0])))

    assert LakeView(lake).query("SELECT id, value FROM several ORDER BY value") == [
        (1, "a"),
        (1, "d"),
    ]


async def test_a_partitioned_keyed_table_moves_rows_between_partitions(lake: Lake) -> None:
    table = replace(KEYED, partition_by=("value",))
    rows = [{"id": id_, "value": "ab"[id_ % 2]} for id_ in range(10)]

    async with elected_writer(lake) as writer:
        await writer.create_table(0, 1, table)
        await writer.commit(1, 11, [_part(rows)])
        await writer.commit(11, 13, [_part([{"id": 3, "value": "a"}, (4,)])])

    found = LakeView(lake).query(
        "SELECT value, list_sort(list(id)) FROM keyed GROUP BY 1 ORDER BY 1"
    )
    assert found == [("a", [0, 2, 3, 6, 8]), ("b", [1, 5, 7, 9])]


async def test_many_random_changes_leave_what_a_dict_holds(lake: Lake) -> None:
    chance = random.Random(5)  # noqa: S311 - repeatable, not secret
    wanted: dict[int, str] = {}
    token = 1
    async with elected_writer(lake) as writer:
        await writer.create_table(0, 1, KEYED)
        for turn in range(25):
            changes: list[Mapping[str, object] | tuple[object, ...]] = []
            for _ in range(chance.randint(1, 60)):
                id_ = chance.randrange(50)
                if chance.random() < 0.3:
                    changes.append((id_,))
                    wanted.pop(id_, None)
                else:
                    wanted[id_] = f"{turn}-{len(changes)}"
                    changes.append({"id": id_, "value": wanted[id_]})
            result = await writer.commit(token, token + len(changes), [_part(changes)])
            assert result.outcome is DONE
            token += len(changes)

    assert dict(LakeView(lake).query("SELECT id, value FROM keyed")) == wanted
    assert LakeView(lake).query("SELECT count(*) FROM keyed") == [(len(wanted),)]


async def test_an_upsert_is_done_again_when_its_files_were_merged_meanwhile(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = LakeView(lake)
    async with elected_writer(lake) as writer:
        await writer.create_table(0, 1, KEYED)
        for token in (1, 2, 3):
            await writer.commit(token, token + 1, [_part([{"id": token, "value": "old"}])])
    epoch = await take_over(lake, "m")
    maintenance = attach(lake, "m", epoch)

    def merge() -> None:
        maintenance.execute("BEGIN")
        info = """'{"role":"m"}'"""
        maintenance.execute(f"CALL lake.set_commit_message('m', 'm', extra_info => {info})")
        maintenance.execute("CALL ducklake_merge_adjacent_files('lake', 'keyed')")
        maintenance.execute("COMMIT")

    merged = Failpoint("COMMIT", "before", merge)
    try:
        merged.plant(monkeypatch)
        async with elected_writer(lake) as writer:
            result = await writer.commit(4, 6, [_part([{"id": 1, "value": "new"}, (2,)])])
    finally:
        maintenance.close()

    assert merged.hit
    assert result.outcome is DONE
    assert view.query("SELECT id, value FROM keyed ORDER BY id") == [(1, "new"), (3, "old")]


async def test_an_upsert_that_the_engine_would_inline_is_refused(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deletes kept inside the catalog come back after a merge, so the commit must not land."""
    view = LakeView(lake)
    async with elected_writer(lake) as writer:
        await writer.create_table(0, 1, KEYED)
        await writer.commit(1, 4, [_part({"id": i, "value": "a"} for i in range(3))])
    await force_inlining(lake)

    async def unguarded(*_: object) -> None:
        return None

    monkeypatch.setattr(ducklake, "_check_guards", unguarded)
    async with elected_writer(lake) as writer:
        for changes in ([{"id": 1, "value": "b"}], [(2,)]):
            with pytest.raises(RuntimeError, match="never allowed"):
                await writer.commit(4, 5, [_part(changes)])

    assert await view.token() == 4
    assert view.query("SELECT id, value FROM keyed ORDER BY id") == [(0, "a"), (1, "a"), (2, "a")]


async def test_a_commit_past_a_missing_trigger_is_the_last_one(lake: Lake) -> None:
    """The trigger went while a writer was attached: that commit is made good once, and no further one follows."""
    view = LakeView(lake)
    async with elected_writer(lake) as writer:
        await writer.create_table(0, 1, KEYED)
        await view.fetch(f"DROP TRIGGER dm_23_commit ON {lake.name}.ducklake_snapshot_changes")

        with pytest.raises(Corrupt, match="dm_23_commit"):
            await writer.commit(1, 2, [_part([{"id": 1, "value": "a"}])])

    assert await view.token() == 2
    assert view.query("SELECT id FROM keyed") == [(1,)]


def _part(changes: Iterable[Mapping[str, object] | tuple[object, ...]]) -> TableRows:
    return TableRows(table="keyed", rows=changes_of(*changes))
