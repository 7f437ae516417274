from __future__ import annotations

import copy
from typing import Any

import pytest

from duckmesh_operator.plan import Verb, has_foreign_fields, plan
from duckmesh_operator.specs.context import seal
from duckmesh_operator.specs.service import build_service
from tests.tenants import UID, make_tenant


def desired() -> dict[str, Any]:
    return seal(build_service(make_tenant(), "ingest"))


def live(**meta: Any) -> dict[str, Any]:
    made = copy.deepcopy(desired())
    made["metadata"] |= {"uid": "c1", "resourceVersion": "7", **meta}
    made["spec"]["clusterIP"] = "10.0.0.1"
    return made


def decide(one: dict[str, Any] | None) -> list[Verb]:
    found = [] if one is None else [one]
    return [action.verb for action in plan([desired()], found, uid=UID, tenant="acme")]


def test_what_is_as_it_should_be_needs_nothing() -> None:
    assert decide(live()) == []


def test_what_is_missing_is_made() -> None:
    assert decide(None) == [Verb.APPLY]


def test_a_changed_field_is_repaired() -> None:
    changed = live()
    changed["spec"]["selector"]["duckmesh.io/tenant"] = "other"

    assert decide(changed) == [Verb.APPLY]


def test_a_field_that_we_no_longer_set_is_noticed_by_the_digest() -> None:
    assert decide(live(annotations={"duckmesh.io/applied-digest": "older"})) == [Verb.APPLY]


def test_what_is_being_deleted_is_waited_for() -> None:
    assert decide(live(deletionTimestamp="2026-01-01T00:00:00Z")) == [Verb.WAIT]


def test_a_predecessors_child_is_waited_for() -> None:
    assert decide(live(ownerReferences=[{"kind": "Tenant", "uid": "old"}])) == [Verb.WAIT]


@pytest.mark.parametrize(
    "meta",
    [
        pytest.param({"labels": {}, "ownerReferences": []}, id="nobody's"),
        pytest.param(
            {"labels": {}, "ownerReferences": [{"kind": "App", "uid": "x"}]}, id="an-app's"
        ),
        pytest.param(
            {"ownerReferences": [{"kind": "App", "uid": "x"}]}, id="labels-are-not-enough"
        ),
    ],
)
def test_a_foreign_object_is_a_conflict(meta: dict[str, Any]) -> None:
    assert decide(live(**meta)) == [Verb.CONFLICT]


def test_a_stripped_owner_or_label_is_put_back() -> None:
    assert decide(live(ownerReferences=[])) == [Verb.APPLY]
    assert decide(live(labels={})) == [Verb.APPLY]


def test_ours_that_nobody_wants_is_deleted_and_the_rest_left_alone() -> None:
    extra = live(name="old")
    foreign = live(name="theirs", labels={}, ownerReferences=[])

    actions = plan([desired()], [live(), extra, foreign], uid=UID, tenant="acme")

    assert [(one.verb, one.manifest["metadata"]) for one in actions] == [
        (Verb.DELETE, extra["metadata"])
    ]


def fields(manager: str, spec: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"manager": manager, "fieldsV1": {"f:spec": spec}, **more}


OURS = fields("duckmesh", {"f:template": {"f:spec": {"f:containers": {"k:a": {"f:image": {}}}}}})


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        pytest.param([], False, id="none"),
        pytest.param([OURS], False, id="ours"),
        pytest.param(
            [OURS, fields("kubectl", {"f:template": {"f:spec": {"f:hostNetwork": {}}}})],
            True,
            id="added-field",
        ),
        pytest.param(
            [
                OURS,
                fields(
                    "kubectl",
                    {"f:template": {"f:spec": {"f:containers": {"k:evil": {".": {}}}}}},
                ),
            ],
            True,
            id="added-container",
        ),
        pytest.param(
            [
                OURS,
                fields(
                    "kubectl",
                    {"f:template": {"f:spec": {"f:containers": {"k:a": {"f:image": {}}}}}},
                ),
            ],
            False,
            id="same-value-shared",
        ),
        pytest.param(
            [OURS, fields("kubelet", {"f:x": {}}, subresource="status")], False, id="status"
        ),
        pytest.param(
            [
                OURS,
                fields(
                    "kubectl",
                    {
                        "f:template": {
                            "f:metadata": {
                                "f:annotations": {
                                    ".": {},
                                    "f:kubectl.kubernetes.io/restartedAt": {},
                                }
                            }
                        }
                    },
                ),
            ],
            False,
            id="rollout-restart",
        ),
    ],
)
def test_additions_of_others_are_found(entries: list[Any], expected: bool) -> None:
    found = live(managedFields=entries)

    assert has_foreign_fields(found) is expected
    assert decide(found) == ([Verb.REPLACE] if expected else [])
