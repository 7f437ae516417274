"""Lag at every door: each figure against what Postgres holds while rows go from accepted over claimed to visible.

A commit is held open by a lock on the table that it writes last; the engine gives up on that after five seconds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
from click.testing import CliRunner

from duckmesh_operator import status
from duckmesh_operator.catalog import Catalog
from duckmesh_operator.lag import Objective, step
from duckmesh_operator.model import parse_meta
from duckmesh_operator.specs.secret import build_dsn
from duckmesh_runtime.__main__ import main
from duckmesh_runtime.adapters.postgres_bus import PostgresBus
from duckmesh_runtime.domain.tokens import read_token
from duckmesh_runtime.services.bulk_writer import STAGE_ROWS
from tests.fakes.doors import key
from tests.integration.test_dead_letters import refuse_nulls
from tests.integration.test_staged import ARROW, numbers, stream
from tests.lakes import EVENTS, LakeView, append_create, committer_of, running, send, writer_pool
from tests.pods import Pod, Tenant
from tests.services import Lake
from tests.tenants import make_tenant, tenant_object

TABLE = {
    "name": "events",
    "columns": [{"name": "id", "type": "BIGINT"}, {"name": "text", "type": "VARCHAR"}],
}
OTHER = {"name": "others", "columns": [{"name": "id", "type": "BIGINT"}]}
ENTRIES = (
    "SELECT table_name, kind, first, last, byte_count, accepted_at FROM {bus}.entry WHERE last > $1"
)


@asynccontextmanager
async def commits_held(lake: Lake) -> AsyncIterator[None]:
    """No commit lands in this block; what reads goes on."""
    connection = await asyncpg.connect(lake.catalog_dsn)
    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {lake.name}.ducklake_snapshot IN SHARE MODE")
            yield
    finally:
        await connection.close()


def lag(pod: Pod) -> dict[str, Any]:
    code, answer = pod.call("GET", "/v1/lag")
    assert code == 200, answer
    return dict(answer)


def idle(pod: Pod) -> bool:
    return int(lag(pod)["token_lag"]) == 0


def insert(pod: Pod, *ids: int) -> str:
    body = {"records": [{"payload": {"id": i, "text": "x"}} for i in ids]}
    code, answer = pod.call("POST", "/v1/ingest/events", body)
    assert code == 200, answer
    return str(answer["max_visibility_token"])


async def check_against_the_catalog(lake: Lake, found: dict[str, Any]) -> None:
    """The figures of an answer are those of the tables, as long as nothing moves meanwhile."""
    view, bus = LakeView(lake), f"{lake.name}_bus"
    watermark = await view.token()
    entries = await view.fetch(ENTRIES.format(bus=bus), watermark)
    rows = [e for e in entries if e["kind"] in ("rows", "file")]
    head = await view.fetchval(f"SELECT last FROM {bus}.head")
    newest = await view.fetch(
        f"SELECT snapshot_id, snapshot_time FROM {lake.name}.ducklake_snapshot ORDER BY 1 DESC LIMIT 1"
    )

    assert (found["watermark"], found["latest_token"], found["accepted"]) == (watermark, head, head)
    for number, token in (
        (watermark, found["watermark_token"]),
        (head, found["latest_visibility_token"]),
    ):
        read = read_token(token)
        assert read is not None
        assert (read.lake, read.number) == (lake.name, number)
    assert found["token_lag"] == head - watermark
    assert found["pending_rows"] == sum(e["last"] - e["first"] + 1 for e in rows)
    assert found["pending_bytes"] == sum(e["byte_count"] for e in entries)
    assert {t["table"] for t in found["tables"]} == {e["table_name"] for e in entries}
    for part in ("pending_rows", "pending_bytes", "claimed_rows", "claimed_bytes"):
        assert found[part] == sum(t[part] for t in found["tables"])
    observed = datetime.fromisoformat(found["observed_at"])
    oldest = min((e["accepted_at"] for e in entries), default=observed)
    assert found["lag_ms"] == found["oldest_pending_age_ms"]
    assert found["lag_ms"] == int((observed - oldest).total_seconds() * 1000)
    assert found["latest_snapshot_id"] == newest[0]["snapshot_id"]
    assert datetime.fromisoformat(found["latest_snapshot_at"]) == newest[0]["snapshot_time"]


async def test_every_figure_follows_rows_from_accepted_over_claimed_to_visible(
    tenant: Tenant,
) -> None:
    pod, lake = tenant.ingest(), tenant.lake
    assert pod.call("POST", "/v1/tables", TABLE)[0] == 201
    pod.wait(lambda: idle(pod))
    before = lag(pod)
    await check_against_the_catalog(lake, before)
    assert (before["pending_rows"], before["lag_ms"], before["tables"]) == (0, 0, [])

    async with commits_held(lake):
        insert(pod, 1, 2)
        pod.wait(lambda: lag(pod)["claimed"] > 0, 4)
        token = insert(pod, 3, 4, 5)  # accepted, and not in the commit under way
        body = stream(numbers(10))
        code, staged = pod.send("POST", "/v1/ingest/events", body, content_type=ARROW)
        assert (code, staged["accepted_count"]) == (200, STAGE_ROWS)
        change = asyncio.create_task(asyncio.to_thread(pod.call, "POST", "/v1/tables", OTHER))
        while len((held := await asyncio.to_thread(lag, pod))["tables"]) < 2:
            await asyncio.sleep(0.01)

        await check_against_the_catalog(lake, held)
        assert (held["claimed"], held["claimed_rows"]) == (2, 2)
        assert 0 < held["claimed_bytes"] < held["pending_bytes"]
        assert held["pending_rows"] == 5 + STAGE_ROWS
        assert held["token_lag"] == held["pending_rows"] + 1  # the change of a table has a number
        parts = {t["table"]: t["pending_rows"] for t in held["tables"]}
        assert parts == {"events": 5 + STAGE_ROWS, "others": 0}
        assert held["latest_snapshot_id"] == before["latest_snapshot_id"]
        older = await asyncio.to_thread(lag, pod)
        assert older["lag_ms"] > held["lag_ms"] > 0

    assert (await change)[0] == 201
    assert pod.call("GET", f"/v1/visible?token={token}")[0] == 200
    pod.wait(lambda: idle(pod))
    after = lag(pod)
    await check_against_the_catalog(lake, after)
    assert (after["claimed"], after["pending_bytes"], after["lag_ms"]) == (0, 0, 0)
    assert after["latest_snapshot_id"] > before["latest_snapshot_id"]
    assert after["watermark"] == held["latest_token"]


async def test_api_status_metrics_and_command_line_tell_the_same(
    tenant: Tenant, tmp_path: Path
) -> None:
    await with_a_table_that_refuses_null(tenant)
    pod, lake = tenant.ingest(), tenant.lake
    records = [{"payload": {"id": 1, "text": "x"}}, {"payload": {"id": 2, "text": None}}]
    assert pod.call("POST", "/v1/ingest/events", {"records": records})[0] == 200
    pod.wait(lambda: idle(pod) and lag(pod)["dead_letters"] == 1)
    other = tenant.ingest()  # accepts nothing, and tells the same

    async with commits_held(lake):
        insert(pod, 3, 4, 5)
        other.wait(lambda: other.metric("duckmesh_ingest_claimed_rows") == 3, 4)
        api = lag(other)
        metrics = {name: other.metric(f"duckmesh_{name}") for name in METRICS}
        shown = await asyncio.to_thread(command_line, other)
        told = await tenant_status(lake, tmp_path)

    assert (api["pending_rows"], api["claimed_rows"], api["dead_letters"]) == (3, 3, 1)
    for name, field in METRICS.items():
        assert metrics[name] == api[field], name
    later = ("lag_ms", "oldest_pending_age_ms", "observed_at", "tables")
    assert {k: v for k, v in shown.items() if k not in later} == {
        k: v for k, v in api.items() if k not in later
    }
    assert told["ingest"]["pendingRows"] == api["pending_rows"]
    assert told["ingest"]["watermark"] == api["watermark"]
    assert told["ingest"]["deadLetters"] == api["dead_letters"]
    assert close(told["ingest"]["lastCommitAt"], api["committed_at"])
    assert told["snapshot"]["id"] == api["latest_snapshot_id"]
    assert close(told["snapshot"]["committedAt"], api["latest_snapshot_at"])
    # Each was asked a moment after the one before.
    ages = [api["lag_ms"], shown["lag_ms"], told["ingest"]["lagSeconds"] * 1000 + 50]
    assert ages == sorted(ages)
    assert ages[-1] - ages[0] < 10_000


METRICS = {
    "ingest_lag_events": "token_lag",
    "ingest_pending_rows": "pending_rows",
    "ingest_pending_bytes": "pending_bytes",
    "ingest_claimed_rows": "claimed_rows",
    "latest_accepted_token": "latest_token",
    "latest_visibility_token": "watermark",
    "latest_snapshot_id": "latest_snapshot_id",
    "dead_letters_kept": "dead_letters",
}


async def with_a_table_that_refuses_null(tenant: Tenant) -> None:
    """A table whose column `text` the lake takes no NULL in, behind duckmesh's back."""
    async with committer_of(tenant.lake) as committer, writer_pool(tenant.lake) as pool:
        last = await send(PostgresBus(pool, tenant.lake.name), append_create(EVENTS, version=0))
        async with running(committer):
            await LakeView(tenant.lake).visible(last)
    await refuse_nulls(tenant, True, column="text")


def command_line(pod: Pod) -> dict[str, Any]:
    env = {"DUCKMESH_URL": pod.url, "DUCKMESH_API_KEY": key("admin")}
    result = CliRunner().invoke(main, ["lag", "--output", "json"], env=env)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


async def tenant_status(lake: Lake, folder: Path) -> dict[str, Any]:
    """What the operator makes of its sweep."""
    login = f"{lake.name}_operator"
    await LakeView(lake).fetch(f"CREATE ROLE {login} LOGIN PASSWORD 'x' IN ROLE duckmesh_control")
    (folder / "control-dsn").write_text(build_dsn(lake.catalog_dsn, login, "x"))
    catalog = Catalog("default", folder)
    try:
        (report,) = await catalog.sweep()
    finally:
        await catalog.close()
    situation = status.Situation(
        meta=parse_meta(tenant_object()),
        tenant=make_tenant(),
        previous={},
        track=step(None, report, Objective()),
    )
    return dict(status.build_status(situation, report.now))


def close(one: str, other: str) -> bool:
    """A status tells whole seconds."""
    return abs((datetime.fromisoformat(one) - datetime.fromisoformat(other)).total_seconds()) <= 1
