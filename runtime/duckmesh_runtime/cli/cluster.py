"""What `kubectl duckmesh` asks kubectl for: Tenants, their admin keys, and a way to their API."""

from __future__ import annotations

import base64
import binascii
import json
import re
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import click

from duckmesh_runtime.cli.connected import UNAVAILABLE
from duckmesh_runtime.cli.upgrade import MANAGER

TENANTS: Final = "tenants.duckmesh.io"
PORT: Final = 8080
_ASK_S: Final = 120.0  # a login in the browser takes its time
_FORWARD_S: Final = 60.0
_END_S: Final = 5.0
_LOOK_S: Final = 0.5
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0
_LISTENING: Final = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+)")
_OPERATOR: Final = "app.kubernetes.io/name=duckmesh,app.kubernetes.io/component=operator"
_RUNTIME_VERSION: Final = re.compile(r'^runtimeVersion: "?([^"\s]+)"?$', re.MULTILINE)
Manifest = dict[str, Any]


class KubectlFailed(click.ClickException):
    """kubectl did not do what it was asked for; it has said why on standard error itself."""

    exit_code = UNAVAILABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A Tenant of the cluster.

    Attributes:
        name: Of the Tenant.
        namespace: Where it is.
        suspended: It has no pods.
        state: Reason and message of its condition `Ready`; empty when it is ready or nothing is known.
    """

    name: str
    namespace: str
    suspended: bool = False
    state: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubectl:
    """kubectl with the options that choose a cluster and a namespace."""

    options: tuple[str, ...] = ()

    @classmethod
    def chosen_by(cls, params: Mapping[str, Any]) -> Kubectl:
        """As the program's parameters choose it: `kubeconfig`, `kube_context`, `namespace`."""
        flags = {
            "--kubeconfig": params.get("kubeconfig"),
            "--context": params.get("kube_context"),
            "--namespace": params.get("namespace"),
        }
        return cls(options=tuple(f"{flag}={value}" for flag, value in flags.items() if value))

    def find_tenant(self, name: str | None) -> Found:
        """The Tenant of this name, or the only one of the namespace.

        Raises:
            click.ClickException: It is not there, or there are several.
        """
        if name is not None:
            return _found(self._json("get", TENANTS, name))
        items = self._json("get", TENANTS)["items"]
        if not items:
            raise click.ClickException("there is no Tenant in this namespace: pass -n NAMESPACE")
        if len(items) > 1:
            names = ", ".join(item["metadata"]["name"] for item in items)
            raise click.ClickException(f"name one of the Tenants of this namespace: {names}")
        return _found(items[0])

    def names_of_tenants(self) -> list[str]:
        """For completion: what kubectl knows at once, else nothing."""
        try:
            run = subprocess.run(  # noqa: S603 - kubectl, with the user's own options
                [*self._command(), "get", TENANTS, "-o", "name", "--request-timeout=3s"],
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=5,
                check=False,
            )
        except (OSError, subprocess.SubprocessError):
            return []
        return [line.rpartition("/")[2] for line in run.stdout.split()]

    def admin_key(self, tenant: Found) -> str:
        """The Tenant's admin key.

        Raises:
            click.ClickException: It is not there, or may not be read.
        """
        name = f"{tenant.name}-admin-key"
        secret = self._json("get", "secret", name, f"--namespace={tenant.namespace}")
        try:
            return base64.b64decode(secret["data"]["key"], validate=True).decode().strip()
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise click.ClickException(
                f"Secret {tenant.namespace}/{name} has no key; the operator makes it anew when it is deleted"
            ) from None

    def forward(self, tenant: Found) -> Forward:
        """A way to the Tenant's API, not open yet."""
        place = (f"--namespace={tenant.namespace}", f"service/{tenant.name}-ingest")
        command = [*self._command(), "port-forward", "--address=127.0.0.1", *place]
        return Forward(command, tenant)

    def tenants(
        self,
        names: Sequence[str] = (),
        *,
        selector: str | None = None,
        namespace: str | None = None,
        everywhere: bool = False,
    ) -> list[Manifest]:
        """Tenants by name, else by label, else all; with their `managedFields`."""
        chosen = ["--show-managed-fields", *_in(namespace)]
        if everywhere:
            chosen.append("--all-namespaces")
        if names:
            return [self._json("get", TENANTS, name, *chosen) for name in names]
        labels = [f"--selector={selector}"] if selector else []
        items: list[Manifest] = self._json("get", TENANTS, *chosen, *labels)["items"]
        return items

    def read(self, namespace: str, name: str) -> Manifest:
        """One Tenant as it is."""
        return self._json("get", TENANTS, name, f"--namespace={namespace}")

    def tenant(self, name: str, namespace: str | None) -> Manifest:
        """One Tenant as it is, of the context's namespace where none is named."""
        return self._json("get", TENANTS, name, *_in(namespace))

    def apply(self, manifest: Manifest) -> None:
        """Make an object, or make it be as this says.

        Raises:
            click.ClickException: The API server refuses it.
        """
        self._json("apply", "-f", "-", text=json.dumps(manifest))

    def wait_for_condition(self, tenant: Manifest, kind: str, *, timeout_s: int) -> bool:
        """Wait until a condition of a Tenant is True; False when it was not in time."""
        deadline = time.monotonic() + timeout_s
        meta = tenant["metadata"]
        while True:
            conditions = self.read(meta["namespace"], meta["name"]).get("status", {})
            states = {one["type"]: one["status"] for one in conditions.get("conditions", [])}
            if states.get(kind) == "True":
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOOK_S)

    def set_version(self, item: Manifest, version: str) -> None:
        """Have `spec.version` under a field manager of its own.

        Raises:
            click.ClickException: The API server refuses it, or the Tenant is another one by now.
        """
        meta = {key: item["metadata"][key] for key in ("name", "namespace", "uid")}
        manifest = {"apiVersion": item["apiVersion"], "kind": item["kind"], "metadata": meta}
        how = ("--server-side", "--force-conflicts", f"--field-manager={MANAGER}")
        self._json(
            "apply", *how, "-f", "-", text=json.dumps(manifest | {"spec": {"version": version}})
        )

    def operator_version(self) -> str:
        """What the operator gives new Tenants, as its configuration says.

        Raises:
            click.ClickException: It is not to be seen, or there are several.
        """
        maps = self._json("get", "configmaps", "--all-namespaces", f"--selector={_OPERATOR}")
        texts = [text for one in maps["items"] for text in one.get("data", {}).values()]
        found = {one[1] for text in texts if (one := _RUNTIME_VERSION.search(text))}
        if len(found) != 1:
            raise click.ClickException(
                "the operator's configuration does not tell one version: pass --to VERSION"
            )
        return found.pop()

    def _json(self, *args: str, text: str | None = None) -> Manifest:
        # kubectl's standard error is the user's: logins ask there, and its errors say what is wrong.
        try:
            run = subprocess.run(  # noqa: S603 - as above
                [*self._command(), *args, "-o", "json"],
                input=text,
                stdout=subprocess.PIPE,
                text=True,
                timeout=_ASK_S,
                check=False,
            )
        except FileNotFoundError:
            raise KubectlFailed("kubectl is not in PATH: install it") from None
        except subprocess.TimeoutExpired:
            raise KubectlFailed(f"kubectl {args[0]} {args[1]} did not end in time") from None
        if run.returncode:
            raise KubectlFailed(f"kubectl {' '.join(args[:3])} failed")
        found: Manifest = json.loads(run.stdout)
        return found

    def _command(self) -> list[str]:
        return ["kubectl", *self.options]


def _in(namespace: str | None) -> list[str]:
    return [f"--namespace={namespace}"] if namespace else []


def _found(item: Manifest) -> Found:
    conditions = item.get("status", {}).get("conditions", [])
    ready: Manifest = next((one for one in conditions if one["type"] == "Ready"), {})
    state = f"{ready.get('reason')}: {ready.get('message')}"
    return Found(
        name=item["metadata"]["name"],
        namespace=item["metadata"]["namespace"],
        suspended=bool(item.get("spec", {}).get("suspend")),
        state="" if ready.get("status") in (None, "True") else state,
    )


class Forward:
    """`kubectl port-forward`, begun anew on the same port when its pod goes; a context that gives the URL.

    Between the two another program of this machine could take the port, as after any port-forward that ended.

    Attributes:
        command: What is run, but for the ports.
    """

    def __init__(self, command: list[str], tenant: Found) -> None:
        self.command = command
        self._tenant = tenant
        self._port = 0
        self._said: deque[str] = deque(maxlen=3)
        self._settled = threading.Event()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._keeper = threading.Thread(target=self._keep, name="port-forward", daemon=True)

    def __enter__(self) -> str:
        self._keeper.start()
        self._settled.wait(_FORWARD_S)
        if not self._port:
            self._close()
            why = self._tenant.state or "; ".join(self._said) or "kubectl said nothing"
            raise KubectlFailed(f"no way to Tenant {self._tenant}: {why}")
        return f"http://127.0.0.1:{self._port}"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        with self._lock:
            self._closing.set()
            process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
        self._keeper.join(_END_S)

    def _keep(self) -> None:
        """Run it until it is closed, or cannot be begun."""
        pause_s = _FIRST_PAUSE_S
        while (process := self._start()) is not None:
            begun = self._follow(process)
            if not self._port:
                break
            pause_s = _FIRST_PAUSE_S if begun else min(2 * pause_s, _LONGEST_PAUSE_S)
            self._closing.wait(pause_s)
        self._settled.set()

    def _start(self) -> subprocess.Popen[str] | None:
        with self._lock:
            if self._closing.is_set():
                return None
            # A session of its own: Ctrl-C is for us, and the way stays open until we are done.
            self._process = subprocess.Popen(  # noqa: S603 - as above
                [*self.command, f"{self._port or ''}:{PORT}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            return self._process

    def _follow(self, process: subprocess.Popen[str]) -> bool:
        """Read what it says to its end; whether it was there for a time."""
        begun = False
        with process:
            for line in process.stdout or ():
                if (found := _LISTENING.search(line)) is not None:
                    begun, self._port = True, int(found[1])
                    self._settled.set()
                else:
                    self._said.append(line.strip())
        return begun
