"""The runbooks' commands, against services in which the fault is there; those with kubectl are run in tests/e2e."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from duckmesh_runtime.dev.s3 import S3Server
from tests.fakes.doors import key
from tests.integration.test_dead_letters import refuse_nulls
from tests.integration.test_lag import with_a_table_that_refuses_null
from tests.pages import DOCS, Terminal, steps, terminal
from tests.pods import Pod, Tenant, tenant_of
from tests.services import Lake

RUNBOOKS = DOCS / "runbooks"
TABLE = {"name": "orders", "columns": [{"name": "n", "type": "BIGINT"}]}

pytestmark = pytest.mark.timeout(300)  # many processes, each of seconds of CPU


def look(shell: Terminal, page: str, *headings: str) -> list[str]:
    """Run the commands below these headings that need no cluster, until they show what the page does."""
    todo = [step for step in steps(RUNBOOKS / page, *headings) if not step.of_cluster]
    return shell.follow(todo, within_s=60)


@contextmanager
def on_call(lake: Lake, folder: Path) -> Iterator[Terminal]:
    known = {"CATALOG": lake.catalog_dsn, "LAKE": lake.name, "DUCKMESH_API_KEY": key("admin")}
    with terminal(folder, known) as shell:
        yield shell


def opened(tenant: Tenant, shell: Terminal, **more: str) -> Pod:
    """An ingest pod, and the shell's way to it."""
    pod = tenant.ingest(**more)
    metrics = f"http://127.0.0.1:{pod.metrics_port}/metrics"
    shell.run(f"export DUCKMESH_URL={pod.url} METRICS={metrics}")
    return pod


def insert(pod: Pod, *numbers: int) -> None:
    records = [{"payload": {"n": number}} for number in numbers]
    status, answer = pod.call("POST", "/v1/ingest/orders", {"records": records})
    assert status == 200, answer


@contextmanager
def hanging(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def folder_of_shell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shell")


def test_stuck_leases(lake: Lake, folder_of_shell: Path) -> None:
    page = "stuck-leases.md"
    with tenant_of(lake) as tenant, on_call(lake, folder_of_shell) as shell:
        pod = opened(tenant, shell)
        assert pod.call("POST", "/v1/tables", TABLE)[0] == 201
        shell.run('coproc PSQL { psql -X "$CATALOG"; }')
        shell.run('echo "BEGIN; SELECT FROM duckmesh.lease FOR UPDATE;" >&${PSQL[1]}')
        shell.run("read -t 20 <&${PSQL[0]}; read -t 20 <&${PSQL[0]}")
        insert(pod, 1)

        (blockers,) = look(shell, page, "A session holds the lease's row")
        shell.run(f"export PID={next(word for word in blockers.split() if word.isdigit())}")
        shell.follow(steps(RUNBOOKS / page, "End the session"))
        look(shell, page, "Verification")

        with hanging(pod.process.pid):
            shell.run(
                f'psql -X "$CATALOG" -c \'UPDATE "{lake.name}_bus".head SET last = last + 2\''
            )
            look(shell, page, "Nobody commits")


def test_snapshot_publish_failures(lake: Lake, folder_of_shell: Path) -> None:
    page = "snapshot-publish-failures.md"
    with tenant_of(lake) as tenant, on_call(lake, folder_of_shell) as shell:
        pod = opened(tenant, shell)
        assert pod.call("POST", "/v1/tables", TABLE)[0] == 201
        assert pod.stop() == 0
        drop = f'DROP TRIGGER dm_23_commit ON \\"{lake.name}\\".ducklake_snapshot_changes'
        assert shell.run(f'psql -X "$CATALOG" -c "{drop}"')[0] == 0
        pod = opened(tenant, shell)
        insert(pod, 1)

        look(shell, page, "The lake lacks its fence")
        shell.follow(steps(RUNBOOKS / page, "Mitigation"))
        look(shell, page, "Verification")


def test_high_ingest_lag(s3_lake: Lake, s3: S3Server, folder_of_shell: Path) -> None:
    page = "high-ingest-lag.md"
    with tenant_of(s3_lake) as tenant, on_call(s3_lake, folder_of_shell) as shell:
        pod = opened(tenant, shell)
        assert pod.call("POST", "/v1/tables", TABLE)[0] == 201
        with hanging(s3.pid):
            insert(pod, 1)
            look(shell, page, "What is behind", "The store does not answer")

        look(shell, page, "Verification")


async def test_dead_letters(lake: Lake, folder_of_shell: Path) -> None:
    page = "dead-letters.md"
    with tenant_of(lake) as tenant, on_call(lake, folder_of_shell) as shell:
        await with_a_table_that_refuses_null(tenant)
        pod = opened(tenant, shell)
        record = {"payload": {"id": 2, "text": None}}
        assert pod.call("POST", "/v1/ingest/events", {"records": [record]})[0] == 200

        look(shell, page, "What was refused")
        assert pod.stop() == 0
        await refuse_nulls(tenant, False, column="text")
        opened(tenant, shell)
        shell.follow(steps(RUNBOOKS / page, "Mitigation"))
        look(shell, page, "Verification")


def test_dependencies_unreachable(s3_lake: Lake, s3: S3Server, folder_of_shell: Path) -> None:
    page = "dependencies-unreachable.md"
    with tenant_of(s3_lake) as tenant, on_call(s3_lake, folder_of_shell) as shell:
        opened(tenant, shell)
        with hanging(s3.pid):
            look(shell, page, "What does not answer")
        look(shell, page, "The catalog from an administrator's place")
        look(shell, page, "Verification")

        look(shell, "maintenance-behind.md", "What it says")


def test_requests_fail_and_idempotency_horizon(lake: Lake, folder_of_shell: Path) -> None:
    with tenant_of(lake) as tenant, on_call(lake, folder_of_shell) as shell:
        tenant.query()
        pod = opened(tenant, shell)
        assert pod.call("POST", "/v1/tables", TABLE)[0] == 201
        insert(pod, 1)

        look(shell, "requests-fail.md", "Which code")
        look(shell, "requests-fail.md", "Verification")
        look(shell, "idempotency-horizon.md", "Diagnosis")
