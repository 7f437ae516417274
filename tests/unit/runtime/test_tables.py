"""Tables through the service and through HTTP: accepted in order, answered with what the lake made of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from duckmesh_runtime.domain.changes import Change, parse_alter, parse_changes
from duckmesh_runtime.domain.schema import TableDef, parse_table
from duckmesh_runtime.errors import Conflict, DuckmeshError
from duckmesh_runtime.ports import EntryKind
from tests.fakes.server import Doors, serve
from tests.fakes.tables import TableLake, table_lake

EVENTS = {
    "name": "events",
    "columns": [{"name": "id", "type": "INTEGER"}, {"name": "v", "type": "VARCHAR"}],
}
ADD = {"add_column": {"name": "n", "type": "BIGINT", "default": 7}}


def table(**changes: Any) -> TableDef:
    return parse_table(EVENTS | changes)


def changes(*raw: dict[str, Any]) -> tuple[Change, ...]:
    return parse_changes({"changes": list(raw)})


@pytest.fixture
async def lake() -> AsyncIterator[TableLake]:
    async with table_lake() as made:
        await made.tables.create(table())
        yield made


async def code_of(call: Any) -> str:
    with pytest.raises(DuckmeshError) as caught:
        await call
    return caught.value.code


async def test_a_change_is_one_entry_that_says_the_way_and_the_end(lake: TableLake) -> None:
    changed = await lake.tables.alter("events", changes(ADD, {"drop_column": {"name": "v"}}))

    assert (changed.number, changed.new) == (2, True)
    entry = lake.bus.entries[-1]
    assert (entry.kind, entry.table, entry.first, entry.last) == (
        EntryKind.ALTER_TABLE,
        "events",
        2,
        2,
    )
    after, way = parse_alter(msgspec.json.decode(entry.payload))
    assert after == changed.table == await lake.tables.find("events")
    assert way == changes(ADD, {"drop_column": {"name": "v"}})
    assert (await lake.tables.find("events")).version == 1
    await lake.barrier.wait(changed.number, 1)
    await lake.tables.confirm(changed)


async def test_a_change_that_changes_nothing_is_no_entry(lake: TableLake) -> None:
    changed = await lake.tables.alter("events", changes({"sort_by": []}))

    assert (changed.number, changed.new) == (1, False)
    assert len(lake.bus.entries) == 1
    await lake.tables.confirm(changed)


async def test_an_impossible_change_is_no_entry(lake: TableLake) -> None:
    narrower = changes(ADD, {"widen_type": {"name": "id", "type": "TINYINT"}})

    assert await code_of(lake.tables.alter("events", narrower)) == "SCHEMA_INCOMPATIBLE"
    assert await code_of(lake.tables.alter("nope", narrower)) == "TABLE_NOT_FOUND"
    assert len(lake.bus.entries) == 1


async def test_a_change_is_judged_again_when_another_came_first(lake: TableLake) -> None:
    async with table_lake(lake.bus) as other:
        await other.tables.alter("events", changes(ADD))

        assert await code_of(lake.tables.alter("events", changes(ADD))) == "SCHEMA_INCOMPATIBLE"
        await lake.tables.alter("events", changes({"rename_column": {"name": "n", "to": "m"}}))
        assert [c.name for c in (await other.tables.find("events")).columns] == ["id", "v", "m"]


async def test_changes_at_once_are_all_applied(lake: TableLake) -> None:
    async with table_lake(lake.bus) as other:
        adds = [{"add_column": {"name": f"c{i}", "type": "INT"}} for i in range(8)]
        await asyncio.gather(
            *(
                (lake, other)[i % 2].tables.alter("events", changes(add))
                for i, add in enumerate(adds)
            )
        )

    names = {column.name for column in (await lake.tables.find("events")).columns}
    assert names == {"id", "v", *(f"c{i}" for i in range(8))}
    versions = await lake.tables.versions("events")
    assert len(versions) == 9
    assert [len(v.table.columns) for v in versions if v.table] == list(range(2, 11))


@pytest.mark.parametrize("kind", ["create", "alter", "drop"])
async def test_what_the_lake_refuses_is_not_told_as_done(lake: TableLake, kind: str) -> None:
    calls = {
        "create": lambda: lake.tables.create(table(name="other")),
        "alter": lambda: lake.tables.alter("events", changes(ADD)),
        "drop": lambda: lake.tables.drop("events"),
    }
    lake.barrier.bus.token = 1
    before = await lake.tables.all()
    changed = await calls[kind]()
    lake.barrier.refusals = ["the lake says no"]
    await lake.barrier.wait(changed.number, 1)

    with pytest.raises(Conflict, match="the lake says no") as caught:
        await lake.tables.confirm(changed)

    assert caught.value.code == "SCHEMA_INCOMPATIBLE"
    assert await lake.tables.all() == before


async def test_a_success_that_rests_on_a_refused_change_is_taken_back(lake: TableLake) -> None:
    async with table_lake(lake.bus) as other:
        lake.bus.token = 1
        await lake.tables.create(table(name="late"))
        same = await other.tables.create(table(name="late"))
        assert not same.new
        other.barrier.refusals = ["no"]
        await other.barrier.wait(same.number, 1)

        assert await code_of(other.tables.confirm(same)) == "SCHEMA_INCOMPATIBLE"


async def test_versions_stay_over_a_drop(lake: TableLake) -> None:
    await lake.tables.drop("events")
    await lake.tables.create(table(columns=EVENTS["columns"][:1]))

    found = await lake.tables.versions("events")

    assert [None if v.table is None else len(v.table.columns) for v in found] == [2, None, 1]
    assert [v.schema_version for v in found] == [1, 2, 3]
    assert await code_of(lake.tables.versions("nope")) == "TABLE_NOT_FOUND"


# -- HTTP


@pytest.fixture
async def doors(parts: Any, lake: TableLake) -> AsyncIterator[Doors]:
    parts.tables, parts.barrier = lake.tables, lake.barrier
    async for found in serve(parts):
        yield found


async def test_a_table_is_changed_over_http(doors: Any) -> None:
    status, body, _ = await doors.call("PATCH", "/v1/tables/events", json={"changes": [ADD]})
    _, read, _ = await doors.call("GET", "/v1/tables/events")
    _, listed, _ = await doors.call("GET", "/v1/tables/events/versions")

    assert (status, body["visible_snapshot_id"]) == (200, 7)
    assert body["columns"][-1] == {"name": "n", "type": "BIGINT", "nullable": True, "default": 7}
    assert body["max_visibility_token"].startswith("v1_")
    assert (read["columns"], read["schema_version"]) == (body["columns"], 2)
    assert [v["schema_version"] for v in listed["versions"]] == [1, 2]
    assert [len(v["columns"]) for v in listed["versions"]] == [2, 3]
    assert listed["versions"][0]["changed_at"].endswith("Z")


async def test_a_dropped_table_shows_in_its_versions(doors: Any) -> None:
    await doors.call("DELETE", "/v1/tables/events")

    status, body, _ = await doors.call("GET", "/v1/tables/events/versions")

    assert (status, body["versions"][-1]["dropped"]) == (200, True)
    assert "columns" not in body["versions"][-1]
    assert (await doors.call("GET", "/v1/tables/events"))[0] == 404
    assert (await doors.call("GET", "/v1/tables/nope/versions"))[0] == 404


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"changes": []}, 400, "VALIDATION_FAILED"),
        ({"changes": [{"drop_column": {"name": "x"}}]}, 409, "SCHEMA_INCOMPATIBLE"),
        ({"changes": [{"sort_by": ["x"]}]}, 400, "VALIDATION_FAILED"),
    ],
)
async def test_a_change_that_cannot_be_names_its_field(
    doors: Any, body: dict[str, Any], status: int, code: str
) -> None:
    got, answer, _ = await doors.call("PATCH", "/v1/tables/events", json=body)

    assert (got, answer["error_code"]) == (status, code)
    assert answer["context"]["field"].startswith("changes")


async def test_a_refused_change_is_an_error(doors: Any, lake: TableLake) -> None:
    lake.bus.token = 1
    lake.barrier.refusals = ["cannot be written"]

    status, body, _ = await doors.call("PATCH", "/v1/tables/events", json={"changes": [ADD]})

    assert (status, body["error_code"]) == (409, "SCHEMA_INCOMPATIBLE")
    assert body["message"] == "the lake refused the change: cannot be written"
    _, read, _ = await doors.call("GET", "/v1/tables/events")
    assert [c["name"] for c in read["columns"]] == ["id", "v"]


async def test_declared_tables_are_not_changed_over_http(doors: Any, parts: Any) -> None:
    class Declared:
        names = frozenset({"events", "later"})

    parts.declared = Declared()
    calls = [
        ("PATCH", "/v1/tables/events", {"changes": [ADD]}),
        ("DELETE", "/v1/tables/events", None),
        ("POST", "/v1/tables", EVENTS | {"sort_by": ["id"]}),
        ("POST", "/v1/tables", EVENTS | {"name": "later"}),
    ]
    for method, path, body in calls:
        status, answer, _ = await doors.call(method, path, json=body)
        assert (status, answer["error_code"]) == (409, "TABLE_DECLARED"), method
    assert (await doors.call("POST", "/v1/tables", json=EVENTS))[0] == 201
    assert (await doors.call("POST", "/v1/tables", json=EVENTS | {"name": "free"}))[0] == 201
