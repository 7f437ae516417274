"""What helm makes of the chart: manifests that operator and images understand, rights that the cluster enforces."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from duckmesh_operator import names, settings
from duckmesh_runtime.dev.services import services_from_env
from tests.contract import chart_text
from tests.contract.chart_text import Right, rights_of
from tests.e2e.charts import (
    CHART,
    GOLDEN,
    NAMESPACED,
    TRIAL,
    WAYS,
    Manifest,
    find_helm,
    golden,
    manifests,
    pod_templates,
    render,
)
from tests.e2e.product import SYSTEM, Kube, Tenant

Kubectl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def helm(request: pytest.FixtureRequest) -> str:
    if found := find_helm():
        return found
    request.getfixturevalue("kube")  # helm comes with the cluster
    built = find_helm()
    assert built
    return built


def pick(found: list[Manifest], kind: str, name: str) -> Manifest:
    (one,) = [m for m in found if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return one


def read_config(found: list[Manifest], folder: Path) -> settings.Settings:
    file = folder / "operator.yaml"
    file.write_text(pick(found, "ConfigMap", "duckmesh-operator")["data"]["operator.yaml"])
    return settings.from_env(
        {"DUCKMESH_OPERATOR_CONFIG": str(file), "DUCKMESH_OPERATOR_NAMESPACE": SYSTEM}
    )


def test_chart_passes_lint(helm: str) -> None:
    for files, sets in WAYS.values():
        options = [f"--values={CHART / file}" for file in files]
        options += [f"--set={item}" for item in sets]
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


@pytest.mark.parametrize("way", WAYS)
def test_every_pod_is_restricted_bounded_and_probed(helm: str, way: str) -> None:
    files, sets = WAYS[way]
    for _, template in pod_templates(manifests(helm, *sets, files=files)):
        pod = template["spec"]
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
            # What runs to its end has nobody to tell that it is ready.
            assert "readinessProbe" in container or pod.get("restartPolicy") in (
                "Never",
                "OnFailure",
            )


@pytest.mark.parametrize("way", WAYS)
def test_manifests_are_the_golden_ones(helm: str, way: str) -> None:
    wanted = (GOLDEN / f"{way}.yaml").read_text(encoding="utf-8")

    assert golden(helm, way) == wanted, "see the change, then `python -m tests.e2e.charts`"


def test_two_operators_are_spread_and_not_evicted_together(helm: str) -> None:
    found = manifests(helm, "operator.replicas=2")

    budget = pick(found, "PodDisruptionBudget", "duckmesh-operator")
    pod = pick(found, "Deployment", "duckmesh-operator")["spec"]["template"]
    (spread,) = pod["spec"]["topologySpreadConstraints"]
    assert budget["spec"]["maxUnavailable"] == 1
    for selector in (budget["spec"]["selector"], spread["labelSelector"]):
        assert selector["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert "PodDisruptionBudget" not in {m["kind"] for m in manifests(helm)}


def rights(found: list[Manifest], kind: str) -> dict[tuple[str, str], set[Right]]:
    """Rights by namespace and name of the Role."""
    return {
        (m["metadata"].get("namespace", ""), m["metadata"]["name"]): rights_of(m["rules"])
        for m in found
        if m["kind"] == kind and runs(m) and m["metadata"]["name"].startswith("duckmesh-operator")
    }


def runs(found: Manifest) -> bool:
    """Whether it is there while the release is, and not for its end only."""
    return "helm.sh/hook" not in found["metadata"].get("annotations", {})


def test_cluster_wide_operator_has_one_role_everywhere_and_one_at_home(helm: str) -> None:
    found = manifests(helm)

    assert rights(found, "ClusterRole") == {("", "duckmesh-operator"): chart_text.rights("tenants")}
    assert rights(found, "Role") == {(SYSTEM, "duckmesh-operator"): chart_text.rights("home")}


def test_namespaced_operator_has_roles_only(helm: str, tmp_path: Path) -> None:
    found = manifests(helm, *NAMESPACED, files=("values-namespaced.yaml",))

    assert {m["kind"] for m in found}.isdisjoint(
        {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "PriorityClass"}
        | {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
    )
    assert all(m["metadata"].get("namespace") for m in found)
    assert rights(found, "Role") == {
        ("shop", "duckmesh-operator-tenants"): chart_text.rights("tenants"),
        ("team", "duckmesh-operator-tenants"): chart_text.rights("tenants"),
        (SYSTEM, "duckmesh-operator"): chart_text.rights("home") | chart_text.rights("canary"),
    }
    for binding in (m for m in found if m["kind"] == "RoleBinding" and runs(m)):
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": "duckmesh-operator", "namespace": SYSTEM}
        ]
    assert read_config(found, tmp_path).watch_namespaces == ("shop", "team")


def test_an_operator_that_serves_its_own_namespace_too_needs_no_more_there(helm: str) -> None:
    found = manifests(helm, f"watchNamespaces={{{SYSTEM}}}")

    assert rights(found, "Role") == {
        (SYSTEM, "duckmesh-operator-tenants"): chart_text.rights("tenants"),
        (SYSTEM, "duckmesh-operator"): chart_text.rights("home"),
    }


def test_cluster_part_lives_in_no_namespace(helm: str) -> None:
    found = manifests(helm, files=("values-cluster.yaml",))

    assert {m["kind"] for m in found} == {
        *("CustomResourceDefinition", "ClusterRole", "PriorityClass"),
        *("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"),
    }
    assert not rights(found, "ClusterRole")


@pytest.mark.parametrize(
    ("sets", "protected"),
    [
        ((), True),
        (("admissionPolicy.install=false",), False),
        (("admissionPolicy.install=false", "admissionPolicy.provided=true"), True),
    ],
    ids=["ours", "none", "someone-elses"],
)
def test_operator_knows_whether_tenants_can_be_protected(
    helm: str, tmp_path: Path, sets: tuple[str, ...], protected: bool
) -> None:
    assert read_config(manifests(helm, *sets), tmp_path).deletion_protection is protected


def test_operator_calls_only_where_catalogs_lie_when_they_say_so(helm: str) -> None:
    def egress(*sets: str) -> list[Manifest]:
        found = manifests(helm, *sets)
        rules: list[Manifest] = pick(found, "NetworkPolicy", "duckmesh-operator")["spec"]["egress"]
        return rules

    places = ("catalogs[0].egress.cidrs={10.0.0.0/8}", "catalogs[0].egress.ports={6432}")
    said = egress(*("catalogs[0].name=eu", "catalogs[0].secretName=eu"), *places)

    assert egress() == [{}]
    assert {} not in said
    assert said[-1] == {
        "to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
        "ports": [{"port": 6432, "protocol": "TCP"}],
    }
    assert {} not in egress(*TRIAL)


def test_monitors_find_operator_and_workers_of_served_namespaces(helm: str) -> None:
    found = manifests(helm, "podMonitor.install=true", *NAMESPACED)

    operator = pick(found, "PodMonitor", "duckmesh-operator")["spec"]
    tenants = pick(found, "PodMonitor", "duckmesh-tenants")["spec"]
    pod = pick(found, "Deployment", "duckmesh-operator")["spec"]["template"]
    ports = {port["name"] for c in pod["spec"]["containers"] for port in c["ports"]}
    assert operator["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert {e["port"] for e in operator["podMetricsEndpoints"]} <= ports
    assert tenants["namespaceSelector"] == {"matchNames": ["shop", "team"]}
    assert tenants["selector"]["matchLabels"] == {names.LABEL_MANAGED_BY: names.MANAGED_BY}


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
    assert not may("create", "pods")
    assert not may("patch", "jobs")


@pytest.fixture
def restricted(kubectl: Kubectl, namespace: str) -> str:
    """A namespace where the API server takes restricted pods only."""
    label = "pod-security.kubernetes.io/enforce=restricted"
    kubectl("label", "namespace", namespace, label)
    return namespace


def test_api_server_takes_every_pod_as_restricted(
    helm: str, kubectl: Kubectl, restricted: str
) -> None:
    seen = set()
    for files, sets in WAYS.values():
        for name, template in pod_templates(manifests(helm, *sets, files=files)):
            seen.add(name)
            spec = template["spec"]
            # Other admission asks for these to exist.
            for reference in ("serviceAccountName", "priorityClassName"):
                spec.pop(reference, None)
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
            kubectl(
                *("create", "--dry-run=server", "-n", restricted, "-f", "-"), input=json.dumps(pod)
            )

    assert seen >= {"duckmesh-operator", "duckmesh-devservices"}


def test_api_server_refuses_a_pod_that_is_not(kubectl: Kubectl, restricted: str) -> None:
    """The check above can fail."""
    container = {"name": "c", "image": "localhost/none", "securityContext": {"privileged": True}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"containers": [container]},
    }

    done = kubectl(
        *("create", "--dry-run=server", "-n", restricted, "-f", "-"),
        input=json.dumps(pod),
        check=False,
    )

    assert "violates PodSecurity" in done.stderr


def test_all_that_runs_is_restricted(kubectl: Kubectl, tenant: Tenant) -> None:
    tenant.apply()
    tenant.wait("Ready")

    for namespace in (SYSTEM, tenant.namespace):
        # A dry run warns of each running pod that the new level would refuse.
        label = "pod-security.kubernetes.io/enforce=restricted"
        done = kubectl("label", "--dry-run=server", "--overwrite", "namespace", namespace, label)
        assert "violate" not in done.stderr


def test_upgrade_keeps_the_passwords(helm: str, kubectl: Kubectl, kube: Kube) -> None:
    def dsn() -> bytes:
        done = kubectl("get", "secret", "duckmesh-catalog-default", "-n", SYSTEM, "-o", "json")
        return base64.b64decode(json.loads(done.stdout)["data"]["admin-dsn"])

    before = dsn()

    kube.helm("upgrade", "duckmesh", str(CHART), "-n", SYSTEM, "--reuse-values")

    assert dsn() == before
