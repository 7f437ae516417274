from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from duckmesh_operator.errors import Conflict, Forbidden, OperatorError, Unavailable
from duckmesh_operator.events import Recorder
from duckmesh_operator.lag import CatalogHealth, LagBoard, LagReport
from duckmesh_operator.names import (
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    JOB,
    MIGRATION,
    NETWORK_POLICY,
    SECRET,
    SERVICE,
    TENANT,
)
from duckmesh_operator.prefixes import Prefixes
from duckmesh_operator.queue import Key
from duckmesh_operator.reconcile.credentials import Credentials
from duckmesh_operator.reconcile.tenant import TenantReconciler
from duckmesh_operator.settings import Settings
from duckmesh_operator.specs import pod
from duckmesh_operator.specs.secret import hash_key
from tests.fakes.catalog import FakeCatalog
from tests.fakes.kube import FakeApi, Object
from tests.tenants import UID, make_settings, tenant_object

LAKE = "lake_0123456789ab4cde"
URL = "s3://lakes/team/acme/"
START = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


@dataclass
class World:
    """One operator's reconciler with everything around it in memory."""

    settings: Settings
    api: FakeApi = field(default_factory=FakeApi)
    catalog: FakeCatalog = field(default_factory=FakeCatalog)
    catalogs: dict[str, FakeCatalog] = field(default_factory=dict)
    board: LagBoard = field(default_factory=LagBoard)
    now: datetime = START

    def __post_init__(self) -> None:
        self.restart()

    def restart(self, settings: Settings | None = None) -> None:
        """A new operator process over the same cluster and catalog."""
        self.settings = settings or self.settings
        self.catalogs["default"] = self.catalog
        self.board = LagBoard()
        self.reconciler = TenantReconciler(
            api=self.api,
            catalogs=self.catalogs,  # type: ignore[arg-type]
            settings=self.settings,
            board=self.board,
            prefixes=Prefixes(self.settings.stores),
            recorder=Recorder(self.api, instance="op", clock=lambda: 0.0, now=lambda: self.now),
            credentials=Credentials(self.api),
            now=lambda: self.now,
        )

    async def run(self, name: str = "acme") -> float | None:
        return await self.reconciler.reconcile(Key("Tenant", "team", name))

    async def settle(self, name: str = "acme") -> None:
        """All the way to Ready: the Job runs, the pods start."""
        await self.run(name)
        uid = self.api.objects["Tenant", "team", name]["metadata"]["uid"]
        self.catalog.install(uid, f"team/{name}", f"s3://lakes/team/{name}/", MIGRATION)
        await self.run(name)
        self.start_pods(name)
        await self.run(name)

    def start_pods(self, name: str = "acme") -> None:
        for part in ("ingest", "query"):
            self.api.start_pods("team", f"{name}-{part}")

    def status(self, name: str = "acme") -> Object:
        return self.api.objects["Tenant", "team", name].get("status", {})

    def condition(self, kind: str, name: str = "acme") -> Object:
        found = {one["type"]: one for one in self.status(name).get("conditions", [])}
        return found.get(kind, {})

    def child(self, kind: Any, name: str) -> Object:
        return self.api.objects[kind.kind, "team", name]

    def has(self, kind: Any, name: str, namespace: str = "team") -> bool:
        return (kind.kind, namespace, name) in self.api.objects

    def change(self, spec: dict[str, Any]) -> None:
        """What `kubectl apply` of another spec does."""
        obj = self.api.objects["Tenant", "team", "acme"]
        obj["spec"] = spec
        obj["metadata"]["generation"] += 1

    def template(self, part: str) -> Object:
        return self.child(DEPLOYMENT, f"acme-{part}")["spec"]["template"]

    def secret(self, part: str, key: str) -> str:
        return base64.b64decode(self.child(SECRET, f"acme-{part}")["data"][key]).decode()


@pytest.fixture
def world(secrets_dir: Path) -> World:
    made = World(settings=make_settings(secrets_dir))
    made.api.add(tenant_object())
    return made


async def test_a_new_tenant_gets_logins_secrets_and_a_migrate_job_and_workers_that_wait_for_it(
    world: World,
) -> None:
    again_s = await world.run()

    assert set(world.catalog.logins) == {f"{LAKE}_w", f"{LAKE}_m", f"{LAKE}_r"}
    for part in ("writer", "maintenance", "reader", "store", "auth", "admin-key"):
        assert world.has(SECRET, f"acme-{part}"), part
    assert world.has(JOB, f"duckmesh-migrate-0123456789ab4cde-{MIGRATION}", "duckmesh-system")
    written = world.api.writes
    credentials, worker = "apply Secret/acme-auth", "apply Deployment/acme-ingest"
    assert written.index(credentials) < written.index(worker)
    assert world.child(DEPLOYMENT, "acme-ingest")["spec"]["replicas"] == 2
    assert again_s == pytest.approx(1.0)
    assert world.status()["phase"] == "Migrating"
    assert world.condition("Ready")["reason"] == "Migrating"
    assert world.condition("Reconciling")["status"] == "True"


async def test_no_worker_is_made_beside_the_migration_of_a_lake_that_was_there(
    world: World,
) -> None:
    await world.settle()
    world.catalog.registry = [replace(one, migration=1) for one in world.catalog.registry]
    for part in ("ingest", "query"):
        world.api.remove(DEPLOYMENT, "team", f"acme-{part}")
    await world.run()

    assert world.condition("Ready")["reason"] == "Migrating"
    assert not world.has(DEPLOYMENT, "acme-ingest")


async def test_an_installed_lake_gets_workers_and_becomes_ready(world: World) -> None:
    await world.settle()

    assert world.child(DEPLOYMENT, "acme-ingest")["spec"]["replicas"] == 2
    assert world.child(DEPLOYMENT, "acme-query")["spec"]["replicas"] == 1
    assert world.has(SERVICE, "acme-ingest")
    assert world.has(SERVICE, "acme-query")
    assert world.has(NETWORK_POLICY, "acme-query")
    assert world.has(DISRUPTION_BUDGET, "acme-ingest")
    assert not world.has(DISRUPTION_BUDGET, "acme-query")
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("Reconciling") == {}
    status = world.status()
    assert (status["phase"], status["workers"], status["replicas"]) == ("Ready", "3/3", 1)
    assert status["version"] == {"current": "0.1.0", "target": "0.1.0"}
    assert status["endpoints"]["ingest"] == "http://acme-ingest.team.svc:8080"
    assert status["observedGeneration"] == 1


async def test_a_second_run_with_nothing_changed_writes_nothing(world: World) -> None:
    await world.settle()
    before, logins = list(world.api.writes), list(world.catalog.writes)

    await world.run()

    assert world.api.writes == before
    assert world.catalog.writes == logins


async def test_a_restarted_operator_writes_nothing(world: World) -> None:
    await world.settle()
    before = list(world.api.writes)

    world.restart()
    await world.run()

    assert world.api.writes == before


async def test_an_upgraded_operator_keeps_pod_templates_until_the_worker_itself_changes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.settle()
    before = {part: world.template(part) for part in ("ingest", "query")}

    monkeypatch.setattr(pod, "DRAIN_S", 33)
    world.restart()
    world.change({"freshness": {"sustainedFor": "45s"}, "query": {"replicas": 2}})
    await world.run()
    assert {part: world.template(part) for part in ("ingest", "query")} == before

    world.change({"ingest": {"batch": {"maxRows": 10}}, "query": {"replicas": 2}})
    await world.run()
    assert world.template("query") == before["query"]
    assert world.template("ingest") != before["ingest"]


async def test_a_new_default_version_does_not_reach_old_tenants(
    world: World, secrets_dir: Path
) -> None:
    await world.settle()
    before = world.template("ingest")

    world.restart(
        make_settings(
            secrets_dir,
            runtime_version="0.2.0",
            runtime_image="localhost/duckmesh-runtime:0.2.0",
            sandbox_image="localhost/duckmesh-sandbox:0.2.0",
        )
    )
    world.change({"freshness": {"target": "6s"}})
    await world.run()
    image = world.template("ingest")["spec"]["containers"][0]["image"]
    assert image == before["spec"]["containers"][0]["image"]

    world.change({"version": "0.2.0"})
    await world.run()
    assert world.template("ingest")["spec"]["containers"][0]["image"].endswith(":0.2.0")
    assert world.status()["version"] == {"current": "0.1.0", "target": "0.2.0"}
    assert world.condition("Progressing")["reason"] == "RollingOut"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(DEPLOYMENT, "acme-ingest", id="deployment"),
        pytest.param(SERVICE, "acme-query", id="service"),
        pytest.param(NETWORK_POLICY, "acme-ingest", id="networkpolicy"),
        pytest.param(DISRUPTION_BUDGET, "acme-ingest", id="pdb"),
        pytest.param(SECRET, "acme-store", id="store-secret"),
    ],
)
async def test_a_deleted_child_comes_back(world: World, kind: Any, name: str) -> None:
    await world.settle()
    world.api.remove(kind, "team", name)

    await world.run()

    assert world.has(kind, name)


async def test_an_edited_child_is_repaired_and_told_once(world: World) -> None:
    await world.settle()
    world.child(DEPLOYMENT, "acme-ingest")["spec"]["replicas"] = 7

    await world.run()

    assert world.child(DEPLOYMENT, "acme-ingest")["spec"]["replicas"] == 2
    events = [one for place, one in world.api.objects.items() if place[0] == "Event"]
    assert [one["reason"] for one in events].count("DriftRepaired") == 1


async def test_what_others_add_to_a_pod_template_is_taken_out_again(world: World) -> None:
    await world.settle()
    extra = {"spec": {"template": {"spec": {"hostNetwork": True}}}}
    world.api.edit(DEPLOYMENT, "team", "acme-ingest", extra)

    await world.run()

    assert "hostNetwork" not in world.template("ingest")["spec"]


async def test_stripped_owner_and_labels_are_put_back(world: World) -> None:
    await world.settle()
    child = world.child(SERVICE, "acme-ingest")
    owner = child["metadata"]["ownerReferences"]
    child["metadata"]["labels"] = {}

    await world.run()

    child = world.child(SERVICE, "acme-ingest")
    assert child["metadata"]["labels"]["duckmesh.io/tenant"] == "acme"
    assert child["metadata"]["ownerReferences"] == owner


async def test_a_foreign_object_with_our_name_is_left_alone_and_named(world: World) -> None:
    foreign = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "acme-ingest", "namespace": "team"},
        "spec": {"ports": [{"port": 1}]},
    }
    world.api.add(foreign)
    world.catalog.install(UID, "team/acme", URL, MIGRATION)

    await world.run()

    assert world.child(SERVICE, "acme-ingest")["spec"] == foreign["spec"]
    assert world.condition("Ready")["reason"] == "NameConflict"
    assert "Service acme-ingest" in world.condition("Stalled")["message"]
    assert not world.has(DEPLOYMENT, "acme-ingest")


async def test_a_foreign_secret_is_neither_trusted_nor_overwritten(world: World) -> None:
    dsn = base64.b64encode(b"postgresql://x:known@evil/db").decode()
    world.api.add(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "acme-writer", "namespace": "team"},
            "data": {"dsn": dsn},
        }
    )

    await world.run()

    assert world.child(SECRET, "acme-writer")["data"] == {"dsn": dsn}
    assert world.catalog.logins == {}
    assert world.condition("Stalled")["reason"] == "NameConflict"


async def test_a_predecessors_leftovers_are_waited_for(world: World) -> None:
    await world.settle()
    world.catalog.registry.clear()
    tenant = world.api.objects["Tenant", "team", "acme"]
    tenant["metadata"]["uid"] = "99999999-0000-4000-8000-000000000000"

    again_s = await world.run()

    assert again_s == pytest.approx(2.0)
    assert world.condition("Progressing")["reason"] == "Waiting"
    assert world.child(SERVICE, "acme-ingest")["metadata"]["ownerReferences"][0]["uid"] == UID


async def test_suspend_scales_to_zero_and_resume_brings_the_same_pods_back(world: World) -> None:
    await world.settle()
    before = world.template("ingest")

    world.change({"suspend": True})
    await world.run()
    assert world.condition("Progressing")["reason"] == "Stopping"
    world.start_pods()
    await world.run()
    assert world.child(DEPLOYMENT, "acme-ingest")["spec"]["replicas"] == 0
    assert world.status()["phase"] == "Suspended"
    assert world.condition("Suspended")["status"] == "True"
    assert world.condition("Ready")["reason"] == "Suspended"
    assert world.has(SECRET, "acme-writer")

    world.change({})
    await world.run()
    world.start_pods()
    await world.run()
    assert world.template("ingest") == before
    assert world.condition("Ready")["status"] == "True"


async def test_paused_changes_nothing_and_still_reports(world: World) -> None:
    await world.settle()
    world.change({"paused": True, "ingest": {"replicas": 5}})
    world.api.remove(SERVICE, "team", "acme-query")
    before = [one for one in world.api.writes if "status" not in one]

    await world.run()

    assert [one for one in world.api.writes if "status" not in one] == before
    assert world.condition("Paused")["status"] == "True"
    assert world.status()["observedGeneration"] == 2
    assert world.status()["phase"] == "Paused"


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        pytest.param({"profile": "huge"}, "spec.profile", id="profile"),
        pytest.param({"catalog": {"name": "x"}}, "spec.catalog.name", id="catalog"),
        pytest.param(
            {"ingest": {"resources": {"limits": {"memory": "9Gi"}}}},
            "spec.ingest.resources.limits.memory",
            id="cap",
        ),
        pytest.param({"query": {"limits": {"memory": "2Gi"}}}, "spec.query.limits", id="sandbox"),
        pytest.param({"freshness": {"target": "soon"}}, "spec.freshness.target", id="duration"),
        pytest.param({"labels": {"a": "b"}}, "spec.labels", id="label"),
    ],
)
async def test_a_bad_spec_names_the_field_and_leaves_the_workers_alone(
    world: World, spec: dict[str, Any], field: str
) -> None:
    await world.settle()
    before = world.template("ingest")

    world.change(spec)
    await world.run()

    condition = world.condition("SpecValid")
    assert condition["status"] == "False"
    assert field in condition["message"]
    assert condition["observedGeneration"] == 2
    assert world.condition("Stalled")["status"] == "True"
    assert world.template("ingest") == before
    assert world.status()["workers"] == "3/3"


async def test_a_prefix_belongs_to_the_older_tenant(world: World) -> None:
    await world.settle()
    world.api.add(
        tenant_object(
            {"storage": {"prefix": "team/acme/sub"}},
            name="late",
            uid="11111111-0000-4000-8000-000000000000",
            creationTimestamp="2026-01-02T00:00:00Z",
        )
    )

    await world.run("late")

    assert world.condition("SpecValid", "late")["reason"] == "PrefixInUse"
    assert not world.has(SECRET, "late-writer")


async def test_retained_data_of_another_lake_blocks_its_prefix(world: World) -> None:
    world.catalog.install("2" * 32, "other/gone", "s3://lakes/team/", MIGRATION)

    await world.run()

    assert world.condition("SpecValid")["reason"] == "PrefixInUse"


async def test_a_lake_is_made_only_where_no_other_catalog_keeps_data(world: World) -> None:
    other = FakeCatalog("other")
    other.install("2" * 32, "x/y", "s3://lakes/team/acme/inner/", MIGRATION)
    world.catalogs["other"] = other

    await world.run()

    assert world.condition("SpecValid")["reason"] == "PrefixInUse"
    assert "another catalog" in world.condition("SpecValid")["message"]
    assert world.catalog.logins == {}
    other.registry.clear()
    await world.settle()
    assert world.condition("Ready")["status"] == "True"


@pytest.mark.parametrize("error", [Unavailable("no answer"), Forbidden("no right")])
async def test_a_lake_waits_for_every_catalog_that_may_keep_data_in_its_place(
    world: World, error: OperatorError
) -> None:
    other = FakeCatalog("other")
    other.failing = error
    world.catalogs["other"] = other

    with pytest.raises(Unavailable):
        await world.run()

    assert world.condition("Progressing")["reason"] == "Retrying"
    assert "the catalog other cannot be asked" in world.condition("Progressing")["message"]
    assert world.catalog.logins == {}
    other.failing = None
    await world.settle()
    other.failing = error  # a Tenant that has its lake does not ask again
    await world.run()
    assert world.condition("Ready")["status"] == "True"


async def test_a_new_tenant_does_not_get_its_namesakes_data(world: World) -> None:
    world.catalog.install("2" * 32, "team/acme", URL, MIGRATION)

    await world.run()

    assert world.condition("SpecValid")["reason"] == "DataOwned"
    assert world.catalog.logins == {}


async def test_a_silent_catalog_stops_no_repair_and_is_named(world: World) -> None:
    await world.settle()
    world.catalog.failing = Unavailable("the catalog does not answer (TimeoutError)")
    world.api.remove(SERVICE, "team", "acme-ingest")

    with pytest.raises(Unavailable):
        await world.run()

    assert world.has(SERVICE, "acme-ingest")
    assert world.condition("CatalogReachable")["status"] == "False"
    assert world.condition("CatalogReachable")["reason"] == "Unreachable"
    assert world.condition("Ready")["status"] == "False"
    assert world.status()["observedGeneration"] == 1


async def test_a_refused_catalog_login_is_told_apart(world: World) -> None:
    world.catalog.failing = Forbidden("the catalog refuses the operator's login")

    with pytest.raises(Forbidden):
        await world.run()

    assert world.condition("CatalogReachable")["reason"] == "AccessDenied"


async def test_a_revoked_right_is_in_the_status(world: World) -> None:
    await world.settle()
    world.api.failing["list Service"] = Forbidden("GET services: 403 Forbidden")

    with pytest.raises(Forbidden):
        await world.run()

    assert world.condition("Ready")["reason"] == "AccessDenied"
    assert "403" in world.condition("Ready")["message"]


async def test_a_status_refused_as_a_conflict_is_tried_again(world: World) -> None:
    await world.settle()
    world.change({"query": {"replicas": 2}})
    world.api.failing["apply Tenant"] = Conflict("409 Conflict")

    with pytest.raises(Conflict):
        await world.run()

    await world.run()
    assert world.status()["observedGeneration"] == 2


async def test_the_status_of_a_tenant_that_was_made_anew_meanwhile_is_given_up(
    world: World,
) -> None:
    await world.settle()
    world.change({"query": {"replicas": 2}})
    apply = world.api.apply

    async def replaced(manifest: Object, *, subresource: str = "") -> Object:
        if subresource:
            world.api.objects["Tenant", "team", "acme"]["metadata"]["uid"] = "another"
        return await apply(manifest, subresource=subresource)

    world.api.apply = replaced  # type: ignore[method-assign]
    await world.run()

    assert world.status()["observedGeneration"] == 1


async def test_a_failed_migration_is_told_and_tried_again(world: World) -> None:
    await world.run()
    name = f"duckmesh-migrate-0123456789ab4cde-{MIGRATION}"
    job = world.api.objects["Job", "duckmesh-system", name]
    failed = {"type": "Failed", "status": "True", "lastTransitionTime": "2026-01-01T12:00:00Z"}
    job["status"] = {"conditions": [failed]}
    world.api.remove(DEPLOYMENT, "team", "acme-query")

    await world.run()
    assert world.condition("Ready")["reason"] == "MigrationFailed"
    assert world.has(JOB, name, "duckmesh-system")
    assert world.has(DEPLOYMENT, "acme-ingest")  # waits on
    assert not world.has(DEPLOYMENT, "acme-query")

    world.now = START + timedelta(seconds=61)
    await world.run()
    assert not world.has(JOB, name, "duckmesh-system")
    await world.run()
    assert world.has(JOB, name, "duckmesh-system")


async def test_a_lost_login_secret_gets_a_new_password(world: World) -> None:
    await world.settle()
    before = world.secret("reader", "dsn")
    world.api.remove(SECRET, "team", "acme-reader")

    await world.run()

    assert world.secret("reader", "dsn") != before
    assert world.secret("reader", "dsn").endswith("@postgres.db:5432/duckmesh")
    assert world.catalog.logins[f"{LAKE}_r"].renew
    assert not world.catalog.logins[f"{LAKE}_w"].renew


async def test_the_admin_key_is_known_by_its_hash_and_renewed_when_lost(world: World) -> None:
    await world.settle()
    first = world.secret("admin-key", "key")
    (entry,) = json.loads(world.secret("auth", "keys.json"))
    pepper = world.secret("auth", "pepper")
    assert entry["hash"] == hash_key(pepper, first)
    assert "ops_admin" in entry["roles"]

    world.api.remove(SECRET, "team", "acme-admin-key")
    await world.run()

    second = world.secret("admin-key", "key")
    (entry,) = json.loads(world.secret("auth", "keys.json"))
    assert second != first
    assert entry["hash"] == hash_key(world.secret("auth", "pepper"), second)
    assert world.secret("auth", "pepper") == pepper


async def test_a_rotated_store_credential_is_passed_on(world: World, secrets_dir: Path) -> None:
    await world.settle()
    (secrets_dir / "store" / "secret-access-key").write_text("rotated")

    await world.run()

    assert world.secret("store", "secret-access-key") == "rotated"


async def test_a_deleted_tenant_is_forgotten(world: World) -> None:
    await world.settle()
    world.api.remove(TENANT, "team", "acme")

    assert await world.run() is None
    assert world.reconciler.phases == {}
    assert world.reconciler.troubles == {}


async def test_what_asks_for_a_person_is_told_to_the_metrics(world: World) -> None:
    await world.run()
    assert ("Ready", "Migrating") in world.reconciler.troubles["team/acme"]

    await world.settle()
    assert "Ready" not in dict(world.reconciler.troubles["team/acme"])


async def test_a_tenant_being_deleted_is_left_alone(world: World) -> None:
    world.api.objects["Tenant", "team", "acme"]["metadata"]["deletionTimestamp"] = "2026-01-01"

    assert await world.run() is None
    assert world.api.writes == []


async def test_declared_tables_reach_the_pods_without_a_rollout(world: World) -> None:
    await world.settle()
    before = world.template("ingest"), world.child(CONFIG_MAP, "acme-tables")["data"]
    columns = [{"name": "id", "type": "BIGINT"}]

    world.change({"tables": [{"name": "t", "columns": columns}]})
    await world.run()

    data = world.child(CONFIG_MAP, "acme-tables")["data"]
    assert data != before[1]
    assert world.template("ingest") == before[0]
    assert world.condition("TablesReady")["reason"] == "Applying"

    digest = sha256(data["tables.json"].encode()).hexdigest()
    said = {"now": START, "token": 1, "committer_alive": True, "tables_digest": digest}
    report = LagReport(lake=LAKE, tenant="team/acme", tenant_uid=UID, **said)
    world.board.update("default", [report])
    problem = replace(report, tables_problem="table t: no")
    assert world.board.update("default", [problem]) == ["team/acme"]
    await world.run()
    assert world.condition("TablesReady")["message"].startswith("table t: no")

    assert world.board.update("default", [replace(report, tables_ready=True)]) == ["team/acme"]
    await world.run()
    assert world.condition("TablesReady")["status"] == "True"

    world.change({})
    await world.run()
    assert world.child(CONFIG_MAP, "acme-tables")["data"] == before[1]
    assert world.condition("TablesReady") == {}


async def test_lag_and_snapshot_reach_the_status(world: World) -> None:
    await world.settle()
    now = START
    report = LagReport(
        lake=LAKE,
        tenant="team/acme",
        tenant_uid=UID,
        now=now,
        token=41,
        pending_rows=3,
        oldest_pending_at=now - timedelta(seconds=7),
        committed_at=now - timedelta(seconds=8),
        snapshot_id=5,
        snapshot_at=now - timedelta(seconds=8),
        files=2,
        small_files=2,
        size_bytes=100,
        committer="acme-ingest-1",
        committer_alive=True,
    )

    assert world.board.update("default", [report]) == ["team/acme"]
    await world.run()

    ingest = world.status()["ingest"]
    assert (ingest["lag"], ingest["lagClass"], ingest["watermark"]) == ("5s", "warn", 41)
    assert ingest["committer"] == "acme-ingest-1"
    assert world.status()["snapshot"]["state"] == "Healthy"
    assert world.condition("Fresh")["reason"] == "AboveTarget"


async def test_a_catalog_that_falls_silent_makes_lag_unknown(world: World) -> None:
    await test_lag_and_snapshot_reach_the_status(world)

    silent = CatalogHealth(ok=False, reason="Unreachable")
    world.board.fail("default", silent)
    await world.run()

    assert world.status()["ingest"] == {"lagClass": "unknown"}
    assert world.condition("Fresh")["status"] == "Unknown"
    assert world.status()["snapshot"]["id"] == 5


async def test_every_interruption_ends_in_the_same_state(secrets_dir: Path) -> None:
    """The operator is killed after each write of a creation; the next one finishes the work."""
    undisturbed = await _create(secrets_dir, lambda _: None)
    places = {place for place in undisturbed.api.objects if place[0] != "Event"}

    for position in range(1, len(undisturbed.api.writes)):
        disturbed = await _create(secrets_dir, _killer(position))
        found = {place for place in disturbed.api.objects if place[0] != "Event"}
        assert found == places, position
        assert disturbed.condition("Ready")["status"] == "True", position
        assert disturbed.secret("writer", "dsn").count("@") == 1
        password = disturbed.secret("writer", "dsn").split(":")[2].split("@")[0]
        assert disturbed.catalog.logins[f"{LAKE}_w"].password == password, position


class _KilledError(BaseException):
    """The process is gone: no handler may catch it."""


def _killer(position: int) -> Callable[[FakeApi], None]:
    def arm(api: FakeApi) -> None:
        log = api._log

        def logged(verb: str, place: tuple[str, str, str]) -> None:
            log(verb, place)
            if len(api.writes) == position:
                raise _KilledError

        api._log = logged  # type: ignore[method-assign]

    return arm


async def _create(secrets_dir: Path, arm: Callable[[FakeApi], None]) -> World:
    world = World(settings=make_settings(secrets_dir))
    world.api.add(tenant_object())
    arm(world.api)
    for step in ("job", "workers", "ready", "rest"):
        try:
            await world.run()
        except _KilledError:
            world.restart()
            await world.run()
        if step == "job":
            world.catalog.install(UID, "team/acme", URL, MIGRATION)
        if step == "workers":
            world.start_pods()
    return world
