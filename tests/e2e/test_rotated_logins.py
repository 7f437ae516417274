"""The owner of a Tenant deletes the Secrets of its logins while rows go in and come out: `how-to/rotate-credentials.md`."""

from __future__ import annotations

import pytest

from tests.e2e.api import Api
from tests.e2e.product import Tenant, wait_for
from tests.e2e.writing import TABLE, check, steady_load

#: Runs in a worker, which can reach the catalog: opens a connection as the worker would, and ends all others of its login.
_END_SESSIONS = """
import asyncio, asyncpg
async def end():
    own = await asyncpg.connect(open("/etc/duckmesh/{part}/dsn").read().strip())
    rows = await own.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                           "WHERE usename = current_user AND pid <> pg_backend_pid()")
    print(len(rows))
asyncio.run(end())
"""


@pytest.mark.timeout(900)  # three Secrets, each up to a minute and a half on its way into the pods
def test_deleted_logins_are_made_anew_and_followed_under_load(tenant: Tenant) -> None:
    tenant.apply()
    tenant.wait("Ready")
    with tenant.door() as url:
        Api(url, tenant.admin_key()).ok("POST", "/v1/tables", TABLE)
    pods = _started(tenant)

    with steady_load(tenant) as load:
        load.goes_on()
        for number, (part, worker) in enumerate(
            [("writer", "ingest"), ("maintenance", "ingest"), ("reader", "query")]
        ):
            before = _dsn(tenant, part)
            tenant.kube.kubectl("delete", "secret", "-n", tenant.namespace, f"shop-{part}")
            # The operator looks at once when the spec changes, and this one rolls no pod.
            tenant.patch({"freshness": {"sustainedFor": f"{100 + number}s"}})
            wait_for("another password", lambda p=part, b=before: _dsn(tenant, p) != b, 60)
            after = _dsn(tenant, part)
            for pod in tenant.pods(worker):
                name = pod["metadata"]["name"]
                wait_for(
                    f"the password in {name}",
                    lambda n=name, p=part, w=worker, a=after: _mounted(tenant, n, w, p) == a,
                    150,
                    interval_s=1,
                )
            load.goes_on()
            ended = _python(tenant, name, worker, _END_SESSIONS.format(part=part))
            assert part == "maintenance" or int(ended) > 0
            load.goes_on()
        result = load.stop()

    check(tenant, result)
    assert _started(tenant) == pods


def _dsn(tenant: Tenant, part: str) -> str:
    return tenant.kube.secret(tenant.namespace, f"shop-{part}", "dsn")


def _mounted(tenant: Tenant, pod: str, container: str, part: str) -> str:
    return _python(
        tenant, pod, container, f"print(open('/etc/duckmesh/{part}/dsn').read().strip())"
    )


def _python(tenant: Tenant, pod: str, container: str, code: str) -> str:
    place = ("exec", "-n", tenant.namespace, pod, "-c", container, "--")
    return tenant.kube.kubectl(*place, "python3", "-c", code).stdout.strip()


def _started(tenant: Tenant) -> set[tuple[str, int]]:
    """Its pods, and how often each was started."""
    return {
        (
            pod["metadata"]["uid"],
            sum(one["restartCount"] for one in pod["status"]["containerStatuses"]),
        )
        for part in ("ingest", "query")
        for pod in tenant.pods(part)
    }
