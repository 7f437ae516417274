"""What a measurement runs against: Postgres with fsync, SeaweedFS, lakes, and the processes of a Tenant."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from duckmesh_runtime.dev.postgres import PostgresServer
from duckmesh_runtime.dev.s3 import S3Server
from tests.bench.figures import cpu_used
from tests.fakes.doors import key
from tests.pods import Pod, Tenant, tenant_of
from tests.services import Lake, new_lake

ROOT = Path(__file__).parents[2]
KEY = key("admin")
COLUMNS = [
    {"name": "id", "type": "BIGINT", "nullable": False},
    {"name": "kind", "type": "VARCHAR"},
    {"name": "amount", "type": "DOUBLE"},
    {"name": "at", "type": "TIMESTAMP WITH TIME ZONE"},
]
"""Of every table measured here, ours and the peers'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One Postgres and one S3 for a whole run."""

    folder: Path
    postgres: PostgresServer
    s3: S3Server

    def lake(self) -> Lake:
        """A fresh lake over S3."""
        return asyncio.run(new_lake(self.folder, self.postgres, s3=self.s3))

    def roots(self, **pods: Pod) -> dict[str, int]:
        """Processes whose processor time counts, by name."""
        services = {"Postgres": self.postgres.pid, "S3": self.s3.pid}
        return {name: pod.process.pid for name, pod in pods.items()} | services


@contextmanager
def running_stack() -> Iterator[Stack]:
    """Start the services; all is removed at the end."""
    with TemporaryDirectory(prefix="duckmesh-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # Postgres runs as another user
        s3 = S3Server(folder / "s3", access_key="bench-key", secret_key="bench-secret")
        with PostgresServer(folder / "postgres") as postgres, s3:
            yield Stack(folder=folder, postgres=postgres, s3=s3)


@contextmanager
def one_ingest(stack: Stack, *, table: Mapping[str, Any] | None = None) -> Iterator[Pod]:
    """One ingest process over a fresh lake, it commits; with the table `load`, or another."""
    with tenant_of(stack.lake()) as tenant:
        yield start_ingest(tenant, table)


def start_ingest(tenant: Tenant, table: Mapping[str, Any] | None = None) -> Pod:
    """Start an ingest process and make the table."""
    pod = tenant.ingest()
    pod.wait(lambda: pod.metric("duckmesh_committer_active") == 1)
    status, answer = pod.call("POST", "/v1/tables", table or {"name": "load", "columns": COLUMNS})
    if status not in (200, 201):
        raise RuntimeError(f"the table cannot be made: {answer}")
    return pod


def run_client(stack: Stack, pod: Pod, kind: str, **options: object) -> dict[str, Any]:
    """Run the load client as a process of its own; its report, with the cores that each side used."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "tests.bench.load", kind, f"--url={pod.url}", *words]
    with cpu_used(stack.roots(ingest=pod)) as used:
        run = subprocess.run(
            [*command, f"--api-key={KEY}"], capture_output=True, text=True, check=False, cwd=ROOT
        )
    if run.returncode:
        raise RuntimeError(f"the load client failed: {run.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(run.stdout)
    report["cores"] = used.cores | {"client": report["client"]["cores"]}
    return report


def cores(report: Mapping[str, Any]) -> str:
    """Who used how much, and whether the client was what limited the figure."""
    text = ", ".join(f"{name} {value:.2f}" for name, value in report["cores"].items())
    return f"cores: {text}{report['client']['limit']}"
