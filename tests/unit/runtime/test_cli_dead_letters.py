"""`duckmesh dead-letters` against a server with a bus in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from duckmesh_runtime.ports import EntryKind
from tests.fakes.letters import Kept, kept_letters, make_table
from tests.fakes.server import serve
from tests.unit.runtime.test_cli import Cli

ROW = {"id": 1, "v": "a\x1b[31m"}


@pytest.fixture
async def kept() -> AsyncIterator[Kept]:
    async with kept_letters() as found:
        yield found


@pytest.fixture
async def cli(parts: Any, kept: Kept, tmp_path: Path) -> AsyncIterator[Cli]:
    parts.dead_letters = kept.service
    async for doors in serve(parts):
        yield Cli(doors.url, tmp_path)


async def test_letters_are_listed_and_shown_without_harm(cli: Cli, kept: Kept) -> None:
    nothing = await cli("dead-letters", "list")
    number = await kept.letter([ROW], error="not a number")

    listed = await cli("dead-letters", "list")
    shown = await cli("dead-letters", "show", str(number))
    as_json = await cli("dead-letters", "show", str(number), "--output", "json")
    listed_json = await cli("dead-letters", "list", "--table", "events", "--output", "json")

    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert "no dead letters" in nothing.stderr
    assert "not a number" in listed.stdout
    assert "a\\x1b[31m" in shown.stdout
    assert "\x1b" not in listed.stdout + shown.stdout
    assert json.loads(as_json.stdout)["values"] == [ROW]
    assert [one["number"] for one in json.loads(listed_json.stdout)["dead_letters"]] == [number]


async def test_a_long_list_says_how_to_go_on(cli: Cli, kept: Kept) -> None:
    numbers = [await kept.letter([ROW]) for _ in range(3)]

    result = await cli("dead-letters", "list", "--limit", "2")

    assert f"--after {numbers[1]}" in result.stderr


async def test_one_letter_is_replayed_and_a_second_time_is_told(cli: Cli, kept: Kept) -> None:
    number = str(await kept.letter([ROW]))

    first = await cli("dead-letters", "replay", number)
    second = await cli("dead-letters", "replay", number)

    assert (first.exit_code, first.stdout.strip()) == (0, "replayed; visible")
    assert second.exit_code == 1
    assert "DEAD_LETTER_NOT_FOUND" in second.stderr
    assert "dead-letters list" in second.stderr


async def test_all_of_a_table_are_replayed_call_by_call_and_what_stays_is_named(
    cli: Cli, kept: Kept
) -> None:
    bad = await kept.letter([{"gone": 1}], make_table("events", {"name": "gone", "type": "BIGINT"}))
    for _ in range(250):
        await kept.letter([ROW])
    kept.bus.entries.clear()

    result = await cli("dead-letters", "replay", "--table", "events")

    assert result.exit_code == 0, result.stderr
    assert "250 replayed, 1 kept" in result.stdout
    assert f"{bad}: SCHEMA_INCOMPATIBLE" in result.stdout
    assert len(kept.rows()) == 250


async def test_a_catalog_that_fails_ends_a_replay_of_many(cli: Cli, kept: Kept) -> None:
    await kept.letter([ROW])
    kept.bus.failures.append("before")

    result = await cli("dead-letters", "replay", "--table", "events", "--output", "json")

    assert json.loads(result.stdout)["failed"][0]["error_code"] == "CATALOG_UNAVAILABLE"
    assert len(kept.bus.kept) == 1


async def test_letters_are_dropped_after_a_question(cli: Cli, kept: Kept) -> None:
    numbers = [str(await kept.letter([ROW])) for _ in range(3)]

    refused = await cli("dead-letters", "drop", numbers[0], input="n\n")
    assert len(kept.bus.kept) == 3
    agreed = await cli("dead-letters", "drop", numbers[0], input="y\n")
    assert len(kept.bus.kept) == 2
    rest = await cli("dead-letters", "drop", "--table", "events", "--yes")

    assert (refused.exit_code, agreed.exit_code, rest.exit_code) == (1, 0, 0)
    assert rest.stdout.strip() == "2 dropped"
    assert kept.bus.kept == {}


@pytest.mark.parametrize("verb", ["replay", "drop"])
async def test_one_must_say_which(cli: Cli, verb: str) -> None:
    for args in ([], ["1", "--table", "t"]):
        result = await cli("dead-letters", verb, *args)

        assert result.exit_code == 2
        assert "NUMBER" in result.stderr


async def test_a_number_cannot_lead_elsewhere(cli: Cli, kept: Kept) -> None:
    result = await cli("dead-letters", "show", "../tables")

    assert result.exit_code == 1
    assert "VALIDATION_FAILED" in result.stderr


async def test_what_does_not_fit_is_told_with_its_reason(cli: Cli, kept: Kept) -> None:
    number = await kept.letter([ROW])
    await kept.change(EntryKind.DROP_TABLE, make_table())

    result = await cli("dead-letters", "replay", str(number))

    assert result.exit_code == 1
    assert "table events does not exist" in result.stderr
