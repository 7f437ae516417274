"""What Flux and Argo CD make of a Tenant's status: kstatus' rules, and the Lua check, over what the operator writes."""

from __future__ import annotations

import subprocess
from datetime import timedelta
from typing import Any

import pytest

from duckmesh_operator.lag import CatalogHealth
from duckmesh_operator.status import Problem, build_status
from tests.pages import DOCS
from tests.tools import LUA, have
from tests.unit.operator.test_lag import START, report
from tests.unit.operator.test_status import NOW, situation, track, worker

CHECK = DOCS / "examples" / "argocd-tenant-health.lua"
Object = dict[str, Any]
BREACH = track(report(0, lag=90), report(60, lag=150))


def tenant(more: Object) -> Object:
    made = situation(**more)
    return {"metadata": {"generation": made.meta.generation}, "status": build_status(made, NOW)}


def kstatus(obj: Object) -> str:
    """As sigs.k8s.io/cli-utils/pkg/kstatus computes it for a kind that it does not know."""
    status = obj.get("status", {})
    if obj["metadata"].get("deletionTimestamp"):
        return "Terminating"
    if (
        "observedGeneration" in status
        and status["observedGeneration"] != (obj["metadata"]["generation"])
    ):
        return "InProgress"
    conditions = status.get("conditions", [])
    for one in conditions:
        if one["type"] == "Reconciling" and one["status"] == "True":
            return "InProgress"
        if one["type"] == "Stalled" and one["status"] == "True":
            return "Failed"
    ready = next((one["status"] for one in conditions if one["type"] == "Ready"), None)
    return "Current" if ready in (None, "True") else "InProgress"


def argo(obj: Object) -> tuple[str, str]:
    """Health and message of the check, run by Lua."""
    program = (
        f"local obj = {lua(obj)}\nlocal found = (function()\n{CHECK.read_text()}\nend)()\n"
        "io.write(found.status, '\\n', found.message)"
    )
    run = subprocess.run(
        [str(have(LUA)), "-"], input=program, capture_output=True, text=True, check=True, timeout=60
    )
    health, _, message = run.stdout.partition("\n")
    return health, message


def lua(value: Any) -> str:
    """A Lua literal."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"[{lua(key)}] = {lua(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ", ".join(map(lua, value)) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    return "nil" if value is None else str(value)


@pytest.mark.parametrize(
    ("more", "flux", "health", "reason"),
    [
        pytest.param({}, "Current", "Healthy", "AllReady", id="healthy"),
        pytest.param(
            {"installed": False, "migration": "running", "workers": ()},
            *("InProgress", "Progressing", "Migrating"),
            id="new",
        ),
        pytest.param(
            {"workers": (worker("ingest", 2, 1), worker("query", 1))},
            *("InProgress", "Progressing", "RollingOut"),
            id="rolling-out",
        ),
        pytest.param(
            {
                "workers": (
                    worker("ingest", 2, settled=False, stuck=True),
                    worker("query", 1),
                )
            },
            *("Failed", "Degraded", "RolloutStuck"),
            id="stuck-while-those-of-before-serve",
        ),
        pytest.param(
            {"spec_problem": Problem(reason="PrefixInUse", message="Taken.")},
            *("Failed", "Degraded", "PrefixInUse"),
            id="bad-spec",
        ),
        pytest.param(
            {"problems": (Problem(reason="NameConflict", message="Taken.", stalled=True),)},
            *("Failed", "Degraded", "NameConflict"),
            id="conflict",
        ),
        pytest.param(
            {
                "catalog": CatalogHealth(ok=False, reason="Unreachable"),
                "track": None,
            },
            *("InProgress", "Progressing", "Unreachable"),
            id="catalog-down",
        ),
        pytest.param({"track": BREACH}, "Current", "Degraded", "LagBreach", id="lag"),
        pytest.param(
            {
                "spec": {"suspend": True},
                "workers": (worker("ingest", 0), worker("query", 0)),
            },
            *("InProgress", "Suspended", "Suspended"),
            id="suspended",
        ),
        pytest.param(
            {"spec": {"paused": True}}, "Current", "Healthy", "AllReady", id="paused-and-healthy"
        ),
    ],
)
def test_tools_read_the_status_as_it_is_meant(
    more: Object, flux: str, health: str, reason: str
) -> None:
    obj = tenant(more)

    assert kstatus(obj) == flux
    found, message = argo(obj)
    assert (found, message.partition(":")[0]) == (health, reason)


@pytest.mark.parametrize(
    "status",
    [
        pytest.param({}, id="no-status"),
        pytest.param(
            {
                "conditions": [
                    {"type": "Ready", "status": "Unknown", "reason": "Pending", "message": "m"}
                ]
            },
            id="seeded",
        ),
    ],
)
def test_a_tenant_that_nobody_has_seen_is_not_healthy(status: Object) -> None:
    obj = {"metadata": {"generation": 1}, "status": status}

    assert argo(obj)[0] == "Progressing"
    assert kstatus(obj) == ("InProgress" if status else "Current"), "the seeds are what helps Flux"


def test_an_old_status_is_no_answer_to_a_new_spec() -> None:
    obj = tenant({})
    obj["metadata"]["generation"] += 1

    assert kstatus(obj) == "InProgress"
    assert argo(obj)[0] == "Progressing"


def test_the_case_of_lag_is_one() -> None:
    assert BREACH.report.now - START >= timedelta(seconds=60)
    assert BREACH.lag_class == "breach"
