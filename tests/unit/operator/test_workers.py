"""Workers of a Tenant: what rolls them, in which order, what version they run, and how their revisions are kept."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from duckmesh_operator import names
from duckmesh_operator.errors import Unavailable
from duckmesh_operator.names import (
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    NETWORK_POLICY,
    REVISION,
    SERVICE,
)
from duckmesh_operator.specs import pod
from tests.fakes.kube import Object
from tests.tenants import UID, make_settings, tenant_object
from tests.unit.operator.test_reconcile_tenant import World

RUNS = "acme-ingest-1", "acme-query-1"


@pytest.fixture
async def world(secrets_dir: Path) -> World:
    """A Tenant that is ready."""
    made = World(settings=make_settings(secrets_dir))
    made.api.add(tenant_object())
    await made.settle()
    return made


def image(world: World, part: str) -> str:
    found: str = world.template(part)["spec"]["containers"][0]["image"]
    return found.rpartition(":")[2]


def surge(world: World, part: str, *, stuck: bool = False) -> None:
    """What the Deployment controller reports in the middle of a rollout: a new pod beside all old ones."""
    item = world.child(DEPLOYMENT, f"acme-{part}")
    wanted = item["spec"]["replicas"]
    item["status"] = {
        "observedGeneration": item["metadata"]["generation"],
        "replicas": wanted + 1,
        "updatedReplicas": 1,
        "readyReplicas": wanted,
    }
    if stuck:
        reason = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
        item["status"]["conditions"] = [reason]


def revisions(world: World) -> set[str]:
    return {name for kind, _, name in world.api.objects if kind == REVISION.kind}


def version(world: World) -> Object:
    found: Object = world.status()["version"]
    return found


async def test_a_version_reaches_ingest_then_query_and_is_current_only_then(world: World) -> None:
    seen = []
    world.change({"version": "0.2.0"})
    await world.run()
    seen.append((image(world, "ingest"), image(world, "query"), version(world)["current"]))
    surge(world, "ingest")
    await world.run()
    seen.append((image(world, "ingest"), image(world, "query"), version(world)["current"]))
    world.api.start_pods("team", "acme-ingest")
    await world.run()
    seen.append((image(world, "ingest"), image(world, "query"), version(world)["current"]))
    surge(world, "query")
    await world.run()
    assert world.condition("Progressing")["reason"] == "RollingOut"
    assert world.condition("Ready")["status"] == "True"
    world.api.start_pods("team", "acme-query")
    await world.run()

    assert seen == [
        ("0.2.0", "0.1.0", "0.1.0"),
        ("0.2.0", "0.1.0", "0.1.0"),
        ("0.2.0", "0.2.0", "0.1.0"),
    ]
    assert version(world) == {"current": "0.2.0", "target": "0.2.0"}
    assert world.condition("Progressing")["reason"] == "Settled"


async def test_a_version_that_does_not_come_up_keeps_the_pods_and_says_how_to_go_back(
    world: World,
) -> None:
    before = world.template("ingest"), world.template("query")
    world.change({"version": "9.9.9"})
    await world.run()
    surge(world, "ingest", stuck=True)
    await world.run()

    stuck = world.condition("Progressing")
    assert (stuck["status"], stuck["reason"]) == ("False", "RolloutStuck")
    assert "ingest pods" in stuck["message"]
    assert "set spec.version back to 0.1.0" in stuck["message"]
    assert world.condition("Ready")["status"] == "True"
    assert version(world) == {"current": "0.1.0", "target": "9.9.9"}
    assert image(world, "query") == "0.1.0"
    stalled = world.condition("Stalled")
    assert (stalled["reason"], stalled["message"]) == (stuck["reason"], stuck["message"])

    world.change({"version": "0.1.0"})
    await world.run()
    # The Deployment controller has not come to it yet: what it said is about the version that was left.
    assert world.condition("Progressing")["reason"] == "RollingOut"
    assert (world.template("ingest"), world.template("query")) == before
    world.start_pods()
    await world.run()
    assert version(world) == {"current": "0.1.0", "target": "0.1.0"}
    assert world.condition("Progressing")["reason"] == "Settled"


async def test_a_version_taken_out_of_the_spec_again_leaves_what_ran(world: World) -> None:
    """A GitOps revert removes the field that the bad change added."""
    world.change({"version": "9.9.9"})
    await world.run()
    surge(world, "ingest", stuck=True)
    await world.run()

    world.change({})
    await world.run()

    assert (image(world, "ingest"), image(world, "query")) == ("0.1.0", "0.1.0")
    assert version(world)["target"] == "0.1.0"


@pytest.mark.parametrize("obstacle", ["paused", "catalog"])
async def test_a_version_that_is_only_asked_for_is_not_current(world: World, obstacle: str) -> None:
    world.change({"version": "0.2.0", "paused": obstacle == "paused"})
    if obstacle == "catalog":
        world.catalog.failing = Unavailable("no answer")
        with pytest.raises(Unavailable):
            await world.run()
    else:
        await world.run()

    assert version(world) == {"current": "0.1.0", "target": "0.2.0"}


async def test_a_failing_worker_keeps_the_other_one_from_nothing(world: World) -> None:
    """Query pods wait for a rollout of ingest, not for its health."""
    world.child(DEPLOYMENT, "acme-ingest")["status"]["readyReplicas"] = 0
    before = world.template("query")

    world.change({"query": {"limits": {"timeout": "40s"}}})
    await world.run()

    assert world.template("query") != before


async def test_suspended_workers_take_a_version_together(world: World) -> None:
    world.change({"suspend": True})
    await world.run()
    world.start_pods()
    await world.run()

    world.change({"suspend": True, "version": "0.2.0"})
    await world.run()
    world.start_pods()
    await world.run()

    assert (image(world, "ingest"), image(world, "query")) == ("0.2.0", "0.2.0")
    assert version(world)["current"] == "0.2.0"


async def test_an_operator_killed_between_revision_and_deployment_keeps_the_order(
    world: World,
) -> None:
    old = copy.deepcopy(world.child(DEPLOYMENT, "acme-ingest"))
    world.change({"version": "0.2.0"})
    await world.run()
    world.api.objects[DEPLOYMENT.kind, "team", "acme-ingest"] = old

    world.restart()
    await world.run()

    assert (image(world, "ingest"), image(world, "query")) == ("0.2.0", "0.1.0")


async def test_a_newer_crds_defaults_roll_nothing_now_or_at_the_next_change(world: World) -> None:
    """The API server fills defaults in when it reads: no generation tells of them."""
    before = {part: world.template(part) for part in ("ingest", "query")}
    spec = {"ingest": {"newField": 1}, "query": {"newField": 1}}
    world.api.objects["Tenant", "team", "acme"]["spec"] = spec

    world.restart()
    await world.run()
    await world.run()
    writes = list(world.api.writes)
    await world.run()
    assert world.api.writes == writes
    world.change(spec | {"query": {"newField": 1, "replicas": 2}})
    await world.run()

    assert {part: world.template(part) for part in ("ingest", "query")} == before
    assert world.child(DEPLOYMENT, "acme-query")["spec"]["replicas"] == 2


async def test_two_revisions_of_each_worker_are_kept(world: World) -> None:
    for rows in (10, 20, 30):
        world.change({"ingest": {"batch": {"maxRows": rows}}})
        await world.run()
        world.start_pods()

    assert revisions(world) == {"acme-ingest-3", "acme-ingest-4", "acme-query-1"}


# -------------------------------------------------------------------- drift

#: Every child that is found by its label, with an edit of a field that is ours.
CHILDREN = [
    pytest.param(DEPLOYMENT, "acme-ingest", {"spec": {"replicas": 7}}, id="deployment"),
    pytest.param(DEPLOYMENT, "acme-query", {"spec": {"minReadySeconds": 9}}, id="foreign-field"),
    pytest.param(SERVICE, "acme-query", {"spec": {"selector": {"app": "theirs"}}}, id="service"),
    pytest.param(NETWORK_POLICY, "acme-query", {"spec": {"egress": [{}]}}, id="networkpolicy"),
    pytest.param(CONFIG_MAP, "acme-tables", {"data": {"tables.json": "{}"}}, id="configmap"),
    pytest.param(DISRUPTION_BUDGET, "acme-ingest", {"spec": {"maxUnavailable": 2}}, id="pdb"),
    pytest.param(REVISION, "acme-ingest-1", {"revision": 7}, id="revision"),
]


def test_the_table_has_every_kind_of_child() -> None:
    assert {param.values[0] for param in CHILDREN} == set(names.CHILDREN)


def content(item: Object) -> Object:
    """What is ours in an object, without what every write moves."""
    kept = {key: value for key, value in item.items() if key not in ("metadata", "status")}
    return kept | {key: item["metadata"][key] for key in ("labels", "ownerReferences", "name")}


@pytest.mark.parametrize("drift", ["deleted", "edited", "owner stripped", "labels stripped"])
@pytest.mark.parametrize(("kind", "name", "change"), CHILDREN)
async def test_every_child_is_as_before_after_any_drift(
    world: World, kind: names.Kind, name: str, change: Object, drift: str
) -> None:
    before = copy.deepcopy(content(world.child(kind, name)))
    templates = copy.deepcopy([world.template(part) for part in ("ingest", "query")])
    match drift:
        case "deleted":
            world.api.remove(kind, "team", name)
        case "edited":
            world.api.edit(kind, "team", name, change)
        case "owner stripped":
            world.child(kind, name)["metadata"]["ownerReferences"] = []
        case _:
            world.child(kind, name)["metadata"]["labels"] = {}

    await world.run()
    writes = list(world.api.writes)
    await world.run()

    assert content(world.child(kind, name)) == before
    assert [world.template(part) for part in ("ingest", "query")] == templates
    assert revisions(world) == set(RUNS)
    assert [one for one in world.api.writes[len(writes) :] if "status" not in one] == []


async def test_a_container_that_others_add_to_a_pod_template_goes(world: World) -> None:
    before = copy.deepcopy(world.template("ingest"))
    evil = [*before["spec"]["containers"], {"name": "evil", "image": "evil:1"}]
    change = {"spec": {"template": {"spec": {"containers": evil, "hostNetwork": True}}}}
    world.api.edit(DEPLOYMENT, "team", "acme-ingest", change)

    await world.run()

    assert world.template("ingest") == before


async def test_children_of_a_namesake_are_never_adopted(world: World) -> None:
    """Made again under its name before the garbage collector came: wait for what is left, then make it anew."""
    old = {place: one["metadata"]["uid"] for place, one in world.api.objects.items()}
    uid = "99999999-0000-4000-8000-000000000000"
    world.catalog.registry.clear()
    world.api.objects["Tenant", "team", "acme"] = tenant_object(uid=uid)
    left = [place for place in old if place[0] in {kind.kind for kind in names.CHILDREN}]

    assert await world.run() == pytest.approx(2.0)
    owners = [world.api.objects[place]["metadata"]["ownerReferences"] for place in left]
    assert {owner["uid"] for found in owners for owner in found} == {UID}
    assert world.condition("Progressing")["reason"] == "Waiting"

    for kind, namespace, name in [place for place in old if place[0] not in ("Tenant", "Event")]:
        world.api.remove(names.KINDS[kind], namespace, name)
    await world.settle()

    assert world.condition("Ready")["status"] == "True"
    assert not {world.api.objects[place]["metadata"]["uid"] for place in left} & set(old.values())


# -------------------------------------------------------------------- revisions decide


def upgrade(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another operator, whose builders make other templates."""
    monkeypatch.setattr(pod, "DRAIN_S", 33)
    world.restart()


def strip_labels(item: Object) -> None:
    item["metadata"]["labels"] = {}


def strip_owner(item: Object) -> None:
    item["metadata"]["ownerReferences"] = []


def renumber(item: Object) -> None:
    item["revision"] = 7


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("change", [strip_labels, strip_owner, renumber])
async def test_a_changed_revision_is_repaired_and_still_decides(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str, change: Any
) -> None:
    before = {part: world.template(part) for part in ("ingest", "query")}
    was = copy.deepcopy(world.child(REVISION, name))
    change(world.child(REVISION, name))

    upgrade(world, monkeypatch)
    world.change({"freshness": {"sustainedFor": "45s"}})
    await world.run()

    found = world.child(REVISION, name)
    assert found["metadata"]["labels"] == was["metadata"]["labels"]
    assert found["metadata"]["ownerReferences"] == was["metadata"]["ownerReferences"]
    assert (found["revision"], found["data"]) == (was["revision"], was["data"])
    assert {part: world.template(part) for part in ("ingest", "query")} == before
    assert revisions(world) == set(RUNS)


async def test_what_only_looks_like_a_revision_does_no_harm(world: World) -> None:
    odd = copy.deepcopy(world.child(REVISION, "acme-ingest-1"))
    odd["metadata"] |= {"name": "acme-ingest-x", "uid": "odd"}
    world.api.add(odd)

    await world.run()

    assert world.condition("Ready")["status"] == "True"
