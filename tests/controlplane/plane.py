"""A control plane without nodes: etcd, kube-apiserver and some controllers on loopback, ready in seconds.

The programs are those of `tests/e2e/cluster`. They are children of this process and end with it, also when it is killed;
everything else lies in one folder.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from duckmesh_runtime.dev.processes import end, free_port, tail
from tests.controlplane.pki import Keys
from tests.e2e.cluster.build import build_control_plane
from tests.e2e.cluster.settings import Settings

READY_TIMEOUT_S: Final = 120.0
#: What deletion needs: owners' children go, namespaces empty. Nothing here makes pods.
CONTROLLERS: Final = ("garbage-collector-controller", "namespace-controller")
_SERVICES: Final = "10.96.0.0/16"
#: Ends a program with the process that started it.
_WITH_US: Final = ("setpriv", "--pdeathsig", "KILL")


@dataclass
class ControlPlane:
    """One API server with its store; a context manager.

    Attributes:
        folder: For keys, data and logs; empty at the start.
        controllers: Of kube-controller-manager; empty starts none.
        etcd_port: Where etcd listens.
        port: Where the API server listens.
    """

    folder: Path
    controllers: Sequence[str] = CONTROLLERS
    etcd_port: int = field(default_factory=free_port)
    port: int = field(default_factory=free_port)
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _program: Path = Path()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def kubeconfig(self) -> Path:
        """Of an administrator, straight to the API server."""
        return self.folder / "admin.kubeconfig"

    @property
    def keys(self) -> Keys:
        return Keys(self.folder / "pki")

    def pid(self, name: str) -> int:
        """Process id of `etcd`, `kube-apiserver` or `kube-controller-manager`."""
        return self._processes[name].pid

    def kubectl(self, *args: str, input: str | None = None) -> str:
        """Output of kubectl as administrator.

        Raises:
            AssertionError: It failed.
        """
        done = subprocess.run(
            [self._program, "kubectl", f"--kubeconfig={self.kubeconfig}", *args],
            input=input,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"kubectl {' '.join(args)}: {done.stderr.strip()}"
        return done.stdout

    def __enter__(self) -> Self:
        self._program = build_control_plane(Settings.from_env(os.environ))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.keys.make()
        self.keys.write_kubeconfig(self.kubeconfig, self.url)
        try:
            self._start_etcd()
            self._start_apiserver()
            self._until_ready()
            self._start_controllers()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End all programs; nothing is worth a slow end."""
        for process in reversed(self._processes.values()):
            end(process, signal.SIGKILL)
        self._processes.clear()

    def _start(self, name: str, *flags: str) -> None:
        log = (self.folder / f"{name}.log").open("wb")
        with log:
            self._processes[name] = subprocess.Popen(
                [*_WITH_US, self._program, name, *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder), "GOMAXPROCS": "2"},
            )

    def _start_etcd(self) -> None:
        client = f"http://127.0.0.1:{self.etcd_port}"
        peer = f"http://127.0.0.1:{free_port()}"
        self._start(
            "etcd",
            *("--name=node", f"--data-dir={self.folder / 'etcd'}", "--unsafe-no-fsync"),
            *(f"--listen-client-urls={client}", f"--advertise-client-urls={client}"),
            *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"),
            *(f"--initial-cluster=node={peer}", "--log-level=warn"),
        )

    def _start_apiserver(self) -> None:
        pki = self.keys.folder
        self._start(
            "kube-apiserver",
            *(f"--etcd-servers=http://127.0.0.1:{self.etcd_port}", "--bind-address=127.0.0.1"),
            *(f"--secure-port={self.port}", f"--service-cluster-ip-range={_SERVICES}"),
            # It would publish its address for pods, and loopback is none for them.
            *("--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none"),
            *("--authorization-mode=RBAC", f"--client-ca-file={pki / 'ca.crt'}"),
            *(
                f"--tls-cert-file={pki / 'apiserver.crt'}",
                f"--tls-private-key-file={pki / 'apiserver.key'}",
            ),
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki / 'sa.pub'}",
            f"--service-account-signing-key-file={pki / 'sa.key'}",
        )

    def _start_controllers(self) -> None:
        if not self.controllers:
            return
        self._start(
            "kube-controller-manager",
            *(
                f"--kubeconfig={self.kubeconfig}",
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
            ),
            *(f"--secure-port={free_port()}", f"--controllers={','.join(self.controllers)}"),
            *("--kube-api-qps=500", "--kube-api-burst=1000"),
        )

    def _until_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        tls = self.keys.client_tls()
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=5, context=tls):
                    return
            except (urllib.error.URLError, OSError) as error:
                seen = error
            ended = [
                name for name, process in self._processes.items() if process.poll() is not None
            ]
            if ended or time.monotonic() > deadline:
                name = ended[0] if ended else "kube-apiserver"
                raise AssertionError(
                    f"the API server is not ready ({seen}); the end of {name}'s log:\n"
                    + tail(self.folder / f"{name}.log", 20)
                )
            time.sleep(0.1)
