"""`duckmesh dev` as a running process, and a person in front of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duckmesh_runtime.dev.processes import wait_until

DUCKMESH = [sys.executable, "-m", "duckmesh_runtime"]


@dataclass
class Laptop:
    """A running `duckmesh dev`."""

    process: subprocess.Popen[bytes]
    url: str
    environment: dict[str, str]
    key: str

    def cli(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*DUCKMESH, *args],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


@contextmanager
def laptop(folder: Path, log: Path) -> Iterator[Laptop]:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(log.parent),
        "DUCKMESH_CONNECTION": str(log.parent / "connection.json"),
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*DUCKMESH, "dev", "--dir", str(folder), "--port", "0"],
            env=environment,
            stdout=out,
            stderr=out,
        )
    try:
        wait_until(lambda: b"Ctrl-C" in log.read_bytes(), process, log, 60)
        saved = json.loads((log.parent / "connection.json").read_text())
        yield Laptop(process, saved["url"], environment, saved["api_key"])
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(30)
