"""`duckmesh lag -w`: the picture, a lake that goes away, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from duckmesh_runtime.cli import lag as lag_command
from duckmesh_runtime.cli import show
from duckmesh_runtime.cli.lag_view import duration
from duckmesh_runtime.cli.spark import KEPT, History, spark
from duckmesh_runtime.errors import Invalid, Unavailable
from duckmesh_runtime.ports import TableBacklog
from tests.fakes.doors import NOON, key
from tests.unit.runtime.test_cli import Cli


@pytest.fixture
def cli(doors: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setattr(lag_command, "_EVERY_S", 0.01)
    return Cli(doors.url, tmp_path)


def watched(doors: Any, *steps: Any) -> None:
    """The lake answers these one after the other, then refuses for good."""
    real, left = doors.parts.bus.backlog, list(steps)

    async def backlog() -> Any:
        if not left:
            raise Invalid("FORBIDDEN", "no longer")
        step = left.pop(0)
        if isinstance(step, Exception):
            raise step
        parts = [
            TableBacklog(table=name, pending_rows=rows, pending_bytes=9, oldest_pending_at=NOON)
            for name, rows in step.items()
        ]
        return replace(await real(), tables=parts, pending_rows=sum(step.values()))

    doors.parts.bus.backlog = backlog


AWAY = Unavailable("CATALOG_UNAVAILABLE", "catalog: does not answer", retry_after_s=1)


async def test_a_line_a_second_where_there_is_no_terminal(cli: Cli, doors: Any) -> None:
    watched(doors, {"events": 1200}, AWAY, {})

    result = await cli("lag", "-w")

    first, away, back = result.stdout.splitlines()
    assert first.startswith("2026-01-31T12:00:00Z lag 0 ms, 1,200 rows (100 B) pending, snapshot ")
    assert first.endswith("; events 1,200")
    assert "no answer: CATALOG_UNAVAILABLE: catalog: does not answer" in away
    assert "0 rows" in back
    assert result.exit_code == 1
    assert "FORBIDDEN" in result.stderr


async def test_an_object_a_second_and_what_is_none_beside_it(cli: Cli, doors: Any) -> None:
    watched(doors, {"events": 3}, AWAY, {})

    result = await cli("lag", "-w", "--output", "json")

    assert [json.loads(line)["pending_rows"] for line in result.stdout.splitlines()] == [3, 0]
    assert "no answer: CATALOG_UNAVAILABLE" in result.stderr


async def test_a_terminal_shows_a_picture_for_each_table_and_goes_on_while_the_lake_is_away(
    cli: Cli, doors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Console(width=80, height=24, force_terminal=True, force_interactive=True)
    monkeypatch.setattr(show, "console", terminal)
    watched(doors, {"events": 8, "orders": 1}, {"events": 4}, AWAY, {"events": 2})

    result = await cli("lag", "-w")

    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", result.stdout)
    frames = shown.split("the last")
    assert re.search(r"pending rows +9 +█", frames[1])
    assert re.search(r"events +8 +█", frames[1])
    assert re.search(r"events +4 +█▄", frames[2])
    assert re.search(r"orders +0 +█ ", frames[2])
    assert "no answer for 0 s (CATALOG_UNAVAILABLE): going on" in frames[3]
    assert re.search(r"events +2 +█▄·▂", frames[4])
    assert "no answer" not in frames[4]
    assert max(map(len, shown.splitlines())) <= 80


async def test_a_lake_that_says_nothing_is_away(
    cli: Cli, doors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lag_command, "_ANSWER_S", 0.05)
    real, calls = doors.parts.bus.backlog, []

    async def backlog() -> Any:
        calls.append(1)
        if len(calls) == 1:
            await asyncio.Event().wait()  # a silence without end
        if len(calls) == 3:
            raise Invalid("FORBIDDEN", "no longer")
        return await real()

    doors.parts.bus.backlog = backlog

    result = await cli("lag", "-w")

    silent, back = result.stdout.splitlines()
    assert "no answer: UNREACHABLE: no answer in time" in silent
    assert "lag 0 ms" in back


async def test_control_c_ends_it_and_leaves_the_terminal_as_it_was(doors: Any) -> None:
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "duckmesh_runtime", "lag", "-w"),
        env={"DUCKMESH_URL": doors.url, "DUCKMESH_API_KEY": key("admin"), "TERM": "xterm"},
        stdout=theirs,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(theirs)
    shown = await asyncio.to_thread(_read_until, ours, b"the last")

    process.send_signal(signal.SIGINT)
    shown += await asyncio.to_thread(_read_until, ours, None)
    _, errors = await asyncio.wait_for(process.communicate(), 30)
    os.close(ours)

    assert (process.returncode, errors) == (130, b"")
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")  # the cursor is shown again


def _read_until(terminal: int, text: bytes | None) -> bytes:
    """What was printed up to a text, or to the end, which Linux tells as an error."""
    shown = b""
    try:
        while text is None or text not in shown:
            shown += os.read(terminal, 4096)
    except OSError:
        assert text is None, shown
    return shown


async def test_lag_lists_the_tables_that_have_pending_rows(cli: Cli, doors: Any) -> None:
    watched(doors, {"events": 3})

    result = await cli("lag", "--output", "csv")

    assert result.stdout == (
        "table,pending_rows,pending_bytes,oldest_pending_age_ms\nevents,3,9,0\n"
    )


async def test_only_what_can_be_watched_is_watched(cli: Cli) -> None:
    result = await cli("lag", "-w", "--output", "arrow")

    assert result.exit_code == 2
    assert "--watch prints" in result.stderr


@pytest.mark.parametrize(
    ("values", "width", "drawn"),
    [
        ([0, 0], None, "  "),
        ([0, 1, 8], None, " ▁█"),
        ([5], None, "█"),
        ([1, 1000], None, "▁█"),
        ([None, 4, None], None, "·█·"),
        ([], 3, ""),
        ([1, 8, 2, 2, 0, 0], 3, "█▂ "),
        ([None, None, None, 8], 2, "·█"),
    ],
)
def test_figures_are_drawn_as_high_as_their_part_of_the_largest(
    values: list[int | None], width: int | None, drawn: str
) -> None:
    assert spark(values, width) == drawn


def test_a_history_is_bounded_and_forgets_tables_that_caught_up() -> None:
    history = History()
    history.add({"lag_ms": 1, "pending_rows": 2, "tables": [{"table": "t", "pending_rows": 2}]})
    for _ in range(KEPT - 1):
        history.add({"lag_ms": 0, "pending_rows": 0, "tables": []})

    assert list(history.tables) == ["t"]
    history.add(None)

    assert (len(history.lag_ms), list(history.tables)) == (KEPT, [])


@pytest.mark.parametrize(
    ("ms", "said"),
    [(0, "0 ms"), (999, "999 ms"), (1500, "1.5 s"), (90_000, "1.5 min"), (7_200_000, "2.0 h")],
)
def test_a_duration_is_said_in_the_unit_people_use(ms: int, said: str) -> None:
    assert duration(ms) == said
