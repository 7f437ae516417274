"""The operator as a process, as its pod runs it, but with a kubeconfig."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from duckmesh_runtime.dev.processes import end, free_port, tail

VERSION: Final = "0.1.0"


@dataclass
class OperatorProcess:
    """One process; `start` may be called again after it ended.

    Attributes:
        folder: For its log; shared by processes of other names.
        kubeconfig: Leads it to the API server.
        config: Its YAML file.
        system: Its namespace.
        name: Of its pod.
    """

    folder: Path
    kubeconfig: Path
    config: Path
    system: str
    name: str = "operator-0"
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the operator was not started"
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Exit code; None while it runs."""
        assert self._process is not None, "the operator was not started"
        return self._process.poll()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "duckmesh_operator"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    "PATH": os.environ["PATH"],
                    "KUBECONFIG": str(self.kubeconfig),
                    "DUCKMESH_OPERATOR_CONFIG": str(self.config),
                    "DUCKMESH_OPERATOR_NAMESPACE": self.system,
                    "DUCKMESH_POD_NAME": self.name,
                    "DUCKMESH_BIND": "127.0.0.1",
                    "DUCKMESH_METRICS_PORT": str(self.port),
                },
            )

    def kill(self) -> None:
        """As a node that loses power does it."""
        if self._process is not None:
            end(self._process, signal.SIGKILL)

    def stop(self) -> int:
        """As Kubernetes asks; returns the exit code."""
        assert self._process is not None, "the operator was not started"
        end(self._process, signal.SIGTERM, 40)
        return self._process.wait()

    def probe(self, path: str) -> tuple[int, str]:
        """Answer of /healthz or /readyz; 0 when nothing answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as found:
                return found.status, found.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples with these labels; 0 when nothing answers."""
        _, text = self.probe("/metrics")
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if line.split("{")[0].split(" ")[0] == name and all(one in line for one in wanted)
        )

    def tail(self, lines: int = 20) -> str:
        return tail(self.log, lines)


def write_config(
    path: Path, secrets: Path, *, store: Mapping[str, str] | None = None, **more: Any
) -> Path:
    """The operator's YAML file, with mounted Secrets below a folder.

    Args:
        path: Of the file.
        secrets: Folder of the mounted Secrets.
        store: Bucket and endpoint where they are not of a store that nobody reaches.
        more: Further values.
    """
    values: Mapping[str, Any] = {
        "runtimeImage": f"localhost/duckmesh-runtime:{VERSION}",
        "sandboxImage": f"localhost/duckmesh-sandbox:{VERSION}",
        "runtimeVersion": VERSION,
        "sweepSeconds": 1,
        "allowedLabels": ["team"],
        "catalogs": [
            {
                "name": "default",
                "secretDir": str(secrets / "catalog"),
                "adminSecret": "duckmesh-catalog-default",
                "egress": {"cidrs": ["10.1.0.0/16"]},
            }
        ],
        "stores": [
            {
                "name": "default",
                "bucket": "lakes",
                "endpoint": "http://127.0.0.1:8333",
                "secretDir": str(secrets / "store"),
                "secret": "duckmesh-store-default",
                "egress": {"cidrs": ["10.1.0.0/16"]},
                **(store or {}),
            }
        ],
        "profiles": [
            {
                "name": "default",
                "ingest": {"max": {"cpu": "2", "memory": "2Gi"}},
                "query": {"max": {"cpu": "2", "memory": "2Gi"}},
            }
        ],
    }
    path.write_text(yaml.safe_dump({**values, **more}))
    return path
