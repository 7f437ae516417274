"""A Compactor's run over a lake in memory: its parts in order, its ends, its report."""

from __future__ import annotations

import asyncio
import json

import pytest

from duckmesh_runtime.domain.compaction import Slice
from duckmesh_runtime.errors import SettingsError, Unavailable
from duckmesh_runtime.ports import Compacted
from duckmesh_runtime.services.compact_job import CompactJob
from duckmesh_runtime.services.job_steps import Step
from duckmesh_runtime.settings import RunSettings, compact_from_env
from tests.fakes.maintenance import FakeMaintenance, every

KB = 2**10
RUN = {
    "id": "run-1",
    "targetFileSize": 128 * 2**20,
    "tiers": [2**20, 16 * 2**20],
    "maxBytesPerRun": None,
    "keepForS": None,
    "keepLast": None,
    "orphans": "None",
    "orphansOlderThanS": 86_400,
    "integrity": "None",
}
LEAST = {
    "DUCKMESH_TENANT": "ns/t",
    "DUCKMESH_LAKE": "lake_1",
    "DUCKMESH_DATA_URL": "s3://bucket/prefix/",
    "DUCKMESH_MAINTENANCE_DIR": "/etc/maintenance",
}


def settings_of(**changes: object) -> RunSettings:
    return compact_from_env(LEAST | {"DUCKMESH_RUN": json.dumps(RUN | changes)}).run


class Bench:
    def __init__(self, *steps: Step, **changes: object) -> None:
        self.lake = FakeMaintenance()
        self.lake.sizes["t"] = [KB] * 10
        self.stop = asyncio.Event()
        self.job = CompactJob(
            self.lake.opened,
            run=settings_of(**changes),
            stop=self.stop,
            steps=steps,
            wait_s=0,
            pause_s=0,
        )

    @property
    def report(self) -> dict[str, object]:
        (report,) = self.lake.runs
        return dict(report)

    @property
    def work(self) -> list[str]:
        return [step for step in self.lake.steps if step not in ("open", "close")]


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_a_run_does_its_parts_in_order_and_reports() -> None:
    done: list[str] = []

    async def check() -> None:
        done.append("check")

    bench = Bench(("check", check), keepForS=3600, keepLast=1)
    bench.lake.history = list(every(86_400, 4))
    bench.lake.files = 2

    assert await bench.job.run()

    assert bench.work == ["expire 3", "remove", "merge t", "merged"]
    assert done == ["check"]
    report = bench.report
    assert (report["id"], report["result"]) == ("run-1", "Succeeded")
    assert [report[name] for name in ("filesIn", "filesOut", "bytesRewritten")] == [10, 1, 10 * KB]
    assert str(report["startedAt"]) <= str(report["finishedAt"])
    assert str(report["finishedAt"]).endswith("Z")
    assert "error" not in report


async def test_without_a_time_to_keep_expiry_is_left_to_the_committer() -> None:
    bench = Bench()
    bench.lake.history = list(every(86_400, 4))
    bench.lake.files = 2

    assert await bench.job.run()

    assert bench.work == ["merge t", "merged"]


async def test_a_run_that_reads_as_much_as_it_may_is_partial() -> None:
    bench = Bench(maxBytesPerRun=KB)

    assert await bench.job.run()

    assert (bench.report["result"], bench.report["filesIn"]) == ("Partial", 0)
    assert bench.report["why"] == "bytes"


async def test_a_run_that_is_told_to_end_gives_up_the_slice_it_is_at(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def compact(piece: Slice) -> Compacted:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError(piece)

    monkeypatch.setattr(bench.lake, "compact", compact)
    running = asyncio.create_task(bench.job.run())
    await begun.wait()
    bench.stop.set()

    assert await asyncio.wait_for(running, 60)
    assert (bench.report["result"], bench.report["why"]) == ("Partial", "stopped")
    assert bench.lake.steps.count("open") == bench.lake.steps.count("close")


async def test_a_run_that_leaves_tables_out_names_them(bench: Bench) -> None:
    for number in range(7):
        bench.lake.sizes[f"u{number}"] = [KB] * 3
        bench.lake.hopeless.add(f"u{number}")

    assert await bench.job.run()

    assert (bench.report["result"], bench.report["filesIn"]) == ("Partial", 10)
    assert bench.report["why"] == "stuck"
    assert bench.report["tables"] == ["u0", "u1", "u2", "u3", "u4"]


async def test_what_comes_meanwhile_is_for_the_next_run(bench: Bench) -> None:
    bench.lake.then = lambda: bench.lake.sizes["t"].extend([KB] * 5)

    assert await bench.job.run()

    assert bench.report["result"] == "Succeeded"
    assert "why" not in bench.report


async def test_told_to_end_a_run_ends_after_its_slice() -> None:
    async def never() -> None:
        pytest.fail("this was to be left out")

    bench = Bench(("never", never))
    bench.lake.sizes["u"] = [2 * KB] * 10
    bench.lake.then = lambda: bench.stop.set() if bench.work else None

    assert await bench.job.run()

    assert (bench.report["result"], bench.report["filesIn"]) == ("Partial", 10)
    assert bench.report["why"] == "stopped"
    assert bench.work == ["merge t", "merged"]


async def test_a_lake_that_is_maintained_elsewhere_is_a_failure_in_the_end() -> None:
    bench = Bench()
    bench.lake.ours = False

    assert not await bench.job.run()

    assert bench.report["result"] == "Failed"
    assert bench.report["error"] == "another process maintains the lake"


async def test_a_lake_is_waited_for() -> None:
    bench = Bench()
    bench.lake.ours = False
    tries = 0

    def opened() -> None:
        nonlocal tries
        tries += 1
        bench.lake.ours = tries > 2

    bench.lake.then = opened
    job = CompactJob(bench.lake.opened, run=settings_of(), stop=bench.stop, wait_s=3600, pause_s=0)

    assert await job.run()

    assert bench.report["result"] == "Succeeded"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Unavailable("STORAGE_UNAVAILABLE", "the store does not answer"), "the store does not"),
        (RuntimeError("secret"), "an internal error"),
    ],
)
async def test_a_failure_is_reported(error: Exception, said: str) -> None:
    async def fails() -> None:
        raise error

    bench = Bench(("fails", fails))

    assert not await bench.job.run()

    assert bench.report["result"] == "Failed"
    assert str(bench.report["error"]).startswith(said)
    assert bench.report["filesIn"] == 10


async def test_the_other_parts_are_done_when_one_fails() -> None:
    done: list[str] = []

    async def fails() -> None:
        done.append("fails")
        raise RuntimeError("secret")

    async def check() -> None:
        done.append("check")

    bench = Bench(("fails", fails), ("check", check))

    def fail_the_merge() -> None:
        if bench.work == ["merge t"]:
            bench.lake.then = lambda: None
            raise Unavailable("CATALOG_UNAVAILABLE", "files cannot be merged now")

    bench.lake.then = fail_the_merge

    assert not await bench.job.run()

    assert done == ["fails", "check"]
    assert (bench.report["result"], bench.report["error"]) == (
        "Failed",
        "files cannot be merged now",
    )


async def test_without_the_catalog_there_is_no_report() -> None:
    bench = Bench()
    bench.lake.error = Unavailable("CATALOG_UNAVAILABLE", "gone")

    def gone() -> None:
        bench.lake.error = Unavailable("CATALOG_UNAVAILABLE", "gone")

    bench.lake.then = gone

    assert not await bench.job.run()


@pytest.mark.parametrize(
    "changes",
    [
        {"more": 1},
        {"id": ""},
        {"targetFileSize": 1},
        {"tiers": [5, 5]},
        {"tiers": [2**30]},
        {"tiers": [0]},
        {"maxBytesPerRun": 0},
        {"keepForS": 1},
        {"keepLast": 0},
        {"orphans": "Remove"},
        {"integrity": "deep"},
    ],
)
def test_a_bad_run_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match="DUCKMESH_RUN"):
        settings_of(**changes)


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"id": "a"})])
def test_what_is_no_run_is_refused_with_all_else_that_is_wrong(text: str) -> None:
    with pytest.raises(SettingsError, match=r"DUCKMESH_TENANT: missing.*DUCKMESH_RUN"):
        compact_from_env({**LEAST, "DUCKMESH_TENANT": "", "DUCKMESH_RUN": text})


def test_the_limits_are_the_tiers_and_the_target() -> None:
    assert settings_of().limits == (2**20, 16 * 2**20, 128 * 2**20)
    assert settings_of(tiers=[]).limits == (128 * 2**20,)
