"""The Python client against a real lake: values of every type, exactly once over lost answers, answers of any size."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta, timezone
from datetime import time as clock
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from duckmesh import (
    AsyncClient,
    Client,
    Conflict,
    CutWarning,
    Invalid,
    NotFound,
    Unauthorized,
    Unreachable,
    api,
    bodies,
)
from duckmesh_runtime.dev.processes import free_port
from tests.laptops import Laptop, laptop
from tests.relays import relay


@pytest.fixture(scope="module")
def dev(services_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    log = tmp_path_factory.mktemp("dev") / "dev.log"
    with laptop(services_dir / f"client-{free_port()}", log) as found:
        yield found


@pytest.fixture
def client(dev: Laptop) -> Iterator[Client]:
    with Client(dev.url, dev.key) as found:
        yield found


_TYPES = {
    "i": "INTEGER",
    "u": "UBIGINT",
    "b": "BOOLEAN",
    "d": "DECIMAL(18,3)",
    "f": "DOUBLE",
    "s": "VARCHAR",
    "raw": "BLOB",
    "day": "DATE",
    "clock": "TIME",
    "local": "TIMESTAMP",
    "zoned": "TIMESTAMP WITH TIME ZONE",
    "uuid": "UUID",
    "doc": "JSON",
    "list": "INTEGER[]",
    "inner": "STRUCT(a INTEGER, amounts DECIMAL(5,2)[])",
    "map": "MAP(VARCHAR, TIMESTAMP)",
}
_LOCAL = datetime.fromisoformat("2024-01-31T12:00:00.000005")
_ROW: dict[str, Any] = {
    "i": 1,
    "u": 2**64 - 1,
    "b": True,
    "d": Decimal("123456789012345.678"),
    "f": 0.1,
    "s": "ä",
    "raw": b"\x00\xff",
    "day": date(2024, 1, 31),
    "clock": clock(1, 2, 3, 4),
    "local": _LOCAL,
    "zoned": datetime(2024, 1, 31, 12, tzinfo=timezone(timedelta(hours=2))),
    "uuid": UUID(int=5),
    "doc": {"x": [1, None]},
    "list": [1, None],
    "inner": {"a": None, "amounts": [Decimal("1.25"), None]},
    "map": {"k": _LOCAL},
}
_FOUND = _ROW | {"uuid": str(UUID(int=5)), "doc": '{"x":[1,null]}'}
_NONE = dict.fromkeys(_TYPES)


def test_values_of_every_type_go_round_through_every_library(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.tables.create("types", _TYPES)
    receipt = client.ingest("types", [_ROW, {}])
    first = client.query("SELECT * FROM types ORDER BY i", at_least=receipt)

    for data in (first.pandas(), first.polars(), first.arrow(), first.arrow().to_reader()):
        receipt = client.ingest("types", data)
    found = client.query("SELECT * FROM types ORDER BY i", at_least=receipt)
    monkeypatch.setattr(api, "has_pyarrow", lambda: False)
    without = client.query("SELECT * FROM types ORDER BY i", at_least=receipt)

    assert first.rows() == [_FOUND, _NONE]
    assert found.rows() == [_FOUND] * 5 + [_NONE] * 5
    assert without.rows() == found.rows()
    assert found.pandas()["d"].dtype == pd.ArrowDtype(pa.decimal128(18, 3))
    assert found.polars()["zoned"][0] == datetime(2024, 1, 31, 10, tzinfo=UTC)


def test_a_frame_of_pandas_with_missing_values_zones_and_nested_columns_comes_out_right(
    client: Client,
) -> None:
    columns = {
        "id": "BIGINT",
        "count": "BIGINT",
        "kind": "VARCHAR",
        "at": "TIMESTAMP WITH TIME ZONE",
        "price": "DECIMAL(9,2)",
        "tags": "VARCHAR[]",
        "none": "INTEGER",
    }
    client.tables.create("frames", columns)
    frame = pd.DataFrame(
        {
            "count": pd.array([2**60 + 1, None], dtype="Int64"),
            "kind": pd.Categorical(["a", None]),
            "at": pd.to_datetime(["2024-07-01 12:00", None]).tz_localize("Europe/Berlin"),
            "price": [Decimal("9.90"), None],
            "tags": [np.array(["x", "y"]), None],
            "none": [None, None],
        },
        index=pd.Index([1, 2], name="id"),
    )

    receipt = client.ingest("frames", frame, wait=True)
    found = client.query("SELECT * FROM frames ORDER BY id", at_least=receipt)

    assert found.rows()[0] == {
        "id": 1,
        "count": 2**60 + 1,
        "kind": "a",
        "at": datetime(2024, 7, 1, 10, tzinfo=UTC),
        "price": Decimal("9.90"),
        "tags": ["x", "y"],
        "none": None,
    }
    assert set(found.rows()[1].values()) == {2, None}
    assert found.pandas()["count"][0] == 2**60 + 1
    assert receipt.visible_snapshot_id is not None


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_rows_whose_answer_was_lost_are_there_once(dev: Laptop, client: Client, kind: str) -> None:
    client.tables.create(f"lost_{kind}", {"id": "BIGINT"})
    rows = [{"id": i} for i in range(100)]

    with relay(dev.url) as line:
        line.losing = 2
        receipt = _ingest(kind, line.url, dev.key, f"lost_{kind}", rows)
    count = client.query(f"SELECT count(*) FROM lost_{kind}", at_least=receipt).scalar()

    assert (line.lost, count) == (2, 100)
    assert (receipt.accepted, receipt.duplicates) == (0, 100)


def _ingest(kind: str, url: str, key: str, table: str, rows: Any) -> Any:
    if kind == "sync":
        with Client(url, key) as client:
            return client.ingest(table, rows)

    async def send() -> Any:
        async with AsyncClient(url, key) as client:
            return await client.ingest(table, rows)

    return asyncio.run(send())


def test_a_large_call_that_died_half_way_adds_nothing_twice(
    dev: Laptop, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "_BLOCK_ROWS", 5_000)
    monkeypatch.setattr(bodies, "PIECE_ROWS", 20_000)
    client.tables.create("large", {"id": "BIGINT", "text": "VARCHAR"})
    table = pa.table({"id": range(70_000), "text": [None if i % 7 else "x" for i in range(70_000)]})

    def dying() -> Iterator[pa.RecordBatch]:
        yield from table.slice(0, 48_000).to_batches(max_chunksize=9_000)
        raise OSError("the process died")

    with pytest.raises(OSError, match="died") as died:
        client.ingest(
            "large",
            pa.RecordBatchReader.from_batches(table.schema, dying()),
            idempotency_key="load-7",
        )
    assert "load-7" in died.value.__notes__[0]
    receipt = client.ingest("large", table, idempotency_key="load-7")
    again = client.ingest("large", table.to_reader(max_chunksize=1_234), idempotency_key="load-7")
    found = client.query("SELECT count(*) AS n, count(DISTINCT id) AS d FROM large", at_least=again)

    assert found.rows() == [{"n": 70_000, "d": 70_000}]
    assert (receipt.accepted, receipt.duplicates) == (30_000, 40_000)
    assert (again.accepted, again.duplicates, again.token) == (0, 70_000, receipt.token)
    with pytest.raises(Conflict, match="IDEMPOTENCY_CONFLICT"):
        client.ingest("large", table.slice(1), idempotency_key="load-7")


def test_bad_rows_are_in_the_receipt_and_atomic_refuses_them_all(client: Client) -> None:
    client.tables.create("strict", {"id": "BIGINT"}, primary_key=["id"])
    rows = [{"id": 1}, {"id": "x"}, {"id": 3}]

    receipt = client.ingest("strict", rows)
    with pytest.raises(Invalid) as caught:
        client.ingest("strict", [{"id": 4}, {"id": "x"}], atomic=True)
    gone = client.ingest("strict", [{"id": 3}], op="delete")

    assert [(r.index, r.code) for r in receipt.rejected] == [(1, "VALIDATION_FAILED")]
    assert [r.index for r in caught.value.rejected] == [1]
    assert client.query("SELECT id FROM strict", at_least=gone).rows() == [{"id": 1}]


def test_a_huge_answer_streams_in_little_memory(client: Client) -> None:
    most = total = 0
    sql = "SELECT range AS id, repeat('x', 200) AS text FROM range(400000)"
    before = pa.total_allocated_bytes()

    with client.stream(sql, timeout_s=60) as batches:
        names = batches.schema.names
        for batch in batches:
            total += batch.nbytes
            most = max(most, pa.total_allocated_bytes() - before + batch.nbytes)

    assert names == ["id", "text"]
    assert batches.count == 400_000
    assert total > 80_000_000
    assert most < 10_000_000


async def test_an_answer_streams_into_an_event_loop(dev: Laptop) -> None:
    sql = "SELECT range AS id, 'x'::ENUM('x', 'y') AS kind FROM range(100000)"

    async with AsyncClient(dev.url, dev.key) as client:
        async with client.stream(sql) as batches:
            rows = sum([batch.num_rows async for batch in batches])
        async with client.stream("SELECT 1 AS a WHERE false") as none:
            empty = [batch.num_rows async for batch in none]

    assert (rows, batches.seen.snapshot_id >= 0) == (100_000, True)
    assert (sum(empty), none.schema.names) == (0, ["a"])


def test_a_stream_that_breaks_off_is_no_answer(dev: Laptop) -> None:
    with relay(dev.url) as line, Client(line.url, dev.key) as client:
        line.losing, line.after_bytes = 1, 300_000
        with (
            pytest.raises(Unreachable, match="broke off"),
            client.stream("SELECT range AS id FROM range(500000)") as batches,
        ):
            for _ in batches:
                pass
        line.losing, line.after_bytes = 1, 300_000
        found = client.query("SELECT range AS id FROM range(500000)")

    assert (line.lost, len(found)) == (2, 500_000)


def test_an_answer_at_the_tenants_limit_is_said_to_be_cut(client: Client) -> None:
    sql = "SELECT range AS id FROM range(1000001)"

    with pytest.warns(CutWarning):
        cut = client.query(sql)
    with pytest.warns(CutWarning), client.stream(sql) as batches:
        for _ in batches:
            pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked = client.query(sql, row_limit=10)

    assert (len(cut), cut.truncated, batches.count, len(asked), asked.truncated) == (
        1_000_000,
        True,
        1_000_000,
        10,
        True,
    )


def test_a_snapshot_is_read_again_pinned_and_restored(client: Client) -> None:
    client.tables.create("past", {"id": "BIGINT"})
    one = client.query("SELECT * FROM past", at_least=client.ingest("past", [{"id": 1}]))
    two = client.ingest("past", [{"id": 2}], wait=True)

    then = client.query("SELECT id FROM past", snapshot_id=one.snapshot_id)
    pinned = client.snapshots.pin(one.snapshot_id, "keep")
    files = client.snapshots.files(one.snapshot_id, "past")
    restored = client.snapshots.restore(one.snapshot_id)
    again = client.snapshots.restore(one.snapshot_id, idempotency_key=restored.idempotency_key)
    now = client.query("SELECT id FROM past", at_least=restored)

    assert (then.rows(), now.rows()) == ([{"id": 1}], [{"id": 1}])
    assert [pin.name for pin in pinned.pins] == ["keep"]
    assert len(files["files"]) == 1
    assert again.token == restored.token
    assert not client.snapshots.unpin(one.snapshot_id, "keep").pinned
    assert client.snapshots.list(3)[0].snapshot_id >= (two.visible_snapshot_id or 0)


def test_tables_are_made_changed_read_and_dropped(client: Client) -> None:
    made = client.tables.create("shapes", {"id": "BIGINT", "kind": "VARCHAR"}, primary_key=["id"])
    changed = client.tables.alter(
        "shapes", [{"add_column": {"name": "source", "type": "VARCHAR", "default": "web"}}]
    )
    receipt = client.ingest("shapes", [{"id": 1}])

    assert client.query("SELECT source FROM shapes", at_least=receipt).scalar() == "web"
    assert not made.columns[0].nullable
    now = client.tables.get("shapes")
    assert now.columns == changed.columns
    assert now.schema_version == client.tables.versions("shapes")[-1].schema_version
    assert "shapes" in [table.name for table in client.tables.list()]
    dropped = client.tables.drop("shapes")
    assert client.wait_visible(dropped).token == dropped.token
    assert [version.dropped for version in client.tables.versions("shapes")][-1]
    with pytest.raises(NotFound, match="TABLE_NOT_FOUND"):
        client.tables.get("shapes")


def test_operators_see_lag_and_dead_letters(client: Client) -> None:
    behind = client.lag()
    assert behind.lag_ms >= 0
    assert client.wait_visible(behind.latest_visibility_token).snapshot_id is not None
    assert list(client.dead_letters.list("types")) == []
    assert client.dead_letters.replay_all("types").replayed == 0
    assert client.dead_letters.drop_all("types") == 0
    with pytest.raises(NotFound, match="DEAD_LETTER_NOT_FOUND"):
        client.dead_letters.replay(123)


def test_an_error_tells_where_a_statement_is_wrong_and_leads_to_the_log(client: Client) -> None:
    with pytest.raises(Invalid, match="SQL_ERROR") as caught:
        client.query("SELECT\n nothing FROM types")

    assert (caught.value.context["line"], caught.value.context["column"]) == (2, 2)
    assert len(caught.value.trace_id) == 32


def test_a_wrong_key_is_told_at_once(dev: Laptop) -> None:
    with Client(dev.url, "dmk_admin_" + "0" * 64) as client, pytest.raises(Unauthorized):
        client.lag()


def test_threads_share_a_client(client: Client) -> None:
    client.tables.create("shared", {"id": "BIGINT"})

    def send(number: int) -> object:
        sent = client.ingest("shared", [{"id": number}])
        answer = client.query("SELECT id FROM shared", at_least=sent, wait_timeout_s=60)
        return number in [row["id"] for row in answer.rows()]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(send, range(8)))


def test_polars_reads_what_polars_wrote(client: Client) -> None:
    client.tables.create("poles", {"id": "BIGINT", "at": "TIMESTAMP", "tags": "VARCHAR[]"})
    frame = pl.DataFrame(
        {"id": [1, 2], "at": [_LOCAL, None], "tags": [["a", None], []]},
        schema={"id": pl.Int64, "at": pl.Datetime("us"), "tags": pl.List(pl.String)},
    )

    receipt = client.ingest("poles", frame)
    found = client.query("SELECT * FROM poles ORDER BY id", at_least=receipt).polars()

    assert found.equals(frame)
