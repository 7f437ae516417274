"""The tools of the fault tests: requests are read as RBAC reads them, kills hit once, states differ where they should."""

from __future__ import annotations

import pytest

from tests.faults.kills import KillAt
from tests.faults.proxy import PASS, Call, parse_call
from tests.faults.states import differences


@pytest.mark.parametrize(
    ("method", "path", "query", "call"),
    [
        ("GET", "/api/v1/namespaces/a/secrets/s", {}, "get secrets/s"),
        ("GET", "/api/v1/services", {}, "list services"),
        ("GET", "/apis/apps/v1/deployments", {"watch": "true"}, "watch deployments"),
        ("POST", "/api/v1/namespaces/a/events", {}, "create events"),
        (
            "PATCH",
            "/apis/duckmesh.io/v1alpha1/namespaces/a/tenants/t/status",
            {},
            "patch tenants/t/status",
        ),
        ("DELETE", "/apis/batch/v1/namespaces/a/jobs/j", {}, "delete jobs/j"),
        ("GET", "/api/v1/namespaces/a", {}, "get namespaces/a"),
    ],
)
def test_a_request_is_read_as_rbac_reads_it(
    method: str, path: str, query: dict[str, str], call: str
) -> None:
    assert str(parse_call(method, path, query, b"")) == call


@pytest.mark.parametrize(
    ("mode", "forward", "cut"),
    [("before", False, True), ("untold", True, True), ("after", True, False)],
)
def test_a_kill_hits_one_write_and_nothing_passes_after_it(
    mode: str, forward: bool, cut: bool
) -> None:
    killed: list[bool] = []
    rule = KillAt(2, mode, lambda: killed.append(True))

    assert rule(Call(verb="patch", plural="secrets", count=1)) is PASS
    assert rule(Call(verb="get", plural="secrets")) is PASS
    fault = rule(Call(verb="patch", plural="services", count=2))
    late = rule(Call(verb="patch", plural="services", count=3))

    assert (fault.forward, fault.cut) == (forward, cut)
    assert (late.forward, late.cut) == (False, True)
    assert fault.then is not None
    fault.then()
    assert killed == [True]


def test_states_differ_by_what_is_missing_more_or_other() -> None:
    one = {"Service/a": {"spec": {"port": 1, "type": "x"}}, "Secret/b": {}}
    other = {"Service/a": {"spec": {"port": 2, "type": "x"}}, "Job/c": {}}

    assert differences(one, one) == []
    assert differences(one, other) == [
        "/Job/c: only after faults",
        "/Secret/b: only without",
        "/Service/a/spec/port: 1 without faults, 2 after them",
    ]
