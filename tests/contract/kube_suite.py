"""What `kube.Api` promises; run on the fake in tests/contract and on a real API server in tests/e2e."""

from __future__ import annotations

import pytest

from duckmesh_operator.errors import Conflict, Invalid, NotFound
from duckmesh_operator.kube import Api
from duckmesh_operator.names import LEASE, NETWORK_POLICY, REVISION, SERVICE
from duckmesh_operator.plan import has_foreign_fields
from tests.fakes.kube import Object


def service(namespace: str, name: str, **spec: object) -> Object:
    port = {"name": "api", "port": 80, "protocol": "TCP"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": {"suite": name}},
        "spec": {"selector": {"app": "x"}, "ports": [port], **spec},
    }


class KubeSuite:
    """Needs the fixtures `api` and `namespace`; each test uses names of its own."""

    async def test_a_missing_object_is_not_found(self, api: Api, namespace: str) -> None:
        with pytest.raises(NotFound):
            await api.get(SERVICE, namespace, "nobody")

    async def test_apply_makes_an_object_with_uid_version_and_generation(
        self, api: Api, namespace: str
    ) -> None:
        made = await api.apply(service(namespace, "made"))

        assert made["metadata"]["uid"]
        assert made["metadata"]["resourceVersion"]
        found = await api.get(SERVICE, namespace, "made")
        assert found["kind"] == "Service"
        assert found["spec"]["ports"][0]["port"] == 80

    async def test_the_same_apply_again_changes_nothing(self, api: Api, namespace: str) -> None:
        one = await api.apply(service(namespace, "same"))
        other = await api.apply(service(namespace, "same"))

        assert one["metadata"]["resourceVersion"] == other["metadata"]["resourceVersion"]

    async def test_apply_removes_what_it_no_longer_says(self, api: Api, namespace: str) -> None:
        extra = service(namespace, "less")
        extra["metadata"]["annotations"] = {"a": "1", "b": "2"}
        await api.apply(extra)
        extra["metadata"]["annotations"] = {"a": "1"}

        found = await api.apply(extra)

        assert found["metadata"]["annotations"] == {"a": "1"}

    async def test_create_refuses_a_taken_name(self, api: Api, namespace: str) -> None:
        await api.create(service(namespace, "taken"))

        with pytest.raises(Conflict):
            await api.create(service(namespace, "taken"))

    async def test_list_finds_by_label_and_says_kind(self, api: Api, namespace: str) -> None:
        await api.apply(service(namespace, "listed"))
        await api.apply(service(namespace, "other"))

        found = await api.list(SERVICE, namespace, {"suite": "listed"})

        assert [(one["kind"], one["metadata"]["name"]) for one in found] == [("Service", "listed")]

    async def test_replace_of_an_old_version_conflicts(self, api: Api, namespace: str) -> None:
        lease = {
            "apiVersion": LEASE.api_version,
            "kind": "Lease",
            "metadata": {"name": "held", "namespace": namespace},
            "spec": {"holderIdentity": "a"},
        }
        old = await api.create(lease)
        await api.replace(old | {"spec": {"holderIdentity": "b"}})

        with pytest.raises(Conflict):
            await api.replace(old | {"spec": {"holderIdentity": "c"}})
        found = await api.get(LEASE, namespace, "held")
        assert found["spec"]["holderIdentity"] == "b"

    async def test_delete_takes_this_very_object_and_may_be_repeated(
        self, api: Api, namespace: str
    ) -> None:
        made = await api.apply(service(namespace, "going"))
        name, uid = "going", made["metadata"]["uid"]

        await api.delete(SERVICE, namespace, name, "11111111-2222-4333-8444-555555555555")
        assert (await api.get(SERVICE, namespace, name))["metadata"]["uid"] == uid
        await api.delete(SERVICE, namespace, name, uid)
        await api.delete(SERVICE, namespace, name, uid)
        with pytest.raises(NotFound):
            await api.get(SERVICE, namespace, name)

    async def test_a_finalizer_keeps_a_deleted_object_until_it_is_taken_off(
        self, api: Api, namespace: str
    ) -> None:
        made = await api.apply(service(namespace, "kept"))
        uid = made["metadata"]["uid"]
        held = await api.set_finalizers(made, ["duckmesh.io/suite"])
        assert held["metadata"]["finalizers"] == ["duckmesh.io/suite"]

        await api.delete(SERVICE, namespace, "kept", uid)
        going = await api.get(SERVICE, namespace, "kept")
        assert going["metadata"]["deletionTimestamp"]
        await api.set_finalizers(going, [])

        with pytest.raises(NotFound):
            await api.get(SERVICE, namespace, "kept")
        with pytest.raises(NotFound):
            await api.set_finalizers(going, [])

    async def test_set_finalizers_of_an_old_version_conflicts(
        self, api: Api, namespace: str
    ) -> None:
        old = await api.apply(service(namespace, "changed"))
        await api.apply(service(namespace, "changed", sessionAffinity="ClientIP"))

        with pytest.raises(Conflict):
            await api.set_finalizers(old, ["duckmesh.io/suite"])
        found = await api.get(SERVICE, namespace, "changed")
        assert "finalizers" not in found["metadata"]

    async def test_a_delete_that_waits_leaves_the_object_to_the_garbage_collector(
        self, api: Api, namespace: str
    ) -> None:
        made = await api.apply(service(namespace, "lingering"))
        uid = made["metadata"]["uid"]

        await api.delete(SERVICE, namespace, "lingering", uid, wait=True)

        try:
            found = await api.get(SERVICE, namespace, "lingering")
        except NotFound:
            return  # it was quick
        assert found["metadata"]["deletionTimestamp"]
        assert "foregroundDeletion" in found["metadata"]["finalizers"]

    async def test_apply_with_a_uid_never_makes_or_takes_another_object(
        self, api: Api, namespace: str
    ) -> None:
        made = service(namespace, "pinned")
        await api.apply(made)
        made["metadata"]["uid"] = "11111111-2222-4333-8444-555555555555"

        with pytest.raises((Conflict, Invalid, NotFound)):
            await api.apply(made)

    async def test_replace_spec_takes_out_what_is_not_in_it(self, api: Api, namespace: str) -> None:
        policy = {
            "apiVersion": NETWORK_POLICY.api_version,
            "kind": "NetworkPolicy",
            "metadata": {"name": "open", "namespace": namespace},
            "spec": {
                "podSelector": {"matchLabels": {"suite": "none"}},
                "policyTypes": ["Ingress"],
                "ingress": [{"ports": [{"port": 1, "protocol": "TCP"}]}],
            },
        }
        live = await api.apply(policy)
        spec = {key: value for key, value in policy["spec"].items() if key != "ingress"}

        found = await api.replace_spec(live, spec)

        assert "ingress" not in found["spec"]
        assert not has_foreign_fields(found)

    async def test_replace_spec_of_an_old_version_conflicts(self, api: Api, namespace: str) -> None:
        old = await api.apply(service(namespace, "moved"))
        await api.apply(service(namespace, "moved", selector={"app": "y"}))

        with pytest.raises(Conflict):
            await api.replace_spec(old, {**old["spec"], "selector": {"app": "z"}})

    async def test_a_revision_cannot_change(self, api: Api, namespace: str) -> None:
        revision = {
            "apiVersion": REVISION.api_version,
            "kind": "ControllerRevision",
            "metadata": {"name": "one", "namespace": namespace},
            "revision": 1,
            "data": {"template": {"a": 1}},
        }
        await api.apply(revision)

        with pytest.raises(Invalid):
            await api.apply(revision | {"data": {"template": {"a": 2}}})
