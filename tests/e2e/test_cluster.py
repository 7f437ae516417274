"""The test cluster is a real Kubernetes: what duckmesh relies on holds, with real pods."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import cluster as clusters
from tests.e2e.cluster import Cluster, Way
from tests.e2e.cluster.node import list_traces
from tests.e2e.cluster.progress import until

_numbers = itertools.count(1)
SERVER = ["python3", "-m", "http.server", "8000", "--directory", "/usr/share"]
LOCKED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
RESTRICTED = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "seccompProfile": {"type": "RuntimeDefault"},
}


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return clusters.up()


@pytest.fixture(scope="module")
def base(cluster: Cluster) -> str:
    """Tag of a plain Python image in the node."""
    return clusters.load_base(cluster)


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    name = f"cluster-{next(_numbers)}"
    cluster.kubectl("delete", "namespace", name, "--ignore-not-found")
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def pod(
    name: str, image: str, command: list[str], *, container: Any = None, spec: Any = None
) -> dict[str, Any]:
    one = {"name": "main", "image": image, "imagePullPolicy": "IfNotPresent", "command": command}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [one | (container or {})],
            **(spec or {}),
        },
    }


def web(image: str, replicas: int = 2) -> dict[str, Any]:
    """A Deployment of web servers with probes, and its Service."""
    template = pod("web", image, SERVER)
    main = template["spec"]["containers"][0]
    main["readinessProbe"] = {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1}
    main["securityContext"] = LOCKED
    template["spec"] |= {"restartPolicy": "Always", "securityContext": RESTRICTED}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": template["metadata"], "spec": template["spec"]},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    return {"apiVersion": "v1", "kind": "List", "items": [deployment, service]}


def apply(
    cluster: Cluster, namespace: str, manifest: object, *args: str, check: bool = True
) -> str:
    return cluster.apply(json.dumps(manifest), "-n", namespace, *args, check=check)


def wait_ready(cluster: Cluster, namespace: str, what: str) -> None:
    cluster.kubectl("wait", "-n", namespace, "--for=condition=Ready", what, "--timeout=60s")


def python(cluster: Cluster, namespace: str, pod_name: str, code: str) -> str | None:
    """Run code in a pod; None when it fails."""
    words = ("exec", "-n", namespace, pod_name, "--", "python3", "-c", code)
    done = cluster.kubectl(*words, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def start_client(cluster: Cluster, namespace: str, image: str, name: str = "client") -> None:
    apply(cluster, namespace, pod(name, image, ["sleep", "600"]))
    wait_ready(cluster, namespace, f"pod/{name}")


def test_a_deployment_gets_ready_and_is_found_by_name(
    cluster: Cluster, namespace: str, base: str
) -> None:
    apply(cluster, namespace, web(base))
    cluster.kubectl("rollout", "status", "-n", namespace, "deployment/web", "--timeout=60s")
    start_client(cluster, namespace, base)
    address = cluster.get("service", "web", "-n", namespace)["spec"]["clusterIP"]

    names = ["web", f"web.{namespace}", f"web.{namespace}.svc.cluster.local"]
    code = f"import socket; print(*{{socket.gethostbyname(n) for n in {names}}})"
    assert python(cluster, namespace, "client", code) == address
    fetch = "import urllib.request as r; print(r.urlopen('http://web/', timeout=5).status)"
    assert (
        until(lambda: python(cluster, namespace, "client", fetch), what="an answer", timeout_s=20)
        == "200"
    )


def test_an_unknown_name_fails_at_once(cluster: Cluster, namespace: str, base: str) -> None:
    if cluster.way is Way.KIND:
        pytest.skip("a kind cluster asks the machine's resolver")
    start_client(cluster, namespace, base)
    code = (
        "import socket, time\n"
        "start = time.monotonic()\n"
        "try: socket.gethostbyname('example.com')\n"
        "except socket.gaierror: print(time.monotonic() - start < 2)"
    )

    assert python(cluster, namespace, "client", code) == "True"


def test_a_changed_secret_reaches_a_running_pod(
    cluster: Cluster, namespace: str, base: str
) -> None:
    def secret(value: str) -> dict[str, Any]:
        data = {"key": base64.b64encode(value.encode()).decode()}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": data}

    mount = {"volumeMounts": [{"name": "s", "mountPath": "/secret", "readOnly": True}]}
    volume = {"volumes": [{"name": "s", "secret": {"secretName": "s"}}]}
    apply(cluster, namespace, secret("first"))
    apply(cluster, namespace, pod("reader", base, ["sleep", "600"], container=mount, spec=volume))
    wait_ready(cluster, namespace, "pod/reader")
    read = "print(open('/secret/key').read())"
    assert python(cluster, namespace, "reader", read) == "first"

    apply(cluster, namespace, secret("second"))

    start = time.monotonic()
    until(
        lambda: python(cluster, namespace, "reader", read) == "second",
        what="the changed Secret in the pod",
        timeout_s=60 if cluster.way is Way.NATIVE else 120,
    )
    print(f"a changed Secret reached the pod after {time.monotonic() - start:.1f} s")


def test_a_network_policy_cuts_off_strangers_only(
    cluster: Cluster, namespace: str, base: str
) -> None:
    apply(cluster, namespace, web(base, replicas=1))
    for name in ("friend", "stranger"):
        start_client(cluster, namespace, base, name)
    cluster.kubectl("rollout", "status", "-n", namespace, "deployment/web", "--timeout=60s")
    fetch = "import urllib.request as r; print(r.urlopen('http://web/', timeout=2).status)"

    def reaches(name: str) -> bool:
        return python(cluster, namespace, name, fetch) == "200"

    until(lambda: reaches("stranger"), what="the way in before the policy", timeout_s=20)
    only_friends = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "only-friends"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [{"podSelector": {"matchLabels": {"app": "friend"}}}],
                    "ports": [{"port": 8000}],
                }
            ],
        },
    }

    apply(cluster, namespace, only_friends)

    until(lambda: not reaches("stranger"), what="the stranger being cut off", timeout_s=20)
    assert reaches("friend")
    probed = cluster.get("deployment", "web", "-n", namespace)["status"]
    assert probed["readyReplicas"] == 1


def test_egress_can_be_limited_to_names_and_one_service(
    cluster: Cluster, namespace: str, base: str
) -> None:
    apply(cluster, namespace, web(base, replicas=1))
    cluster.kubectl("rollout", "status", "-n", namespace, "deployment/web", "--timeout=60s")
    start_client(cluster, namespace, base)
    caged = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "caged"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "client"}},
            "policyTypes": ["Egress"],
            "egress": [
                {
                    "to": [
                        {
                            "namespaceSelector": {},
                            "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
                        }
                    ],
                    "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53}],
                },
                {
                    "to": [{"podSelector": {"matchLabels": {"app": "web"}}}],
                    "ports": [{"port": 8000}],
                },
            ],
        },
    }
    places = [("web", 80), ("kubernetes.default.svc", 443)]
    code = (
        "import socket\n"
        f"for place in {places}:\n"
        "  try: socket.create_connection(place, 2).close(); print('in')\n"
        "  except OSError: print('cut')"
    )
    until(
        lambda: python(cluster, namespace, "client", code) == "in\nin",
        what="both ways before the policy",
        timeout_s=20,
    )

    apply(cluster, namespace, caged)

    until(
        lambda: python(cluster, namespace, "client", code) == "in\ncut",
        what="the API server being cut off, the web server not",
        timeout_s=20,
    )


def test_pod_security_restricted_refuses_and_admits(
    cluster: Cluster, namespace: str, base: str
) -> None:
    label = "pod-security.kubernetes.io/enforce=restricted"
    cluster.kubectl("label", "namespace", namespace, label)

    refusal = apply(cluster, namespace, pod("loose", base, ["sleep", "60"]), check=False)

    assert "violates PodSecurity" in refusal
    container, spec = {"securityContext": LOCKED}, {"securityContext": RESTRICTED}
    locked = pod("locked", base, ["sleep", "60"], container=container, spec=spec)
    apply(cluster, namespace, locked)
    wait_ready(cluster, namespace, "pod/locked")


CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "ponds.cluster.duckmesh.test"},
    "spec": {
        "group": "cluster.duckmesh.test",
        "scope": "Namespaced",
        "names": {"plural": "ponds", "singular": "pond", "kind": "Pond"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {
                                    "ducks": {"type": "integer", "default": 1},
                                    "room": {"type": "integer", "default": 5},
                                    "name": {
                                        "type": "string",
                                        "x-kubernetes-validations": [
                                            {
                                                "rule": "self == oldSelf",
                                                "message": "name is immutable",
                                            }
                                        ],
                                    },
                                },
                                "x-kubernetes-validations": [
                                    {"rule": "self.ducks <= self.room", "message": "too many ducks"}
                                ],
                            }
                        },
                    }
                },
            }
        ],
    },
}


def test_a_resource_of_our_own_is_held_to_its_cel_rules(cluster: Cluster, namespace: str) -> None:
    def pond(**spec: object) -> dict[str, Any]:
        metadata = {"name": "pond"}
        kind = {"apiVersion": "cluster.duckmesh.test/v1", "kind": "Pond"}
        return {**kind, "metadata": metadata, "spec": spec}

    apply(cluster, namespace, CRD)
    try:
        crd = "crd/ponds.cluster.duckmesh.test"
        cluster.kubectl("wait", "--for=condition=Established", crd, "--timeout=30s")
        until(
            lambda: (
                "serverside-applied"
                in apply(cluster, namespace, pond(name="a", ducks=5), check=False)
            ),
            what="the new resource being served",
            timeout_s=20,
        )

        assert "too many ducks" in apply(cluster, namespace, pond(name="a", ducks=6), check=False)
        assert "name is immutable" in apply(cluster, namespace, pond(name="b"), check=False)
        assert cluster.get("ponds", "pond", "-n", namespace)["spec"]["ducks"] == 5
    finally:
        cluster.kubectl("delete", "crd", "ponds.cluster.duckmesh.test")


def test_server_side_apply_tells_of_conflicts(cluster: Cluster, namespace: str) -> None:
    def config(value: str) -> dict[str, Any]:
        kind = {"apiVersion": "v1", "kind": "ConfigMap"}
        return {**kind, "metadata": {"name": "shared"}, "data": {"k": value}}

    def read() -> str:
        return str(cluster.get("configmap", "shared", "-n", namespace)["data"]["k"])

    apply(cluster, namespace, config("one"), "--field-manager=first")

    refusal = apply(cluster, namespace, config("two"), "--field-manager=second", check=False)

    assert "conflict" in refusal
    assert read() == "one"
    apply(cluster, namespace, config("two"), "--field-manager=second", "--force-conflicts")
    assert read() == "two"


def test_a_pod_over_its_memory_limit_is_killed(cluster: Cluster, namespace: str, base: str) -> None:
    limited = {"resources": {"limits": {"memory": "64Mi", "cpu": "500m"}}}
    greedy = ["python3", "-c", "print(len(bytearray(300 << 20)))"]
    apply(cluster, namespace, pod("greedy", base, greedy, container=limited))

    def ended() -> Any:
        found = cluster.get("pod", "greedy", "-n", namespace)["status"]
        states = [one["state"] for one in found.get("containerStatuses", ())]
        return states and states[0].get("terminated")

    state = until(ended, what="the end of the container", timeout_s=60)

    assert (state["reason"], state["exitCode"]) == ("OOMKilled", 137)


def test_helm_installs_upgrades_and_removes(
    cluster: Cluster, namespace: str, base: str, tmp_path: Path
) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: pond\nversion: 0.1.0\n")
    (tmp_path / "values.yaml").write_text("replicas: 1\n")
    for number, item in enumerate(web(base)["items"]):
        text = json.dumps(item).replace('"replicas": 2', '"replicas": {{ .Values.replicas }}')
        (tmp_path / "templates" / f"{number}.yaml").write_text(text)
    chart, wait = str(tmp_path), ("-n", namespace, "--wait", "--timeout", "90s")

    cluster.helm("install", "pond", chart, *wait)
    cluster.helm("upgrade", "pond", chart, "--set", "replicas=2", *wait)

    assert cluster.get("deployment", "web", "-n", namespace)["status"]["readyReplicas"] == 2
    cluster.helm("uninstall", "pond", *wait)
    assert cluster.get("deployments", "-n", namespace)["items"] == []


def test_an_image_is_built_loaded_and_renewed_under_its_tag(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    tag = "localhost/cluster-test:1"
    (tmp_path / "Dockerfile").write_text(
        "ARG BASE\nFROM ${BASE} AS first\nCOPY word /word\nFROM first AS last\nRUN false\n"
    )

    def load(word: str) -> str:
        (tmp_path / "word").write_text(word)
        return clusters.load_image(cluster, tmp_path, tag=tag, target="first")

    def said(name: str) -> str:
        apply(cluster, namespace, pod(name, tag, ["cat", "/word"]))
        done = ("--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", "--timeout=60s")
        cluster.kubectl("wait", "-n", namespace, *done)
        return cluster.kubectl("logs", "-n", namespace, name).stdout

    first = load("quack")
    assert said("first") == "quack"
    assert load("quack") == first
    assert load("honk") != first
    assert said("second") == "honk"


def test_status_tells_of_the_running_cluster(cluster: Cluster) -> None:
    found = clusters.status(cluster.settings)

    assert found.ready
    assert found.version.startswith("v1.")
    assert found.pods > 0


@pytest.fixture
def second(cluster: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """Another cluster beside the one under test, with the programs of the same cache."""
    if cluster.way is Way.KIND:
        pytest.skip("what a kind cluster leaves behind is Docker's affair")
    settings = dataclasses.replace(cluster.settings, number=9, state=tmp_path / "state")
    made = clusters.up(settings)
    yield made
    clusters.down(settings)


def test_down_leaves_nothing_behind(cluster: Cluster, second: Cluster, base: str) -> None:
    clusters.load_base(second)
    apply(second, "default", pod("idle", base, ["sleep", "600"]))
    wait_ready(second, "default", "pod/idle")
    settings = second.settings
    kinds = {trace.split()[0] for trace in list_traces(settings)}
    assert kinds == {"process", "folder", "link", "cgroup"}

    clusters.down(settings)

    assert list_traces(settings) == []
    mounts = Path("/proc/self/mountinfo").read_text()
    assert str(settings.state) not in mounts
    links = {path.name for path in Path("/sys/class/net").iterdir()}
    assert not links & {settings.host_link, settings.node_link}
    assert not list(Path("/sys/fs/cgroup").glob(f"**/{settings.name}"))
    assert _processes_naming(str(settings.state)) == []
    assert clusters.status(cluster.settings).ready, "the other cluster goes on"


def test_a_node_that_was_killed_comes_back_with_its_pods(second: Cluster, base: str) -> None:
    clusters.load_base(second)
    apply(second, "default", web(base, replicas=1))
    second.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    process = next(t for t in list_traces(second.settings) if t.startswith("process"))
    _kill(int(process.split()[1]))
    assert clusters.status(second.settings).version == ""

    clusters.up(second.settings)

    second.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    assert clusters.status(second.settings).ready


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists(), what="the node's end", timeout_s=20)


def _processes_naming(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found
