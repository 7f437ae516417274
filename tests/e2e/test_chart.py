"""What helm makes of the chart: manifests that operator and images understand, rights that the cluster enforces."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from duckmesh_operator import settings
from duckmesh_runtime.dev.services import services_from_env
from tests.e2e.cluster.settings import Settings as Cluster
from tests.e2e.product import SYSTEM

Kubectl = Callable[..., subprocess.CompletedProcess[str]]
Manifest = dict[str, Any]
CHART = Path(__file__).parents[2] / "charts" / "duckmesh"
TRIAL = ("devservices.enabled=true",)


@pytest.fixture(scope="session")
def helm(request: pytest.FixtureRequest) -> str:
    """Path of helm: the machine's own, or the one that comes with the cluster."""
    built = Cluster.from_env(os.environ).bin / "helm"
    if found := shutil.which("helm") or (str(built) if built.exists() else None):
        return found
    request.getfixturevalue("kube")
    return str(built)


def render(helm: str, *sets: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    options = [f"--set={item}" for item in sets]
    return subprocess.run(
        [helm, "template", "duckmesh", str(CHART), "-n", SYSTEM, *options],
        capture_output=True,
        text=True,
        check=check,
        timeout=60,
    )


def manifests(helm: str, *sets: str) -> list[Manifest]:
    return [doc for doc in yaml.safe_load_all(render(helm, *sets).stdout) if doc]


def pick(found: list[Manifest], kind: str, name: str) -> Manifest:
    (one,) = [m for m in found if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return one


def pods(found: list[Manifest]) -> list[Manifest]:
    return [
        m["spec"]["template"]["spec"] for m in found if m["kind"] in ("Deployment", "StatefulSet")
    ]


def read_config(found: list[Manifest], folder: Path) -> settings.Settings:
    file = folder / "operator.yaml"
    file.write_text(pick(found, "ConfigMap", "duckmesh-operator")["data"]["operator.yaml"])
    return settings.from_env(
        {"DUCKMESH_OPERATOR_CONFIG": str(file), "DUCKMESH_OPERATOR_NAMESPACE": SYSTEM}
    )


def test_chart_passes_lint(helm: str) -> None:
    for sets in ((), TRIAL):
        options = [f"--set={item}" for item in sets]
        subprocess.run(
            [helm, "lint", "--strict", str(CHART), *options], check=True, capture_output=True
        )


@pytest.mark.parametrize(
    ("value", "word"),
    [("operator.replica=2", "replica"), ("images.pullPolicy=Sometimes", "pullPolicy")],
)
def test_helm_refuses_bad_values_by_name(helm: str, value: str, word: str) -> None:
    done = render(helm, value, check=False)

    assert done.returncode != 0
    assert word in done.stderr


def test_operator_understands_its_configuration(helm: str, tmp_path: Path) -> None:
    config = read_config(manifests(helm), tmp_path)

    assert config.runtime_image == "localhost/duckmesh-runtime:0.1.0"
    assert config.sandbox_image == "localhost/duckmesh-sandbox:0.1.0"
    assert config.runtime_version == "0.1.0"
    assert config.catalogs["default"].admin_secret == "duckmesh-catalog-default"
    assert config.stores["default"].bucket == "duckmesh"
    assert config.profiles["default"].query.memory == "2Gi"


def test_operator_understands_every_value_of_a_catalog_store_and_profile(
    helm: str, tmp_path: Path
) -> None:
    config = read_config(
        manifests(
            helm,
            "catalogs[0].name=eu,catalogs[0].secretName=eu-catalog",
            "catalogs[0].egress.cidrs[0]=10.0.0.0/8,catalogs[0].egress.ports[0]=6432",
            "stores[0].name=eu,stores[0].secretName=eu-store,stores[0].bucket=eu-data",
            "stores[0].endpoint=https://s3.example.com,stores[0].region=eu-central-1",
            "profiles[0].name=big,profiles[0].priorityClassName=high",
            "profiles[0].ingest.max.cpu=8,profiles[0].nodeSelector.disk=ssd",
            "operator.config.allowedLabels[0]=cost-center",
        ),
        tmp_path,
    )

    assert config.catalogs["eu"].egress.cidrs == ("10.0.0.0/8",)
    assert config.catalogs["eu"].egress.ports == (6432,)
    assert config.stores["eu"].endpoint == "https://s3.example.com"
    assert config.stores["eu"].region == "eu-central-1"
    assert config.profiles["big"].placement["nodeSelector"] == {"disk": "ssd"}
    assert config.profiles["big"].ingest.cpu == "8"
    assert config.allowed_labels == ("cost-center",)


def test_folders_of_the_configuration_are_what_the_pod_mounts(helm: str, tmp_path: Path) -> None:
    found = manifests(helm)
    config = read_config(found, tmp_path)
    pod = pick(found, "Deployment", "duckmesh-operator")["spec"]["template"]["spec"]

    (mount,) = [m for c in pod["containers"] for m in c["volumeMounts"] if m["name"] == "config"]
    (volume,) = [v for v in pod["volumes"] if v["name"] == "config"]
    files = {
        str(Path(mount["mountPath"], item["path"]))
        for source in volume["projected"]["sources"]
        for item in source.get("secret", {}).get("items", [])
    }

    assert files == {
        str(config.catalogs["default"].secret_dir / "control-dsn"),
        str(config.stores["default"].secret_dir / "access-key-id"),
        str(config.stores["default"].secret_dir / "secret-access-key"),
    }


def test_trial_services_are_behind_the_default_catalog_and_store(helm: str, tmp_path: Path) -> None:
    found = manifests(helm, *TRIAL)

    config = read_config(found, tmp_path)

    host = f"duckmesh-devservices.{SYSTEM}.svc"
    dsns = pick(found, "Secret", "duckmesh-catalog-default")["stringData"]
    keys = pick(found, "Secret", "duckmesh-devservices")["stringData"]
    store = pick(found, "Secret", "duckmesh-store-default")["stringData"]
    assert config.stores["default"].endpoint == f"http://{host}:8333"
    assert config.stores["default"].egress.restricted
    assert config.catalogs["default"].egress.restricted
    assert dsns == {
        "admin-dsn": f"postgresql://postgres:{keys['postgres-password']}@{host}:5432/duckmesh",
        "control-dsn": f"postgresql://duckmesh_operator:{keys['control-password']}@{host}:5432/duckmesh",
    }
    assert store == {
        "access-key-id": keys["s3-access-key"],
        "secret-access-key": keys["s3-secret-key"],
    }


def test_trial_services_understand_their_environment(helm: str) -> None:
    found = manifests(helm, *TRIAL)
    (container,) = pick(found, "StatefulSet", "duckmesh-devservices")["spec"]["template"]["spec"][
        "containers"
    ]
    keys = pick(found, "Secret", "duckmesh-devservices")["stringData"]
    env = {
        entry["name"]: entry.get("value") or keys[entry["valueFrom"]["secretKeyRef"]["key"]]
        for entry in container["env"]
    }

    read = services_from_env(env)

    assert read.postgres_password == keys["postgres-password"]
    assert read.s3_secret_key == keys["s3-secret-key"]
    assert {port["containerPort"] for port in container["ports"]} == {
        read.postgres_port,
        read.s3_port,
    }


@pytest.mark.parametrize("sets", [(), TRIAL], ids=["plain", "trial"])
def test_every_pod_is_restricted(helm: str, sets: tuple[str, ...]) -> None:
    for pod in pods(manifests(helm, *sets)):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "runAsNonRoot": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            assert container["readinessProbe"]


def test_cluster_wide_parts_can_be_left_to_an_administrator(helm: str) -> None:
    found = manifests(helm, "crds.install=false,admissionPolicy.install=false")

    kinds = {m["kind"] for m in found}
    assert kinds.isdisjoint({"CustomResourceDefinition", "ValidatingAdmissionPolicy"})


def test_resources_outlive_the_release(helm: str) -> None:
    crds = [m for m in manifests(helm) if m["kind"] == "CustomResourceDefinition"]

    assert len(crds) == 2
    assert {c["metadata"]["annotations"]["helm.sh/resource-policy"] for c in crds} == {"keep"}


# From here on: the installed chart.


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    name = "chart-story"
    kubectl("delete", "namespace", name, "--ignore-not-found", "--timeout=60s")
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")


def test_protected_tenant_is_not_deleted_but_its_namespace_is(
    kubectl: Kubectl, namespace: str
) -> None:
    body = {
        "apiVersion": "duckmesh.io/v1alpha1",
        "kind": "Tenant",
        "metadata": {"name": "safe", "namespace": namespace},
        "spec": {"suspend": True, "paused": True, "deletionProtection": True},
    }
    kubectl("apply", "-f", "-", input=json.dumps(body))

    refused = kubectl("delete", "tenant", "safe", "-n", namespace, check=False)

    assert refused.returncode != 0
    assert f"Tenant {namespace}/safe is protected" in refused.stderr
    assert "set spec.deletionProtection to false" in refused.stderr
    kubectl("delete", "namespace", namespace, "--timeout=60s")


def test_edit_role_of_a_namespace_covers_tenants(kubectl: Kubectl, namespace: str) -> None:
    def may(verb: str, role: str) -> bool:
        kubectl(
            "create",
            "rolebinding",
            role,
            f"--clusterrole={role}",
            f"--user={role}-person",
            "-n",
            namespace,
        )
        who = f"--as={role}-person"
        return (
            kubectl(
                "auth", "can-i", verb, "tenants.duckmesh.io", who, "-n", namespace, check=False
            ).stdout.strip()
            == "yes"
        )

    assert may("create", "edit")
    assert not may("create", "view")


def test_operator_may_not_list_secrets_or_run_commands(kubectl: Kubectl) -> None:
    who = f"--as=system:serviceaccount:{SYSTEM}:duckmesh-operator"

    def may(verb: str, what: str) -> bool:
        done = kubectl("auth", "can-i", verb, what, who, "-n", "default", check=False)
        return done.stdout.strip() == "yes"

    assert may("get", "secrets")
    assert not may("list", "secrets")
    assert not may("create", "pods/exec")
    assert not may("create", "jobs")


def test_upgrade_keeps_the_passwords(helm: str, kubectl: Kubectl, kube: Any) -> None:
    def dsn() -> bytes:
        done = kubectl("get", "secret", "duckmesh-catalog-default", "-n", SYSTEM, "-o", "json")
        return base64.b64decode(json.loads(done.stdout)["data"]["admin-dsn"])

    before = dsn()

    kube.helm("upgrade", "duckmesh", str(CHART), "-n", SYSTEM, "--reuse-values")

    assert dsn() == before
