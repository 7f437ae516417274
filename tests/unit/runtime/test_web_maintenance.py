"""Compaction and retention at the door and from the command line, over a lake in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from duckmesh_runtime.services import compaction, expiry
from duckmesh_runtime.services.compaction import Compaction
from duckmesh_runtime.services.expiry import Expiry
from duckmesh_runtime.settings import CompactionSettings, SnapshotSettings
from tests.fakes.maintenance import FakeMaintenance, every
from tests.fakes.server import Doors, serve
from tests.unit.runtime.test_cli import Cli

KB = 2**10


@pytest.fixture(autouse=True)
def _no_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, a run gets to its end."""
    monkeypatch.setattr(compaction, "CALL_S", 3600.0)
    monkeypatch.setattr(expiry, "ROUND_S", 3600.0)


@pytest.fixture
def lake() -> FakeMaintenance:
    made = FakeMaintenance(every(86_400, 4))
    made.files = 2
    made.sizes["t"] = [KB] * 10
    return made


@pytest.fixture
async def door(parts: Any, lake: FakeMaintenance) -> AsyncIterator[Doors]:
    parts.compaction = Compaction(
        lake.opened,
        active=lambda: False,
        settings=CompactionSettings(enabled=False),
        turn=asyncio.Lock(),
    )
    parts.expiry = Expiry(
        lake.opened,
        active=lambda: False,
        keep=SnapshotSettings(keep_for_s=3600, keep_last=1),
        files_stay_s=1,
    )
    async for doors in serve(parts):
        yield doors


@pytest.fixture
async def cli(door: Doors, tmp_path: Path) -> Cli:
    return Cli(door.url, tmp_path)


async def test_compaction_runs_whoever_commits(door: Doors, lake: FakeMaintenance) -> None:
    got, answer, _ = await door.call("POST", "/v1/compaction/run")

    assert got == 200
    assert answer == {
        "status": "done",
        "summary": {
            "files_in": 10,
            "files_out": 1,
            "bytes_rewritten": 10 * KB,
            "slices": 1,
            "conflicts": 0,
            "debt_files": 0,
            "debt_bytes": 0,
        },
    }
    assert lake.sizes["t"] == [10 * KB]


async def test_retention_runs_whoever_commits(door: Doors, lake: FakeMaintenance) -> None:
    got, answer, _ = await door.call("POST", "/v1/retention/run")

    assert got == 200
    assert answer == {
        "status": "done",
        "summary": {
            "snapshots_expired": 3,
            "files_removed": 2,
            "snapshots_kept": 1,
            "files_waiting": 0,
        },
    }


@pytest.mark.parametrize("path", ["/v1/compaction/run", "/v1/retention/run"])
async def test_a_lake_that_is_maintained_elsewhere_is_busy(
    door: Doors, lake: FakeMaintenance, path: str
) -> None:
    lake.ours = False

    got, answer, _ = await door.call("POST", path)

    assert (got, answer["status"]) == (200, "busy")
    assert lake.steps == ["open", "close"]


@pytest.mark.parametrize("path", ["/v1/compaction/run", "/v1/retention/run"])
async def test_parameters_are_refused(door: Doors, lake: FakeMaintenance, path: str) -> None:
    got, answer, _ = await door.call("POST", f"{path}?force=1")

    assert (got, answer["error_code"]) == (400, "VALIDATION_FAILED")
    assert lake.steps == []


@pytest.mark.parametrize("path", ["/v1/compaction/run", "/v1/retention/run"])
@pytest.mark.parametrize("body", [b'{"force": true}', b"[]", b"{"])
async def test_a_body_that_says_something_is_refused(
    door: Doors, lake: FakeMaintenance, path: str, body: bytes
) -> None:
    got, answer, _ = await door.call("POST", path, data=body)

    assert (got, answer["error_code"]) == (400, "VALIDATION_FAILED")
    assert lake.steps == []
    assert (await door.call("POST", path, data=b"{}"))[0] == 200


async def test_the_command_goes_on_until_nothing_is_left(
    cli: Cli, lake: FakeMaintenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "CALLED", compaction.Bounds(files=4))
    done = await cli("compact", "--expire", "--output", "json")

    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["compaction"]["summary"]["files_out"] == 3
    assert found["compaction"]["summary"]["debt_files"] == 0
    assert found["retention"]["summary"]["snapshots_expired"] == 3
    assert "12 files became 3" in done.stderr
    assert "3 snapshots given up, 2 files removed" in done.stderr
    assert lake.sizes["t"] == [10 * KB]


async def test_the_command_says_when_the_lake_is_busy(cli: Cli, lake: FakeMaintenance) -> None:
    lake.ours = False

    done = await cli("compact")

    assert done.exit_code == 1
    assert "another process maintains the lake" in done.stderr
