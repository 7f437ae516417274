"""Deletion and hand-over of a Tenant's data, by the reconcile as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from duckmesh_operator.catalog import Lake
from duckmesh_operator.errors import Conflict, Failing, Unavailable
from duckmesh_operator.events import Recorder
from duckmesh_operator.lag import LagBoard
from duckmesh_operator.names import (
    CONFIG_MAP,
    DEPLOYMENT,
    FINALIZER,
    JOB,
    MIGRATION,
    TENANT,
    adoption,
    migrate_job,
    purge_job,
)
from duckmesh_operator.prefixes import Prefixes
from duckmesh_operator.queue import Key
from duckmesh_operator.reconcile.credentials import Credentials
from duckmesh_operator.reconcile.tenant import TenantReconciler
from duckmesh_operator.settings import Settings
from tests.fakes.catalog import FakeCatalog
from tests.fakes.kube import FakeApi, Object
from tests.tenants import UID, make_settings, make_tenant, tenant_object

LAKE = "lake_0123456789ab4cde"
URL = "s3://lakes/team/acme/"
OLD = "99999999-9999-4999-8999-999999999999"
OLD_LAKE = "lake_9999999999994999"
SYSTEM = "duckmesh-system"
START = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
DELETE = {"deletionPolicy": "Delete"}


class Killed(BaseException):
    """The process ends here."""


@dataclass
class Countdown:
    """Ends the process before the nth call to the outside."""

    left: int = -1

    def tick(self) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1


class MortalApi(FakeApi):
    countdown: Countdown

    def _fail(self, verb: str, kind: str) -> None:
        self.countdown.tick()
        super()._fail(verb, kind)


class MortalCatalog(FakeCatalog):
    countdown: Countdown

    def _fail(self) -> None:
        self.countdown.tick()
        super()._fail()


@dataclass
class World:
    """One Tenant, the operator's reconciler and everything around it in memory."""

    settings: Settings
    api: MortalApi = field(default_factory=MortalApi)
    catalog: MortalCatalog = field(default_factory=MortalCatalog)
    catalogs: dict[str, FakeCatalog] = field(default_factory=dict)
    now: datetime = START

    def __post_init__(self) -> None:
        self.api.countdown = self.catalog.countdown = Countdown()
        self.restart()

    def restart(self) -> None:
        """A new operator process over the same cluster and catalog."""
        self.catalogs["default"] = self.catalog
        self.reconciler = TenantReconciler(
            api=self.api,
            catalogs=self.catalogs,  # type: ignore[arg-type]
            settings=self.settings,
            board=LagBoard(),
            prefixes=Prefixes(self.settings.stores),
            recorder=Recorder(self.api, instance="op", clock=lambda: 0.0, now=lambda: self.now),
            credentials=Credentials(self.api),
            now=lambda: self.now,
        )

    async def run(self) -> float | None:
        return await self.reconciler.reconcile(Key("Tenant", "team", "acme"))

    async def serve(self) -> None:
        """From nothing to ready pods."""
        await self.run()
        self.catalog.install(UID, "team/acme", URL, MIGRATION)
        await self.run()
        for part in ("ingest", "query"):
            self.api.start_pods("team", f"acme-{part}")
        self.api.remove(JOB, SYSTEM, migrate_job(LAKE))
        await self.run()

    @property
    def tenant(self) -> Object:
        return self.api.objects["Tenant", "team", "acme"]

    @property
    def gone(self) -> bool:
        return ("Tenant", "team", "acme") not in self.api.objects

    def ask_to_delete(self) -> None:
        """What `kubectl delete` does at the API server."""
        if self.tenant["metadata"].get("finalizers"):
            self.tenant["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:00Z"
        else:
            self.api.remove(TENANT, "team", "acme")

    async def start_purge(self) -> None:
        """From nothing to a purge Job that runs."""
        await self.serve()
        self.ask_to_delete()
        await self.run()
        self.api.end_pods()
        await self.run()

    def finish_job(self, *, ok: bool = True) -> None:
        """The purge Job runs to its end."""
        job = self.api.objects["Job", SYSTEM, purge_job(UID)]
        stamp = self.now.strftime("%Y-%m-%dT%H:%M:%SZ")
        kind = "Complete" if ok else "Failed"
        condition = {"type": kind, "status": "True", "lastTransitionTime": stamp}
        job["status"] = {"conditions": [condition]}
        if ok:
            self.catalog.purge(UID)

    def condition(self, kind: str) -> tuple[str, str]:
        found = [one for one in self.tenant["status"]["conditions"] if one["type"] == kind]
        return (found[0]["status"], found[0]["reason"]) if found else ("", "")

    def message(self, kind: str) -> str:
        (found,) = [one for one in self.tenant["status"]["conditions"] if one["type"] == kind]
        return str(found["message"])

    def has_job(self, name: str) -> bool:
        return ("Job", SYSTEM, name) in self.api.objects

    def deployments(self) -> list[Object]:
        return [one for (kind, *_), one in self.api.objects.items() if kind == DEPLOYMENT.kind]

    def events(self) -> set[str]:
        return {one["reason"] for (kind, *_), one in self.api.objects.items() if kind == "Event"}

    def leave_behind(self, url: str = URL, **more: Any) -> None:
        """Data of a Tenant of the same name that is gone."""
        self.catalog.registry.append(
            Lake(
                lake=OLD_LAKE,
                tenant="team/acme",
                tenant_uid=OLD,
                data_url=url,
                migration=MIGRATION,
                **more,
            )
        )

    def allow(self, uid: str = UID) -> None:
        """What `kubectl duckmesh adopt` leaves."""
        self.api.add(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": adoption("team", "acme"), "namespace": SYSTEM},
                "data": {"uid": uid},
            }
        )

    @property
    def allowed(self) -> bool:
        return (CONFIG_MAP.kind, SYSTEM, adoption("team", "acme")) in self.api.objects


def make_world(secrets_dir: Path, spec: dict[str, Any]) -> World:
    world = World(settings=make_settings(secrets_dir))
    world.api.add(tenant_object(spec))
    return world


@pytest.fixture
def world(secrets_dir: Path) -> World:
    return make_world(secrets_dir, DELETE)


@pytest.fixture
def retained(secrets_dir: Path) -> World:
    return make_world(secrets_dir, {})


# ---------------------------------------------------------------- the finalizer


async def test_the_finalizer_is_there_before_anything_is_made(world: World) -> None:
    await world.run()

    assert world.api.writes[0] == "set_finalizers Tenant/acme"
    assert world.tenant["metadata"]["finalizers"] == [FINALIZER]


async def test_a_tenant_whose_data_stays_has_no_finalizer(retained: World) -> None:
    await retained.serve()

    assert "finalizers" not in retained.tenant["metadata"]
    assert not [one for one in retained.api.writes if one.startswith("set_finalizers")]


async def test_the_finalizer_follows_the_policy_and_leaves_others_alone(world: World) -> None:
    world.tenant["metadata"]["finalizers"] = ["example.com/other"]
    await world.serve()
    assert world.tenant["metadata"]["finalizers"] == ["example.com/other", FINALIZER]

    world.tenant["spec"] = {"deletionPolicy": "Retain"}
    await world.run()

    assert world.tenant["metadata"]["finalizers"] == ["example.com/other"]


async def test_without_the_finalizer_nothing_is_made(world: World) -> None:
    world.api.failing["set_finalizers"] = Conflict("changed meanwhile")

    with pytest.raises(Conflict):
        await world.run()

    assert world.catalog.logins == {}
    assert not [one for one in world.api.writes if "Secret" in one or "Job" in one]


async def test_a_tenant_that_is_changed_meanwhile_stays_ready(retained: World) -> None:
    await retained.serve()
    retained.tenant["spec"] = DELETE
    retained.api.failing["set_finalizers"] = Conflict("changed meanwhile")

    with pytest.raises(Conflict):
        await retained.run()

    assert retained.condition("Ready") == ("True", "AllReady")
    await retained.run()
    assert retained.tenant["metadata"]["finalizers"] == [FINALIZER]


@pytest.mark.parametrize("spec", [{"paused": True}, {"profile": "no-such"}, {"ingest": 5}])
async def test_it_is_there_whatever_else_the_spec_says(
    secrets_dir: Path, spec: dict[str, Any]
) -> None:
    world = make_world(secrets_dir, DELETE | spec)

    await world.run()

    assert world.tenant["metadata"]["finalizers"] == [FINALIZER]


# ---------------------------------------------------------------- the way of a deletion


async def test_workers_end_then_the_data_goes_then_the_tenant(world: World) -> None:
    await world.serve()
    world.ask_to_delete()

    await world.run()
    assert all("deletionTimestamp" in one["metadata"] for one in world.deployments())
    assert (world.condition("Progressing"), world.tenant["status"]["phase"]) == (
        ("True", "Stopping"),
        "Deleting",
    )
    await world.run()
    assert not world.has_job(purge_job(UID))

    world.api.end_pods()
    assert await world.run() == 1.0
    assert world.has_job(purge_job(UID))
    assert world.catalog.retired == {f"{LAKE}_w", f"{LAKE}_m", f"{LAKE}_r"}
    assert world.condition("Progressing") == ("True", "RemovingData")
    assert world.condition("Ready") == ("False", "Deleting")

    world.finish_job()
    assert await world.run() is None
    assert world.gone
    assert (world.catalog.registry, world.catalog.logins) == ([], {})
    assert await world.run() is None


async def test_runs_of_compactors_end_before_the_data_goes(world: World) -> None:
    """One that still runs would write files behind the purge."""
    await world.serve()
    labels = {"duckmesh.io/tenant-uid": UID, "app.kubernetes.io/component": "compact"}
    about = {"apiVersion": "batch/v1", "kind": "Job"}
    world.api.add(about | {"metadata": {"name": "c-1", "namespace": "team", "labels": labels}})
    others = labels | {"duckmesh.io/tenant-uid": OLD}
    world.api.add(about | {"metadata": {"name": "c-2", "namespace": "team", "labels": others}})
    world.ask_to_delete()

    await world.run()
    assert "deletionTimestamp" in world.api.objects["Job", "team", "c-1"]["metadata"]
    for item in world.deployments():
        world.api.remove(DEPLOYMENT, "team", item["metadata"]["name"])
    await world.run()
    assert not world.has_job(purge_job(UID))

    world.api.end_pods()
    await world.run()
    assert world.has_job(purge_job(UID))
    assert "deletionTimestamp" not in world.api.objects["Job", "team", "c-2"]["metadata"]


async def test_a_deletion_that_waits_writes_nothing(world: World) -> None:
    await world.serve()
    world.ask_to_delete()
    await world.run()
    world.api.end_pods()
    await world.run()
    before = list(world.api.writes)

    await world.run()

    assert world.api.writes == before


@pytest.mark.parametrize("spec", [{"paused": True}, {"profile": "no-such"}, {"suspend": True}])
async def test_nothing_in_the_spec_keeps_a_deletion_from_its_end(
    world: World, spec: dict[str, Any]
) -> None:
    await world.serve()
    world.tenant["spec"] = DELETE | spec
    world.ask_to_delete()

    await _delete(world)

    assert world.gone
    assert world.catalog.registry == []


async def test_a_tenant_that_never_got_a_lake_goes_with_its_logins(world: World) -> None:
    await world.run()
    assert world.catalog.logins
    world.ask_to_delete()
    await world.run()
    assert world.condition("Progressing") == ("True", "Stopping")  # the workers
    world.api.end_pods()
    await world.run()
    assert world.condition("Progressing") == ("True", "Stopping")  # the migrate Job
    world.api.end_pods()
    await world.run()

    assert world.gone
    assert world.catalog.logins == {}
    assert not world.has_job(purge_job(UID))


async def test_foreign_deployments_with_its_names_are_left(world: World) -> None:
    world.api.add(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "acme-ingest", "namespace": "team"},
            "spec": {"template": {"spec": {"containers": [{"name": "x"}]}}},
        }
    )
    world.tenant["metadata"]["finalizers"] = [FINALIZER]
    world.ask_to_delete()

    await world.run()

    assert world.gone
    assert len(world.deployments()) == 1


async def test_retain_in_the_middle_keeps_what_is_left_and_stops_the_job(world: World) -> None:
    await world.serve()
    world.ask_to_delete()
    await world.run()
    world.api.end_pods()
    await world.run()

    world.tenant["spec"] = {"deletionPolicy": "Retain"}
    assert await world.run() == 1.0
    job = world.api.objects["Job", SYSTEM, purge_job(UID)]
    assert "deletionTimestamp" in job["metadata"]
    assert world.condition("Progressing") == ("True", "Stopping")
    await world.run()
    assert not world.gone  # a pod of the Job is there yet

    world.api.end_pods()
    await world.run()
    assert world.gone
    assert not world.has_job(purge_job(UID))
    assert [one.lake for one in world.catalog.registry] == [LAKE]


async def test_retain_holds_only_once_the_job_could_be_stopped(world: World) -> None:
    await world.start_purge()

    world.tenant["spec"] = {"deletionPolicy": "Retain"}
    world.api.failing["delete Job"] = Unavailable("no answer")
    await world.run()

    assert not world.gone
    assert world.condition("Progressing") == ("True", "RemovalFailed")
    assert f"the Job {purge_job(UID)} cannot be stopped" in world.message("Progressing")
    await world.run()
    world.api.end_pods()
    await world.run()
    assert world.gone


@pytest.mark.parametrize("spec", [DELETE, {"deletionPolicy": "Retain"}])
async def test_a_job_that_does_not_end_holds_a_tenant_a_minute_more_than_its_time(
    world: World, spec: dict[str, Any]
) -> None:
    await world.start_purge()
    world.tenant["spec"] = spec

    world.now = START + timedelta(seconds=600)
    while not world.gone:
        assert world.now <= START + timedelta(seconds=661)
        wait_s = await world.run()
        assert world.gone or world.condition("Progressing") == ("True", "Stopping")
        world.now += timedelta(seconds=wait_s or 0)

    assert world.now >= START + timedelta(seconds=660)
    assert "deletionTimestamp" in world.api.objects["Job", SYSTEM, purge_job(UID)]["metadata"]
    assert ("DataKept" in world.events()) == (spec == DELETE)


async def test_data_is_said_to_be_kept_only_when_no_job_removes_it(world: World) -> None:
    await world.start_purge()
    world.now = START + timedelta(seconds=600)

    await world.run()
    assert "DataKept" not in world.events()
    world.api.end_pods()
    await world.run()

    assert world.gone
    assert "DataKept" in world.events()
    assert [one.lake for one in world.catalog.registry] == [LAKE]


@pytest.mark.parametrize("url", [URL, "s3://lakes/team/", f"{URL}inner/"])
async def test_files_that_another_catalogs_lake_shares_are_not_removed(
    world: World, url: str
) -> None:
    other = FakeCatalog("other")
    world.catalogs["other"] = other
    await world.serve()
    other.install(OLD, "x/y", url, MIGRATION)
    world.ask_to_delete()
    await world.run()
    world.api.end_pods()

    await world.run()

    assert world.condition("Progressing") == ("True", "RemovalFailed")
    assert "in another catalog, lies in the same place" in world.message("Progressing")
    assert not world.has_job(purge_job(UID))
    other.registry.clear()
    await _delete(world)
    assert world.gone


async def test_no_file_is_removed_while_another_catalog_does_not_answer(world: World) -> None:
    other = FakeCatalog("other")
    world.catalogs["other"] = other
    await world.serve()
    world.ask_to_delete()
    await world.run()
    world.api.end_pods()
    other.failing = Unavailable("no answer")

    await world.run()

    assert world.condition("Progressing") == ("True", "RemovalFailed")
    assert "the catalog other cannot be asked" in world.message("Progressing")
    assert not world.has_job(purge_job(UID))
    other.failing = None
    await _delete(world)
    assert world.gone


async def test_one_database_under_two_names_is_no_neighbour_of_itself(world: World) -> None:
    await world.serve()
    world.catalogs["alias"] = world.catalog
    world.ask_to_delete()

    await _delete(world)

    assert world.gone
    assert world.catalog.registry == []


async def test_a_database_without_any_lake_is_not_taken_for_a_removal(world: World) -> None:
    await world.serve()
    world.ask_to_delete()
    await world.run()
    world.api.end_pods()
    world.catalog.empty = True
    before = dict(world.catalog.logins)

    await world.run()

    assert world.condition("Progressing") == ("True", "RemovalFailed")
    assert "knows of no lake" in world.message("Progressing")
    assert world.catalog.logins == before
    world.now = START + timedelta(seconds=600)
    await world.run()
    assert world.gone
    assert "DataKept" in world.events()


async def test_a_tenant_that_never_had_a_lake_goes_from_a_database_without_any(
    world: World,
) -> None:
    world.catalog.empty = True
    await world.run()
    world.ask_to_delete()

    await _delete(world)

    assert world.gone
    assert "DataKept" not in world.events()


async def test_a_job_of_an_earlier_release_does_not_make_the_lake_anew(world: World) -> None:
    await world.run()
    today = world.api.objects["Job", SYSTEM, migrate_job(LAKE)]
    world.api.remove(JOB, SYSTEM, migrate_job(LAKE))
    earlier = migrate_job(LAKE, MIGRATION - 1)
    labels = today["metadata"]["labels"]
    metadata = {"name": earlier, "namespace": SYSTEM, "labels": labels}
    world.api.add({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {}})
    world.ask_to_delete()
    await world.run()
    world.api.end_pods()  # of the workers

    await world.run()

    assert not world.gone
    assert "deletionTimestamp" in world.api.objects["Job", SYSTEM, earlier]["metadata"]
    world.api.end_pods()
    await world.run()
    assert world.gone


async def test_a_lake_that_was_handed_over_is_its_heirs(world: World) -> None:
    await world.serve()
    await world.catalog.adopt_lake(LAKE, owner=UID, heir=OLD)
    before = dict(world.catalog.logins)
    world.ask_to_delete()

    await _delete(world)

    assert world.gone
    assert [one.tenant_uid for one in world.catalog.registry] == [OLD]
    assert world.catalog.logins == before
    assert not world.has_job(purge_job(UID))


# ---------------------------------------------------------------- failures


async def test_a_failed_job_is_told_and_started_again(world: World) -> None:
    await world.serve()
    world.ask_to_delete()
    await world.run()
    world.api.end_pods()
    await world.run()

    world.finish_job(ok=False)
    await world.run()
    assert world.condition("Progressing") == ("True", "RemovalFailed")
    assert purge_job(UID) in world.message("Progressing")

    world.now += timedelta(seconds=61)
    await world.run()
    await world.run()
    assert "status" not in world.api.objects["Job", SYSTEM, purge_job(UID)]


@pytest.mark.parametrize("spec", [{}, {"catalog": {"name": "lost"}}, {"storage": {"name": "lost"}}])
async def test_what_cannot_be_removed_in_time_is_kept(world: World, spec: dict[str, Any]) -> None:
    await world.serve()
    world.tenant["spec"] = DELETE | spec
    world.tenant["metadata"]["finalizers"].append("example.com/other")
    world.ask_to_delete()
    await world.run()
    world.api.end_pods()
    if not spec:
        world.catalog.failing = Unavailable("the catalog does not answer")

    waits = []
    while FINALIZER in world.tenant["metadata"]["finalizers"]:
        wait_s = await world.run()
        if wait_s is None:
            break
        assert world.condition("Progressing") == ("True", "RemovalFailed")
        waits.append(wait_s)
        world.now += timedelta(seconds=wait_s)

    assert timedelta(seconds=600) <= world.now - START < timedelta(seconds=601)
    assert (min(waits) > 0, max(waits)) == (True, 30.0)
    assert world.tenant["metadata"]["finalizers"] == ["example.com/other"]
    assert world.condition("Stalled") == ("True", "DataKept")
    assert "DataKept" in world.events()
    assert [one.lake for one in world.catalog.registry] == [LAKE]


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
async def test_metrics_tell_nothing_of_a_tenant_that_only_anothers_finalizer_holds(
    secrets_dir: Path, policy: str
) -> None:
    world = World(settings=make_settings(secrets_dir))
    held = tenant_object({"deletionPolicy": policy}, finalizers=["example.com/other"])
    world.api.add(held)
    await world.serve()
    world.catalog.failing = Unavailable("the catalog does not answer")
    with pytest.raises(Unavailable):
        await world.run()
    world.catalog.failing = None
    assert list(world.reconciler.phases) == ["team/acme"]
    assert world.reconciler.troubles["team/acme"]

    world.ask_to_delete()
    while await world.run() is not None:
        world.api.end_pods()
        world.now += timedelta(seconds=60)

    assert not world.gone
    assert world.reconciler.phases == {}
    assert world.reconciler.troubles == {}
    # Its workers may run on: nobody else gets its place.
    other = replace(make_tenant().meta, uid="other", name="other", created="2027-01-01T00:00:00Z")
    assert world.reconciler._prefixes.claim(other, "default", "team/acme") == "team/acme"


async def test_the_time_for_a_deletion_is_a_setting(secrets_dir: Path) -> None:
    world = World(settings=make_settings(secrets_dir, deletion_timeout_s=2.0))
    world.api.add(tenant_object(DELETE))
    await world.serve()
    world.ask_to_delete()
    await world.run()

    world.now += timedelta(seconds=2)
    await world.run()

    assert world.gone


@pytest.mark.parametrize("step", range(60))
async def test_an_operator_killed_before_any_call_is_followed_by_one_that_ends_it(
    world: World, step: int
) -> None:
    await world.serve()
    world.ask_to_delete()

    world.api.countdown.left = step
    try:
        await _delete(world)
    except Killed:
        world.api.countdown.left = -1
        world.restart()
        await _delete(world)

    assert world.gone
    assert (world.catalog.registry, world.catalog.logins) == ([], {})
    assert not world.deployments()


async def test_the_steps_above_are_all_there_are(world: World) -> None:
    await world.serve()
    world.ask_to_delete()
    world.api.countdown.left = 60

    await _delete(world)

    assert world.api.countdown.left > 0


async def _delete(world: World) -> None:
    """Kubernetes and the Job do their part until the Tenant is gone."""
    for _ in range(20):
        await world.run()
        if world.gone:
            return
        world.api.end_pods()
        if world.has_job(purge_job(UID)):
            world.finish_job()
    raise AssertionError(f"still there: {world.tenant.get('status')}")


# ---------------------------------------------------------------- hand-over


async def test_retained_data_waits_for_the_platforms_word(retained: World) -> None:
    retained.leave_behind()

    await retained.run()

    assert retained.condition("SpecValid") == ("False", "DataOwned")
    assert "(kubectl duckmesh adopt acme --namespace team)" in retained.message("SpecValid")
    assert retained.catalog.logins == {}


async def test_where_the_operator_is_elsewhere_the_way_to_the_data_says_so(
    retained: World,
) -> None:
    retained.settings = replace(retained.settings, namespace="lakes")
    retained.restart()
    retained.leave_behind()

    await retained.run()

    told = "(kubectl duckmesh adopt acme --namespace team --operator-namespace lakes)"
    assert told in retained.message("SpecValid")


async def test_a_tenant_serves_the_data_that_was_handed_to_it(retained: World) -> None:
    retained.leave_behind()
    await retained.run()

    retained.allow()
    await retained.run()

    assert retained.condition("SpecValid") == ("True", "Valid")
    assert [(one.lake, one.tenant_uid) for one in retained.catalog.registry] == [(OLD_LAKE, UID)]
    assert set(retained.catalog.logins) == {f"{OLD_LAKE}_{role}" for role in "wmr"}
    pod = retained.api.objects["Deployment", "team", "acme-ingest"]["spec"]["template"]["spec"]
    env = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    assert env["DUCKMESH_LAKE"] == OLD_LAKE
    assert not retained.allowed
    assert "DataHandedOver" in retained.events()
    before = list(retained.api.writes)
    retained.restart()
    await retained.run()
    assert retained.api.writes == before


async def test_a_hand_over_that_the_catalog_cannot_do_is_not_said_to_be_done(
    retained: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    retained.leave_behind()
    retained.allow()
    with monkeypatch.context() as patched:
        refused = Failing("the catalog's database is too old: make a Tenant with a new name")
        patched.setattr(retained.catalog, "adopt_lake", AsyncMock(side_effect=refused))
        with pytest.raises(Failing):
            await retained.run()

    assert retained.condition("SpecValid") == ("False", "DataOwned")
    assert "make a Tenant with a new name" in retained.message("SpecValid")
    assert retained.allowed
    assert retained.catalog.logins == {}
    await retained.run()
    assert retained.condition("SpecValid") == ("True", "Valid")


async def test_a_catalog_that_falls_silent_does_not_give_the_data_away(retained: World) -> None:
    retained.leave_behind()
    await retained.run()
    told = retained.message("SpecValid")
    retained.catalog.failing = Unavailable("the catalog does not answer")

    with pytest.raises(Unavailable):
        await retained.run()

    assert retained.condition("SpecValid") == ("False", "DataOwned")
    assert retained.message("SpecValid") == told
    assert retained.condition("CatalogReachable")[0] == "False"


@pytest.mark.parametrize("why", ["other uid", "other place", "paused"])
async def test_a_word_that_does_not_fit_hands_nothing_over(retained: World, why: str) -> None:
    retained.leave_behind(url="s3://lakes/elsewhere/" if why == "other place" else URL)
    retained.allow(OLD if why == "other uid" else UID)
    if why == "paused":
        retained.tenant["spec"] = {"paused": True}

    await retained.run()

    assert retained.condition("SpecValid") == ("False", "DataOwned")
    assert [one.tenant_uid for one in retained.catalog.registry] == [OLD]
    assert ("spec.storage" in retained.message("SpecValid")) == (why == "other place")


async def test_a_word_in_the_tenants_own_namespace_is_none(retained: World) -> None:
    retained.leave_behind()
    retained.api.add(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": adoption("team", "acme"), "namespace": "team"},
            "data": {"uid": UID},
        }
    )

    await retained.run()

    assert retained.condition("SpecValid") == ("False", "DataOwned")


@pytest.mark.parametrize("killed_at", range(12))
async def test_a_hand_over_that_is_cut_is_finished_by_the_next_operator(
    retained: World, killed_at: int
) -> None:
    retained.leave_behind()
    retained.allow()
    retained.api.countdown.left = killed_at

    with pytest.raises(Killed):
        await retained.run()
    retained.api.countdown.left = -1
    retained.restart()
    await retained.run()

    assert [(one.lake, one.tenant_uid) for one in retained.catalog.registry] == [(OLD_LAKE, UID)]
    assert ("Secret", "team", "acme-writer") in retained.api.objects


async def test_data_that_was_handed_over_goes_with_its_new_tenant(world: World) -> None:
    world.leave_behind()
    world.allow()
    await world.run()
    world.ask_to_delete()

    await _delete(world)

    assert world.gone
    assert (world.catalog.registry, world.catalog.logins) == ([], {})


async def test_data_whose_removal_was_begun_can_only_be_removed(world: World) -> None:
    world.leave_behind(purging=True)
    world.allow()

    await world.run()
    assert world.condition("SpecValid") == ("False", "DataOwned")
    assert "spec.deletionPolicy" in world.message("SpecValid")
    assert world.catalog.logins == {}
    assert not world.deployments()

    world.ask_to_delete()
    await _delete(world)
    assert world.catalog.registry == []
