"""Compaction beside steady commits: what writers and readers notice of it, and how many files there are."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from duckmesh_runtime.settings import FILES_STAY_S
from tests.bench.figures import Figure, cpu_used, quantiles, show
from tests.bench.mode import Mode
from tests.bench.readers import calling, milliseconds, query_pod
from tests.bench.stack import COLUMNS, KEY, ROOT, Stack
from tests.jobs import report_of, start_job, wait_and_peak
from tests.lakes import LakeView
from tests.pods import Pod, Tenant, tenant_of
from tests.services import Lake

TABLES = ("load", "load2", "load3")
COMMITS_PER_S, ROWS = 5, 20
MINUTES = 5.0
_GROUP_BY = "SELECT kind, count(*), sum(amount) FROM load GROUP BY kind"
_COMMITS = "duckmesh_commit_batch_latency_ms"
_FILES = """
SELECT count(*) FROM {lake}.ducklake_data_file AS f JOIN {lake}.ducklake_table AS t USING (table_id)
 WHERE f.end_snapshot IS NULL AND t.end_snapshot IS NULL GROUP BY t.table_id
"""
_ROWS = """
SELECT (SELECT count(*) FROM {lake}.ducklake_snapshot), (SELECT count(*) FROM {lake}.ducklake_data_file),
       (SELECT count(*) FROM {lake}.ducklake_file_column_stats),
       (SELECT count(*) FROM {lake}.ducklake_files_scheduled_for_deletion),
       (SELECT count(*) FROM {lake}.ducklake_files_scheduled_for_deletion
         WHERE schedule_start < clock_timestamp() - make_interval(secs => $1))
"""
_LATE_S = 300.0


@dataclass(frozen=True, slots=True)
class Commits:
    """Commits in a part of a run.

    Attributes:
        rate: A second.
        mean: Of their milliseconds.
        p95: Of their milliseconds: the upper limit of its bucket in the histogram.
    """

    rate: float
    mean: float
    p95: float


@dataclass(frozen=True, slots=True)
class Look:
    """A lake and its committer at one moment.

    Attributes:
        at: Monotonic seconds.
        files: Live files of the table with most.
        snapshots, data_files, column_stats: Rows of the catalog.
        scheduled: Files that wait for their removal.
        overdue: Those that should be gone for five minutes at least.
        took: Commits so far that took at most so many milliseconds.
        took_ms: Milliseconds of all of them.
    """

    at: float
    files: int
    snapshots: int
    data_files: int
    column_stats: int
    scheduled: int
    overdue: int
    took: Mapping[float, float]
    took_ms: float


@dataclass(slots=True)
class Run:
    """What one run saw.

    Attributes:
        report: Of the load client.
        looks: From before the load to its end.
        grouped: Milliseconds of the GROUP BY when the load ended.
        cores: Who used how much.
    """

    report: Mapping[str, Any]
    looks: Sequence[Look]
    grouped: Sequence[float]
    cores: str

    @property
    def files(self) -> Sequence[int]:
        """Live files of the table with most, at each look."""
        return [look.files for look in self.looks]

    def commits(self, part: float, until: float) -> Commits:
        """Those between two shares of the run."""
        last = len(self.looks) - 1
        before, after = self.looks[round(part * last)], self.looks[round(until * last)]
        counts = _between(before.took, after.took)
        number = sum(counts.values())
        return Commits(
            rate=number / (after.at - before.at),
            mean=(after.took_ms - before.took_ms) / max(1.0, number),
            p95=_p95(counts),
        )


def compaction(stack: Stack, mode: Mode) -> Sequence[Figure]:
    """Five commits a second on three tables, without compaction and then with it, each for some minutes."""
    seconds, turns = mode.pick((mode.minutes or MINUTES) * 60, 20), mode.pick(20, 5)
    with tenant_of(stack.lake()) as tenant:
        off = load_run(stack, tenant, seconds, turns, compaction_enabled=False)
    with tenant_of(stack.lake()) as tenant:
        on = load_run(stack, tenant, seconds, turns, compaction_enabled=True)
        fresh, job = compacted(stack, tenant, turns)
    load = f"{COMMITS_PER_S}/s x {len(TABLES)} tables x {ROWS} rows, {seconds / 60:.1f} min"
    half = len(on.files) // 2
    ratio = statistics.median(on.grouped) / statistics.median(fresh)
    return [
        Figure(
            what=f"write to visible beside compaction, {load}",
            goal="p95 <= 2x without",
            ours=show(on.report["write_to_visible_ms"]),
            peers=f"without compaction: {show(off.report['write_to_visible_ms'])}",
            notes=f"acked {on.report['requests']:,} and {off.report['requests']:,}, failed {on.report['failed']} and "
            f"{off.report['failed']}; {on.cores}; without {off.cores}",
        ),
        Figure(
            what="the same, p95 by tenth of the run",
            goal="flat",
            ours=_course(on.report),
            peers=f"without compaction: {_course(off.report)}",
        ),
        Figure(
            what="one commit in the first and the last fifth of the run",
            goal="p95 <= 1.2x the first",
            ours=_commits(on),
            peers=f"without compaction: {_commits(off)}",
            notes="p95 is the upper limit of its bucket in the histogram",
        ),
        Figure(
            what="live files of the table with most",
            goal="<= 50",
            ours=f"median {statistics.median(on.files[half:]):.0f}, max {max(on.files[half:])} in the second half; "
            f"max {max(on.files)}",
            peers=f"without compaction: {off.files[-1]:,} at the end",
        ),
        Figure(
            what="GROUP BY as the load ended, through a query pod",
            goal="<= 1.5x freshly compacted",
            ours=f"{show(quantiles(on.grouped))}; **{ratio:.2f}x**",
            peers=f"freshly compacted: {show(quantiles(fresh))}. Without compaction: {show(quantiles(off.grouped))}",
            notes=f"`{_GROUP_BY}`, {turns} turns after one that is not counted; {job}",
        ),
    ]


def load_run(
    stack: Stack,
    tenant: Tenant,
    seconds: float,
    turns: int,
    *,
    compaction_enabled: bool,
    warm_up_s: float = 3,
) -> Run:
    """Commits on three tables for some seconds, and GROUP BYs when they have ended."""
    pod = tenant.ingest(DUCKMESH_COMPACTION_ENABLED=str(compaction_enabled).lower())
    pod.wait(lambda: pod.metric("duckmesh_committer_active") == 1)
    for table in TABLES:
        status, answer = pod.call("POST", "/v1/tables", {"name": table, "columns": COLUMNS})
        if status not in (200, 201):
            raise RuntimeError(f"the table cannot be made: {answer}")
    with cpu_used(stack.roots(ingest=pod)) as used:
        report, looks = _load(tenant.lake, pod, seconds, warm_up_s)
    pod.stop()  # what it left is measured
    return Run(
        report=report,
        looks=looks,
        grouped=_grouped(tenant, turns),
        cores=f"{used}, client {report['client']['cores']:.2f}{report['client']['limit']}",
    )


def _load(
    lake: Lake, pod: Pod, seconds: float, warm_up_s: float
) -> tuple[dict[str, Any], list[Look]]:
    """The client's report, and what was seen meanwhile."""
    command = [sys.executable, "-m", "tests.bench.load", "open", f"--url={pod.url}"]
    options = [
        f"--rate={COMMITS_PER_S * len(TABLES)}",
        f"--burst={len(TABLES)}",
        f"--tables={','.join(TABLES)}",
        f"--rows={ROWS}",
        f"--seconds={seconds}",
        f"--warm-up={warm_up_s}",
        "--every=1",
    ]
    client = subprocess.Popen(
        [*command, f"--api-key={KEY}", *options], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    looks = [asyncio.run(_look(lake, pod))]
    while client.poll() is None:
        time.sleep(max(1.0, seconds / 300))
        looks.append(asyncio.run(_look(lake, pod)))
    assert client.stdout is not None
    report = json.loads(client.stdout.read())
    client.stdout.close()
    return report, looks


async def _look(lake: Lake, pod: Pod) -> Look:
    view = LakeView(lake)
    files = await view.fetch(_FILES.format(lake=lake.name))
    ((snapshots, data_files, column_stats, scheduled, overdue),) = await view.fetch(
        _ROWS.format(lake=lake.name), FILES_STAY_S + _LATE_S
    )
    took, took_ms = _histogram(pod)
    return Look(
        at=time.monotonic(),
        files=max((row[0] for row in files), default=0),
        snapshots=snapshots,
        data_files=data_files,
        column_stats=column_stats,
        scheduled=scheduled,
        overdue=overdue,
        took=took,
        took_ms=took_ms,
    )


def _grouped(tenant: Tenant, turns: int) -> Sequence[float]:
    pod, sandbox = query_pod(tenant)
    with calling(pod) as caller:
        caller.rows(_GROUP_BY)
        took = [milliseconds(lambda: caller.rows(_GROUP_BY)) for _ in range(turns)]
    pod.stop()
    sandbox.stop()
    return took


def compacted(stack: Stack, tenant: Tenant, turns: int) -> tuple[Sequence[float], str]:
    """The GROUP BY after a Compactor's Job, and what that did."""
    log = stack.folder / "job.log"
    code, peak = wait_and_peak(start_job(tenant.lake, log, keepForS=None, integrity="None"))
    report = report_of(log)
    if code:
        raise RuntimeError(f"the Job failed: {report}")
    done = f"Job: {report['filesIn']} files into {report['filesOut']}, peak {peak:.0f} MiB"
    return _grouped(tenant, turns), done


def _histogram(pod: Pod) -> tuple[dict[float, float], float]:
    """Commits so far that took at most so many milliseconds, and the milliseconds of all of them."""
    url = f"http://127.0.0.1:{pod.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found, took_ms = {}, 0.0
    for line in lines:
        if line.startswith(f"{_COMMITS}_sum"):
            took_ms = float(line.split()[-1])
        if line.startswith(f"{_COMMITS}_bucket"):
            limit, value = line.split('le="')[1].split('"}')
            found[float(limit)] = float(value)
    return found, took_ms


def _between(before: Mapping[float, float], after: Mapping[float, float]) -> dict[float, float]:
    """Commits of each bucket between two looks."""
    found, below = {}, 0.0
    for limit in sorted(after):
        until = after[limit] - before.get(limit, 0.0)
        found[limit], below = until - below, until
    return found


def _p95(counts: Mapping[float, float]) -> float:
    """The upper limit of the bucket in which it lies."""
    left = 0.95 * sum(counts.values())
    for limit in sorted(counts):
        left -= counts[limit]
        if left <= 0:
            return limit
    return 0.0


def _commits(run: Run) -> str:
    first, last = run.commits(0, 0.2), run.commits(0.8, 1)
    return (
        f"mean {first.mean:.1f} and {last.mean:.1f} ms, p95 <= {first.p95:g} and <= {last.p95:g} ms "
        f"({run.commits(0, 1).rate:.1f} commits/s)"
    )


def _course(report: Mapping[str, Any]) -> str:
    tenths = report["write_to_visible_p95_ms_by_tenth"]
    return ", ".join("-" if one is None else f"{one:.0f}" for one in tenths) + " ms"
