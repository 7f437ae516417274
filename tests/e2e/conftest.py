"""One cluster with the chart for all stories; a namespace of its own for each; the evidence when one fails."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e import moments
from tests.e2e.product import SYSTEM, Kube, Tenant, ensure_installed

assert moments.STARTED  # the run begins here, not at the first test that wants to know


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(600))
    # What the operator asked for is looked at when all stories have been told.
    items.sort(key=lambda item: item.path == here / "test_rights.py")


@pytest.fixture(scope="session")
def kube(request: pytest.FixtureRequest) -> Kube:
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def say(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"[e2e] {text}", flush=True)

    with capture.global_and_fixture_disabled():
        return ensure_installed(say)


@pytest.fixture(scope="session")
def kubectl(kube: Kube) -> Callable[..., subprocess.CompletedProcess[str]]:
    return kube.kubectl


@pytest.fixture
def tenant(kube: Kube, request: pytest.FixtureRequest) -> Iterator[Tenant]:
    """A Tenant, not yet applied, in a namespace of its own."""
    # A name of its own for each run: an earlier run's retained rows belong to that run's Tenant.
    made = Tenant(kube, f"e2e-{uuid.uuid4().hex[:8]}", "shop")
    yield made
    report = getattr(request.node, "call_report", None)
    if report is not None and report.failed:
        print(evidence(made))
    made.delete()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.when == "call":  # type: ignore[attr-defined]  # a TestReport
        item.call_report = report  # type: ignore[attr-defined]  # read by the fixture above
    return report


def evidence(tenant: Tenant) -> str:
    """What a person would look at first."""
    looks = [
        ("get", "tenant", "-n", tenant.namespace, tenant.name, "-o", "yaml"),
        ("get", "all", "-n", tenant.namespace, "-o", "wide"),
        ("get", "events", "-n", tenant.namespace, "--sort-by=.lastTimestamp"),
        (
            "logs",
            "-n",
            tenant.namespace,
            "-l",
            "app.kubernetes.io/name=duckmesh",
            "--all-containers",
            "--tail=40",
        ),
        ("get", "all", "-n", SYSTEM, "-o", "wide"),
        ("logs", "-n", SYSTEM, "-l", "app.kubernetes.io/managed-by=duckmesh-operator", "--tail=40"),
        ("logs", "-n", SYSTEM, "deployment/duckmesh-operator", "--tail=60"),
    ]
    parts = []
    for look in looks:
        run = tenant.kube.kubectl(*look, check=False)
        parts.append(f"--- kubectl {' '.join(look)}\n{run.stdout}{run.stderr}")
    return "\n".join(parts)
