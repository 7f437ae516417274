"""Which files `duckmesh ingest` sends: files, folders, patterns, standard input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from duckmesh_runtime.errors import Invalid
from tests.unit.runtime.test_cli import Cli


@pytest.fixture
def cli(doors: Any, tmp_path: Path) -> Cli:
    return Cli(doors.url, tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of three rows, and what is no data."""
    found = tmp_path / "events"
    for name, rows in (("b.csv", "id\n3\n"), ("day=1/a.csv", "id\n1\n2\n"), ("notes.txt", "x")):
        (found / name).parent.mkdir(parents=True, exist_ok=True)
        (found / name).write_text(rows)
    (found / ".hidden.csv").write_text("id\n9\n")
    (found / "_temporary").mkdir()
    (found / "_temporary" / "part.csv").write_text("id\n9\n")
    return found


async def test_a_folder_goes_to_the_table_of_its_name(cli: Cli, doors: Any, folder: Path) -> None:
    result = await cli("ingest", str(folder), "--output", "json")

    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert (summary["table"], summary["rows"], summary["accepted"]) == ("events", 3, 3)
    assert [(each["file"], each["rows"]) for each in summary["files"]] == [
        ("b.csv", 1),
        ("a.csv", 2),
    ]
    assert {body.table for body in doors.ingest.bodies} == {"events"}


async def test_a_pattern_and_several_files_go_to_tables_of_their_names(
    cli: Cli, doors: Any, folder: Path
) -> None:
    doors.ingest.known["b"] = doors.ingest.known["events"]
    doors.ingest.known["a"] = doors.ingest.known["events"]

    pattern = await cli("ingest", f"{folder}/**/[ab].csv", "--output", "json")
    named = await cli("ingest", str(folder / "b.csv"), str(folder / "day=1/a.csv"))

    assert pattern.exit_code == 0, pattern.stderr
    summary = json.loads(pattern.stdout)
    assert summary["table"] is None
    assert {each["table"] for each in summary["files"]} == {"a", "b"}
    assert "3 rows of 2 files" in named.stderr
    assert "3 of them already there" in named.stderr


async def test_standard_input_is_sent_in_the_format_that_is_said(cli: Cli, doors: Any) -> None:
    once = await cli("ingest", "-", "--format", "ndjson", "--table", "events", input='{"id": 1}\n')
    again = await cli("ingest", "-", "--format", "ndjson", "--table", "events", input='{"id": 1}\n')

    assert (once.exit_code, once.stdout) == (0, again.stdout), once.stderr
    assert "1 of them already there" in again.stderr
    assert [body.content for body in doors.ingest.bodies] == [b'{"id": 1}\n']


@pytest.mark.parametrize(
    ("args", "told"),
    [
        pytest.param(("-", "--table", "t"), "pass --format", id="no format"),
        pytest.param(("-", "--format", "csv"), "pass --table", id="no table"),
        pytest.param(("nothing/*.csv",), "no file is called so", id="no match"),
        pytest.param(("empty",), "has no data files", id="empty folder"),
    ],
)
async def test_what_cannot_be_found_or_named_is_told(
    cli: Cli,
    doors: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    told: str,
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)

    result = await cli("ingest", *args, input="id\n1\n")

    assert result.exit_code == 1
    assert told in result.stderr
    assert not doors.ingest.bodies


async def test_a_file_that_is_refused_says_how_many_are_in(
    cli: Cli, doors: Any, folder: Path
) -> None:
    real = doors.ingest.ingest_bulk

    async def second(*args: Any, **options: Any) -> Any:
        if doors.ingest.bodies:
            raise Invalid("VALIDATION_FAILED", "id: want a whole number")
        return await real(*args, **options)

    doors.ingest.ingest_bulk = second

    result = await cli("ingest", str(folder))

    assert result.exit_code == 1
    assert "1 of 2 files are in: run it again, what is in is not doubled" in result.stderr
