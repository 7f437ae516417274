"""The processes of a Tenant as a pod starts them: two of ingest, one of query, the sandbox, with real services."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from duckmesh_runtime.dev.postgres import PostgresServer
from duckmesh_runtime.dev.processes import free_port
from tests.fakes.doors import key
from tests.pods import Pod, Tenant, tenant_of
from tests.services import Lake

TABLE = {
    "name": "orders",
    "columns": [{"name": "writer", "type": "INTEGER"}, {"name": "n", "type": "BIGINT"}],
}


def insert(pod: Pod, writer: int, number: int, **more: object) -> tuple[int, Any]:
    record = {"idempotency_key": f"{writer}-{number}", "payload": {"writer": writer, "n": number}}
    return pod.call("POST", "/v1/ingest/orders", {"records": [record], **more})


COUNTS = "SELECT count(*), count(DISTINCT n), min(n), max(n) FROM orders WHERE writer = $1"


def test_one_url_serves_it_all_over_s3(s3_tenant: Tenant) -> None:
    front, query = s3_tenant.ingest(), s3_tenant.query()

    assert front.call("POST", "/v1/tables", TABLE)[0] == 201
    status, accepted = insert(front, 1, 1)
    assert status == 200, accepted
    status, answer = front.call(
        "POST",
        "/v1/query",
        {"sql": COUNTS, "params": [1], "min_visibility_token": accepted["max_visibility_token"]},
    )

    assert (status, answer.get("rows")) == (200, [[1, 1, 1, 1]]), answer
    assert query.metric("duckmesh_query_requests_total") >= 1
    assert front.metric("duckmesh_committer_active") == 1
    # What a probe saw is kept for two seconds, and the first may have come before the election.
    front.wait(lambda: set(dependencies(front).values()) == {"ok"})
    assert dependencies(front).keys() == {"catalog", "storage", "committer"}
    assert dependencies(query) == {"catalog": "ok", "storage": "ok"}


def dependencies(pod: Pod) -> dict[str, str]:
    found: dict[str, str] = pod.call("GET", "/v1/ready")[1]["dependencies"]
    return found


def test_rows_taken_by_the_other_replica_are_visible_as_soon(tenant: Tenant) -> None:
    committer = tenant.ingest()
    committer.wait(lambda: committer.metric("duckmesh_committer_active") == 1)
    other = tenant.ingest()
    other.call("POST", "/v1/tables", TABLE)
    assert other.metric("duckmesh_committer_active") == 0

    waits = []
    for number in range(10):
        started = time.monotonic()
        _, answer = insert(other, 1, number, wait_for_visibility=True)
        waits.append(time.monotonic() - started)
        assert answer["status"] == "visible"

    # Without the nudge every row would wait for the poll, half a second apart.
    assert sorted(waits)[len(waits) // 2] < 0.4


class Writer(threading.Thread):
    """Sends one row at a time until told to stop, each until it is acknowledged, to whichever pod answers."""

    def __init__(self, tenant: Tenant, number: int, stop: threading.Event) -> None:
        super().__init__()
        self.tenant, self.number, self.stopped = tenant, number, stop
        self.acked, self.token = 0, ""
        self.problem: object = None

    def run(self) -> None:
        turn = 0
        while not self.stopped.is_set():
            pods = [
                p for p in self.tenant.pods if "ingest" in p.log.name and p.process.poll() is None
            ]
            pod = pods[turn % len(pods)]
            try:
                status, answer = insert(pod, self.number, self.acked + 1)
            except (OSError, ValueError):
                turn += 1
                continue
            if status == 200:
                self.acked += 1
                self.token = answer["max_visibility_token"]
            elif answer["retryable"]:
                turn += 1
                time.sleep(0.02)
            else:
                self.problem = answer
                return


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_losing_the_committer_loses_nothing_and_doubles_nothing(
    tenant: Tenant, how: signal.Signals
) -> None:
    first, second = tenant.ingest(), tenant.ingest()
    query = tenant.query()
    first.call("POST", "/v1/tables", TABLE)
    active = [p for p in (first, second) if p.metric("duckmesh_committer_active") == 1]
    (committer,) = active
    survivor = second if committer is first else first
    stop = threading.Event()
    writers = [Writer(tenant, number, stop) for number in range(2)]
    if how is signal.SIGSTOP:  # a stopped process still takes connections: write to the other one
        tenant.pods.remove(committer)
    for writer in writers:
        writer.start()
    survivor.wait(lambda: all(w.acked > 10 for w in writers))

    committer.process.send_signal(how)
    survivor.wait(lambda: survivor.metric("duckmesh_committer_active") == 1)
    at_change = [w.acked for w in writers]
    survivor.wait(lambda: all(w.acked > a + 10 for w, a in zip(writers, at_change, strict=True)))
    stop.set()
    for writer in writers:
        writer.join(30)
    if how is signal.SIGSTOP:
        committer.process.send_signal(signal.SIGCONT)
        tenant.pods.append(committer)

    assert [w.problem for w in writers] == [None, None]
    for writer in writers:
        status, answer = query.call(
            "POST",
            "/v1/query",
            {
                "sql": COUNTS,
                "params": [writer.number],
                "min_visibility_token": writer.token,
                "consistency_timeout_ms": 20_000,
            },
        )
        assert status == 200, answer
        # A row whose acknowledgement was lost in the kill was sent again under its key, and is there once.
        assert answer["rows"] == [[writer.acked, writer.acked, 1, writer.acked]]
    if how is signal.SIGTERM:
        assert committer.process.wait(30) == 0


def test_a_start_without_the_catalog_waits_and_tells(
    make_lake: Callable[..., Awaitable[Lake]], services_dir: Path
) -> None:
    with PostgresServer(services_dir / f"late-{free_port()}") as server:
        lake = asyncio.run(make_lake(server=server))
    with tenant_of(lake) as tenant:
        pod = tenant.start("serve", "ingest")
        pod.wait(lambda: pod.call("GET", "/v1/health")[0] == 200)

        assert pod.call("GET", "/v1/ready")[0] == 503
        status, answer = insert(pod, 1, 1)
        assert (status, answer["error_code"]) == (503, "CATALOG_UNAVAILABLE")

        with PostgresServer(server.folder, port=server.port):
            pod.wait(pod.is_ready)
            assert pod.call("POST", "/v1/tables", TABLE)[0] == 201
            assert insert(pod, 1, 1, wait_for_visibility=True)[1]["status"] == "visible"
            assert pod.stop() == 0


def test_processes_wait_for_their_lake_to_be_made(
    make_lake: Callable[..., Awaitable[Lake]],
) -> None:
    lake = asyncio.run(make_lake(migrated=False))
    with tenant_of(lake) as tenant:
        tenant.start("sandbox")
        pod = tenant.start("serve", "ingest")
        query = tenant.start("serve", "query", port=tenant.query_port)
        for one in (pod, query):
            one.wait(lambda: b"the lake is not made yet" in one.log.read_bytes())  # noqa: B023 - waits here
            assert one.call("GET", "/v1/ready")[0] == 503

        wanted = lake.migrate_settings
        migrate = tenant.start(
            "migrate",
            DUCKMESH_TENANT_UID=wanted.tenant_uid,
            DUCKMESH_ADMIN_DIR=str(wanted.admin_dir),
            DUCKMESH_WRITER_LOGIN=wanted.writer,
            DUCKMESH_MAINTENANCE_LOGIN=wanted.maintenance,
            DUCKMESH_READER_LOGIN=wanted.reader,
        )

        assert migrate.process.wait(60) == 0
        pod.wait(pod.is_ready)
        assert pod.call("POST", "/v1/tables", TABLE)[0] == 201
        query.wait(query.is_ready)
        token = insert(pod, 1, 1)[1]["max_visibility_token"]
        asked = {"sql": COUNTS, "params": [1], "min_visibility_token": token}
        query.wait(lambda: query.call("POST", "/v1/query", asked)[0] == 200)
        assert query.call("POST", "/v1/query", asked)[1]["rows"] == [[1, 1, 1, 1]]
        for one in (pod, query):
            assert b"Traceback" not in one.log.read_bytes()


def test_an_outage_of_the_catalog_is_a_503_and_then_over(
    make_lake: Callable[..., Awaitable[Lake]], services_dir: Path
) -> None:
    with PostgresServer(services_dir / f"away-{free_port()}") as server:
        lake = asyncio.run(make_lake(server=server))
        with tenant_of(lake) as tenant:
            pod = tenant.ingest()
            pod.call("POST", "/v1/tables", TABLE)
            server.stop(signal.SIGQUIT)

            status, answer = insert(pod, 1, 1)
            assert (status, answer["error_code"]) == (503, "CATALOG_UNAVAILABLE")
            pod.wait(
                lambda: "unavailable" in pod.call("GET", "/v1/ready")[1]["dependencies"].values()
            )
            assert pod.is_ready()

            server.start()
            pod.wait(lambda: insert(pod, 1, 1)[0] == 200)
            assert insert(pod, 1, 1, wait_for_visibility=True)[1]["status"] == "visible"


def test_a_process_without_keys_does_not_start(tenant: Tenant) -> None:
    pod = tenant.start("serve", "ingest", DUCKMESH_AUTH_DIR="")

    assert pod.process.wait(30) == 2
    assert "DUCKMESH_AUTH_DIR" in pod.log.read_text()


def test_no_secret_is_logged_and_no_child_is_left(tenant: Tenant) -> None:
    front, query = tenant.ingest(), tenant.query()
    front.call("POST", "/v1/tables", TABLE)
    insert(front, 1, 1, wait_for_visibility=True)
    children = [c for p in tenant.pods for c in psutil.Process(p.process.pid).children(True)]

    assert [pod.stop() for pod in (front, query, tenant.pods[1])] == [0, 0, 0]

    password = (tenant.lake.writer_dir / "dsn").read_text().split(":")[2].split("@")[0]
    logs = "".join(pod.log.read_text() for pod in tenant.pods)
    assert password not in logs
    assert key("admin") not in logs
    assert "Traceback" not in logs
    assert not [child for child in children if child.is_running()]
