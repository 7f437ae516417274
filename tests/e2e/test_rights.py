"""The operator's rights against what it asked of the API server while the stories ran: none lacks, none is idle.

Runs last (conftest). The API server's audit log tells; a kind cluster writes none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.chart_text import Right, rights
from tests.e2e.cluster import read_settings
from tests.e2e.moments import counts
from tests.e2e.product import SYSTEM, Kube

ACCOUNT = f"system:serviceaccount:{SYSTEM}:duckmesh-operator"
#: OwnerReferencesPermissionEnforcement lets only those who may delete an object change its owners, and the operator gives
#: an object back to its Tenant. It is not among the API server's default plugins, but clusters switch it on.
OWNERS = (
    "changing an object's owners takes the right to delete it where the API server enforces that"
)
#: Rights that no story uses, each with why it is there all the same.
IDLE: dict[Right, str] = {
    ("", "secrets", "delete"): OWNERS,
    ("", "services", "delete"): OWNERS,
    ("", "configmaps", "delete"): OWNERS,
    ("apps", "deployments", "delete"): OWNERS,
    (
        "apps",
        "controllerrevisions",
        "delete",
    ): "a revision is deleted when two newer ones are there",
    ("networking.k8s.io", "networkpolicies", "delete"): OWNERS,
    ("policy", "poddisruptionbudgets", "delete"): "the budget goes when one replica is left",
    ("batch", "jobs", "delete"): "a migrate Job is started again a minute after it failed",
    ("duckmesh.io", "tenants", "patch"): "the finalizer, where deletionPolicy is Delete",
    ("duckmesh.io", "compactors", "get"): "one is read anew after a conflict",
    ("coordination.k8s.io", "leases", "create"): "the first operator of a cluster makes the Lease",
}


def test_operator_has_no_right_too_few_and_none_too_many(
    kube: Kube, request: pytest.FixtureRequest
) -> None:
    log = read_settings().logs / "audit.log"
    if not log.exists():
        pytest.skip("this cluster writes no audit log")

    asked = list(_asked(log))

    assert {_right(event) for event in asked if _denied(event)} == set()
    used = {right for event in asked for right in _used(event)}
    given = rights("tenants") | rights("home") | rights("canary")
    assert used <= given
    if _all_stories_ran(request.session):
        assert given - used - set(IDLE) == set()
    assert set(IDLE) <= given


def _asked(log: Path) -> Iterator[dict[str, Any]]:
    """What the operator asked since this run of the tests began."""
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            if ACCOUNT not in line:
                continue
            event = json.loads(line)
            own = event["user"]["username"] == ACCOUNT and "objectRef" in event
            if own and counts(event["requestReceivedTimestamp"]):
                yield event


def _denied(event: dict[str, Any]) -> bool:
    return event.get("annotations", {}).get("authorization.k8s.io/decision") == "forbid"


def _right(event: dict[str, Any], verb: str = "") -> Right:
    found = event["objectRef"]
    resource = "/".join(part for part in (found["resource"], found.get("subresource")) if part)
    return found.get("apiGroup", ""), resource, verb or event["verb"]


def _used(event: dict[str, Any]) -> Iterator[Right]:
    if _denied(event):
        return
    yield _right(event)
    # Server-side apply of what is not there.
    if event["verb"] == "patch" and event.get("responseStatus", {}).get("code") == 201:
        yield _right(event, "create")


def _all_stories_ran(session: pytest.Session) -> bool:
    ran = {item.path for item in session.items}
    return {*Path(__file__).parent.glob("test_*.py")} <= ran
