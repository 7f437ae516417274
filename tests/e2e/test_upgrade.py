"""A release's life with real helm: from the release before, back, forward, away and here again. Tenants live through it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e import charts, cluster
from tests.e2e.api import Api
from tests.e2e.charts import CHART, Manifest
from tests.e2e.moments import other_roles
from tests.e2e.product import ROOT, SYSTEM, VERSION, Kube, Tenant, install_chart, wait_for

#: Newest commit of the release before this one; its chart and its operator are taken from the history.
PREVIOUS = "871b78d"
TAG = f"{VERSION}-previous"
OPERATOR = "deployment/duckmesh-operator"
QUICK = ("--set=devservices.enabled=true", "--set=operator.config.sweepSeconds=1")
WAIT = ("-n", SYSTEM, "--wait", "--timeout=5m")


@dataclass(frozen=True, slots=True)
class Release:
    """The release of the chart, and the chart of the release before."""

    kube: Kube
    previous: Path

    def to_previous(self) -> None:
        """As who installed the release before."""
        tag = f"--set=images.operator.tag={TAG}"
        self.kube.helm(
            *("upgrade", "duckmesh", str(self.previous), "--reset-values", *WAIT, *QUICK, tag)
        )

    def upgrade(self, *sets: str) -> None:
        """As who upgrades, with the values of before."""
        tag = f"--set=images.operator.tag={VERSION}"
        self.kube.helm("upgrade", "duckmesh", str(CHART), "--reuse-values", *WAIT, tag, *sets)

    def rollback(self) -> None:
        self.kube.helm("rollback", "duckmesh", *WAIT)

    def uninstall(self) -> None:
        self.kube.helm("uninstall", "duckmesh", *WAIT)


@pytest.fixture
def release(kube: Kube, tmp_path: Path) -> Iterator[Release]:
    git = ["git", "-C", str(ROOT)]
    if subprocess.run([*git, "cat-file", "-e", PREVIOUS], check=False).returncode:
        pytest.skip(f"this copy of the repository has no history: commit {PREVIOUS} is not there")
    for path in ("charts/duckmesh", "operator/duckmesh_operator"):
        packed = subprocess.run([*git, "archive", PREVIOUS, path], check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", str(tmp_path)], input=packed.stdout, check=True)
    # The operator's code of then on the packages of now.
    for path in ("Dockerfile", "requirements.lock", "operator/requirements.lock"):
        shutil.copy(ROOT / path, tmp_path / path)
    shutil.copy(ROOT / "operator/pyproject.toml", tmp_path / "operator")
    tag = f"localhost/duckmesh-operator:{TAG}"
    cluster.load_image(cluster.find_up(), tmp_path, target="operator", tag=tag)
    image = kube.json("get", OPERATOR, "-n", SYSTEM)["spec"]["template"]["metadata"]["annotations"]
    with other_roles():
        yield Release(kube, tmp_path / "charts" / "duckmesh")
        install_chart(kube, operator_image=image["image"])


def test_a_tenant_lives_through_upgrade_rollback_and_uninstall(
    release: Release, tenant: Tenant
) -> None:
    kube = tenant.kube
    release.to_previous()
    tenant.apply()
    tenant.wait("Ready")
    with tenant.door() as url:
        api = Api(url, tenant.admin_key())
        columns = [{"name": "id", "type": "BIGINT"}]
        api.ok("POST", "/v1/tables", {"name": "seen", "columns": columns})
        rows = {"records": [{"payload": {"id": n}} for n in range(3)]}
        token = api.ok("POST", "/v1/ingest/seen", rows)["max_visibility_token"]
        assert api.rows("SELECT count(*) FROM seen", token) == [[3]]
    workers = _workers(tenant)
    resources = _stored_resources(kube)

    # Nothing but `helm upgrade`: the resources too, and what the release before did not know is at its default.
    release.upgrade()
    assert _stored_resources(kube) == _resources_of_chart() != resources
    _reconciled(tenant, "41s")
    assert _workers(tenant) == workers

    release.rollback()
    assert _stored_resources(kube) == resources
    _reconciled(tenant, "42s")
    assert _workers(tenant) == workers

    release.upgrade("--set=devservices.persistence.keep=true")
    _reconciled(tenant, "43s")
    assert _workers(tenant) == workers

    release.uninstall()
    assert _stored_resources(kube) == _resources_of_chart()
    assert "deletionTimestamp" not in tenant.read()["metadata"]
    assert _workers(tenant) == workers
    assert _left(kube) == set()

    install_chart(kube, operator_image="again")
    _reconciled(tenant, "44s")
    assert _workers(tenant) == workers
    with tenant.door() as url:
        more = {"records": [{"payload": {"id": 3}}]}
        api = Api(url, tenant.admin_key())
        token = api.persist("POST", "/v1/ingest/seen", more)["max_visibility_token"]
        assert api.rows("SELECT count(*) FROM seen", token) == [[4]]


def _reconciled(tenant: Tenant, mark: str) -> None:
    """Change the spec in a way that concerns no worker, and wait until the operator says that all is well."""
    change = f'{{"spec": {{"freshness": {{"sustainedFor": "{mark}"}}}}}}'
    tenant.kube.kubectl(
        *("patch", "tenant", tenant.name, "-n", tenant.namespace, "--type=merge", "-p", change)
    )
    tenant.wait("Ready")


def _workers(tenant: Tenant) -> dict[str, int]:
    """Restarts of each container by its pod."""
    found = {
        f"{pod['metadata']['uid']} {container['name']}": container["restartCount"]
        for component in ("ingest", "query")
        for pod in tenant.pods(component)
        for container in [
            *pod["status"]["containerStatuses"],
            *pod["status"].get("initContainerStatuses", []),
        ]
    }
    assert found
    return found


def _stored_resources(kube: Kube) -> dict[str, Manifest]:
    """Names and descriptions of the fields of both resources, as the API server has them."""
    found = kube.json("get", "crds", "tenants.duckmesh.io", "compactors.duckmesh.io")
    return {one["metadata"]["name"]: _fields(one) for one in found["items"]}


def _resources_of_chart() -> dict[str, Manifest]:
    helm = charts.find_helm()
    assert helm
    return {
        one["metadata"]["name"]: _fields(one)
        for one in charts.manifests(helm)
        if one["kind"] == "CustomResourceDefinition"
    }


def _fields(resource: Manifest) -> Manifest:
    (version,) = resource["spec"]["versions"]
    schema: Manifest = version["schema"]["openAPIV3Schema"]
    return schema


def _left(kube: Kube) -> set[str]:
    """What the release left behind, but resources, Tenants and what was asked to stay."""
    kinds = (
        "deployments,statefulsets,services,pods,jobs,configmaps,roles,rolebindings,networkpolicies"
    )
    selector = "app.kubernetes.io/managed-by=Helm,app.kubernetes.io/instance=duckmesh"

    def gone() -> bool:
        assert not kube.json(
            "get", "pods", "-n", SYSTEM, "-l", "app.kubernetes.io/component=operator"
        )["items"]
        return True

    wait_for("the operator's pod to be gone", gone, 60)
    wide = "clusterroles,clusterrolebindings,validatingadmissionpolicies,priorityclasses"
    items = [
        *kube.json("get", kinds, "-n", SYSTEM, "-l", selector)["items"],
        *kube.json("get", wide, "-l", selector)["items"],
    ]
    return {f"{one['kind']}/{one['metadata']['name']}" for one in items}
