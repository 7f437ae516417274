"""Compaction under faults: rows are neither lost nor doubled nor revived, and files are those of before or of after.

`beside`: rounds of input and queries beside compaction that never pauses. `kills`: a Compactor's Job is killed before and
after each of its writes. `stops`: it is stopped there, goes on after another one has done the work, and must change
nothing. `backlog`: one Job, ten thousand small files.
"""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

from duckmesh_runtime.adapters.objects import StoreObjects
from duckmesh_runtime.domain.compaction import Bounds
from duckmesh_runtime.domain.integrity import Mode
from duckmesh_runtime.services import compaction
from duckmesh_runtime.services.integrity import all_objects
from tests.bench.stack import Stack
from tests.direct import Writer, lake_writer, take_over
from tests.inspecting import check_of, integrity_of
from tests.integration.test_compaction import compaction_beside
from tests.jobs import report_of, start_job, wait_and_peak
from tests.lakes import LakeView
from tests.nightly.steps import Steps, When, stepping
from tests.services import Lake
from tests.upkeep import maintenance_of, make_files_older, make_older, snapshot_ids

ROUNDS: Final = 200
BACKLOG: Final = 10_000
PEAK_MIB: Final = 512.0
LONGEST_S: Final = 600.0
HELD_S: Final = 10.0
"""So long a Job that was stopped goes on while another one has the lease."""
SLICES: Final = re.compile("COMMIT|PUT|INSERT")
"""Where a Job is stopped: while it changes files."""


def beside(stack: Stack, _: float, rounds: int = ROUNDS) -> Sequence[str]:
    """As many rounds whatever the minutes."""
    started = time.monotonic()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("ROUND_S", "CALL_S", "HOLD_S"):  # a loaded machine is no violation
                patch.setattr(compaction, name, 3600.0)
            asked = asyncio.run(_beside(stack.lake(), rounds))
    except ExceptionGroup as group:
        return [f"beside: {str(error)[:500] or repr(error)}" for error in group.exceptions]
    print(f"beside: {rounds} rounds and {asked} queries in {time.monotonic() - started:.0f} s")
    return []


async def _beside(lake: Lake, rounds: int) -> int:
    asked = 0

    async def ask() -> None:
        nonlocal asked
        view, least = LakeView(lake), 0
        while True:
            await asyncio.sleep(0.2)
            if not await view.fetchval(_HAS_TABLES.format(lake=lake.name)):
                continue
            ((count, distinct, highest),) = await asyncio.to_thread(view.query, _EVENTS)
            assert (count, highest) == (distinct, count - 1 if count else None), "events"
            assert count >= least, "rows of events are gone"
            ((keys, different),) = await asyncio.to_thread(view.query, _KEYED)
            assert keys == different, "keys are there twice"
            least = count
            asked += 1

    async with asyncio.TaskGroup() as group:
        asking = group.create_task(ask())
        await compaction_beside(lake, rounds=rounds)
        asking.cancel()
    return asked


_HAS_TABLES: Final = "SELECT count(*) = 2 FROM {lake}.ducklake_table WHERE end_snapshot IS NULL"
_EVENTS: Final = "SELECT count(*), count(DISTINCT id), max(id) FROM events"
_KEYED: Final = "SELECT count(*), count(DISTINCT id) FROM keyed"


class Ground:
    """A lake with something to do for each part of a Job, again and again.

    Args:
        lake: Over S3.
        writer: Its writer.
        folder: For logs.
    """

    def __init__(self, lake: Lake, writer: Writer, folder: Path) -> None:
        self.lake = lake
        self.folder = folder
        self.log = folder / "job.log"
        self.view = LakeView(lake)
        self._writer = writer
        self._turns = 0
        self._rows: dict[str, list[int]] = {"added": [], "holed": []}
        for table in self._rows:
            writer.commit(f"CREATE TABLE lake.{table} (id BIGINT)")

    async def mess(self) -> None:
        """Small files, files with holes, old snapshots, old files that wait for their removal."""
        self._turns += 1
        await asyncio.to_thread(self._write, 100 * self._turns)
        await make_older(self.lake, timedelta(days=2))
        await make_files_older(self.lake, timedelta(days=2))

    def _write(self, first: int) -> None:
        for start in range(first, first + 40, 10):
            self._writer.commit(f"INSERT INTO lake.added FROM range({start}, {start + 10})")
        for start in (first, first + 50):
            self._writer.commit(f"INSERT INTO lake.holed FROM range({start}, {start + 50})")
        self._writer.commit(f"DELETE FROM lake.holed WHERE id % 2 = 0 OR id < {first}")
        self._rows["added"] += range(first, first + 40)
        self._rows["holed"] = list(range(first + 1, first + 100, 2))

    async def files(self) -> dict[str, set[str]]:
        """The live files of each table."""
        name = self.lake.name
        rows = await self.view.fetch(
            f"SELECT t.table_name, f.path FROM {name}.ducklake_data_file AS f JOIN {name}.ducklake_table AS t "
            "ON t.table_id = f.table_id AND t.end_snapshot IS NULL WHERE f.end_snapshot IS NULL"
        )
        return {table: {path for of, path in rows if of == table} for table in self._rows}

    async def state(self) -> object:
        """Whatever of the lake a process could have changed."""
        return await snapshot_ids(self.lake), await self.files()

    async def problems(self, before: dict[str, set[str]]) -> AsyncIterator[str]:
        """What is wrong with rows and files, given the files before."""
        now = await self.files()
        for table, rows in self._rows.items():
            if self.view.ids(table) != rows:
                yield f"rows of {table} differ"
            gone, new = before[table] - now[table], now[table] - before[table]
            if bool(gone) != bool(new):
                yield f"{table} has lost {len(gone)} files and gained {len(new)}"
        if await self.view.token() != self._writer.token:
            yield "the watermark has moved"
        report = await integrity_of(self.lake).check(Mode.CHEAP)
        if not report.is_healthy:
            yield f"the lake is {report.state}: {report.message}"

    async def finish(self) -> AsyncIterator[str]:
        """A run without a fault; what is wrong after it."""
        before = await self.files()
        code = await _ended(start_job(self.lake, self.log, id=f"finish-{self._turns}"))
        report = report_of(self.log)
        if (code, report.get("result")) != (0, "Succeeded"):
            yield f"the next run ends with {code}: {report}"
        async for problem in self.problems(before):
            yield f"after the next run: {problem}"
        if left := {t: len(files) for t, files in (await self.files()).items() if len(files) > 1}:
            yield f"the next run leaves files: {left}"

    async def orphans(self) -> int:
        """Files in the store that nothing names."""
        async with check_of(self.lake) as check:
            named = {file.path async for page in check.files() for file in page}
        store = StoreObjects(self.lake.store)
        return sum([each.path not in named async for page in all_objects(store) for each in page])


@asynccontextmanager
async def _ground(stack: Stack) -> AsyncIterator[Ground]:
    lake = await asyncio.to_thread(stack.lake)
    writer = await lake_writer(lake)
    try:
        yield Ground(lake, writer, stack.folder)
    finally:
        writer.connection.close()


def kills(stack: Stack, _: float) -> Sequence[str]:
    """Kill a Job before and after each of its writes; the last lease is left to run out."""
    return asyncio.run(_kills(stack))


async def _kills(stack: Stack) -> Sequence[str]:
    found: list[str] = []
    async with _ground(stack) as ground:
        for when in WHENS:
            started, done, number = time.monotonic(), Counter[str](), 0
            while name := await _killed(ground, number, when, found):
                done[name] += 1
                number += 1
            print(
                f"kills: {when} each of {number} writes, {time.monotonic() - started:.0f} s: {dict(done)}; "
                f"{await ground.orphans()} files nothing names",
                flush=True,
            )
        print(f"kills: its lease left alone, {await _lease_runs_out(ground, found):.0f} s")
    return found


WHENS: Final[Sequence[When]] = ("before", "after")


async def _killed(ground: Ground, number: int, when: When, found: list[str]) -> str:
    """One Job killed at a write; its name, empty when there are not so many."""
    await ground.mess()
    before = await ground.files()
    steps = await _kill_at(ground, number, when)
    name = steps.seen[number] if steps.hit else ""
    where = f"killed {when} write {number} ({name or 'none'})"
    found += [f"{where}: {problem}" async for problem in ground.problems(before)]
    await take_over(ground.lake, "m")  # its lease needs not run out
    found += [f"{where}: {problem}" async for problem in ground.finish()]
    return name


async def _kill_at(ground: Ground, number: int, when: When) -> Steps:
    running: list[subprocess.Popen[bytes]] = []

    async def kill() -> bool:
        running[0].kill()
        await asyncio.to_thread(running[0].wait)
        return False

    steps = Steps(kill, at=number, when=when)
    async with stepping(ground.lake, ground.folder, steps) as lake:
        running.append(start_job(lake, ground.log, id=f"killed-{number}"))
        code = await _ended(running[0])
    assert code == (-signal.SIGKILL if steps.hit else 0), f"the Job ended with {code}"
    return steps


async def _lease_runs_out(ground: Ground, found: list[str]) -> float:
    """Seconds that the next run takes when nobody has taken the lease from the one that was killed."""
    await ground.mess()
    await _kill_at(ground, 4, "after")
    started = time.monotonic()
    found += [f"its lease left alone: {problem}" async for problem in ground.finish()]
    return time.monotonic() - started


def stops(stack: Stack, _: float) -> Sequence[str]:
    """Stop a Job at each write of a change, let another do the work, and let the first go on."""
    return asyncio.run(_stops(stack))


async def _stops(stack: Stack) -> Sequence[str]:
    found: list[str] = []
    async with _ground(stack) as ground:
        started, number, codes = time.monotonic(), 0, Counter[str]()
        while await _stopped(ground, number, codes, found):
            number += 1
        print(
            f"stops: at each of {number} writes, {time.monotonic() - started:.0f} s: {dict(codes)}"
        )
    return found


async def _stopped(ground: Ground, number: int, codes: Counter[str], found: list[str]) -> str:
    """One Job stopped at a write; its name, empty when there are not so many."""
    await ground.mess()
    before = await ground.files()
    running: list[subprocess.Popen[bytes]] = []
    revived = asyncio.Event()
    async with AsyncExitStack() as heir:

        async def stop() -> bool:
            running[0].send_signal(signal.SIGSTOP)
            try:
                await _do_its_work(ground.lake, heir)
                left.append(await ground.state())
            finally:
                running[0].send_signal(signal.SIGCONT)
                revived.set()
            return True

        left: list[object] = []
        steps = Steps(stop, at=number, only=SLICES)
        async with stepping(ground.lake, ground.folder, steps) as lake:
            running.append(start_job(lake, ground.log, id=f"stopped-{number}"))
            ended = asyncio.create_task(_ended(running[0]))
            while not (ended.done() or revived.is_set()):
                await asyncio.sleep(0.1)
            # It ends, or finds the lake busy; what it does under a lease of its own, later, is no fault.
            await asyncio.wait({ended}, timeout=HELD_S)
            changed = bool(left) and await ground.state() != left[0]
            await heir.aclose()
            code = await ended
    name = steps.seen[number] if steps.hit else ""
    where = f"stopped before write {number} ({name or 'none'})"
    if changed:
        found.append(f"{where}: it changed the lake when it went on")
    found += [f"{where}: {problem}" async for problem in ground.problems(before)]
    found += [f"{where}: {problem}" async for problem in ground.finish()]
    codes[f"{name} then {code}"] += 1
    return name


async def _do_its_work(lake: Lake, stack: AsyncExitStack) -> None:
    """As another maintainer with a newer lease, which it keeps for as long as the stack is open."""
    await take_over(lake, "m")
    heir = await stack.enter_async_context(maintenance_of(lake, "heir"))
    assert await heir.claim()
    progress = compaction.Progress()
    await compaction.compact(heir, Bounds(), progress, goes_on=lambda: True)
    assert progress.status is compaction.Status.DONE


def backlog(stack: Stack, _: float, count: int = BACKLOG) -> Sequence[str]:
    """So many small files, one Job."""
    lake = stack.lake()
    writer = asyncio.run(lake_writer(lake))
    log = stack.folder / "backlog.log"
    try:
        _fill(writer, count)
    finally:
        writer.connection.close()
    started = time.monotonic()
    code, peak = wait_and_peak(start_job(lake, log))
    took, report = time.monotonic() - started, report_of(log)
    (row,) = LakeView(lake).query("SELECT count(*), count(DISTINCT id), max(id) FROM small")
    print(f"backlog: {count:,} files, {took:.0f} s, peak {peak:.0f} MiB: {report}")
    found = []
    if code or report.get("result") != "Succeeded":
        found.append(f"the run ends with {code}: {report}")
    if row != (_ROWS * count, _ROWS * count, _ROWS * count - 1):
        found.append(f"rows differ: {row}")
    if not (checked := asyncio.run(integrity_of(lake).check(Mode.DEEP))).is_healthy:
        found.append(f"the lake is {checked.state}: {checked.message}")
    if peak > PEAK_MIB:
        found.append(f"the run took {peak:.0f} MiB")
    return found


_ROWS: Final = 20
_FILES_PER_COMMIT: Final = 500


def _fill(writer: Writer, count: int) -> None:
    writer.commit("CREATE TABLE lake.small (id BIGINT, text VARCHAR)")
    for first in range(0, count, _FILES_PER_COMMIT):
        writer.commit(
            *(
                f"INSERT INTO lake.small SELECT i, 'row ' || i FROM range({_ROWS * n}, {_ROWS * n + _ROWS}) AS t(i)"
                for n in range(first, min(count, first + _FILES_PER_COMMIT))
            )
        )


async def _ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for its end; killed when it does not come."""
    try:
        return await asyncio.to_thread(process.wait, LONGEST_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
