"""The catalog is restored to an earlier time, by the commands of the runbook: rows, tokens, keys and files after it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from duckmesh_runtime.dev.postgres import PostgresServer
from tests.fakes.doors import key
from tests.pages import DOCS, Terminal, steps, terminal
from tests.pods import Pod, Tenant, tenant_of
from tests.services import Lake

PAGE = DOCS / "runbooks" / "restore-from-backup.md"
TABLE = {"name": "orders", "columns": [{"name": "n", "type": "BIGINT"}]}

pytestmark = pytest.mark.timeout(300)  # many processes, each of seconds of CPU
ALL = "SELECT list(n ORDER BY n) FROM orders"


def insert(pod: Pod, *numbers: int) -> dict[str, Any]:
    records = [{"idempotency_key": f"order-{n}", "payload": {"n": n}} for n in numbers]
    body = {"records": records, "wait_for_visibility": True}
    status, answer = pod.call("POST", "/v1/ingest/orders", body)
    assert status == 200, answer
    found: dict[str, Any] = answer
    return found


def query(pod: Pod, token: str) -> tuple[int, Any]:
    body = {"sql": ALL, "min_visibility_token": token}
    return pod.call("POST", "/v1/query", body)


def begin_again(shell: Terminal, *headings: str, instead: dict[str, str] | None = None) -> None:
    shell.follow(steps(PAGE, *headings), instead=instead)


@pytest.fixture
def own_lake(make_lake: Callable[..., Awaitable[Lake]], postgres: PostgresServer) -> Lake:
    """A lake in a database called as on the page."""

    async def make() -> Lake:
        connection = await asyncpg.connect(postgres.dsn())
        await connection.execute("CREATE DATABASE duckmesh")
        await connection.close()
        return await make_lake(dsn=postgres.dsn("duckmesh"))

    return asyncio.run(make())


def test_the_runbook_brings_the_backup_back_and_nothing_else(
    own_lake: Lake, postgres: PostgresServer, tmp_path: Path
) -> None:
    known = {
        "CATALOG": own_lake.catalog_dsn,
        "SERVER": postgres.dsn(),
        "DUCKMESH_API_KEY": key("admin"),
    }
    with tenant_of(own_lake) as tenant, terminal(tmp_path, known) as shell:
        pod = tenant.ingest()
        assert pod.call("POST", "/v1/tables", TABLE)[0] == 201
        insert(pod, 1, 2, 3)
        begin_again(shell, "Before it happens")
        lost = insert(pod, 4, 5)["max_visibility_token"]
        code, refusal = shell.run('psql -X "$CATALOG" -c "SELECT duckmesh.begin_timeline()"')
        assert code != 0
        assert "workers are connected: suspend their Tenants first" in refusal
        shell.run(f'psql -X "$CATALOG" -c \'DROP SCHEMA "{own_lake.name}_bus" CASCADE\'')
        begin_again(shell, "Diagnosis")
        assert pod.stop() == 0

        began = restore(shell, "duckmesh_damaged")
        pod = reopened(tenant, shell)
        shell.run(f"export OLD_TOKEN={lost}")
        a_missing_file_is_an_error(pod, tmp_path)
        begin_again(shell, "5. Bring back files that went since", "Verification")
        assert insert(pod, 3)["duplicate_count"] == 1  # as the backup knows it
        mine = insert(pod, 4, 6)
        status, answer = query(pod, mine["max_visibility_token"])
        assert (mine["accepted_count"], mine["duplicate_count"]) == (2, 0)
        assert (status, answer["rows"]) == (200, [[[1, 2, 3, 4, 6]]])
        assert query(pod, lost)[1]["error_code"] == "TOKEN_SCOPE_MISMATCH"

        for each in tenant.pods:
            if each.running:
                each.stop()
        # A restored catalog knows nothing of its first restore: the timeline is another all the same.
        assert restore(shell, "duckmesh_restored") > began


def restore(shell: Terminal, damaged: str) -> int:
    """Steps 2 and 3 of the page; returns the timeline."""
    instead = {"duckmesh_damaged": damaged}
    begin_again(shell, "2. Bring the catalog back", "3. Begin a new timeline", instead=instead)
    _, printed = shell.run('psql -XAt "$CATALOG" -c "SELECT max(e.epoch) FROM duckmesh.lease AS e"')
    return int(printed)


def reopened(tenant: Tenant, shell: Terminal) -> Pod:
    """Step 4: new processes; returns the one in front."""
    pod = tenant.ingest()
    tenant.query()
    shell.run(f"export DUCKMESH_URL={pod.url}")
    pod.wait(lambda: pod.call("GET", "/v1/lag")[1]["pending_rows"] == 0)
    return pod


def a_missing_file_is_an_error(pod: Pod, aside: Path) -> None:
    _, found = pod.call("GET", "/v1/snapshots?limit=1")
    newest = found["snapshots"][0]["snapshot_id"]
    _, listed = pod.call("GET", f"/v1/snapshots/{newest}/files")
    gone = Path(listed["files"][0]["url"].removeprefix("file://"))
    kept = gone.rename(aside / gone.name)

    status, answer = pod.call("POST", "/v1/query", {"sql": ALL})
    kept.rename(gone)

    assert (status, answer.get("error_code")) == (500, "DATA_FILE_MISSING"), answer
