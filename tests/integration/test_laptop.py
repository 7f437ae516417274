"""`duckmesh dev` as a person uses it: start, rows in, rows out, stop, start again, rows still there."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from duckmesh_runtime.dev.processes import free_port
from tests.laptops import Laptop, laptop


def test_rows_go_in_come_out_and_survive_a_restart(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "numbers.csv"
    data.write_text("id,name\n1,one\n2,two\n")
    started = time.monotonic()

    with laptop(folder, tmp_path / "first.log") as dev:
        sent = dev.cli("ingest", str(data), "--create", "--output", "json")
        assert sent.returncode == 0, sent.stderr
        token = json.loads(sent.stdout)["token"]
        found = dev.cli(
            "query", "SELECT * FROM numbers ORDER BY id", "--token", token, "--output", "csv"
        )
        assert found.returncode == 0, found.stderr
        print(f"first query {time.monotonic() - started:.1f} s after the start from nothing")
        children = psutil.Process(dev.process.pid).children(recursive=True)
    with laptop(folder, tmp_path / "second.log") as dev:
        again = dev.cli("ingest", str(data), "--output", "json")
        kept = dev.cli(
            "query", "SELECT * FROM numbers ORDER BY id", "--token", token, "--output", "csv"
        )

    assert found.stdout == kept.stdout == '"id","name"\n1,"one"\n2,"two"\n'
    assert json.loads(again.stdout)["duplicates"] == 2
    assert dev.process.returncode == 0
    assert not [child for child in children if child.is_running()]


@pytest.fixture(scope="module")
def running(services_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    log = tmp_path_factory.mktemp("laptop") / "log"
    with laptop(services_dir / f"laptop-{free_port()}", log) as dev:
        status, answer = dev.call("POST", "/v1/tables", EVENTS)
        assert status == 201, answer
        yield dev


EVENTS = {
    "name": "events",
    "columns": [
        {"name": "id", "type": "BIGINT", "nullable": False},
        {"name": "kind", "type": "VARCHAR"},
        {"name": "seen_at", "type": "TIMESTAMP WITH TIME ZONE"},
    ],
}


def test_a_token_shows_its_row_each_time(running: Laptop) -> None:
    for number in range(20):
        row = {"id": number, "kind": "token", "seen_at": "2026-01-31T12:00:00Z"}
        status, accepted = running.call(
            "POST", "/v1/ingest/events", {"records": [{"payload": row}]}
        )
        assert status == 200, accepted

        status, answer = running.call(
            "POST",
            "/v1/query",
            {
                "sql": "SELECT count(*), max(id), max(seen_at) FROM events WHERE kind = 'token'",
                "min_visibility_token": accepted["max_visibility_token"],
            },
        )

        assert status == 200, answer
        assert answer["rows"] == [[number + 1, number, "2026-01-31T12:00:00Z"]]


def test_a_row_that_was_waited_for_is_visible_without_a_token(running: Laptop) -> None:
    record = {"payload": {"id": 1, "kind": "waited"}}

    _, accepted = running.call(
        "POST", "/v1/ingest/events", {"records": [record], "wait_for_visibility": True}
    )
    _, answer = running.call(
        "POST",
        "/v1/query",
        {
            "sql": "SELECT count(*) FROM events WHERE kind = 'waited'",
            "min_visibility_token": accepted["max_visibility_token"],
        },
    )

    assert accepted["status"] == "visible"
    assert answer["snapshot_id"] >= accepted["visible_snapshot_id"]
    assert answer["rows"] == [[1]]


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        pytest.param("SELECT 1; SELECT 2", "SQL_NOT_ALLOWED", id="several statements"),
        pytest.param("DROP TABLE events", "SQL_NOT_ALLOWED", id="not a SELECT"),
        pytest.param("INSERT INTO events VALUES (1)", "SQL_NOT_ALLOWED", id="a write"),
        pytest.param("COPY events TO '/tmp/x.csv'", "SQL_NOT_ALLOWED", id="copy"),
        pytest.param("SELECT nothing FROM events", "SQL_ERROR", id="unknown column"),
        pytest.param("SELEC 1", "SQL_ERROR", id="no SQL"),
    ],
)
def test_statements_that_are_not_one_select_are_refused(
    running: Laptop, sql: str, code: str
) -> None:
    _, answer = running.call("POST", "/v1/query", {"sql": sql})

    assert answer["error_code"] == code
    assert str(running.environment["HOME"]) not in answer["message"]


def test_a_bad_record_among_good_ones_is_the_only_one_refused(running: Laptop) -> None:
    records = [{"payload": {"id": 1, "kind": "mixed"}}, {"payload": {"id": "x", "kind": "mixed"}}]

    status, accepted = running.call("POST", "/v1/ingest/events", {"records": records})

    assert (status, accepted["accepted_count"]) == (200, 1)
    assert [r["index"] for r in accepted["rejected"]] == [1]


def test_lag_goes_to_zero(running: Laptop) -> None:
    _, accepted = running.call(
        "POST",
        "/v1/ingest/events",
        {"records": [{"payload": {"id": 1, "kind": "lag"}}], "wait_for_visibility": True},
    )

    status, lag = running.call("GET", "/v1/lag")

    assert accepted["status"] == "visible"
    assert (status, lag["pending_rows"], lag["lag_ms"]) == (200, 0, 0)


def test_ready_names_its_dependencies(running: Laptop) -> None:
    status, answer = running.call("GET", "/v1/ready")

    assert (status, answer["status"]) == (200, "ok")
    assert answer["dependencies"] == {"catalog": "ok", "storage": "ok", "committer": "ok"}


@pytest.mark.parametrize("victim", ["postgres", "python"], ids=["postgres", "sandbox"])
def test_it_ends_with_an_error_when_a_part_of_it_dies(
    folder: Path, tmp_path: Path, victim: str
) -> None:
    with laptop(folder, tmp_path / "log") as dev:
        children = psutil.Process(dev.process.pid).children()
        next(c for c in children if c.name().startswith(victim)).send_signal(signal.SIGKILL)

        assert dev.process.wait(30) == 1


def test_a_second_one_on_the_same_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    with laptop(folder, tmp_path / "log") as dev:
        second = dev.cli("dev", "--dir", str(folder), "--port", "0")

    assert second.returncode == 2
    assert "another `duckmesh dev`" in second.stderr
