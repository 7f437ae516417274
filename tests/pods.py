"""The processes of a Tenant as its pods start them, over a lake with real services."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from duckmesh_runtime.dev.processes import free_port, wait_until
from tests.fakes.doors import key, write_keys
from tests.services import Lake

ADMIN = ["ingest_writer", "query_reader", "table_admin", "ops_admin"]
AUTHORIZATION = {"Authorization": f"Bearer {key('admin')}"}


@dataclass
class Pod:
    """One process and its ports."""

    process: subprocess.Popen[bytes]
    port: int
    metrics_port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def call(
        self, method: str, path: str, body: object = None, *, timeout: float = 30
    ) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        return self.send(method, path, data, timeout=timeout)

    def send(
        self,
        method: str,
        path: str,
        data: bytes | None,
        *,
        content_type: str = "application/json",
        timeout: float = 30,
        **headers: str,
    ) -> tuple[int, Any]:
        """A call with a body of any format; further headers by their names with `_` for `-`."""
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=data,
            headers={**AUTHORIZATION, "Content-Type": content_type, **more},
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10
        ) as a:
            lines = a.read().decode().splitlines()
        return sum(
            float(line.split()[-1]) for line in lines if line.split("{")[0].split()[0] == name
        )

    def wait(self, what: Callable[[], bool], timeout_s: float = 60) -> None:
        def probe() -> bool:
            try:
                return what()
            except OSError:
                return False

        wait_until(probe, self.process, self.log, timeout_s)

    def is_ready(self) -> bool:
        return self.call("GET", "/v1/ready")[0] == 200

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(30)


@dataclass
class Tenant:
    """Starts the pods of one lake; ends what still runs."""

    lake: Lake
    folder: Path
    pods: list[Pod] = field(default_factory=list)
    query_port: int = field(default_factory=free_port)

    def env(self) -> dict[str, str]:
        store = self.lake.store
        auth = self.folder / "auth"
        if not auth.exists():
            auth.mkdir()
            write_keys(auth, {"admin": ADMIN})
            (self.folder / "catalogs").mkdir()
        return {
            "PATH": os.environ["PATH"],
            "DUCKMESH_TENANT": self.lake.tenant,
            "DUCKMESH_LAKE": self.lake.name,
            "DUCKMESH_DATA_URL": store.url,
            "DUCKMESH_S3_ENDPOINT": store.endpoint,
            "DUCKMESH_STORE_DIR": str(store.secret_dir or ""),
            "DUCKMESH_WRITER_DIR": str(self.lake.writer_dir),
            "DUCKMESH_MAINTENANCE_DIR": str(self.lake.maintenance_dir),
            "DUCKMESH_READER_DIR": str(self.lake.reader_dir),
            "DUCKMESH_AUTH_DIR": str(auth),
            "DUCKMESH_BIND": "127.0.0.1",
            "DUCKMESH_QUERY_URL": f"http://127.0.0.1:{self.query_port}",
            "DUCKMESH_SANDBOX_SOCKET": str(self.folder / "s.sock"),
            "DUCKMESH_CATALOG_DIR": str(self.folder / "catalogs"),
            "DUCKMESH_QUERY_CONCURRENCY": "1",
            "DUCKMESH_DRAIN_S": "10",
        }

    def start(self, *command: str, port: int | None = None, **more: str) -> Pod:
        api, metrics = port or free_port(), free_port()
        name = f"{command[-1]}-{len(self.pods)}"
        log = self.folder / f"{name}.log"
        env = self.env() | {
            "DUCKMESH_API_PORT": str(api),
            "DUCKMESH_METRICS_PORT": str(metrics),
            "DUCKMESH_POD_NAME": name,
            **more,
        }
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "duckmesh_runtime", *command],
                env=env,
                stdout=out,
                stderr=out,
            )
        self.pods.append(Pod(process, api, metrics, log))
        return self.pods[-1]

    def ingest(self, **more: str) -> Pod:
        pod = self.start("serve", "ingest", port=None, **more)
        pod.wait(pod.is_ready)
        return pod

    def query(self) -> Pod:
        self.start("sandbox")
        pod = self.start("serve", "query", port=self.query_port)
        pod.wait(pod.is_ready)
        pod.wait(lambda: pod.call("POST", "/v1/query", {"sql": "SELECT 1"})[0] == 200)
        return pod


@contextmanager
def tenant_of(lake: Lake) -> Iterator[Tenant]:
    # A Unix socket's path has at most 107 bytes: pytest's folders are too deep.
    with tempfile.TemporaryDirectory(prefix="duckmesh-") as folder:
        tenant = Tenant(lake, Path(folder))
        try:
            yield tenant
        finally:
            for pod in tenant.pods:
                if pod.process.poll() is None:
                    pod.process.send_signal(signal.SIGTERM)
            for pod in tenant.pods:
                try:
                    pod.process.wait(20)
                except subprocess.TimeoutExpired:
                    pod.process.kill()
                    pod.process.wait()
