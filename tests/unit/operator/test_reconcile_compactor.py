"""The reconcile of a Compactor over an API server and a lake in memory: which Jobs come and go, what the status says."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from duckmesh_operator.compaction import HELD_AFTER, RETRY_AFTER, SETTLE, Need, Run, Subject
from duckmesh_operator.conditions import COMPACTOR_CONDITIONS
from duckmesh_operator.errors import Forbidden, Invalid, Unavailable
from duckmesh_operator.events import Recorder
from duckmesh_operator.lag import CatalogHealth, LagBoard, LagReport, Objective
from duckmesh_operator.model import parse_compactor
from duckmesh_operator.names import COMPACTOR, JOB, NETWORK_POLICY, TENANT
from duckmesh_operator.queue import Key
from duckmesh_operator.reconcile.compactor import (
    DEBT_REFRESH,
    LOOK_S,
    LOOK_SOON_S,
    CompactorReconciler,
)
from duckmesh_operator.settings import Settings
from duckmesh_operator.status import (
    Policy,
    Problem,
    build_compactor_status,
    build_denied_status,
)
from tests.contract.structural import problems, schema
from tests.fakes.kube import FakeApi, Object
from tests.tenants import make_settings
from tests.unit.operator.test_lag import report

START = datetime(2026, 5, 1, 12, tzinfo=UTC)
TRIGGER = {"trigger": {"smallFiles": 100}}
ALL = {"tenantSelector": {"matchLabels": {}}}


class TimedApi(FakeApi):
    """Jobs have the time at which they were made, as the API server gives it."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    async def create(self, manifest: Object) -> Object:
        stamp = {"creationTimestamp": self.world.now.strftime("%Y-%m-%dT%H:%M:%SZ")}
        return await super().create(manifest | {"metadata": manifest["metadata"] | stamp})


@dataclass
class World:
    """One operator's reconciler of Compactors with everything around it in memory."""

    settings: Settings
    now: datetime = START
    board: LagBoard = field(default_factory=LagBoard)
    reports: dict[str, LagReport] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.api = TimedApi(self)
        self.restart()

    def restart(self) -> None:
        """A new process, which has swept the catalog once and reconciled no Tenant."""
        self.board = LagBoard()
        self.board.update("default", self.reports.values())
        self.reconciler = CompactorReconciler(
            api=self.api,
            settings=self.settings,
            board=self.board,
            recorder=Recorder(
                self.api, instance="op", clock=lambda: self.now.timestamp(), now=lambda: self.now
            ),
            now=lambda: self.now,
        )

    def tenant(self, name: str = "acme", spec: Any = None, **meta: Any) -> None:
        """A Tenant with a lake that has no debt."""
        number = int.from_bytes(name.encode(), "big") % 10**12
        uid = f"00000000-0000-4000-8000-{number:012d}"
        about = {"name": name, "namespace": "team", "uid": uid}
        made = {"apiVersion": TENANT.api_version, "kind": "Tenant", "spec": spec or {}}
        made["status"] = meta.pop("status", {})
        self.api.add(
            made | {"metadata": about | {"creationTimestamp": "2026-05-01T00:00:00Z"} | meta}
        )
        fence = {"name": f"{name}-compact", "namespace": "team"}
        own = {"app.kubernetes.io/managed-by": "duckmesh-operator", "duckmesh.io/tenant-uid": uid}
        policy = {"apiVersion": NETWORK_POLICY.api_version, "kind": NETWORK_POLICY.kind}
        self.api.add(policy | {"metadata": fence | {"labels": own}})
        full = f"team/{name}"
        self.board.watch(uid, tenant=full, catalog="default", objective=Objective())
        self.reports[name] = LagReport(
            lake=f"lake_{name}", tenant=full, tenant_uid=uid, now=self.now, token=1
        )
        self.says(name)

    def says(self, name: str = "acme", files: int = 0, **more: Any) -> None:
        """What a lake says from now on."""
        known = self.reports[name]
        fields = {"debt_at": self.now, "debt_files": files, "debt_bytes": files * 1000}
        fields |= {"most_files": files, "run": known.run, "now": self.now} | more
        base = {"lake": known.lake, "tenant": known.tenant, "tenant_uid": known.tenant_uid}
        self.reports[name] = LagReport(**(base | {"token": 1} | fields))
        self.board.update("default", self.reports.values())

    def compactor(
        self, spec: Any, name: str = "night", created: str = "2026-05-01T00:00:00Z"
    ) -> None:
        about = {"name": name, "namespace": "team", "creationTimestamp": created}
        made = {"apiVersion": COMPACTOR.api_version, "kind": "Compactor"}
        self.api.add(made | {"metadata": about, "spec": spec})

    def change(self, kind: str, name: str, spec: Any) -> None:
        obj = self.api.objects[kind, "team", name]
        self.api._update((kind, "team", name), obj | {"spec": spec})

    async def run(self, name: str = "night") -> float | None:
        return await self.reconciler.reconcile(Key("Compactor", "team", name))

    @property
    def jobs(self) -> dict[str, Object]:
        return {
            name: item for (kind, _, name), item in self.api.objects.items() if kind == JOB.kind
        }

    def end(self, name: str, *, failed: bool = False, result: str = "", **figures: Any) -> None:
        """A Job ends; with a result, its run says so in the catalog as well."""
        job = self.api.objects[JOB.kind, "team", name]
        kind = "Failed" if failed else "Complete"
        ended = {
            "type": kind,
            "status": "True",
            "reason": "BackoffLimitExceeded" if failed else "x",
        }
        stamp = self.now.strftime("%Y-%m-%dT%H:%M:%SZ")
        status = {"conditions": [ended | {"lastTransitionTime": stamp}]}
        self.api._update((JOB.kind, "team", name), job | {"status": status})
        if result:
            tenant = job["metadata"]["labels"]["duckmesh.io/tenant"]
            run = {"id": name, "startedAt": stamp, "finishedAt": stamp, "result": result}
            self.now += timedelta(seconds=1)
            self.says(
                tenant, run=run | {"filesIn": 9, "filesOut": 1, "bytesRewritten": 7} | figures
            )

    def status(self, name: str = "night") -> Object:
        found: Object = self.api.objects[COMPACTOR.kind, "team", name].get("status", {})
        assert problems(schema("compactor")["properties"]["status"], found, "status") == []
        return found

    def said(self, name: str = "night") -> dict[str, tuple[str, str]]:
        """Status and reason of each condition."""
        found = self.status(name)["conditions"]
        for one in found:
            assert one["status"] == COMPACTOR_CONDITIONS[one["type"]][one["reason"]].status
            assert one["message"].endswith("."), one
            assert "{" not in one["message"]
        return {one["type"]: (one["status"], one["reason"]) for one in found}

    def message(self, kind: str, name: str = "night") -> str:
        found = {one["type"]: one["message"] for one in self.status(name)["conditions"]}
        return str(found[kind])

    @property
    def events(self) -> list[str]:
        return [
            item["reason"] for (kind, _, _), item in self.api.objects.items() if kind == "Event"
        ]


@pytest.fixture
def world(secrets_dir: Path) -> World:
    return World(settings=make_settings(secrets_dir))


def env_of(job: Object) -> dict[str, str]:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return {one["name"]: one.get("value", "") for one in container["env"]}


# -------------------------------------------------------------------- one run


async def test_debt_above_the_trigger_starts_one_job_and_says_so(world: World) -> None:
    world.tenant()
    world.compactor({"tenantRef": {"name": "acme"}} | TRIGGER)
    await world.run()
    assert world.jobs == {}
    assert world.said()["CaughtUp"] == ("True", "CaughtUp")
    assert world.said()["LastRunSucceeded"] == ("Unknown", "NoRun")

    world.says(files=100)
    again_s = await world.run()

    ((name, job),) = world.jobs.items()
    assert again_s == LOOK_S
    assert world.said()["CaughtUp"] == ("False", "Behind")
    assert world.said()["Ready"] == ("True", "Active")
    assert world.status()["tenants"] == {"matched": 1, "behind": 1}
    assert world.status()["debt"] == {"files": 100, "bytes": 100_000}
    assert world.events == ["RunStarted"]
    assert job["metadata"]["ownerReferences"][0]["kind"] == "Compactor"
    assert json.loads(env_of(job)["DUCKMESH_RUN"])["id"] == name


async def test_a_job_has_its_tenants_credentials_and_no_others(world: World) -> None:
    world.tenant(spec={"snapshots": {"keepFor": "1h", "keepLast": 50}})
    world.compactor(
        {
            "tenantRef": {"name": "acme"},
            "target": {"fileSize": "64Mi", "tiers": ["1Mi"], "maxBytesPerRun": "1Gi"},
            "expireSnapshots": {"keepFor": "2h", "keepLast": 5},
            "orphanFiles": {"mode": "Delete", "olderThan": "48h"},
            "resources": {"limits": {"memory": "512Mi"}},
        }
        | TRIGGER
    )
    world.says(files=100)

    await world.run()

    ((name, job),) = world.jobs.items()
    spec = job["spec"]["template"]["spec"]
    volumes = {one["name"]: one.get("secret", {}).get("secretName") for one in spec["volumes"]}
    assert volumes == {"maintenance": "acme-maintenance", "store": "acme-store", "tmp": None}
    assert (job["spec"]["backoffLimit"], spec["restartPolicy"]) == (0, "Never")
    assert 0 < job["spec"]["activeDeadlineSeconds"] <= 86_400
    (container,) = spec["containers"]
    assert container["args"] == ["compact"]
    assert container["resources"]["limits"]["memory"] == "512Mi"
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert not spec["automountServiceAccountToken"]
    assert env_of(job)["DUCKMESH_LAKE"] == "lake_acme"
    assert env_of(job)["DUCKMESH_MAINTENANCE_DIR"] == "/etc/duckmesh/maintenance"
    assert json.loads(env_of(job)["DUCKMESH_RUN"]) == {
        "id": name,
        "targetFileSize": 64 * 2**20,
        "tiers": [2**20],
        "maxBytesPerRun": 2**30,
        "keepForS": 7200,
        "keepLast": 50,
        "orphans": "Delete",
        "orphansOlderThanS": 172_800,
        "integrity": "None",
    }


async def test_a_run_that_ended_is_in_the_status_and_told_once(world: World) -> None:
    world.tenant()
    world.compactor({"tenantRef": {"name": "acme"}} | TRIGGER)
    world.says(files=100)
    await world.run()
    (name,) = world.jobs

    world.end(name, result="Succeeded")
    assert world.reconciler.due() == [Key("Compactor", "team", "night")]
    await world.run()

    assert world.said()["LastRunSucceeded"] == ("True", "Succeeded")
    assert world.said()["CaughtUp"] == ("True", "CaughtUp")
    run = world.status()["lastRun"]
    assert (run["result"], run["filesIn"], run["filesOut"], run["bytesRewritten"]) == (
        *("Succeeded", 9, 1),
        7,
    )
    assert "error" not in run
    writes = len(world.api.writes)
    await world.run()
    world.restart()
    await world.run()
    assert world.api.writes[writes:] == []
    assert world.events == ["RunStarted", "RunSucceeded"]


async def test_a_run_that_says_it_ended_is_looked_at_soon(world: World) -> None:
    world.tenant()
    world.compactor({"tenantRef": {"name": "acme"}} | TRIGGER)
    world.says(files=100)
    await world.run()
    (name,) = world.jobs

    stamp = world.now.isoformat()
    world.says(run={"id": name, "finishedAt": stamp, "result": "Partial"})

    assert await world.run() == LOOK_SOON_S
    world.end(name)
    await world.run()
    assert world.said()["LastRunSucceeded"] == ("True", "Partial")


async def test_a_repeated_or_killed_reconcile_makes_no_second_job(world: World) -> None:
    world.tenant()
    world.compactor({"tenantRef": {"name": "acme"}} | TRIGGER)
    world.says(files=100)
    await world.run()
    names = set(world.jobs)

    await world.run()
    world.restart()
    await world.run()
    assert set(world.jobs) == names

    class Blind(TimedApi):
        """Another process, which listed the Jobs before that one was made."""

        async def list(self, kind: Any, namespace: Any, labels: Any = None) -> list[Object]:
            return [] if kind is JOB else await super().list(kind, namespace, labels)

    world.api.__class__ = Blind
    await world.run()

    assert set(world.jobs) == names
    assert world.events == ["RunStarted"]


async def test_a_failed_run_is_reported_and_tried_again_later(world: World) -> None:
    world.tenant()
    world.compactor({"tenantRef": {"name": "acme"}} | TRIGGER)
    world.says(files=100)
    await world.run()
    (first,) = world.jobs
    world.end(first, failed=True)
    assert await world.run() == LOOK_SOON_S
    assert world.said()["LastRunSucceeded"] == ("Unknown", "NoRun")

    world.now += SETTLE
    await world.run()

    assert world.said()["LastRunSucceeded"] == ("False", "Failed")
    assert "acme" in world.message("LastRunSucceeded")
    assert "BackoffLimitExceeded" in world.message("LastRunSucceeded")
    assert world.status()["lastRun"]["result"] == "Failed"
    assert world.events == ["RunStarted", "RunFailed"]
    assert set(world.jobs) == {first}
    assert world.reconciler.troubles == {"team/night": {("LastRunSucceeded", "Failed")}}

    world.now += RETRY_AFTER
    await world.run()
    (second,) = set(world.jobs) - {first}
    assert world.jobs[second]["metadata"]["annotations"]["duckmesh.io/attempt"] == "2"
    await world.run()
    assert world.said()["LastRunSucceeded"] == ("False", "Failed")

    world.end(second, result="Succeeded")
    await world.run()
    assert world.said()["LastRunSucceeded"] == ("True", "Succeeded")
    assert world.reconciler.troubles == {"team/night": frozenset()}


async def test_a_name_that_comes_again_after_a_suspension_is_told_with_its_own_end(
    world: World,
) -> None:
    spec = {"tenantRef": {"name": "acme"}} | TRIGGER
    world.tenant()
    world.compactor(spec)
    world.says(files=100)
    await world.run()
    (name,) = world.jobs
    world.change("Tenant", "acme", {"suspend": True})
    await world.run()
    assert world.jobs == {}

    world.change("Tenant", "acme", {})
    await world.run()  # before the one that was ended could say anything
    assert set(world.jobs) == {name}
    stamp = (world.now - timedelta(seconds=1)).isoformat()
    world.says(files=100, run={"id": name, "finishedAt": stamp, "result": "Partial"})
    await world.run()
    assert world.events == ["RunStarted"]

    world.now += timedelta(seconds=5)
    world.end(name)
    assert await world.run() == LOOK_SOON_S
    world.now += SETTLE
    await world.run()
    assert world.status()["lastRun"]["result"] == "Succeeded"
    assert world.events == ["RunStarted", "RunSucceeded"]


async def test_a_run_that_said_it_ended_is_told_once_when_its_job_has(world: World) -> None:
    world.tenant()
    world.compactor({"tenantRef": {"name": "acme"}} | TRIGGER)
    world.says(files=100)
    await world.run()
    (name,) = world.jobs
    world.says(run={"id": name, "finishedAt": world.now.isoformat(), "result": "Succeeded"})

    for _ in range(3):
        await world.run()
    assert world.events == ["RunStarted"]
    world.end(name)
    for _ in range(3):
        await world.run()

    assert world.events == ["RunStarted", "RunSucceeded"]


async def test_an_end_that_came_while_a_look_failed_is_told_afterwards(world: World) -> None:
    world.tenant()
    world.compactor({"tenantRef": {"name": "acme"}, "historyLimit": 0} | TRIGGER)
    world.says(files=100)
    await world.run()
    (name,) = world.jobs
    world.end(name, result="Succeeded")
    for _ in range(2):
        world.api.failing["list Job"] = Unavailable("503")
        with pytest.raises(Unavailable):
            await world.run()
        assert world.reconciler.due() == []  # it is repeated by itself

    await world.run()

    assert world.events == ["RunStarted", "RunSucceeded"]
    world.says(files=100)
    assert world.reconciler.due() == [Key("Compactor", "team", "night")]


async def test_a_look_that_fails_half_way_tells_an_end_once(world: World) -> None:
    for name in ("a", "b"):
        world.tenant(name)
    world.compactor(ALL | {"concurrency": 2} | TRIGGER)
    world.says("a", files=100)
    await world.run()
    (first,) = world.jobs
    world.end(first, result="Succeeded")
    world.says("b", files=100)
    world.api.failing["create Job"] = Unavailable("503")
    with pytest.raises(Unavailable):
        await world.run()

    await world.run()

    assert world.events == ["RunStarted", "RunStarted", "RunSucceeded"]


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"why": "bytes"}, "target.maxBytesPerRun"),
        ({"why": "stopped"}, "was told to stop"),
        (
            {"why": "stuck", "tables": ["orders", "items"]},
            "could not merge the tables orders, items",
        ),
        ({"why": "stuck"}, "could not merge some tables"),
        ({}, "before all was done"),
    ],
)
async def test_what_ended_a_run_before_its_end_is_said(world: World, told: Any, said: str) -> None:
    world.tenant()
    world.compactor({"tenantRef": {"name": "acme"}} | TRIGGER)
    world.says(files=100)
    await world.run()
    (name,) = world.jobs
    world.end(name, result="Partial", **told)
    world.says(files=100)

    await world.run()

    assert world.said()["LastRunSucceeded"] == ("True", "Partial")
    assert said in world.message("LastRunSucceeded")
    assert ("could not merge" in world.message("CaughtUp")) is (told.get("why") == "stuck")
    assert len(world.jobs) == (2 if told.get("why") == "bytes" else 1)


# -------------------------------------------------------------------- many Tenants


async def test_a_job_whose_pod_does_not_come_up_is_named_and_in_nobodys_way(world: World) -> None:
    for name, files in (("a", 900), ("b", 100), ("c", 100)):
        world.tenant(name)
        world.says(name, files=files)
    world.compactor(ALL | TRIGGER)
    await world.run()
    ((name, held),) = world.jobs.items()
    assert held["metadata"]["labels"]["duckmesh.io/tenant"] == "a"
    assert "No pod" not in world.message("CaughtUp")

    world.now += HELD_AFTER
    await world.run()

    assert len(world.jobs) == 2
    assert f"No pod comes up for: a (Job {name})" in world.message("CaughtUp")
    assert "quota" in world.message("CaughtUp")
    world.api._update((JOB.kind, "team", name), held | {"status": {"active": 1, "ready": 1}})
    await world.run()
    assert "No pod" not in world.message("CaughtUp")
    assert len(world.jobs) == 2


async def test_no_job_starts_before_its_network_policy_is_there(world: World) -> None:
    for name, files in (("a", 900), ("b", 100)):
        world.tenant(name)
        world.says(name, files=files)
    policy = world.api.objects[NETWORK_POLICY.kind, "team", "a-compact"]
    world.api.remove(NETWORK_POLICY, "team", "a-compact")
    world.compactor(ALL | {"concurrency": 1} | TRIGGER)

    assert await world.run() == LOOK_S

    assert [one["metadata"]["labels"]["duckmesh.io/tenant"] for one in world.jobs.values()] == ["b"]
    (other,) = world.jobs
    world.end(other, result="Succeeded")
    world.api.add(policy)
    await world.run()
    assert {one["metadata"]["labels"]["duckmesh.io/tenant"] for one in world.jobs.values()} == {
        *("a", "b")
    }


async def test_a_version_without_jobs_is_named_with_what_to_do(world: World) -> None:
    world.tenant(status={"version": {"current": "0.0.1"}})
    world.says(files=0, debt_at=None)
    world.compactor({"tenantRef": {"name": "acme"}, "schedule": "0 13 * * *"})
    await world.run()
    world.now += timedelta(hours=1)

    await world.run()

    assert world.jobs == {}
    assert world.said()["Ready"] == ("False", "AllSkipped")
    assert "acme (its version has no Jobs yet: move it with" in world.message("Ready")
    assert world.status()["tenants"] == {"matched": 1, "behind": 0}
    world.says(files=0)  # its version says what it maintains, so it has Jobs
    await world.run()
    assert len(world.jobs) == 1


async def test_a_spec_that_cannot_be_stops_runs_that_may_not_go_on(world: World) -> None:
    for name in ("a", "b", "c"):
        world.tenant(name)
        world.says(name, files=100)
    world.compactor(ALL | {"concurrency": 9} | TRIGGER)
    await world.run()
    assert len(world.jobs) == 3
    world.change("Compactor", "night", ALL | {"schedule": "0 0 31 2 *"})
    world.change("Tenant", "a", {"suspend": True})
    world.api.remove(TENANT, "team", "b")

    await world.run()

    left = [job["metadata"]["labels"]["duckmesh.io/tenant"] for job in world.jobs.values()]
    assert left == ["c"]
    assert world.said()["Ready"] == ("False", "Invalid")
    (name,) = world.jobs
    world.end(name, result="Succeeded")
    await world.run()
    world.api.failing["list Job"] = Forbidden("403")
    with pytest.raises(Forbidden):
        await world.run()
    assert world.said()["Ready"] == ("False", "Invalid")
    world.change("Compactor", "night", ALL | TRIGGER)
    await world.run()
    assert world.events.count("RunSucceeded") == 1


async def test_no_more_jobs_than_may_run_at_a_time(world: World) -> None:
    for name in ("a", "b", "c", "d"):
        world.tenant(name)
        world.says(name, files=100)
    world.compactor(ALL | {"concurrency": 2, "historyLimit": 1} | TRIGGER)

    started: list[str] = []
    for _ in range(4):
        await world.run()
        running = [n for n, job in world.jobs.items() if "status" not in job]
        assert len(running) == min(2, 4 - len(started))
        (now_ended, *_rest) = running
        started.append(world.jobs[now_ended]["metadata"]["labels"]["duckmesh.io/tenant"])
        world.end(now_ended, result="Succeeded")

    assert sorted(started) == ["a", "b", "c", "d"]


async def test_each_tenant_that_can_have_no_run_is_named_with_the_reason(world: World) -> None:
    world.tenant("sleeping", {"suspend": True})
    world.tenant("still", {"paused": True})
    world.tenant("leaving", deletionTimestamp="2026-05-01T00:00:00Z")
    world.tenant("wrong", {"profile": "huge"})
    world.tenant("new")
    for name in ("sleeping", "still", "leaving", "wrong"):
        world.says(name, files=900)
    world.reports.pop("new")
    world.restart()
    world.compactor(ALL | TRIGGER)

    await world.run()

    assert world.jobs == {}
    assert world.said()["Ready"] == ("False", "AllSkipped")
    for part in ("sleeping (suspended)", "still (paused)", "leaving (being deleted)"):
        assert part in world.message("Ready")
    assert "huge is not configured" in world.message("Ready")
    assert "new (its lake is not there yet" in world.message("Ready")
    world.tenant("well")
    await world.run()
    assert world.said()["Ready"] == ("True", "SomeSkipped")


async def test_too_large_a_job_is_refused_with_the_cap(world: World) -> None:
    world.tenant()
    world.says(files=900)
    big = {"resources": {"limits": {"memory": "64Gi"}}}
    world.compactor({"tenantRef": {"name": "acme"}} | big | TRIGGER)

    await world.run()

    assert world.jobs == {}
    assert "spec.resources.limits.memory is above 2Gi" in world.message("Ready")


async def test_a_tenant_that_is_suspended_or_gone_has_its_run_ended(world: World) -> None:
    for name in ("a", "b", "c"):
        world.tenant(name)
        world.says(name, files=100)
    world.compactor(ALL | {"concurrency": 9} | TRIGGER)
    await world.run()
    assert len(world.jobs) == 3

    world.change("Tenant", "a", {"suspend": True})
    world.api.remove(TENANT, "team", "b")
    await world.run()

    left = [job["metadata"]["labels"]["duckmesh.io/tenant"] for job in world.jobs.values()]
    assert left == ["c"]


async def test_a_suspended_compactor_starts_nothing_and_lets_runs_finish(world: World) -> None:
    spec = ALL | TRIGGER | {"schedule": "@daily"}
    for name in ("a", "b"):
        world.tenant(name)
        world.says(name, files=100)
    world.compactor(spec)
    await world.run()
    (running,) = world.jobs

    world.change("Compactor", "night", spec | {"suspend": True})
    await world.run()
    assert set(world.jobs) == {running}
    assert world.said()["Suspended"] == ("True", "Suspended")
    assert world.said()["Ready"] == ("False", "Suspended")
    assert "nextRunAt" not in world.status()
    world.end(running, result="Succeeded")
    await world.run()
    assert set(world.jobs) == {running}
    assert world.status()["lastRun"]["result"] == "Succeeded"

    world.change("Compactor", "night", spec)
    await world.run()
    assert len(world.jobs) == 2
    assert world.said()["Suspended"] == ("False", "Active")


async def test_of_two_compactors_over_a_tenant_the_older_one_acts(world: World) -> None:
    world.tenant()
    world.says(files=100)
    world.compactor({"tenantRef": {"name": "acme"}} | TRIGGER, "old", "2026-01-01T00:00:00Z")
    world.compactor(ALL | TRIGGER, "young", "2026-02-01T00:00:00Z")

    await world.run("young")
    assert world.jobs == {}
    await world.run("old")

    assert len(world.jobs) == 1
    assert world.said("young")["Conflict"] == ("True", "OlderCompactor")
    assert world.said("young")["Ready"] == ("False", "Conflict")
    assert world.said("young")["CaughtUp"] == ("Unknown", "NoTenants")
    assert "acme (by old)" in world.message("Conflict", "young")
    assert world.said("old")["Conflict"] == ("False", "NoConflict")
    world.api.remove(COMPACTOR, "team", "old")
    await world.run("old")
    again_s = await world.run("young")
    assert world.said("young")["Conflict"] == ("False", "NoConflict")
    assert len(world.jobs) == 1  # the older one's still runs
    assert again_s == LOOK_S


async def test_a_compactor_that_cannot_be_stands_in_nobodys_way(world: World) -> None:
    world.tenant()
    world.says(files=100)
    bad = {"tenantRef": {"name": "acme"}, "schedule": "0 0 31 2 *"}
    world.compactor(bad, "old", "2026-01-01T00:00:00Z")
    world.compactor(ALL | TRIGGER)

    await world.run()
    await world.run("old")

    assert len(world.jobs) == 1
    assert world.said("old")["Ready"] == ("False", "Invalid")
    assert world.said("old")["Stalled"] == ("True", "Invalid")
    assert "spec.schedule" in world.message("Ready", "old")


# -------------------------------------------------------------------- schedule and history


async def test_the_status_tells_the_next_time(world: World) -> None:
    world.tenant()
    world.compactor({"tenantRef": {"name": "acme"}, "schedule": "0 3 * * *"})

    again_s = await world.run()

    assert world.status()["nextRunAt"] == "2026-05-02T03:00:00Z"
    assert again_s is not None
    assert again_s <= 330
    world.now = START + timedelta(hours=15)  # 03:00
    await world.run()
    assert len(world.jobs) == 1
    assert world.status()["nextRunAt"] == "2026-05-03T03:00:00Z"


async def test_a_time_that_comes_soon_is_woken_up_for(world: World) -> None:
    world.tenant()
    world.compactor({"tenantRef": {"name": "acme"}, "schedule": "1 12 * * *"})

    assert await world.run() == pytest.approx(60)


async def test_old_jobs_go_and_so_do_those_of_tenants_that_are_gone(world: World) -> None:
    world.tenant()
    world.compactor({"tenantRef": {"name": "acme"}, "schedule": "0 * * * *", "historyLimit": 2})
    for _ in range(5):
        world.now += timedelta(hours=1)
        await world.run()
        (running,) = [name for name, job in world.jobs.items() if "status" not in job]
        world.end(running, result="Succeeded")
    world.now += SETTLE
    await world.run()
    assert len(world.jobs) == 2

    world.api.remove(TENANT, "team", "acme")
    await world.run()
    assert world.said()["Ready"] == ("False", "NoTenants")
    assert len(world.jobs) == 2


async def test_a_check_of_all_files_is_asked_for_when_due(world: World) -> None:
    world.tenant()
    world.compactor(
        {"tenantRef": {"name": "acme"}, "integrity": {"schedule": "0 13 * * *"}} | TRIGGER
    )
    await world.run()
    world.now += timedelta(hours=1)

    await world.run()

    ((_, job),) = world.jobs.items()
    assert json.loads(env_of(job)["DUCKMESH_RUN"])["integrity"] == "Deep"


# -------------------------------------------------------------------- quiet


async def test_nothing_is_written_when_nothing_changed(world: World) -> None:
    for number in range(20):
        world.tenant(f"t{number}")
    world.compactor(ALL | TRIGGER | {"schedule": "0 3 * * *"})
    await world.run()
    world.api.writes.clear()

    for _ in range(5):
        await world.run()
    world.restart()
    await world.run()

    assert world.api.writes == []


async def test_debt_that_moves_is_written_now_and_then_only(world: World) -> None:
    world.tenant()
    world.says(files=1)
    world.compactor(ALL | TRIGGER)
    await world.run()
    world.api.writes.clear()

    for second in range(1, 60):
        world.now = START + timedelta(seconds=5 * second)
        world.says(files=second)
        assert world.reconciler.due() == []
        await world.run()
    assert [one for one in world.api.writes if "status" in one] == []

    world.now = START + DEBT_REFRESH
    assert world.reconciler.due() == [Key("Compactor", "team", "night")]
    await world.run()
    assert world.status()["debt"]["files"] == 59
    assert world.reconciler.due() == []


async def test_only_what_matters_to_it_wakes_a_compactor(world: World) -> None:
    world.tenant()
    world.compactor(ALL | TRIGGER)
    await world.run()
    key = Key("Compactor", "team", "night")
    tenant = world.api.objects["Tenant", "team", "acme"]

    assert world.reconciler.touched(tenant, gone=False) == [key]  # seen for the first time
    assert world.reconciler.touched(tenant | {"status": {"phase": "Ready"}}, gone=False) == []
    elsewhere = {"name": "acme", "namespace": "other", "uid": "x"}
    assert world.reconciler.touched(tenant | {"metadata": elsewhere}, gone=False) == []
    labelled = tenant["metadata"] | {"labels": {"a": "b"}}
    assert world.reconciler.touched(tenant | {"metadata": labelled}, gone=False) == [key]
    assert world.reconciler.touched(tenant, gone=True) == [key]
    own = world.api.objects["Compactor", "team", "night"]
    assert world.reconciler.touched(own, gone=False) == []

    assert world.reconciler.due() == []
    world.board.fail("default", CatalogHealth(ok=False, reason="Unreachable"))
    assert world.reconciler.due() == [key]
    await world.run()
    assert world.said()["CaughtUp"] == ("Unknown", "NotReported")
    assert world.said()["Ready"] == ("False", "AllSkipped")


async def test_a_compactor_that_is_gone_or_going_is_left_alone(world: World) -> None:
    await world.run()
    world.compactor(ALL | TRIGGER)
    await world.run()
    world.api.writes.clear()

    obj = world.api.objects[COMPACTOR.kind, "team", "night"]
    obj["metadata"]["deletionTimestamp"] = "2026-05-01T00:00:00Z"

    assert await world.run() is None
    assert world.api.writes == []
    assert world.reconciler.due() == []
    assert world.reconciler.troubles == {}


# -------------------------------------------------------------------- what the API server refuses


@pytest.mark.parametrize("error", [Forbidden("403: exceeded quota"), Invalid(["no such thing"])])
async def test_a_job_that_is_refused_is_told_and_tried_again(world: World, error: Any) -> None:
    world.tenant()
    world.says(files=100)
    world.compactor(ALL | TRIGGER)
    world.api.failing["create Job"] = error

    assert await world.run() == pytest.approx(60)

    assert world.said()["Ready"] == ("False", "Refused")
    assert str(error) in world.message("Ready")
    await world.run()
    assert len(world.jobs) == 1
    assert world.said()["Ready"] == ("True", "Active")


async def test_jobs_that_may_not_be_read_are_told_and_nothing_else_is_forgotten(
    world: World,
) -> None:
    world.tenant()
    world.says(files=100)
    world.compactor(ALL | TRIGGER)
    await world.run()
    before = world.said()
    world.api.failing["list Job"] = Forbidden("GET jobs: 403")

    with pytest.raises(Forbidden):
        await world.run()

    assert world.said() == before | {"Ready": ("False", "AccessDenied")}
    assert len(world.jobs) == 1


async def test_an_api_server_that_is_silent_changes_no_status(world: World) -> None:
    world.tenant()
    world.compactor(ALL | TRIGGER)
    await world.run()
    before = world.status()
    world.api.failing["list Job"] = Unavailable("503")

    with pytest.raises(Unavailable):
        await world.run()

    assert world.status() == before


# -------------------------------------------------------------------- the catalogue


def ended(result: str) -> Run:
    return Run(name="n", tenant="acme", finished=START, result=result)


def of(**more: Any) -> Need:
    made = Subject(name="acme", uid="u", created=START, report=report(0, debt_at=START))
    skipped = more.pop("skipped", "")
    return Need(subject=replace(made, skipped=skipped), **more)


NIGHT = parse_compactor(
    {
        "metadata": {"name": "night", "namespace": "team", "uid": "u", "generation": 2},
        "spec": ALL | TRIGGER,
    }
)
UNKNOWN = Need(subject=Subject(name="new", uid="v", created=START))


def policy(**more: Any) -> Policy:
    fields: dict[str, Any] = {"meta": NIGHT.meta, "compactor": NIGHT, "previous": {}}
    return Policy(**(fields | more))


EVERYTHING = [
    policy(),
    policy(needs=[of()]),
    policy(needs=[of(behind=True)]),
    policy(needs=[UNKNOWN]),
    policy(needs=[of(skipped="paused")]),
    policy(needs=[of(), of(skipped="paused")]),
    policy(needs=[of()], refused="no room."),
    policy(needs=[of()], compactor=replace(NIGHT, suspend=True)),
    policy(conflicts={"acme": "old"}),
    policy(compactor=None, problem=Problem(reason="Invalid", message="m.")),
    *(
        policy(needs=[of(last=ended(one))], run=ended(one))
        for one in ("Succeeded", "Partial", "Failed")
    ),
]


def test_each_reason_of_a_compactor_is_said_and_no_other() -> None:
    built: list[Any] = [build_compactor_status(one, START) for one in EVERYTHING]
    built.append(build_denied_status(NIGHT.meta, "403.", built[0], START))

    for status in built:
        assert problems(schema("compactor")["properties"]["status"], status, "status") == []
        for one in status["conditions"]:
            assert one["status"] == COMPACTOR_CONDITIONS[one["type"]][one["reason"]].status
            assert one["message"].endswith(".")
            assert "{" not in one["message"]
    said = {(one["type"], one["reason"]) for status in built for one in status["conditions"]}
    listed = {(kind, reason) for kind, cases in COMPACTOR_CONDITIONS.items() for reason in cases}
    seeds: Any = schema("compactor")["properties"]["status"]["default"]["conditions"]
    assert said | {(one["type"], one["reason"]) for one in seeds} == listed


def test_many_names_are_cut_short() -> None:
    needs = [
        Need(subject=Subject(name=f"t{number}", uid=f"u{number}", created=START), behind=True)
        for number in range(100)
    ]

    status: Any = build_compactor_status(policy(needs=needs), START)

    (found,) = [one for one in status["conditions"] if one["type"] == "CaughtUp"]
    assert "t0, t1, t2, t3, t4 and 95 more" in found["message"]
    assert status["tenants"] == {"matched": 100, "behind": 100}


def test_a_run_that_was_shown_is_not_replaced_by_one_before_it() -> None:
    newer = replace(ended("Partial"), finished=START + timedelta(hours=1))
    shown = build_compactor_status(policy(needs=[of()], run=newer), START)

    after: Any = build_compactor_status(
        policy(needs=[of()], run=ended("Succeeded"), previous=shown), START
    )

    assert after["lastRun"]["result"] == "Partial"
