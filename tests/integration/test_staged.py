"""Large bodies through the HTTP door and real S3: staged, made part of their table, there once with the right rows."""

from __future__ import annotations

import asyncio
import io
import signal
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from duckmesh_runtime.domain.columns import SCALARS
from duckmesh_runtime.services.bulk_writer import STAGE_ROWS
from tests.lakes import LakeView
from tests.pods import Pod, Tenant
from tests.services import Lake

ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"
KEY = {"Idempotency_Key": "k"}
EVENTS = {
    "name": "events",
    "columns": [{"name": "id", "type": "BIGINT", "nullable": False}, {"name": "v", "type": "TEXT"}],
}
FILES = """
SELECT count(*) FILTER (WHERE f.path LIKE 'staged-%'), count(*) FROM {lake}.ducklake_data_file AS f
  JOIN {lake}.ducklake_table AS t USING (table_id) WHERE t.table_name = $1
"""


def numbers(first: int, count: int = STAGE_ROWS) -> pa.Table:
    return pa.table({"id": pa.array(range(first, first + count), pa.int64())})


def stream(rows: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, rows.schema) as out:
        out.write_table(rows)
    return sink.getvalue()


def send(pod: Pod, body: bytes, table: str = "events", query: str = "", **headers: str) -> Any:
    path = f"/v1/ingest/{table}?visibility_timeout_ms=20000{query}"
    status, answer = pod.send("POST", path, body, content_type=ARROW, timeout=60, **headers)
    assert status == 200, answer
    return answer


async def files(lake: Lake, table: str = "events") -> tuple[int, int]:
    """How many of a table's files were staged, and how many it has in all."""
    (row,) = await LakeView(lake).fetch(FILES.format(lake=lake.name), table)
    return row[0], row[1]


def sums(lake: Lake, table: str = "events") -> tuple[Any, ...]:
    """Rows, different ids, sum of ids."""
    (found,) = LakeView(lake).query(f"SELECT count(*), count(DISTINCT id), sum(id) FROM {table}")
    return found


def every(count: int, start: int = 0) -> tuple[int, int, int]:
    return count, count, sum(range(start, start + count))


async def test_a_large_body_is_one_file_of_the_table_and_visible_once(s3_tenant: Tenant) -> None:
    pod = s3_tenant.ingest()
    pod.call("POST", "/v1/tables", EVENTS)
    body = stream(numbers(0))

    first = send(pod, body, query="&wait_for_visibility=true", Idempotency_Key="k")
    again = send(pod, body, query="&wait_for_visibility=true", Idempotency_Key="k")

    assert (first["accepted_count"], first["status"]) == (STAGE_ROWS, "visible")
    assert (again["accepted_count"], again["duplicate_count"]) == (0, STAGE_ROWS)
    assert first["max_visibility_token"] == again["max_visibility_token"]
    assert sums(s3_tenant.lake) == every(STAGE_ROWS)
    assert await files(s3_tenant.lake) == (1, 1)


def one_of_each() -> tuple[pa.Table, list[str]]:
    """A row of every plain type, and of nested ones, many times; every seventh row is NULL."""
    values: dict[str, Any] = {
        "BOOLEAN": True,
        "VARCHAR": "naïve 🦆",
        "BLOB": b"\x00\x01",
        "DATE": 19_000,
        "TIME": 1_234_567,
        "UUID": "c56a4180-65aa-42ec-a945-5fd21dec0538",
        "JSON": '{"a":[1,null]}',
        "FLOAT": 0.5,
        "DOUBLE": 0.1,
    }
    columns = {name: pa.array([values.get(name, 77)], kind.arrow) for name, kind in SCALARS.items()}
    columns["DECIMAL(38,10)"] = pa.array([Decimal("12345678901234567890.5")], pa.decimal128(38, 10))
    columns["INTEGER[]"] = pa.array([[1, None, 3]], pa.list_(pa.int32()))
    columns['STRUCT("a" INTEGER, "b" VARCHAR)'] = pa.array(
        [{"a": 1, "b": "x"}], pa.struct([("a", pa.int32()), ("b", pa.string())])
    )
    columns["MAP(VARCHAR, BIGINT)"] = pa.array([[("k", 5)]], pa.map_(pa.string(), pa.int64()))
    places = pa.array([None if i % 7 == 0 else 0 for i in range(STAGE_ROWS)], pa.int32())
    found = {f"c{i}": array.take(places) for i, array in enumerate(columns.values())}
    return pa.table(found).append_column("id", pa.array(range(STAGE_ROWS))), list(columns)


async def test_every_type_is_the_same_staged_as_sent_in_small(s3_tenant: Tenant) -> None:
    rows, types = one_of_each()
    columns = [{"name": f"c{i}", "type": name} for i, name in enumerate(types)]
    columns.append({"name": "id", "type": "BIGINT"})
    pod = s3_tenant.ingest()
    for name in ("large", "small"):
        assert pod.call("POST", "/v1/tables", {"name": name, "columns": columns})[0] == 201

    sent = send(pod, stream(rows), "large", "&wait_for_visibility=true")
    for start in (0, 1_000):
        send(pod, stream(rows.slice(start, 1_000)), "small", "&wait_for_visibility=true")

    assert (sent["accepted_count"], sent["rejected"]) == (STAGE_ROWS, [])
    assert await files(s3_tenant.lake, "large") == (1, 1)
    view = LakeView(s3_tenant.lake)
    assert view.query("FROM (FROM large WHERE id < 2000) EXCEPT ALL FROM small") == []
    assert view.query("SELECT count(*), count(c0) FROM large") == [
        (STAGE_ROWS, STAGE_ROWS - len(range(0, STAGE_ROWS, 7)))
    ]
    assert view.query("SELECT typeof(COLUMNS(*)) FROM large LIMIT 1") == view.query(
        "SELECT typeof(COLUMNS(*)) FROM small LIMIT 1"
    )


async def test_a_committer_killed_after_the_append_leaves_the_file_to_its_follower(
    s3_tenant: Tenant,
) -> None:
    # Commits wait for five seconds of company: the kill comes between append and commit.
    slow = {"DUCKMESH_BATCH_MIN_INTERVAL_MS": "5000", "DUCKMESH_BATCH_MAX_DELAY_MS": "5000"}
    first = s3_tenant.ingest(**slow)
    first.call("POST", "/v1/tables", EVENTS)

    answer = send(first, stream(numbers(0)), Idempotency_Key="k")
    before = await files(s3_tenant.lake)
    first.stop(signal.SIGKILL)
    second = s3_tenant.ingest()
    again = send(second, stream(numbers(0)), query="&wait_for_visibility=true", Idempotency_Key="k")

    assert (answer["accepted_count"], before) == (STAGE_ROWS, (0, 0))
    assert (again["duplicate_count"], again["status"]) == (STAGE_ROWS, "visible")
    assert sums(s3_tenant.lake) == every(STAGE_ROWS)
    assert await files(s3_tenant.lake) == (1, 1)


async def test_bodies_staged_while_tables_change_are_there_once(s3_tenant: Tenant) -> None:
    pod = s3_tenant.ingest()
    pod.call("POST", "/v1/tables", EVENTS)
    bodies = [stream(numbers(i * STAGE_ROWS)) for i in range(4)]

    def change(number: int) -> None:
        column = {"add_column": {"name": f"more_{number}", "type": "INTEGER"}}
        status, answer = pod.call("PATCH", "/v1/tables/events", {"changes": [column]})
        assert status == 200, answer

    async with asyncio.TaskGroup() as group:
        for body in bodies:
            group.create_task(asyncio.to_thread(send, pod, body))
        for number in range(4):
            await asyncio.to_thread(change, number)
    send(pod, stream(numbers(10**6, 1)), query="&wait_for_visibility=true")

    rows = 4 * STAGE_ROWS
    assert sums(s3_tenant.lake) == (rows + 1, rows + 1, sum(range(rows)) + 10**6)


async def test_a_table_dropped_and_made_anew_holds_only_its_own_bodies(s3_tenant: Tenant) -> None:
    pod = s3_tenant.ingest()
    pod.call("POST", "/v1/tables", EVENTS)
    send(pod, stream(numbers(0)))
    pod.call("DELETE", "/v1/tables/events")
    pod.call("POST", "/v1/tables", EVENTS)

    send(pod, stream(numbers(STAGE_ROWS)), query="&wait_for_visibility=true")

    assert sums(s3_tenant.lake) == every(STAGE_ROWS, STAGE_ROWS)


async def test_other_formats_are_staged_and_bad_rows_stay_out(s3_tenant: Tenant) -> None:
    pod = s3_tenant.ingest()
    pod.call("POST", "/v1/tables", EVENTS)
    sink = io.BytesIO()
    pq.write_table(numbers(0), sink)
    lines = b"".join(b'{"id":%d,"v":"x"}\n' % i for i in range(STAGE_ROWS, 2 * STAGE_ROWS))
    text = "id,v\n" + "".join(f"{i},x\n" for i in range(2 * STAGE_ROWS, 3 * STAGE_ROWS))
    bodies = {
        PARQUET: sink.getvalue(),
        "application/x-ndjson": lines + b'{"id":"x"}\n',
        "text/csv": f"{text},x\n".encode(),
    }

    rejected = []
    for content_type, body in bodies.items():
        path = "/v1/ingest/events?wait_for_visibility=true&visibility_timeout_ms=20000"
        status, answer = pod.send("POST", path, body, content_type=content_type)
        assert (status, answer["accepted_count"]) == (200, STAGE_ROWS), answer
        rejected.append([each["index"] for each in answer["rejected"]])

    assert rejected == [[], [STAGE_ROWS], [STAGE_ROWS]]
    assert sums(s3_tenant.lake) == every(3 * STAGE_ROWS)
    assert await files(s3_tenant.lake) == (3, 3)


async def test_staged_bytes_are_pending_until_they_are_committed(s3_tenant: Tenant) -> None:
    slow = {"DUCKMESH_BATCH_MIN_INTERVAL_MS": "5000", "DUCKMESH_BATCH_MAX_DELAY_MS": "5000"}
    pod = s3_tenant.ingest(DUCKMESH_PENDING_BYTES=str(2**20), **slow)
    pod.call("POST", "/v1/tables", EVENTS)
    # Random numbers do not compress: a file of 1.6 MB.
    ids = np.random.default_rng(7).integers(0, 2**63, 2 * STAGE_ROWS)
    record = {"records": [{"payload": {"id": 1}}]}

    token = send(pod, stream(pa.table({"id": ids})))["max_visibility_token"]
    refused, answer = pod.call("POST", "/v1/ingest/events", record)
    pod.call("GET", f"/v1/visible?token={token}&timeout_ms=20000")
    pod.wait(lambda: pod.call("POST", "/v1/ingest/events", record)[0] == 200, 20)

    assert (refused, answer["error_code"]) == (429, "OVERLOADED")
    assert answer["context"]["pending_bytes"] > 2**20


async def test_a_body_under_way_when_the_process_ends_is_there_once(s3_tenant: Tenant) -> None:
    pod = s3_tenant.ingest()
    pod.call("POST", "/v1/tables", EVENTS)
    body = stream(numbers(0))

    def once() -> int | None:
        try:
            return pod.send("POST", "/v1/ingest/events", body, content_type=ARROW, **KEY)[0]
        except OSError:  # refused, or cut
            return None

    sending = asyncio.create_task(asyncio.to_thread(once))
    await asyncio.to_thread(pod.wait, lambda: pod.metric("process_cpu_seconds_total") > 0)
    ended = await asyncio.to_thread(pod.stop)
    answered = await sending
    again = send(s3_tenant.ingest(), body, query="&wait_for_visibility=true", **KEY)

    assert ended == 0
    assert again["status"] == "visible"
    if answered == 200:
        assert again["duplicate_count"] == STAGE_ROWS
    assert sums(s3_tenant.lake) == every(STAGE_ROWS)


async def test_while_the_store_is_away_large_bodies_are_accepted(
    s3_tenant: Tenant,
) -> None:
    away = s3_tenant.ingest()
    away.call("POST", "/v1/tables", EVENTS)
    away.stop()
    # This process cannot reach the store: it accepts, and cannot commit.
    pod = s3_tenant.ingest(DUCKMESH_S3_ENDPOINT="http://127.0.0.1:9")

    answer = send(pod, stream(numbers(0)), Idempotency_Key="k")
    pod.stop(signal.SIGKILL)
    back = s3_tenant.ingest()
    again = send(back, stream(numbers(0)), query="&wait_for_visibility=true", Idempotency_Key="k")

    assert answer["accepted_count"] == STAGE_ROWS
    assert (again["duplicate_count"], again["status"]) == (STAGE_ROWS, "visible")
    assert sums(s3_tenant.lake) == every(STAGE_ROWS)
