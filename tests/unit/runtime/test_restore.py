"""Restore: what is planned, what is accepted, and what HTTP and the command line say of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from duckmesh_runtime.domain.restore import (
    LakeTable,
    parse_restore,
    plan_restore,
    refused,
    restore_json,
)
from duckmesh_runtime.domain.schema import parse_table
from duckmesh_runtime.domain.tokens import parse_token
from duckmesh_runtime.errors import Invalid
from duckmesh_runtime.services.restore import RestoreService
from duckmesh_runtime.services.snapshots import SnapshotService
from duckmesh_runtime.web.audit import logger as audit_logger
from tests.fakes.doors import LAKE
from tests.fakes.server import Doors, serve
from tests.fakes.snapshots import FakeSnapshots
from tests.fakes.tables import TableLake, table_lake
from tests.unit.runtime.test_cli import Cli

EVENTS = parse_table({"name": "events", "columns": [{"name": "id", "type": "BIGINT"}]})
PATH = "/v1/snapshots/restore"
KEY = {"Idempotency-Key": "once"}
T = LakeTable(name="t", table_id=1, shape="[]", columns=["id"])


@pytest.mark.parametrize(
    ("now", "drop", "create", "reconcile"),
    [
        pytest.param([T], [], [], ["t"], id="the same table"),
        pytest.param([], [], ["t"], [], id="dropped since"),
        pytest.param([replace(T, table_id=2)], ["t"], ["t"], [], id="another of its name"),
        pytest.param([replace(T, shape="[1]")], ["t"], ["t"], [], id="changed since"),
        pytest.param([T, replace(T, name="u", table_id=2)], ["u"], [], ["t"], id="made since"),
    ],
)
def test_a_table_is_made_anew_unless_it_is_the_same(
    now: list[LakeTable], drop: list[str], create: list[str], reconcile: list[str]
) -> None:
    plan = plan_restore([T], now)

    assert (plan.drop, plan.create, plan.reconcile) == (drop, create, reconcile)


def test_a_table_with_a_column_named_as_the_row_id_is_copied() -> None:
    hidden = replace(T, columns=["id", "RowId"])

    plan = plan_restore([hidden], [hidden])

    assert (plan.drop, plan.create, plan.reconcile) == (["t"], ["t"], [])


def test_an_entry_is_read_back() -> None:
    assert parse_restore(restore_json(7, [EVENTS])) == (7, [EVENTS])
    for bad in ({}, {"snapshot_id": "7", "tables": []}, {"snapshot_id": 7, "tables": 1}):
        with pytest.raises(Invalid):
            parse_restore(bad)


@pytest.mark.parametrize(
    ("problem", "nearest", "words"),
    [
        ("no_token", 5, "snapshot 5"),
        ("no_token", None, "with the lake itself"),
        ("in_request", None, "large request"),
        ("too_old", None, "this release"),
    ],
)
def test_what_cannot_be_restored_says_what_to_do(
    problem: str, nearest: int | None, words: str
) -> None:
    error = refused(problem, 6, nearest=nearest)

    assert error.code == "SNAPSHOT_NOT_RESTORABLE"
    assert words in error.message
    assert error.context.get("restorable_snapshot_id") == nearest


@pytest.fixture
async def lake() -> AsyncIterator[TableLake]:
    async with table_lake() as made:
        await made.tables.create(EVENTS)
        made.bus.snapshots = {0: None, 2: 1, 3: None}
        await made.tables.create(replace(EVENTS, name="later"))
        await made.barrier.wait(2, 1)
        yield made


@pytest.fixture
async def served(parts: Any, lake: TableLake) -> AsyncIterator[Doors]:
    parts.tables, parts.barrier = lake.tables, lake.barrier
    parts.restore = RestoreService(lake.inlet, lake.bus)
    async for doors in serve(parts):
        yield doors


async def test_a_restore_without_a_key_is_refused_since_a_repeat_would_undo_more(
    served: Doors, lake: TableLake
) -> None:
    status, body, _ = await served.call("POST", PATH, json={"snapshot_id": 2})

    assert (status, body["context"]) == (400, {"field": "Idempotency-Key"})
    assert [table.name for table in await lake.tables.all()] == ["events", "later"]


async def test_a_restore_is_answered_when_it_is_visible(
    served: Doors, lake: TableLake, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", audit_logger.name)

    status, body, _ = await served.call("POST", PATH, json={"snapshot_id": 2}, headers=KEY)

    assert status == 200
    token = body.pop("max_visibility_token")
    assert parse_token(token, lake=LAKE, timeline=1).number == 3
    assert body == {"restored_snapshot_id": 2, "visible_snapshot_id": 7}
    assert [table.name for table in await lake.tables.all()] == ["events"]
    (line,) = [r.__dict__ for r in caplog.records if r.message == "admin action"]
    assert (line["action"], line["target"], line["outcome"]) == ("restore snapshot", "2", "OK")
    assert (line["number"], line["repeated"], line["key_id"]) == (3, False, "admin")


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"snapshot_id": 9}, 404, "SNAPSHOT_NOT_FOUND"),
        ({"snapshot_id": 1}, 410, "SNAPSHOT_EXPIRED"),
        ({"snapshot_id": 3}, 409, "SNAPSHOT_NOT_RESTORABLE"),
        ({"snapshot_id": 0}, 409, "SNAPSHOT_NOT_RESTORABLE"),
        ({"snapshot_id": -1}, 400, "VALIDATION_FAILED"),
        ({"snapshot_id": 10**18}, 400, "VALIDATION_FAILED"),
        ({"snapshot_id": "2"}, 400, "VALIDATION_FAILED"),
        ({"snapshot_id": 2, "table": "events"}, 400, "VALIDATION_FAILED"),
        ({}, 400, "VALIDATION_FAILED"),
    ],
)
async def test_what_cannot_be_restored_is_refused_and_audited(
    served: Doors,
    lake: TableLake,
    caplog: pytest.LogCaptureFixture,
    asked: dict[str, object],
    status: int,
    code: str,
) -> None:
    caplog.set_level("INFO", audit_logger.name)

    answer, body, _ = await served.call("POST", PATH, json=asked, headers=KEY)

    assert (answer, body["error_code"]) == (status, code)
    assert (await lake.bus.head()).last == 2
    lines = [r.__dict__ for r in caplog.records if r.message == "admin action"]
    assert [line["outcome"] for line in lines] == ([code] if status != 400 else [])


async def test_only_ops_admins_restore(served: Doors, lake: TableLake) -> None:
    for who in ("query-reader", "table-admin", "ingest-writer", "nobody"):
        status, _, _ = await served.call(
            "POST", PATH, json={"snapshot_id": 2}, headers=KEY, as_key=who
        )
        assert status == 403

    assert (await lake.bus.head()).last == 2


async def test_what_the_lake_refuses_is_told_with_its_reason(
    served: Doors, lake: TableLake
) -> None:
    lake.barrier.refusals = ["too much"]

    status, body, _ = await served.call("POST", PATH, json={"snapshot_id": 2}, headers=KEY)

    assert (status, body["error_code"]) == (409, "SNAPSHOT_NOT_RESTORABLE")
    assert "too much" in body["message"]
    assert [table.name for table in await lake.tables.all()] == ["events", "later"]


async def test_a_slow_restore_is_followed_by_its_key_and_done_once(
    served: Doors, lake: TableLake
) -> None:
    lake.barrier.slow = 1
    options: dict[str, Any] = {"headers": {"Idempotency-Key": "k"}}

    status, body, _ = await served.call("POST", PATH, json={"snapshot_id": 2}, **options)
    assert (status, body["error_code"]) == (504, "CONSISTENCY_TIMEOUT")
    token = body["context"]["max_visibility_token"]
    status, body, _ = await served.call("POST", PATH, json={"snapshot_id": 2}, **options)

    assert (status, body["max_visibility_token"]) == (200, token)
    assert (await lake.bus.head()).last == 3
    status, body, _ = await served.call("POST", PATH, json={"snapshot_id": 0}, **options)
    assert (status, body["error_code"]) == (409, "IDEMPOTENCY_CONFLICT")


async def test_the_command_line_says_what_is_undone_then_asks_and_says_what_came_of_it(
    served: Doors, lake: TableLake, tmp_path: Path
) -> None:
    kept = FakeSnapshots()
    kept.add(8)
    kept.expire(1)
    served.parts.snapshots = SnapshotService(kept)
    cli = Cli(served.url, tmp_path)

    never = await cli("snapshots", "restore", "99", input="y\n")
    no = await cli("snapshots", "restore", "2", input="n\n")
    earliest = await cli("snapshots", "restore", "0", input="n\n")
    newest = await cli("snapshots", "restore", "7", input="n\n")
    assert (never.exit_code, no.exit_code, (await lake.bus.head()).last) == (1, 1, 2)
    assert "SNAPSHOT_NOT_FOUND" in never.stderr
    assert "Take all tables back" not in never.stderr
    assert "snapshot 2 is of 2026-01-31T12:00:02Z" in no.stderr
    assert "5 newer snapshots, up to 7 of 2026-01-31T12:00:07Z" in no.stderr
    assert "tables that go: events" in earliest.stderr
    assert "it is the newest" in newest.stderr
    yes = await cli("snapshots", "restore", "2", "--yes", "--key", "k")
    again = await cli("snapshots", "restore", "2", "--yes", "--key", "k", "--output", "json")
    gone = await cli("snapshots", "restore", "1", "--yes")

    assert (yes.exit_code, yes.stdout) == (0, "restored to snapshot 2, as snapshot 7\n")
    assert json.loads(again.stdout)["restored_snapshot_id"] == 2
    assert (await lake.bus.head()).last == 3
    assert gone.exit_code != 0
    assert "SNAPSHOT_EXPIRED" in gone.stderr
