"""Memory of an ingest process that accepts and commits a steady load."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from tests.bench.figures import Figure, Memory, memory_of, show
from tests.bench.mode import Mode
from tests.bench.stack import KEY, ROOT, Stack, one_ingest

RATE, ROWS = 1_000, 10
MINUTES = 30.0


def memory(stack: Stack, mode: Mode) -> Sequence[Figure]:
    """1,000 requests a second of 10 rows for some minutes."""
    seconds = mode.pick((mode.minutes or MINUTES) * 60, 20)
    with one_ingest(stack) as pod:
        idle = memory_of(pod.process.pid)
        command = [sys.executable, "-m", "tests.bench.load", "open", f"--url={pod.url}"]
        options = [f"--rate={RATE}", f"--rows={ROWS}", f"--seconds={seconds}", "--every=50"]
        client = subprocess.Popen(
            [*command, f"--api-key={KEY}", *options], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        seen: list[Memory] = []
        while client.poll() is None:
            seen.append(memory_of(pod.process.pid))
            time.sleep(1)
        assert client.stdout is not None
        report = json.loads(client.stdout.read())
        client.stdout.close()
        lag = pod.call("GET", "/v1/lag")[1]
    return [
        Figure(
            what=f"memory of ingest at {RATE:,} req/s x {ROWS} rows for {seconds / 60:.1f} min",
            goal="<= 256 MiB, flat",
            ours=f"own memory {_course([m.own for m in seen])}, idle {idle.own:.0f}; "
            f"resident with files {_course([m.resident for m in seen])}, idle {idle.resident:.0f}",
            notes=f"one process, it commits too; {report['requests']:,} acked, failed {report['failed']}, "
            f"ack {show(report['ack_ms'])}, write to visible {show(report['write_to_visible_ms'])}; "
            f"{lag['pending_rows']:,} rows pending at the end; client {report['client']['cores']:.2f} cores"
            f"{report['client']['limit']}",
        )
    ]


def _course(values: Sequence[float]) -> str:
    """The highest value, and medians near the run's start and end."""
    tenth = max(1, len(values) // 10)
    early = statistics.median(values[tenth : 2 * tenth] or values)
    late = statistics.median(values[-tenth:])
    return f"{max(values):.0f} MiB (second tenth {early:.0f}, last tenth {late:.0f})"
