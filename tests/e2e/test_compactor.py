"""A Compactor by trigger: many small files, a Job with the Tenant's own credentials, few files, the same rows.

And by the schedule of its checks: a file that the store has lost is named in the Tenant's status.
"""

from __future__ import annotations

from typing import Any

from tests.e2e.api import Api
from tests.e2e.product import Tenant, lose_object, wait_for

#: Rows, each in a commit and so in a file of its own.
ROWS = 30
TRIGGER = 20


def test_many_small_files_become_few_and_the_rows_stay(tenant: Tenant) -> None:
    kube = tenant.kube
    # Nothing is merged beside the commits, so that all of it waits for the Compactor.
    tenant.apply({"ingest": {"replicas": 1}, "compaction": {"enabled": False}})
    tenant.wait("Ready")
    apply_compactor(tenant)
    with tenant.door() as url:
        api = Api(url, tenant.admin_key())
        columns = [{"name": "id", "type": "INTEGER"}]
        api.ok("POST", "/v1/tables", {"name": "trickle", "columns": columns})
        for number in range(ROWS):
            record = {"payload": {"id": number}}
            body = {"records": [record], "wait_for_visibility": True}
            api.ok("POST", "/v1/ingest/trickle", body)

        status = wait_for("a run that ended", lambda: status_after_a_run(tenant), 180, 1)

        run = status["lastRun"]
        assert run["result"] in ("Succeeded", "Partial"), run
        assert run["filesIn"] > run["filesOut"]
        assert status["tenants"]["matched"] == 1
        assert said(status, "LastRunSucceeded") == "True"
        assert said(status, "Conflict") == "False"
        assert api.rows("SELECT id FROM trickle ORDER BY id") == [[n] for n in range(ROWS)]
    where = ("-n", tenant.namespace)
    kube.kubectl("wait", *where, "compactor/steady", "--for=condition=CaughtUp", "--timeout=120s")
    jobs = kube.json("get", "jobs", *where, "-l", "duckmesh.io/compactor=steady")["items"]
    (owner,) = jobs[0]["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("Compactor", "steady")
    events = kube.json("get", "events", *where)["items"]
    told = {one["reason"] for one in events if one["involvedObject"]["kind"] == "Compactor"}
    assert {"RunStarted", "RunSucceeded"} <= told
    a_lost_file_is_named(tenant)


def a_lost_file_is_named(tenant: Tenant) -> None:
    apply_compactor(tenant, integrity={"schedule": "* * * * *"})
    with tenant.door() as url:
        api = Api(url, tenant.admin_key())
        columns = [{"name": "id", "type": "INTEGER"}]
        api.ok("POST", "/v1/tables", {"name": "lost", "columns": columns})
        row = {"records": [{"payload": {"id": 1}}], "wait_for_visibility": True}
        api.ok("POST", "/v1/ingest/lost", row)
        newest = api.ok("GET", "/v1/snapshots?limit=1")["snapshots"][0]["snapshot_id"]
        (file,) = api.ok("GET", f"/v1/snapshots/{newest}/files?table=lost")["files"]

        lose_object(tenant.kube, file["url"])

        told = wait_for("the damage in status", lambda: damage_of(tenant), 180, 1)
        assert "table lost: 1 missing of its files" in told, told
        assert tenant.read()["status"]["snapshot"]["state"] == "Corrupt"
        status, answer = api.call("POST", "/v1/query", {"sql": "SELECT sum(id) FROM lost"})
        assert (status, answer["error_code"]) == (500, "DATA_FILE_MISSING"), answer
        # Queries that do not need the file are answered, and writes go on.
        token = api.ok("POST", "/v1/ingest/trickle", row)["max_visibility_token"]
        assert api.rows("SELECT count(*) FROM trickle", token) == [[ROWS + 1]]


def damage_of(tenant: Tenant) -> str:
    found = tenant.condition("SnapshotHealthy")
    assert found["reason"] == "Corrupt", found
    return str(found["message"])


def apply_compactor(tenant: Tenant, **more: object) -> None:
    spec = {"tenantRef": {"name": tenant.name}, "trigger": {"smallFiles": TRIGGER}, **more}
    tenant.kube.apply(
        {
            "apiVersion": "duckmesh.io/v1alpha1",
            "kind": "Compactor",
            "metadata": {"name": "steady", "namespace": tenant.namespace},
            "spec": spec,
        }
    )


def status_after_a_run(tenant: Tenant) -> dict[str, Any]:
    found: dict[str, Any] = tenant.kube.json("get", "compactor", "-n", tenant.namespace, "steady")[
        "status"
    ]
    assert "lastRun" in found, found
    return found


def said(status: dict[str, Any], kind: str) -> str:
    (found,) = [one["status"] for one in status["conditions"] if one["type"] == kind]
    return str(found)
