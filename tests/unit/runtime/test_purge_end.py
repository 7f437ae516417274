"""How `duckmesh purge` ends when Kubernetes takes its pod away."""

from __future__ import annotations

import signal
import subprocess
import sys

# As the first process of a container: SIGTERM without a handler does nothing.
_PURGE = """
import asyncio, signal
from duckmesh_runtime import wiring
from duckmesh_runtime.adapters import purge

async def go_on(_):
    print("begun", flush=True)
    while True:
        await asyncio.sleep(1)

signal.signal(signal.SIGTERM, signal.SIG_IGN)
purge.purge = go_on
wiring.run_purge(None)
"""


def test_a_purge_ends_at_once_on_sigterm_even_as_the_first_process() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PURGE], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"

            process.send_signal(signal.SIGTERM)

            assert process.wait(timeout=60) == 128 + signal.SIGTERM
        finally:
            process.kill()
