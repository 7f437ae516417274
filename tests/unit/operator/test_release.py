from __future__ import annotations

import pytest

from duckmesh_operator.__main__ import main
from duckmesh_operator.errors import Conflict, NotFound, Unavailable
from duckmesh_operator.names import DEPLOYMENT, FINALIZER, TENANT, Kind
from duckmesh_operator.release import release
from tests.fakes.kube import FakeApi, Object
from tests.tenants import tenant_object

OTHER = "example.com/other"


class Cluster(FakeApi):
    """One whose garbage collector is done with a Deployment between two looks at it."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        if kind is DEPLOYMENT and "delete Deployment/op" in self.writes:
            self.end_pods()
        return await super().get(kind, namespace, name)


@pytest.fixture
def api() -> Cluster:
    made = Cluster()
    pod = {"spec": {"containers": [{"name": "operator"}]}}
    made.add(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "op", "namespace": "system"},
            "spec": {"replicas": 1, "template": pod},
        }
    )
    return made


def add(api: FakeApi, name: str, *finalizers: str, namespace: str = "team") -> None:
    api.add(tenant_object(name=name, namespace=namespace, finalizers=list(finalizers)))


def finalizers(api: FakeApi, name: str, namespace: str = "team") -> object:
    return api.objects["Tenant", namespace, name]["metadata"].get("finalizers")


async def run(api: FakeApi, *served: str) -> int:
    return await release(api, namespace="system", deployment="op", served=served, look_s=0)


async def test_the_operator_stops_before_its_finalizers_come_off(api: Cluster) -> None:
    add(api, "guarded", FINALIZER)
    add(api, "both", OTHER, FINALIZER)
    add(api, "free", OTHER)

    assert await run(api) == 2

    assert api.writes[0] == "delete Deployment/op"
    assert ("Deployment", "system", "op") not in api.objects
    assert not finalizers(api, "guarded")
    assert finalizers(api, "both") == finalizers(api, "free") == [OTHER]
    assert await run(api) == 0


async def test_a_tenant_that_is_being_deleted_goes(api: Cluster) -> None:
    add(api, "going", FINALIZER)
    await api.delete(TENANT, "team", "going", tenant_object()["metadata"]["uid"])

    await run(api)

    assert ("Tenant", "team", "going") not in api.objects


async def test_only_served_namespaces_are_touched(api: Cluster) -> None:
    add(api, "ours", FINALIZER)
    add(api, "theirs", FINALIZER, namespace="elsewhere")

    await run(api, "team")

    assert not finalizers(api, "ours")
    assert finalizers(api, "theirs", "elsewhere") == [FINALIZER]


async def test_a_tenant_changed_meanwhile_is_read_again(api: Cluster) -> None:
    add(api, "busy", FINALIZER)
    api.failing["set_finalizers"] = Conflict("changed")

    assert await run(api) == 1

    assert not finalizers(api, "busy")


@pytest.mark.parametrize("call", ["list Tenant", "set_finalizers Tenant"])
async def test_what_is_gone_already_is_fine(api: Cluster, call: str) -> None:
    add(api, "gone", FINALIZER)
    api.failing[call] = NotFound("gone")

    await run(api)

    assert ("Deployment", "system", "op") not in api.objects


async def test_without_the_api_server_it_fails(api: Cluster) -> None:
    api.failing["list Tenant"] = Unavailable("down")

    with pytest.raises(Unavailable):
        await run(api)


def test_the_command_names_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DUCKMESH_OPERATOR_NAMESPACE", raising=False)

    assert main(["release", "--deployment", "op"]) == 2
    assert "DUCKMESH_OPERATOR_NAMESPACE" in capsys.readouterr().err


def test_the_command_fails_where_there_is_no_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("DUCKMESH_OPERATOR_NAMESPACE", "system")
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/none")

    assert main(["release", "--deployment", "op"]) == 1
