"""A Tenant's processes with declared tables, and table changes over HTTP with queries at their tokens."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.pods import Pod, Tenant

COLUMNS = [{"name": "id", "type": "INTEGER", "nullable": False}]
TABLE = {"name": "orders", "columns": [*COLUMNS, {"name": "kind", "type": "VARCHAR"}]}


def ask(front: Pod, sql: str, token: str) -> list[dict[str, Any]]:
    status, answer = front.call(
        "POST", "/v1/query", {"sql": sql, "min_visibility_token": token, "timeout_ms": 20_000}
    )
    assert status == 200, answer
    names = [column["name"] for column in answer["columns"]]
    return [dict(zip(names, row, strict=True)) for row in answer["rows"]]


def insert(front: Pod, *rows: dict[str, Any]) -> str:
    body = {"records": [{"payload": row} for row in rows]}
    status, answer = front.call("POST", "/v1/ingest/orders", body)
    assert (status, answer.get("accepted_count")) == (200, len(rows)), answer
    return str(answer["max_visibility_token"])


def test_queries_at_the_token_of_a_change_see_it(tenant: Tenant) -> None:
    front, _ = tenant.ingest(), tenant.query()
    assert front.call("POST", "/v1/tables", TABLE)[0] == 201
    first = insert(front, {"id": 1, "kind": "a"})
    assert ask(front, "SELECT * FROM orders", first) == [{"id": 1, "kind": "a"}]

    changes = [
        {"rename_column": {"name": "kind", "to": "category"}},
        {"add_column": {"name": "n", "type": "BIGINT", "default": 7}},
        {"widen_type": {"name": "id", "type": "BIGINT"}},
    ]
    status, changed = front.call("PATCH", "/v1/tables/orders", {"changes": changes})

    assert status == 200, changed
    assert changed["visible_snapshot_id"] is not None
    token = changed["max_visibility_token"]
    assert ask(front, "SELECT * FROM orders", token) == [{"id": 1, "category": "a", "n": 7}]
    later = insert(front, {"id": 2**40, "category": "b", "n": None})
    assert ask(front, "SELECT * FROM orders WHERE n IS NULL", later) == [
        {"id": 2**40, "category": "b", "n": None}
    ]
    status, read = front.call("GET", "/v1/tables/orders")
    assert (status, read["schema_version"]) == (200, 2)
    assert [column["name"] for column in read["columns"]] == ["id", "category", "n"]
    versions = front.call("GET", "/v1/tables/orders/versions")[1]["versions"]
    assert [len(version["columns"]) for version in versions] == [2, 3]

    narrower = [{"widen_type": {"name": "id", "type": "INTEGER"}}]
    status, refused = front.call("PATCH", "/v1/tables/orders", {"changes": narrower})
    assert (status, refused["error_code"]) == (409, "SCHEMA_INCOMPATIBLE")


def declare(file: Path, *tables: dict[str, Any]) -> str:
    """Replace the declaration; returns its digest."""
    text = json.dumps({"tables": list(tables)})
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)
    return sha256(text.encode()).hexdigest()


async def reported(tenant: Tenant) -> tuple[str, bool, str]:
    connection = await asyncpg.connect(tenant.lake.catalog_dsn)
    try:
        row = await connection.fetchrow(
            "SELECT tables_digest, tables_ready, tables_problem FROM duckmesh.sweep() WHERE lake = $1",
            tenant.lake.name,
        )
        return row["tables_digest"], row["tables_ready"], row["tables_problem"]
    finally:
        await connection.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tables.json"


async def test_declared_tables_are_there_evolve_and_belong_to_the_tenant(
    tenant: Tenant, file: Path
) -> None:
    digest = declare(file, TABLE)
    one = tenant.ingest(DUCKMESH_TABLES_FILE=str(file))
    two = tenant.ingest(DUCKMESH_TABLES_FILE=str(file))

    def has(columns: list[str]) -> bool:
        status, found = two.call("GET", "/v1/tables/orders")
        return status == 200 and [column["name"] for column in found["columns"]] == columns

    one.wait(lambda: has(["id", "kind"]))
    token = insert(two, {"id": 1, "kind": "a"})
    assert one.call("GET", f"/v1/visible?token={token}&timeout_ms=10000")[0] == 200
    assert await reported(tenant) == (digest, True, "")

    for pod in (one, two):
        for method, path, body in (
            ("DELETE", "/v1/tables/orders", None),
            ("PATCH", "/v1/tables/orders", {"changes": [{"drop_column": {"name": "kind"}}]}),
        ):
            status, answer = pod.call(method, path, body)
            assert (status, answer["error_code"]) == (409, "TABLE_DECLARED")
    assert two.call("POST", "/v1/tables", TABLE | {"name": "free"})[0] == 201

    declare(file, {"name": "orders", "columns": [*COLUMNS, {"name": "n", "type": "DATE"}]})
    one.wait(lambda: has(["id", "kind", "n"]))

    digest = declare(file, {"name": "orders", "columns": [{**COLUMNS[0], "type": "VARCHAR"}]})
    problem = "id is INTEGER, not to be VARCHAR"
    one.wait(lambda: any(problem in pod.log.read_text() for pod in (one, two)))
    told = await reported(tenant)
    assert told[:2] == (digest, False)
    assert problem in told[2]
    assert has(["id", "kind", "n"])

    declare(file)
    one.wait(lambda: two.call("DELETE", "/v1/tables/orders")[0] == 200)
