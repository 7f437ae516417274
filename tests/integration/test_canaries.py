"""Secrets planted in every configuration and input never come back: not in logs at debug level, metrics or answers.

Rows, keys and statements are the caller's own and may be told to that caller; in logs and metrics they have no place.
"""

from __future__ import annotations

import asyncio
import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from duckmesh_runtime.dev.postgres import PostgresServer
from duckmesh_runtime.dev.processes import free_port
from duckmesh_runtime.dev.s3 import S3Server
from tests.fakes.doors import key, write_keys
from tests.pods import ADMIN, Pod, Tenant, tenant_of
from tests.services import new_lake

PASSWORD, SUPERUSER = "canary-password-51b2", "canary-superuser-9e07"
STORE, PEPPER = "canary-store-key-7c3d", "canary-pepper-aa41"
API_KEY = key("admin").rpartition("_")[2]
WRONG_KEY = "c0ffee" * 10 + "beef"
CONFIGURED = (PASSWORD, SUPERUSER, STORE, PEPPER, API_KEY, WRONG_KEY)
ROW, STATEMENT, RECORD_KEY = "canary-row-1f0a", "canary-sql-5d6e", "canary-key-83bb"
SENT = (ROW, STATEMENT, RECORD_KEY)
TABLE = {
    "name": "events",
    "columns": [{"name": "id", "type": "BIGINT"}, {"name": "v", "type": "VARCHAR"}],
}


@pytest.fixture
def store(services_dir: Path) -> Iterator[S3Server]:
    folder = services_dir / f"canary-s3-{free_port()}"
    with S3Server(folder, access_key="canary", secret_key=STORE) as server:
        yield server


@pytest.fixture
def planted(
    services_dir: Path, store: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Tenant, PostgresServer]]:
    """A Tenant whose every secret is a canary; its lake is made by a real `duckmesh migrate`."""
    monkeypatch.setattr("tests.services._LOGIN_PASSWORD", PASSWORD)
    folder = services_dir / f"canary-{free_port()}"
    with PostgresServer(folder, password=SUPERUSER) as server:
        lake = asyncio.run(new_lake(tmp_path, server, s3=store, migrated=False))
        with tenant_of(lake) as tenant:
            tenant.env()
            write_keys(tenant.folder / "auth", {"admin": ADMIN}, pepper=PEPPER)
            wanted = lake.migrate_settings
            migrate = tenant.start(
                "migrate",
                DUCKMESH_TENANT_UID=wanted.tenant_uid,
                DUCKMESH_ADMIN_DIR=str(wanted.admin_dir),
                DUCKMESH_WRITER_LOGIN=wanted.writer,
                DUCKMESH_MAINTENANCE_LOGIN=wanted.maintenance,
                DUCKMESH_READER_LOGIN=wanted.reader,
                DUCKMESH_LOG_LEVEL="debug",
            )
            assert migrate.process.wait(60) == 0
            tenant.pods.remove(migrate)
            yield tenant, server


class Caller:
    """Calls one pod and keeps every answer, headers included."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        self.heard: list[str] = []

    def __call__(
        self, method: str, path: str, body: object = None, *, bearer: str = key("admin")
    ) -> Any:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.pod.url + path, method=method, data=data)
        request.add_header("Authorization", f"Bearer {bearer}")
        request.add_header("Content-Type", "application/json")
        try:
            answer = urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            text = answer.read().decode()
            self.heard.append(f"{answer.headers}{text}")
            return json.loads(text)

    def query(self, sql: str, **more: object) -> Any:
        return self("POST", "/v1/query", {"sql": sql, **more})

    def ingest(self, *payloads: object, **more: object) -> Any:
        records = [
            {"payload": payload, "idempotency_key": f"{RECORD_KEY}-{number}"}
            for number, payload in enumerate(payloads)
        ]
        return self("POST", "/v1/ingest/events", {"records": records, **more})


def test_no_planted_secret_comes_back(
    planted: tuple[Tenant, PostgresServer], store: S3Server
) -> None:
    tenant, server = planted
    front = tenant.ingest(DUCKMESH_LOG_LEVEL="debug")
    tenant.start("sandbox", DUCKMESH_LOG_LEVEL="debug")
    query = tenant.start("serve", "query", port=tenant.query_port, DUCKMESH_LOG_LEVEL="debug")
    query.wait(query.is_ready)
    call = Caller(front)

    well(call)
    badly(call)
    metrics = [scrape(pod) for pod in (front, query)]
    store.stop()
    call.query(f"SELECT count(*), '{STATEMENT}' FROM events WHERE v <> '{ROW}'")
    call.ingest({"id": 9, "v": ROW})
    server.stop(signal.SIGQUIT)
    assert call.ingest({"id": 10, "v": ROW})["error_code"] == "CATALOG_UNAVAILABLE"
    call.query(f"SELECT '{STATEMENT}' FROM events")
    call("GET", "/v1/ready")
    call("GET", "/v1/lag")
    metrics += [scrape(pod) for pod in (front, query)]
    for pod in tenant.pods:
        pod.process.send_signal(signal.SIGTERM)
    for pod in tenant.pods:
        pod.process.wait(30)

    logs = {file.name: file.read_text() for file in tenant.folder.glob("*.log")}
    assert logs.keys() == {"migrate-0.log", "ingest-0.log", "sandbox-1.log", "query-2.log"}
    found = [
        (where, secret, line)
        for where, text in [*logs.items(), *(("metrics", one) for one in metrics)]
        for secret in (*CONFIGURED, *SENT)
        for line in text.splitlines()
        if secret in line
    ]
    found += [
        ("answer", secret, one) for one in call.heard for secret in CONFIGURED if secret in one
    ]
    assert found == []
    refused = [json.loads(line) for line in logs["ingest-0.log"].splitlines() if '"route"' in line]
    assert all(
        {"timestamp", "service", "tenant", "trace_id", "error_code"} <= r.keys() for r in refused
    )
    assert {r["error_code"] for r in refused} >= {"VALIDATION_FAILED", "CATALOG_UNAVAILABLE"}


def well(call: Caller) -> None:
    call("POST", "/v1/tables", TABLE)
    seen = call.ingest({"id": 1, "v": ROW}, wait_for_visibility=True)
    assert seen["status"] == "visible", seen
    token = seen["max_visibility_token"]
    rows = call.query(f"SELECT v, '{STATEMENT}' FROM events", min_visibility_token=token)["rows"]
    assert rows == [[ROW, STATEMENT]]
    call.query("SELECT count(*) FROM events WHERE v = $1", params=[ROW])


def badly(call: Caller) -> None:
    codes = [
        call.ingest({"id": ROW})["error_code"],
        call.ingest({"id": 1, "v": f"other {ROW}"})["error_code"],
        call("POST", "/v1/ingest/events", b'{"records": [' + ROW.encode())["error_code"],
        call("POST", "/v1/ingest/events", {ROW: 1})["error_code"],
        call.query(f"SELEC '{STATEMENT}'")["error_code"],
        call.query(f"SELECT CAST('{STATEMENT}' AS INTEGER)")["error_code"],
        call.query(f"SELECT CAST(v AS INTEGER), '{STATEMENT}' FROM events")["error_code"],
        call.query(f"COPY events TO '{STATEMENT}'")["error_code"],
        call.query("SELECT 1", **{STATEMENT: 1})["error_code"],
        call("GET", "/v1/lag", bearer=f"dmk_admin_{WRONG_KEY}")["error_code"],
        call("GET", f"/v1/visible?token={ROW}")["error_code"],
    ]
    assert all(codes)


def scrape(pod: Pod) -> str:
    url = f"http://127.0.0.1:{pod.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())
