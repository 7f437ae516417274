"""Child processes of the trial services: a free port, a wait with a deadline, an orderly end."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

UNPRIVILEGED_UID = 65534  # nobody: Postgres refuses to run as root


# Below the ports that Linux gives to outgoing connections (from 32768 on): one of those could take a port before the
# service that it was found for.
_PORTS: Final = range(20_000, 30_000)
_found: set[int] = set()


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nothing listens on at this moment, another one at each call."""
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, suppress(OSError):
            if port not in _found:
                probe.bind((host, port))
                _found.add(port)
                return port
    raise RuntimeError(f"no free port from {_PORTS.start} to {_PORTS.stop}")


def wait_until(
    ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, timeout_s: float
) -> None:
    """Wait for a service to answer.

    Raises:
        RuntimeError: The process ended or did not answer in time; carries the end of its log.
    """
    deadline = time.monotonic() + timeout_s
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            what = "ended" if process.poll() is not None else f"did not answer in {timeout_s:.0f} s"
            raise RuntimeError(f"{Path(str(process.args[0])).name} {what}: {tail(log)}")  # type: ignore[index]  # argv list
        time.sleep(0.02)


def end(process: subprocess.Popen[bytes], how: signal.Signals, timeout_s: float = 20) -> None:
    """Ask a process to end, kill it when it does not, and reap it."""
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def own_by_unprivileged(path: Path) -> None:
    """When running as root, give a folder to the user that Postgres runs as."""
    if os.geteuid() == 0:
        os.chown(path, UNPRIVILEGED_UID, UNPRIVILEGED_UID)


def tail(log: Path, lines: int = 5) -> str:
    """The last lines of a log file."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""
