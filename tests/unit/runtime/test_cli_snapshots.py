"""`duckmesh snapshots` against a server with snapshots in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from duckmesh_runtime.services.snapshots import SnapshotService
from duckmesh_runtime.web import snapshots as web
from duckmesh_runtime.web.parameters import whole_number
from tests.fakes.server import serve
from tests.fakes.snapshots import FakeSnapshots
from tests.unit.runtime.test_cli import Cli


@pytest.fixture
def kept() -> FakeSnapshots:
    found = FakeSnapshots()
    found.add(8)
    return found


@pytest.fixture
async def cli(parts: Any, kept: FakeSnapshots, tmp_path: Path) -> AsyncIterator[Cli]:
    parts.snapshots = SnapshotService(kept)
    async for doors in serve(parts):
        yield Cli(doors.url, tmp_path)


async def test_snapshots_are_listed_with_and_without_the_word(cli: Cli) -> None:
    bare = await cli("snapshots")
    listed = await cli("snapshots", "list")
    some = await cli("snapshots", "list", "--limit", "2", "--before", "6")
    as_json = await cli("snapshots", "list", "--output", "json")

    assert bare.exit_code == 0, bare.stderr
    assert bare.stdout == listed.stdout
    assert "changed" in bare.stdout
    assert "--before 4" in some.stderr
    assert [one["snapshot_id"] for one in json.loads(as_json.stdout)["snapshots"]][:2] == [7, 6]


async def test_one_snapshot_is_shown_with_its_tables(cli: Cli) -> None:
    shown = await cli("snapshots", "show", "3")
    as_json = await cli("snapshots", "show", "3", "--output", "json")

    assert "snapshot 3 of 2026-01-31T12:00:03Z, not pinned" in shown.stdout
    assert "events" in shown.stdout
    assert json.loads(as_json.stdout)["tables"][0]["files"] == 3


async def test_files_are_listed_over_pages(
    cli: Cli, kept: FakeSnapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(web.FILES_PARAMETERS, "limit", whole_number(1, 10, default=2))

    shown = await cli("snapshots", "files", "7")
    as_json = await cli("snapshots", "files", "7", "--table", "events", "--output", "json")

    paths = [f"main/events/{number}.parquet" for number in range(7)]
    assert shown.stdout.split() == [f"file:///nowhere/{path}" for path in paths]
    assert [file["path"] for file in json.loads(as_json.stdout)["files"]] == paths


async def test_files_that_are_merged_between_two_pages_are_listed_anew(
    cli: Cli, kept: FakeSnapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(web.FILES_PARAMETERS, "limit", whole_number(1, 10, default=3))
    files, asked = kept.files, []

    async def merging(*args: Any, **options: Any) -> Any:
        asked.append(options["after"])
        if len(asked) == 2:
            kept.replaced |= {0, 1}
        return await files(*args, **options)

    monkeypatch.setattr(kept, "files", merging)

    shown = await cli("snapshots", "files", "7")

    expected = [f"file:///nowhere/main/events/{number}.parquet" for number in range(2, 7)]
    assert (shown.exit_code, shown.stdout.split()) == (0, expected)


async def test_a_snapshot_is_pinned_and_unpinned(cli: Cli, kept: FakeSnapshots) -> None:
    pinned = await cli("snapshots", "pin", "3", "--name", "audit", "--until", "2027-01-31")
    kept.expire(3)
    listed = await cli("snapshots", "list")
    as_json = await cli("snapshots", "show", "3", "--output", "json")
    unpinned = await cli("snapshots", "unpin", "3", "--name", "audit")
    again = await cli("snapshots", "unpin", "3", "--name", "audit")

    assert "pinned (audit)" in pinned.stdout
    assert "audit" in listed.stdout
    assert json.loads(as_json.stdout)["pins"][0]["expires_at"] == "2027-01-31T00:00:00Z"
    assert "not pinned" in unpinned.stdout
    assert "it had no such pin" in again.stderr
    assert "it had no such pin" not in unpinned.stderr


async def test_a_snapshot_that_is_gone_says_where_to_look(cli: Cli, kept: FakeSnapshots) -> None:
    kept.expire(3)

    gone = await cli("snapshots", "pin", "3")
    never = await cli("snapshots", "show", "99")

    assert (gone.exit_code, never.exit_code) == (1, 1)
    assert "SNAPSHOT_EXPIRED" in gone.stderr
    assert "SNAPSHOT_NOT_FOUND" in never.stderr
    assert "duckmesh snapshots" in never.stderr
