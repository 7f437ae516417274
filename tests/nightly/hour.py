"""An hour of five commits a second with the compaction and the expiry of a usual ingest pod: does anything grow?"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench.compaction import ROWS, TABLES, Look, compacted, load_run
from tests.bench.figures import quantiles, show
from tests.bench.stack import Stack
from tests.lakes import LakeView
from tests.pods import tenant_of
from tests.services import Lake

MOST_FILES = 50
TURNS = 20
CATALOG = ("snapshots", "data_files", "column_stats")
_SLACK = 2_000


def hour(stack: Stack, minutes: float) -> Sequence[str]:
    """Run, print the figures; returns what is violated."""
    with tenant_of(stack.lake()) as tenant:
        run = load_run(stack, tenant, minutes * 60, TURNS, compaction_enabled=True, warm_up_s=0)
        found = [*_rows(tenant.lake, run.report), *_growth(run.looks)]
        fresh, job = compacted(stack, tenant, TURNS)
    print(f"hour: {minutes:g} min, {run.commits(0, 1).rate:.1f} commits/s on {len(TABLES)} tables")
    print(
        f"  acked {run.report['requests']:,} requests, failed {run.report['failed']}; {run.cores}"
    )
    print(f"  write to visible {show(run.report['write_to_visible_ms'])}")
    for fifth in range(5):
        commits = run.commits(fifth / 5, (fifth + 1) / 5)
        print(
            f"  commits in fifth {fifth + 1}: mean {commits.mean:.1f} ms, p95 <= {commits.p95:g} ms"
        )
    steady = run.files[len(run.files) // 2 :]
    print(
        f"  live files a table: median {statistics.median(steady):.0f}, max {max(steady)} in the second half"
    )
    ratio = statistics.median(run.grouped) / statistics.median(fresh)
    print(f"  group by {show(quantiles(run.grouped))}, {ratio:.2f}x freshly compacted; {job}")
    for name in CATALOG:
        print(
            f"  {name}: highest in each third {', '.join(f'{n:,}' for n in _highest(run.looks, name))}"
        )
    scheduled, overdue = run.looks[-1].scheduled, max(look.overdue for look in run.looks)
    print(
        f"  files that wait for their removal: {scheduled:,} at the end, {overdue:,} overdue at most"
    )
    if overdue:
        found.append(f"{overdue:,} files were not removed in time")
    if statistics.median(steady) > MOST_FILES:
        found.append(f"a table has more than {MOST_FILES} live files most of the time")
    return found


def _rows(lake: Lake, report: Mapping[str, Any]) -> list[str]:
    """Every acknowledged row is there once; a request that failed may have written, or not."""
    count = distinct = 0
    for table in TABLES:
        ((some, different),) = LakeView(lake).query(
            f"SELECT count(*), count(DISTINCT id) FROM {table}"
        )
        count, distinct = count + some, distinct + different
    acked, failed = report["requests"] * ROWS, sum(report["failed"].values()) * ROWS
    found = []
    if not acked <= count <= acked + failed:
        found.append(f"{acked:,} rows were acknowledged, {count:,} are there")
    if count != distinct:
        found.append(f"{count - distinct:,} rows are there twice")
    return found


def _highest(looks: Sequence[Look], name: str) -> list[int]:
    third = max(1, len(looks) // 3)
    parts = looks[:third], looks[third : 2 * third], looks[2 * third :]
    return [max((getattr(look, name) for look in part), default=0) for part in parts]


def _growth(looks: Sequence[Look]) -> list[str]:
    """What grows from the second third to the last."""
    found = []
    for name in CATALOG:
        _, middle, last = _highest(looks, name)
        if last > 1.25 * middle + _SLACK:
            found.append(
                f"rows of {name} grow: {middle:,} in the second third, {last:,} in the last"
            )
    return found
