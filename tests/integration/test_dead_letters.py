"""The whole way of a record that ingest takes and the lake refuses, over HTTP with real services.

The lake is made stricter than the table behind duckmesh's back: a column of the DuckLake catalog becomes NOT NULL.
"""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import asyncpg
import pytest

from duckmesh_runtime.adapters.postgres_bus import PostgresBus
from duckmesh_runtime.ports import StagedFile
from tests.lakes import EVENTS as IDS
from tests.lakes import LakeView, append_file, rows_of, stage, writer_pool
from tests.lakes import send as append
from tests.pods import Pod, Tenant

EVENTS = {
    "name": "events",
    "columns": [{"name": "id", "type": "BIGINT"}, {"name": "v", "type": "VARCHAR"}],
}
LETTERS = "/v1/dead-letters"


def send(pod: Pod, *rows: dict[str, Any]) -> dict[str, Any]:
    """Accept rows, each with a key of its own, and wait until the lake has done with them."""
    records = [{"payload": row, "idempotency_key": f"k{row['id']}"} for row in rows]
    body = {"records": records, "wait_for_visibility": True, "visibility_timeout_ms": 60_000}
    status, answer = pod.call("POST", "/v1/ingest/events", body, timeout=90)
    assert (status, answer["status"]) == (200, "visible"), answer
    return dict(answer)


def letters(pod: Pod) -> list[dict[str, Any]]:
    status, answer = pod.call("GET", f"{LETTERS}?table=events")
    assert status == 200, answer
    return list(answer["dead_letters"])


async def refuse_nulls(tenant: Tenant, refuse: bool, column: str = "v") -> None:
    """Takes effect for a process that starts after it: a running one has read the lake's columns."""
    lake = tenant.lake
    connection = await asyncpg.connect((lake.admin_dir / "dsn").read_text())
    try:
        await connection.execute(
            f'UPDATE "{lake.name}".ducklake_column SET nulls_allowed = $1 WHERE column_name = $2',
            not refuse,
            column,
        )
    finally:
        await connection.close()


@pytest.mark.timeout(400)
async def test_a_refused_record_is_kept_replayed_once_and_dropped(tenant: Tenant) -> None:
    view = LakeView(tenant.lake)
    pod = tenant.ingest()
    assert pod.call("POST", "/v1/tables", EVENTS)[0] == 201
    send(pod, {"id": 1, "v": "a"})
    assert letters(pod) == []
    pod.stop()

    await refuse_nulls(tenant, True)
    pod = tenant.ingest()
    send(pod, *({"id": i, "v": None if i in (3, 5, 7) else "a"} for i in range(2, 9)))

    assert sorted(view.ids()) == [1, 2, 4, 6, 8]  # the neighbours are there
    kept = letters(pod)
    assert [(one["rows"], one["values"]) for one in kept] == [
        (1, [{"id": i, "v": None}]) for i in (3, 5, 7)
    ]
    assert all("NOT NULL" in one["error"] for one in kept)
    assert pod.call("GET", "/v1/lag")[1]["dead_letters"] == 3
    pod.wait(lambda: pod.metric("duckmesh_dead_letters_kept") == 3)
    duplicate = send(pod, {"id": 3, "v": None})
    assert (duplicate["accepted_count"], duplicate["duplicate_count"]) == (0, 1)

    number = kept[0]["number"]
    status, refused = pod.call("POST", f"{LETTERS}/{number}/replay", timeout=90)
    assert (status, refused["error_code"]) == (409, "SCHEMA_INCOMPATIBLE"), refused
    assert [one["number"] for one in letters(pod)] == [
        *(one["number"] for one in kept[1:]),
        refused["context"]["number"],
    ]
    before = letters(pod)
    pod.stop(signal.SIGKILL)

    await refuse_nulls(tenant, False)
    pod = tenant.ingest()
    assert letters(pod) == before
    assert pod.call("DELETE", f"{LETTERS}/{before[0]['number']}")[0] == 200  # id 5
    with ThreadPoolExecutor(4) as pool:
        path = f"{LETTERS}/{before[1]['number']}/replay"  # id 7
        answers = list(pool.map(lambda _: pod.call("POST", path, timeout=90), range(4)))
    assert sorted(status for status, _ in answers) == [200, 404, 404, 404]
    (won,) = [answer for status, answer in answers if status == 200]
    assert won["status"] == "visible"
    assert sorted(view.ids()) == [1, 2, 4, 6, 7, 8]

    status, rest = pod.call("POST", f"{LETTERS}/replay?table=events", timeout=90)
    assert (status, rest["replayed_count"], rest["failed"]) == (200, 1, []), rest
    assert rest["status"] == "visible"
    pod.stop()

    pod = tenant.ingest()
    assert letters(pod) == []
    assert pod.call("GET", "/v1/lag")[1]["dead_letters"] == 0
    assert sorted(view.ids()) == [1, 2, 3, 4, 6, 7, 8]


@pytest.mark.timeout(300)
async def test_a_staged_file_that_comes_back_is_replayed(s3_tenant: Tenant) -> None:
    lake = s3_tenant.lake
    pod = s3_tenant.ingest()
    columns = [{"name": column.name, "type": column.type} for column in IDS.columns]
    assert pod.call("POST", "/v1/tables", {"name": "events", "columns": columns})[0] == 201
    missing = StagedFile(path="main/events/staged-late.parquet", rows=3, size=1)
    async with writer_pool(lake) as pool:
        await append(PostgresBus(pool, lake.name), append_file(missing, version=1))
    pod.wait(lambda: len(letters(pod)) == 1)

    (kept,) = letters(pod)
    path = f"{LETTERS}/{kept['number']}/replay"
    assert (kept["kind"], kept["rows"]) == ("file", 3)
    assert kept["file"]["path"] == missing.path
    assert pod.call("POST", path)[1]["error_code"] == "DATA_FILE_MISSING"

    await stage(lake, rows_of([1, 2, 3]), "staged-late.parquet")
    status, answer = pod.call("POST", path, timeout=90)

    assert (status, answer["status"]) == (200, "visible"), answer
    assert letters(pod) == []
    assert sorted(LakeView(lake).ids()) == [1, 2, 3]
