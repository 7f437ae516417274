"""A Compactor's Job as a process, as its pod starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.services import Lake

RUN: Final[Mapping[str, object]] = {
    "id": "run",
    "targetFileSize": 128 * 2**20,
    "tiers": [2**20, 16 * 2**20],
    "maxBytesPerRun": None,
    "keepForS": 600,
    "keepLast": 1,
    "orphans": "Report",
    "orphansOlderThanS": 86_400,
    "integrity": "Deep",
}


def start_job(lake: Lake, log: Path, **run: object) -> subprocess.Popen[bytes]:
    """Start it; what it says is added to `log`.

    Args:
        lake: Whose.
        log: A file.
        run: What differs from `RUN`.
    """
    env = {
        "PATH": os.environ["PATH"],
        "DUCKMESH_TENANT": lake.tenant,
        "DUCKMESH_LAKE": lake.name,
        "DUCKMESH_DATA_URL": lake.store.url,
        "DUCKMESH_S3_ENDPOINT": lake.store.endpoint,
        "DUCKMESH_STORE_DIR": str(lake.store.secret_dir or ""),
        "DUCKMESH_MAINTENANCE_DIR": str(lake.maintenance_dir),
        "DUCKMESH_POD_NAME": "job",
        "DUCKMESH_RUN": json.dumps({**RUN, **run}),
    }
    command = [sys.executable, "-m", "duckmesh_runtime", "compact"]
    with log.open("ab") as out:
        return subprocess.Popen(command, env=env, stdout=out, stderr=out)


def report_of(log: Path) -> dict[str, Any]:
    """The report of the last run that ended, from its log; nothing when none has."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    reports: list[dict[str, Any]] = [line["run"] for line in lines if "run" in line]
    return reports[-1] if reports else {}


def wait_and_peak(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Wait for its end, which is made after an hour; the exit code, and the most memory it had resident, in MiB."""
    peak, end = 0.0, time.monotonic() + 3600
    while process.poll() is None:
        peak = max(peak, _peak(process.pid))
        time.sleep(0.05)
        if time.monotonic() > end:
            process.kill()
    return process.returncode, peak


def _peak(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return max(
        (int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), default=0.0
    )
