"""Snapshots at the door: listed, read, pinned and unpinned, what is refused and what is logged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from duckmesh_runtime.domain.snapshots import (
    ColumnStatistics,
    DataFile,
    DeleteFile,
    FieldName,
    PartitionValue,
    SnapshotColumn,
    SnapshotFiles,
    SnapshotTable,
)
from duckmesh_runtime.domain.tokens import Token
from duckmesh_runtime.services.snapshots import SnapshotService
from tests.fakes.doors import LAKE
from tests.fakes.server import Doors, serve
from tests.fakes.snapshots import FakeSnapshots

PATH = "/v1/snapshots"


@pytest.fixture
def kept() -> FakeSnapshots:
    found = FakeSnapshots()
    found.add(8)
    return found


@pytest.fixture
async def door(parts: Any, kept: FakeSnapshots) -> AsyncIterator[Doors]:
    parts.snapshots = SnapshotService(kept)
    async for found in serve(parts):
        yield found


async def test_a_snapshot_says_what_it_is(door: Doors) -> None:
    status, body, _ = await door.call("GET", f"{PATH}/4")

    assert (status, body) == (
        200,
        {
            "snapshot_id": 4,
            "snapshot_time": "2026-01-31T12:00:04Z",
            "max_visibility_token": str(Token(lake=LAKE, timeline=1, number=4)),
            "schema_version": 1,
            "schema_changed": False,
            "pinned": False,
            "pins": [],
            "tables": [{"name": "events", "files": 4, "size_bytes": 400, "delete_files": 0}],
        },
    )
    empty = (await door.call("GET", f"{PATH}/0"))[1]["max_visibility_token"]
    assert empty == str(Token(lake=LAKE, timeline=1, number=0))


async def test_pages_follow_each_other_to_the_oldest(door: Doors) -> None:
    numbers, before = [], ""
    while True:
        _, body, _ = await door.call("GET", f"{PATH}?limit=3{before}")
        numbers += [one["snapshot_id"] for one in body["snapshots"]]
        if body["next_before"] is None:
            break
        before = f"&before={body['next_before']}"

    assert numbers == [7, 6, 5, 4, 3, 2, 1, 0]


async def test_what_is_gone_and_what_never_was_are_told_apart(
    door: Doors, kept: FakeSnapshots
) -> None:
    kept.expire(3)

    for path in (f"{PATH}/{{}}", f"{PATH}/{{}}/files"):
        gone, never = [await door.call("GET", path.format(number)) for number in (3, 8)]
        assert (gone[0], gone[1]["error_code"]) == (410, "SNAPSHOT_EXPIRED")
        assert (never[0], never[1]["error_code"]) == (404, "SNAPSHOT_NOT_FOUND")


async def test_listings_go_one_after_the_other_and_pins_do_not_wait(
    parts: Any, kept: FakeSnapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share few connections with what accepts input."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    files = kept.files

    async def slow(*args: Any, **kwargs: Any) -> SnapshotFiles:
        begun.set()
        await go_on.wait()
        return await files(*args, **kwargs)

    monkeypatch.setattr(kept, "files", slow)
    parts.snapshots = SnapshotService(kept, wait_s=0.05)
    async for door in serve(parts):
        first = asyncio.create_task(door.call("GET", f"{PATH}/4/files"))
        await begun.wait()

        late = [await door.call("GET", path) for path in (f"{PATH}/4/files", f"{PATH}/4", PATH)]
        pinned = await door.call("POST", f"{PATH}/pin", json={"snapshot_id": 4})
        go_on.set()

        assert {(status, body["error_code"]) for status, body, _ in late} == {(429, "OVERLOADED")}
        assert late[0][2].headers["Retry-After"] == "1"
        assert pinned[0] == (await first)[0] == (await door.call("GET", PATH))[0] == 200


async def test_a_file_says_all_that_reading_it_needs(
    door: Doors, kept: FakeSnapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = SnapshotColumn(
        field_id=3, name="a", type="INTEGER", nullable=True, initial_default=None
    )
    column = SnapshotColumn(
        field_id=2,
        name="what",
        type='STRUCT("a" INTEGER)',
        nullable=False,
        initial_default="x",
        fields=[inner],
    )
    deletes = DeleteFile(path="main/t/d.parquet", size_bytes=9, row_count=1, upto_snapshot_id=4)
    statistics = ColumnStatistics(
        field_id=2, size_bytes=5, value_count=3, null_count=0, min="1", max="2", contains_nan=None
    )
    file = DataFile(
        file_id=1,
        table="t",
        path="main/t/p=%25/a.parquet",
        size_bytes=10,
        row_count=3,
        upto_snapshot_id=None,
        delete_files=[deletes],
        partition=[PartitionValue(field_id=2, transform="identity", value=None)],
        statistics=[statistics],
        names=[FieldName(field_id=2, name="old", fields=[FieldName(field_id=3, name="b")])],
    )
    elsewhere = DataFile(
        file_id=2,
        table="t",
        path="s3://other/x.parquet",
        size_bytes=10,
        row_count=3,
        upto_snapshot_id=None,
    )

    async def files(*_: object, **__: object) -> SnapshotFiles:
        snapshot = (await kept.find(4))[0]
        table = SnapshotTable(name="t", columns=[column])
        return SnapshotFiles(
            snapshot=snapshot, tables=[table], files=[file, elsewhere], more=False, before=0
        )

    monkeypatch.setattr(kept, "files", files)
    status, body, _ = await door.call("GET", f"{PATH}/4/files")

    nothing: dict[str, Any] = {"fields": [], "initial_default": None, "nullable": True}
    assert (status, body["snapshot_id"], body["next_after"]) == (200, 4, None)
    assert body["data_url"] == "file:///nowhere/"
    assert body["tables"] == [
        {
            "name": "t",
            "columns": [
                {
                    "field_id": 2,
                    "name": "what",
                    "type": 'STRUCT("a" INTEGER)',
                    "nullable": False,
                    "initial_default": "x",
                    "fields": [{"field_id": 3, "name": "a", "type": "INTEGER"} | nothing],
                }
            ],
        }
    ]
    assert body["files"][0] == {
        "table": "t",
        "path": "main/t/p=%25/a.parquet",
        "url": "file:///nowhere/main/t/p=%25/a.parquet",
        "size_bytes": 10,
        "row_count": 3,
        "upto_snapshot_id": None,
        "delete_files": [
            {
                "path": "main/t/d.parquet",
                "url": "file:///nowhere/main/t/d.parquet",
                "size_bytes": 9,
                "row_count": 1,
                "upto_snapshot_id": 4,
            }
        ],
        "partition": [{"field_id": 2, "transform": "identity", "value": None}],
        "statistics": [
            {
                "field_id": 2,
                "size_bytes": 5,
                "value_count": 3,
                "null_count": 0,
                "min": "1",
                "max": "2",
                "contains_nan": None,
            }
        ],
        "field_names": [
            {"field_id": 2, "name": "old", "fields": [{"field_id": 3, "name": "b", "fields": []}]}
        ],
    }
    assert body["files"][1]["url"] == "s3://other/x.parquet"
    assert body["files"][1]["field_names"] is None


async def test_a_pin_holds_a_snapshot_and_each_act_is_logged(
    door: Doors, kept: FakeSnapshots, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "duckmesh_runtime.web.audit")
    asked = {"snapshot_id": 3, "name": "audit", "expires_at": "2027-01-31T01:00:00+01:00"}

    status, pinned, _ = await door.call("POST", f"{PATH}/pin", json=asked)
    await door.call("POST", f"{PATH}/pin", json={"snapshot_id": 99})
    kept.expire(3)
    del asked["expires_at"]
    _, unpinned, _ = await door.call("POST", f"{PATH}/unpin", json=asked)
    _, again, _ = await door.call("POST", f"{PATH}/unpin", json=asked)

    (pin,) = pinned["pins"]
    assert (status, pinned["pinned"], pinned["snapshot_id"]) == (200, True, 3)
    assert (pin["name"], pin["expires_at"]) == ("audit", "2027-01-31T00:00:00Z")
    assert pin["pinned_at"] == "2026-01-31T12:00:07Z"
    assert (unpinned["removed"], unpinned["pins"], again["removed"]) == (True, [], False)
    said = [(r.key_id, r.action, r.target, r.outcome) for r in caplog.records]  # type: ignore[attr-defined]  # extras
    assert said == [
        ("admin", "pin snapshot", "3", "OK"),
        ("admin", "pin snapshot", "99", "SNAPSHOT_NOT_FOUND"),
        ("admin", "unpin snapshot", "3", "OK"),
        ("admin", "unpin snapshot", "3", "OK"),
    ]
    assert caplog.records[0].pin == "audit"  # type: ignore[attr-defined]  # extras


async def test_a_pin_without_a_name_has_none(door: Doors) -> None:
    _, body, _ = await door.call("POST", f"{PATH}/pin", json={"snapshot_id": 3})

    (pin,) = body["pins"]
    assert (pin["name"], pin["expires_at"]) == (None, None)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        pytest.param({}, "snapshot_id", id="no snapshot"),
        pytest.param({"snapshot_id": -1}, "snapshot_id", id="negative"),
        pytest.param({"snapshot_id": 10**18}, "snapshot_id", id="too large"),
        pytest.param({"snapshot_id": "3"}, "snapshot_id", id="a text"),
        pytest.param({"snapshot_id": 3, "name": "a b"}, "name", id="a name with a space"),
        pytest.param({"snapshot_id": 3, "name": "restore:7"}, "name", id="a name of our own"),
        pytest.param({"snapshot_id": 3, "name": "x" * 65}, "name", id="a long name"),
        pytest.param({"snapshot_id": 3, "expires_at": "soon"}, "expires_at", id="no time"),
        pytest.param(
            {"snapshot_id": 3, "expires_at": "2027-01-31T00:00:00"}, "expires_at", id="no zone"
        ),
        pytest.param(
            {"snapshot_id": 3, "expires_at": "2020-01-31T00:00:00Z"}, "expires_at", id="past"
        ),
        pytest.param(
            {"snapshot_id": 3, "expires_at": "9999-12-31T23:59:59-23:59"},
            "expires_at",
            id="no year of four digits",
        ),
        pytest.param(
            {"snapshot_id": 3, "expires_at": "0001-01-01T00:00:00+23:59"},
            "expires_at",
            id="before the year 1",
        ),
        pytest.param({"snapshot_id": 3, "until": "x"}, "until", id="unknown field"),
    ],
)
async def test_a_pin_that_makes_no_sense_is_refused_by_name(
    door: Doors, body: dict[str, Any], field: str
) -> None:
    status, answer, _ = await door.call("POST", f"{PATH}/pin", json=body)

    assert (status, answer["error_code"]) == (400, "VALIDATION_FAILED")
    assert field in answer["message"]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        pytest.param("?limit=0", "limit", id="limit too small"),
        pytest.param("?limit=1001", "limit", id="limit too large"),
        pytest.param("?before=x", "before", id="before"),
        pytest.param("?after=3", "after", id="unknown parameter"),
        pytest.param("/x", "snapshot_id", id="no number"),
        pytest.param("/99999999999999999999", "snapshot_id", id="no such large number"),
        pytest.param("/3?limit=3", "limit", id="parameter of a list"),
        pytest.param("/3/files?limit=10001", "limit", id="files limit"),
        pytest.param("/3/files?after=1", "after", id="after of no listing"),
        pytest.param("/3/files?after=1.1.1", "after", id="after with too much"),
        pytest.param("/3/files?after=2.7", "after", id="after of another listing"),
        pytest.param("/3/files?table=A", "table", id="no table's name"),
    ],
)
async def test_wrong_parameters_are_refused_by_name(door: Doors, path: str, field: str) -> None:
    status, answer, _ = await door.call("GET", PATH + path)

    assert (status, answer["error_code"]) == (400, "VALIDATION_FAILED")
    assert field in answer["message"]


async def test_a_table_that_the_snapshot_lacks_is_not_found(door: Doors) -> None:
    status, answer, _ = await door.call("GET", f"{PATH}/3/files?table=other")

    assert (status, answer["error_code"]) == (404, "TABLE_NOT_FOUND")


async def test_a_body_of_another_kind_is_refused(door: Doors) -> None:
    status, answer, _ = await door.call("POST", f"{PATH}/pin", data=b"snapshot_id=3")

    assert (status, answer["error_code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
