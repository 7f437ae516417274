"""Restore over HTTP through the processes of a Tenant: queries, records sent again, declared tables, the audit line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.pods import Pod, Tenant

COLUMNS = [{"name": "id", "type": "BIGINT"}]


def insert(pod: Pod, *ids: int, table: str = "orders") -> dict[str, Any]:
    records = [{"idempotency_key": f"k{id_}", "payload": {"id": id_}} for id_ in ids]
    body = {"records": records, "wait_for_visibility": True}
    status, answer = pod.call("POST", f"/v1/ingest/{table}", body)
    assert status == 200, answer
    found: dict[str, Any] = answer
    return found


def ask(pod: Pod, sql: str, token: str) -> list[Any]:
    body = {"sql": sql, "min_visibility_token": token}
    status, answer = pod.call("POST", "/v1/query", body)
    assert status == 200, answer
    return [row[0] for row in answer["rows"]]


def restore(pod: Pod, snapshot_id: int, key: str) -> tuple[int, Any]:
    body = json.dumps({"snapshot_id": snapshot_id}).encode()
    return pod.send("POST", "/v1/snapshots/restore", body, Idempotency_Key=key)


def declare(file: Path, *tables: dict[str, Any]) -> None:
    new = file.with_suffix(".new")
    new.write_text(json.dumps({"tables": list(tables)}))
    new.rename(file)


def test_a_lake_goes_back_and_goes_on(tenant: Tenant, tmp_path: Path) -> None:
    file = tmp_path / "tables.json"
    declare(file, {"name": "orders", "columns": COLUMNS})
    committer = tenant.ingest(DUCKMESH_TABLES_FILE=str(file))
    other, _ = tenant.ingest(DUCKMESH_TABLES_FILE=str(file)), tenant.query()
    committer.wait(lambda: committer.call("GET", "/v1/tables/orders")[0] == 200)
    then = insert(other, 1, 2)["visible_snapshot_id"]
    wider = [*COLUMNS, {"name": "n", "type": "INTEGER", "default": 7}]
    declare(file, {"name": "orders", "columns": wider}, {"name": "made", "columns": COLUMNS})
    committer.wait(lambda: committer.call("GET", "/v1/tables/made")[0] == 200)
    insert(other, 2, 3, 4)
    insert(other, 3, table="made")

    status, answer = restore(other, then, "once")

    assert status == 200, answer
    token = answer["max_visibility_token"]
    assert (answer["restored_snapshot_id"], answer["visible_snapshot_id"] > then) == (then, True)
    assert restore(committer, then, "once")[1]["max_visibility_token"] == token
    assert ask(other, "SELECT id FROM orders ORDER BY id", token) == [1, 2]

    # What is declared comes about again, and what was undone can be sent again.
    def declared_again() -> bool:
        tables = committer.call("GET", "/v1/tables")[1]["tables"]
        return [(t["name"], len(t["columns"])) for t in tables] == [("made", 1), ("orders", 2)]

    committer.wait(declared_again)
    sent = insert(other, 2, 3)
    assert (sent["accepted_count"], sent["duplicate_count"]) == (1, 1)
    token = sent["max_visibility_token"]
    assert ask(other, "SELECT id FROM orders ORDER BY id", token) == [1, 2, 3]
    assert ask(other, "SELECT n FROM orders ORDER BY id", token) == [7, 7, 7]
    assert ask(other, "SELECT count(*) FROM made", token) == [0]
    listed = other.call("GET", "/v1/snapshots?limit=1000")[1]["snapshots"]
    assert not any(one["pinned"] for one in listed)
    lines = [
        json.loads(line) for line in other.log.read_text().splitlines() if "restore sn" in line
    ]
    assert [(line["target"], line["outcome"]) for line in lines] == [(str(then), "OK")]
    assert restore(other, 10**6, "two")[1]["error_code"] == "SNAPSHOT_NOT_FOUND"
    assert restore(other, 0, "three")[1]["error_code"] == "SNAPSHOT_NOT_RESTORABLE"
