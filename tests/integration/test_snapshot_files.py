"""The files that the API lists of a snapshot give other engines its very rows, whatever the lake has been through."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing
from typing import Any

import pyarrow as pa
import pytest

from duckmesh_runtime.services.bulk_writer import STAGE_ROWS
from tests import direct
from tests.foreign import PlainArrow, PlainDuckDB
from tests.pods import Pod, Tenant, tenant_of
from tests.services import Lake

ARROW = "application/vnd.apache.arrow.stream"
# The process's own expiry would take the role of maintenance from the test.
BY_HAND = {"DUCKMESH_MAINTENANCE_DIR": ""}

USERS = {
    "name": "users",
    "columns": [
        {"name": "id", "type": "INTEGER", "nullable": False},
        {"name": "name", "type": "VARCHAR"},
    ],
    "primary_key": ["id"],
}
EVENTS = {
    "name": "events",
    "columns": [
        {"name": "id", "type": "BIGINT"},
        {"name": "what", "type": 'STRUCT("a" INTEGER)'},
        {"name": "tags", "type": "VARCHAR[]"},
    ],
}
PARTS = {
    "name": "parts",
    "columns": [
        {"name": "id", "type": "BIGINT", "nullable": False},
        {"name": "place", "type": "VARCHAR"},
        {"name": "day", "type": "DATE"},
    ],
    "primary_key": ["id"],
    "partition_by": ["place", "day"],
}
BULK = {
    "name": "bulk",
    "columns": [
        {"name": "id", "type": "BIGINT"},
        {"name": "what", "type": 'STRUCT("a" INTEGER)'},
    ],
}
ADDED = [
    {"name": "plan", "type": "VARCHAR", "default": 'it\'s "free"'},
    {"name": "credit", "type": "DECIMAL(8,2)", "default": "1.50"},
    {"name": "active", "type": "BOOLEAN", "default": True},
    {"name": "born", "type": "DATE", "default": "2001-02-03"},
    {"name": "seen", "type": "TIMESTAMP WITH TIME ZONE", "default": "2026-01-31T12:00:00+02:00"},
    {"name": "raw", "type": "BLOB", "default": "AP8="},
    {"name": "nothing", "type": "DOUBLE"},
]
MERGED = ("events", "users", "parts", "bulk")


def change(pod: Pod, method: str, path: str, body: object) -> None:
    status, answer = pod.call(method, path, body)
    assert status in (200, 201), answer


def alter(pod: Pod, table: str, *changes: object) -> None:
    change(pod, "PATCH", f"/v1/tables/{table}", {"changes": changes})


def write(pod: Pod, table: str, *rows: dict[str, Any], op: str | None = None) -> None:
    """One commit: it is waited for."""
    records = [{"payload": row} | ({"op": op} if op else {}) for row in rows]
    body = {"records": records, "wait_for_visibility": True}
    status, answer = pod.call("POST", f"/v1/ingest/{table}", body)
    assert (status, answer.get("status")) == (200, "visible"), answer


def write_bulk(pod: Pod, first: int) -> None:
    """A staged file."""
    ids = pa.array(range(first, first + STAGE_ROWS), pa.int64())
    what = pa.StructArray.from_arrays([ids.cast(pa.int32())], ["a"])
    rows = pa.table({"id": ids, "what": what})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, rows.schema) as out:
        out.write_table(rows)
    path = "/v1/ingest/bulk?wait_for_visibility=true&visibility_timeout_ms=30000"
    status, answer = pod.send("POST", path, sink.getvalue(), content_type=ARROW, timeout=60)
    assert (status, answer.get("status")) == (200, "visible"), answer


async def maintain(lake: Lake, *calls: str) -> None:
    """Run the calls of maintenance, a commit each."""
    connection = direct.attach(lake, "m", await direct.take_over(lake, "m"))
    try:
        for call in calls:
            connection.execute("BEGIN")
            connection.execute(
                "CALL lake.set_commit_message('', '', extra_info => '{\"role\":\"m\"}')"
            )
            connection.execute(call)
            connection.execute("COMMIT")
    finally:
        connection.close()


async def live(pod: Pod, lake: Lake) -> None:
    """A life: upserts, deletes, columns that come, go and are renamed, partitions, merges, rewrites, staged files."""
    for table in (USERS, EVENTS, PARTS):
        change(pod, "POST", "/v1/tables", table)
    write(pod, "users", *({"id": i, "name": f"n{i}"} for i in range(20)))
    for i in range(3):
        write(pod, "events", {"id": i, "what": {"a": i}, "tags": ["x", None]}, {"id": i + 10})
        write(pod, "users", {"id": i}, {"id": i + 5}, op="delete")
    places = ("a b/=%2F+ü", None, "", "z")
    for day in ("2026-01-01", "2026-01-02"):
        rows = [
            {"id": i, "place": place, "day": day} for i, place in enumerate(places, int(day[-1]))
        ]
        write(pod, "parts", *rows)
    write(pod, "parts", {"id": 2}, op="delete")
    write(pod, "users", {"id": 9, "name": "nine"}, {"id": 100, "name": None})
    alter(pod, "users", *({"add_column": column} for column in ADDED))
    alter(
        pod,
        "users",
        {"rename_column": {"name": "name", "to": "who"}},
        {"widen_type": {"name": "id", "type": "BIGINT"}},
    )
    write(pod, "users", {"id": 2**40, "who": "big", "plan": None}, {"id": 9, "who": "nine again"})
    wider = 'STRUCT("a" BIGINT, "b" VARCHAR)'
    alter(pod, "events", {"widen_type": {"name": "what", "type": wider}})
    write(pod, "events", {"id": 50, "what": {"a": 2**40, "b": "b"}}, {"id": 51, "tags": []})
    write(pod, "events", {"id": 52, "what": {"a": None, "b": "c"}})
    await maintain(
        lake, *(f"CALL ducklake_merge_adjacent_files('lake', '{t}')" for t in MERGED[:3])
    )
    alter(
        pod,
        "events",
        {"drop_column": {"name": "tags"}},
        {"add_column": {"name": "tags", "type": "INTEGER", "default": 7}},
    )
    write(pod, "users", {"id": 9}, {"id": 100}, op="delete")
    await maintain(
        lake, "CALL ducklake_rewrite_data_files('lake', 'users', delete_threshold => 0.0)"
    )
    write(pod, "users", {"id": 12}, op="delete")
    change(pod, "POST", "/v1/tables", BULK)
    write_bulk(pod, 0)
    alter(pod, "bulk", {"rename_column": {"name": "what", "to": "that"}})
    write(pod, "bulk", {"id": -1, "that": {"a": 5}})
    alter(pod, "bulk", {"add_column": {"name": "more", "type": "INTEGER", "default": 3}})
    write(pod, "bulk", {"id": -2})
    await maintain(lake, "CALL ducklake_merge_adjacent_files('lake', 'bulk')")


@pytest.fixture(params=[pytest.param("file", marks=pytest.mark.long), "s3"])
async def lived(
    request: pytest.FixtureRequest, make_lake: Callable[..., Awaitable[Lake]]
) -> AsyncIterator[Tenant]:
    lake = await make_lake(store=request.param)
    with tenant_of(lake) as tenant:
        await live(tenant.ingest(**BY_HAND), lake)
        yield tenant


def listing_of(pod: Pod, number: int, query: str = "") -> dict[str, Any]:
    """All pages of a snapshot's files."""
    whole: dict[str, Any] = {}
    after = ""
    while True:
        path = f"/v1/snapshots/{number}/files?limit=7{query}{after}"
        status, page = pod.call("GET", path)
        assert status == 200, page
        whole = page | {"files": whole.get("files", []) + page["files"]}
        if page["next_after"] is None:
            return whole
        after = f"&after={page['next_after']}"


def check(found: pa.Table, expected: pa.Table, what: object) -> None:
    """The same rows, in whatever order."""
    assert found.num_rows == expected.num_rows, what
    assert found.cast(expected.schema).sort_by("id").equals(expected), what


async def test_files_give_every_row_of_every_snapshot_and_no_other(lived: Tenant) -> None:
    pod, lake = lived.pods[0], lived.lake
    arrow = PlainArrow(lake.store)
    status, found = pod.call("GET", "/v1/snapshots?limit=1000")
    assert (status, found["next_before"]) == (200, None)
    seen: Counter[str] = Counter()

    with PlainDuckDB(lake.store) as duck, closing(direct.attach(lake, "w", 0)) as ducklake:
        for snapshot in found["snapshots"]:
            number = snapshot["snapshot_id"]
            listing = listing_of(pod, number)
            for table in [each["name"] for each in listing["tables"]]:
                query = f"SELECT * FROM lake.{table} AT (VERSION => {number}) ORDER BY id"
                expected = ducklake.execute(query).to_arrow_table()
                check(arrow.rows(listing, table), expected, ("pyarrow", number, table))
                check(duck.rows(listing, table), expected, ("DuckDB", number, table))
            seen.update(kind for file in listing["files"] for kind in kinds_of(file))

    assert set(seen) == KINDS


async def test_files_give_the_rows_of_the_query_of_the_same_snapshot(lived: Tenant) -> None:
    pod, query = lived.pods[0], lived.query()
    _, found = pod.call("GET", "/v1/snapshots?limit=1000")
    numbers = [each["snapshot_id"] for each in found["snapshots"]]
    arrow = PlainArrow(lived.lake.store)

    for number in (numbers[0], numbers[len(numbers) // 3], numbers[len(numbers) // 2]):
        listing = listing_of(pod, number, "&table=users")
        asked = {"sql": "SELECT id FROM users ORDER BY id", "snapshot_id": number}
        status, answer = query.call("POST", "/v1/query", asked)
        assert status == 200, answer
        ids = sorted(arrow.rows(listing, "users")["id"].to_pylist())
        assert (answer["snapshot_id"], [row[0] for row in answer["rows"]]) == (number, ids)
        assert answer["max_visibility_token"] == listing["max_visibility_token"]


KINDS = {"newer rows", "newer deletes", "deletes", "by name", "partition"}


def kinds_of(file: dict[str, Any]) -> Iterator[str]:
    """What is special about a file, so that the test can say that it met all of it."""
    for special, kind in (
        (file["upto_snapshot_id"] is not None, "newer rows"),
        (
            any(each["upto_snapshot_id"] is not None for each in file["delete_files"]),
            "newer deletes",
        ),
        (file["delete_files"], "deletes"),
        (file["field_names"] is not None, "by name"),
        (file["partition"], "partition"),
    ):
        if special:
            yield kind
