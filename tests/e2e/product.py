"""duckmesh on a test cluster: images, chart, a Tenant, a way in. Used by the demo and by every end-to-end test."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.e2e import cluster as clusters

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = "duckmesh-system"
VERSION = "0.1.0"
T = TypeVar("T")

IMAGES = ("operator", "runtime", "sandbox", "devservices")


@dataclass(frozen=True, slots=True)
class Kube:
    """kubectl and helm of one cluster."""

    kubeconfig: Path
    bin_dir: Path

    def kubectl(
        self, *args: str, input: str | None = None, check: bool = True, timeout: float = 180
    ) -> subprocess.CompletedProcess[str]:
        return self._run("kubectl", args, input, check, timeout)

    def helm(
        self, *args: str, check: bool = True, timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        return self._run("helm", args, None, check, timeout)

    def json(self, *args: str) -> Any:
        return json.loads(self.kubectl(*args, "-o", "json").stdout)

    def apply(self, manifest: object) -> None:
        self.kubectl("apply", "-f", "-", input=json.dumps(manifest))

    def secret(self, namespace: str, name: str, key: str) -> str:
        data = self.json("get", "secret", "-n", namespace, name)["data"]
        return base64.b64decode(data[key]).decode().strip()

    def _run(
        self, program: str, args: Sequence[str], input: str | None, check: bool, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        run = subprocess.run(
            [str(self.bin_dir / program), *args],
            input=input,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env=self.env(),
        )
        if check and run.returncode:
            raise AssertionError(
                f"{program} {' '.join(args)}: {run.stderr.strip() or run.stdout.strip()}"
            )
        return run

    def env(self) -> dict[str, str]:
        """The environment of a person who works with this cluster."""
        return os.environ | {
            "KUBECONFIG": str(self.kubeconfig),
            "PATH": f"{self.bin_dir}:{os.environ['PATH']}",
        }


def wait_for(what: str, probe: Callable[[], T], timeout_s: float, interval_s: float = 0.25) -> T:
    """Wait until `probe` returns something true; an AssertionError or OSError in it counts as not yet."""
    deadline = time.monotonic() + timeout_s
    seen: object = None
    while True:
        try:
            if value := probe():
                return value
            seen = value
        except (AssertionError, OSError) as error:
            seen = error
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:.0f} s for {what}; last seen: {seen}")
        time.sleep(interval_s)


def ensure_installed(say: Callable[[str], None]) -> Kube:
    """Cluster up, images in it, chart installed; each step is skipped when it is already so."""
    cluster = clusters.up()
    kube = Kube(cluster.kubeconfig, cluster.bin_dir)
    images = {}
    for target in IMAGES:
        say(f"image {target}")
        images[target] = clusters.load_image(
            cluster, ROOT, target=target, tag=f"localhost/duckmesh-{target}:{VERSION}"
        )
    say("chart duckmesh")
    install_chart(kube, operator_image=images["operator"])
    return kube


def install_chart(kube: Kube, *, operator_image: str) -> None:
    """Install or upgrade the chart with trial services, and wait for them."""
    # The pod's template carries the image's content, so that a rebuilt image is rolled out under its fixed tag.
    values = [
        "--set=devservices.enabled=true",
        "--set=operator.config.sweepSeconds=1",
        f"--set-string=operator.podAnnotations.image={operator_image[:16]}",
    ]
    kube.helm(
        *("upgrade", "--install", "duckmesh", str(ROOT / "charts" / "duckmesh"), "-n", SYSTEM),
        *("--create-namespace", "--wait", "--timeout", "5m", *values),
    )


@dataclass(frozen=True, slots=True)
class Tenant:
    """One Tenant of a test."""

    kube: Kube
    namespace: str
    name: str

    def apply(self, spec: dict[str, Any] | None = None) -> None:
        """Create or change it."""
        self.kube.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
        )
        self.kube.apply(
            {
                "apiVersion": "duckmesh.io/v1alpha1",
                "kind": "Tenant",
                "metadata": {"name": self.name, "namespace": self.namespace},
                "spec": spec or {},
            }
        )

    def patch(self, spec: dict[str, Any]) -> None:
        """Change part of its spec."""
        self.kube.kubectl(
            *("patch", "tenant", self.name, "-n", self.namespace, "--type=merge"),
            *("-p", json.dumps({"spec": spec})),
        )

    def read(self) -> dict[str, Any]:
        found: dict[str, Any] = self.kube.json("get", "tenant", "-n", self.namespace, self.name)
        return found

    def condition(self, kind: str) -> dict[str, Any]:
        """One condition of the status; empty when it is not there."""
        for condition in self.read().get("status", {}).get("conditions", []):
            if condition["type"] == kind:
                return dict(condition)
        return {}

    def wait(self, kind: str, value: str = "True", timeout_s: float = 120) -> None:
        """Wait for a condition that speaks of the newest spec."""

        def holds() -> bool:
            generation = self.read()["metadata"]["generation"]
            found = self.condition(kind)
            holds = found.get("status") == value and found.get("observedGeneration") == generation
            assert holds, f"{found.get('reason')}: {found.get('message')}"
            return holds

        wait_for(f"{kind}={value} on {self.namespace}/{self.name}", holds, timeout_s)

    def row(self, *, wide: bool = True) -> str:
        """What `kubectl get tenants` shows."""
        return self.kube.kubectl(
            "get", "tenants", "-n", self.namespace, self.name, *(["-o", "wide"] if wide else [])
        ).stdout

    def pods(self, component: str) -> list[dict[str, Any]]:
        """Its pods that are not being deleted."""
        selector = f"duckmesh.io/tenant={self.name},app.kubernetes.io/component={component}"
        items = self.kube.json("get", "pods", "-n", self.namespace, "-l", selector)["items"]
        return [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]

    def admin_key(self) -> str:
        return self.kube.secret(self.namespace, f"{self.name}-admin-key", "key")

    @contextmanager
    def door(self) -> Iterator[str]:
        """Base URL of its API, by port-forward as a person would."""
        with port_forward(self.kube, self.namespace, f"service/{self.name}-ingest", 8080) as url:
            yield url

    def delete(self) -> None:
        """Delete the namespace with everything in it, without waiting."""
        self.kube.kubectl(
            "delete", "namespace", self.namespace, "--wait=false", "--ignore-not-found"
        )


@contextmanager
def port_forward(kube: Kube, namespace: str, target: str, port: int) -> Iterator[str]:
    """`kubectl port-forward` to a free local port."""
    process = subprocess.Popen(
        [str(kube.bin_dir / "kubectl"), "port-forward", "-n", namespace, target, f":{port}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=kube.env(),
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"127\.0\.0\.1:(\d+)", line)
        if found is None:
            raise AssertionError(f"port-forward to {target} failed: {line}{process.stdout.read()}")
        yield f"http://127.0.0.1:{found[1]}"
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


_SIGNAL = """
import os, pathlib, signal
for found in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    if b"/weed\\0" in found.read_bytes():
        os.kill(int(found.parent.name), signal.{name})
"""


@contextmanager
def hanging_store(kube: Kube) -> Iterator[None]:
    """The trial object store hangs: it takes connections and answers nothing."""
    pod = ("exec", "-n", SYSTEM, "duckmesh-devservices-0", "--", "python3", "-c")
    kube.kubectl(*pod, _SIGNAL.format(name="SIGSTOP"))
    try:
        yield
    finally:
        kube.kubectl(*pod, _SIGNAL.format(name="SIGCONT"))


# Past the S3 door, which takes no key's word: the filer listens on the pod's own loopback.
_REMOVE = """
import pathlib, re, urllib.request
for found in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    if port := re.search(rb"-filer[.]port=([0-9]+)", found.read_bytes()):
        url = "http://127.0.0.1:" + port[1].decode() + "/buckets/{path}"
        urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=30)
"""


def lose_object(kube: Kube, url: str) -> None:
    """An `s3://` object of the trial store is gone, as if its disk had lost it."""
    path = url.removeprefix("s3://")
    pod = ("exec", "-n", SYSTEM, "duckmesh-devservices-0", "--", "python3", "-c")
    kube.kubectl(*pod, _REMOVE.format(path=path))


def duckmesh(
    url: str, key: str, *args: str, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run the command line as an application team would."""
    return subprocess.run(
        [str(Path(sys.executable).parent / "duckmesh"), *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env=os.environ | {"DUCKMESH_URL": url, "DUCKMESH_API_KEY": key},
    )
