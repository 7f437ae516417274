"""What of a status asks for a person, and how it reaches the metrics."""

from __future__ import annotations

import pytest

from duckmesh_operator import metrics
from duckmesh_operator.lag import LagBoard, Objective
from duckmesh_operator.troubles import troubles_of


def condition(kind: str, status: str, reason: str = "Why") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason}


@pytest.mark.parametrize(
    ("kind", "status", "reason", "trouble"),
    [
        ("Ready", "False", "NoCommitter", True),
        ("Ready", "True", "AllReady", False),
        ("Ready", "Unknown", "Pending", False),
        ("Fresh", "False", "LagBreach", True),
        ("Fresh", "True", "AboveTarget", False),
        ("Fresh", "Unknown", "LakeUnreadable", True),
        ("Fresh", "Unknown", "NotReported", False),
        ("DeadLetters", "True", "LettersKept", True),
        ("DeadLetters", "False", "NoLetters", False),
        ("Stalled", "True", "NameConflict", True),
        ("Stalled", "True", "RolloutStuck", True),
        ("Reconciling", "True", "RollingOut", False),
        ("Progressing", "False", "Settled", False),
        ("Progressing", "True", "RemovalFailed", True),
        ("Suspended", "True", "Suspended", False),
        ("EgressRestricted", "False", "PortsOpenAnywhere", False),
    ],
)
def test_only_what_asks_for_a_person_is_a_trouble(
    kind: str, status: str, reason: str, trouble: bool
) -> None:
    found = troubles_of({"conditions": [condition(kind, status, reason)]})

    assert found == ({(kind, reason)} if trouble else set())


def test_a_status_without_conditions_has_no_trouble() -> None:
    assert troubles_of({}) == frozenset()


def test_targets_are_those_of_the_spec() -> None:
    board = LagBoard()
    board.watch("u1", tenant="team/acme", catalog="default", objective=Objective(target_ms=1500))
    board.watch("u2", tenant="team/beta", catalog="default", objective=Objective())

    assert board.targets_s() == {"team/acme": 1.5, "team/beta": 5.0}


def test_metrics_show_targets_and_troubles_and_nothing_of_a_healthy_tenant() -> None:
    shown = metrics.add(
        metrics.TenantCollector(
            dict,
            dict,
            lambda: {"team/acme": 1.5},
            lambda: {"team/acme": {("Ready", "NoCommitter")}, "team/beta": set()},
        )
    )
    text = metrics.expose().decode()
    metrics.remove(shown)

    assert 'duckmesh_operator_tenant_lag_target_seconds{tenant="team/acme"} 1.5' in text
    assert [
        line for line in text.splitlines() if line.startswith("duckmesh_operator_tenant_c")
    ] == [
        'duckmesh_operator_tenant_condition{condition="Ready",reason="NoCommitter",tenant="team/acme"} 1.0'
    ]
