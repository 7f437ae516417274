"""An hour of steady load: does the bus in Postgres stay flat, and the memory of ingest?"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields

import asyncpg

from tests.bench.figures import memory_of, show
from tests.bench.stack import KEY, ROOT, Stack, start_ingest
from tests.history.drive import head, reached
from tests.lakes import LakeView
from tests.pods import tenant_of
from tests.services import Lake

RATE, ROWS = 200, 10
SAMPLES = 120
_SLACK_MIB = 32.0
_SLACK_ROWS = 20_000

_SIZES = """
SELECT coalesce(sum(s.n_dead_tup) FILTER (WHERE s.relname = 'entry'), 0)::float AS entry_dead_rows,
       coalesce(sum(s.n_dead_tup) FILTER (WHERE s.relname = 'head'), 0)::float AS head_dead_rows,
       (coalesce(sum(pg_table_size(s.relid) - pg_relation_size(c.reltoastrelid)) FILTER (WHERE s.relname = 'entry'), 0)
         / 1048576.0)::float AS entry_mib,
       (coalesce(sum(pg_relation_size(c.reltoastrelid)) FILTER (WHERE s.relname = 'entry'), 0) / 1048576.0)::float
         AS entry_toast_mib,
       (coalesce(sum(pg_total_relation_size(s.relid))
          FILTER (WHERE s.relname ~ '^(record_key|request_key)'), 0) / 1048576.0)::float AS keys_mib
  FROM pg_stat_user_tables AS s JOIN pg_class AS c ON c.oid = s.relid WHERE s.schemaname = $1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Sizes at one moment; the keys grow up to their horizon, which is longer than this run."""

    entry_dead_rows: float
    head_dead_rows: float
    entry_mib: float
    entry_toast_mib: float
    keys_mib: float
    ingest_own_mib: float


BOUNDED = {
    "entry_dead_rows": _SLACK_ROWS,
    "head_dead_rows": _SLACK_ROWS,
    "entry_mib": _SLACK_MIB,
    "entry_toast_mib": _SLACK_MIB,
    "ingest_own_mib": _SLACK_MIB,
}
"""What must not grow from the second third of the run to the last, and the noise allowed."""


def steady(stack: Stack, minutes: float) -> Sequence[str]:
    """Run, print the figures; returns what is violated."""
    with tenant_of(stack.lake()) as tenant:
        pod = start_ingest(tenant)
        command = [sys.executable, "-m", "tests.bench.load", "open", f"--url={pod.url}"]
        options = [f"--rate={RATE}", f"--rows={ROWS}", f"--seconds={minutes * 60}", "--warm-up=0"]
        client = subprocess.Popen(
            [*command, f"--api-key={KEY}", *options], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        samples = []
        while client.poll() is None:
            samples.append(asyncio.run(_sample(tenant.lake, pod.process.pid)))
            time.sleep(minutes * 60 / SAMPLES)
        assert client.stdout is not None
        report = json.loads(client.stdout.read())
        client.stdout.close()
        found = [*_growth(samples), *_rows(tenant.lake, report)]
    print(f"steady: {RATE} req/s x {ROWS} rows for {minutes:g} min, one ingest process")
    print(f"  acked {report['requests']:,} requests, failed {report['failed']}")
    print(
        f"  ack {show(report['ack_ms'])}; p95 by tenth of the run {report['ack_p95_ms_by_tenth']} ms"
    )
    print(f"  write to visible {show(report['write_to_visible_ms'])}")
    for each in fields(Sample):
        print(f"  {each.name}: {_thirds(samples, each.name)}")
    return found


async def _sample(lake: Lake, pid: int) -> Sample:
    connection = await asyncpg.connect(lake.catalog_dsn)
    try:
        row = await connection.fetchrow(_SIZES, f"{lake.name}_bus")
    finally:
        await connection.close()
    return Sample(**dict(row), ingest_own_mib=memory_of(pid).own)


def _highest(samples: Sequence[Sample], name: str) -> list[float]:
    """The highest value in each third of the run."""
    third = max(1, len(samples) // 3)
    parts = samples[:third], samples[third : 2 * third], samples[2 * third :]
    return [max((getattr(s, name) for s in part), default=0.0) for part in parts]


def _thirds(samples: Sequence[Sample], name: str) -> str:
    return "highest in each third " + ", ".join(f"{v:,.1f}" for v in _highest(samples, name))


def _growth(samples: Sequence[Sample]) -> list[str]:
    found = []
    for name, slack in BOUNDED.items():
        _, middle, last = _highest(samples, name)
        if last > 1.25 * middle + slack:
            found.append(
                f"{name} grows: {middle:,.1f} in the second third, {last:,.1f} in the last"
            )
    return found


def _rows(lake: Lake, report: dict[str, object]) -> list[str]:
    """Every acknowledged row is there once; a request that failed may have written, or not."""
    asyncio.run(reached(lake, asyncio.run(head(lake)), 120))
    ((count, distinct),) = LakeView(lake).query("SELECT count(*), count(DISTINCT id) FROM load")
    acked, failed = report["requests"], report["failed"]
    assert isinstance(acked, int)
    assert isinstance(failed, dict)
    most = (acked + sum(failed.values())) * ROWS
    found = []
    if not acked * ROWS <= count <= most:
        found.append(f"{count:,} rows in the lake, acknowledged {acked * ROWS:,}")
    if count != distinct:
        found.append(f"{count - distinct:,} rows are there twice")
    return found
