"""How damage is told, what a footer says, and when the process that commits looks by itself."""

from __future__ import annotations

import asyncio
import struct
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from duckmesh_runtime.domain.integrity import (
    LONGEST_MESSAGE,
    Difference,
    Fault,
    Hit,
    IntegrityReport,
    LakeFile,
    Mode,
    judge_footer,
)
from duckmesh_runtime.errors import Corrupt, Unavailable
from duckmesh_runtime.services.integrity import IntegrityWatch
from duckmesh_runtime.web.parts import Parts
from tests.fakes.doors import NOON
from tests.fakes.server import serve


def report(**of: object) -> IntegrityReport:
    return IntegrityReport(
        **{"checked_at": NOON, "mode": Mode.CHEAP, "files": 9, "faults": {}, **of}
    )  # type: ignore[arg-type]


def hit(path: str, table: str, rows: int, *, snapshots: int = 2, live: bool = True) -> Hit:
    return Hit(path=path, table=table, rows=rows, snapshots=snapshots, live=live)


def test_a_lake_that_is_well() -> None:
    assert report().to_json() == {
        "checkedAt": "2026-01-31T12:00:00Z",
        "mode": "cheap",
        "state": "Healthy",
        "files": 9,
        "missing": 0,
        "damaged": 0,
        "message": "9 files are as the catalog says",
    }


def test_damage_is_told_by_table_the_one_with_most_rows_first() -> None:
    found = report(
        faults={"a": Fault.MISSING, "b": Fault.SIZE, "c": Fault.FOOTER, "d": Fault.MISSING},
        hits=[
            hit("a", "few", 1, live=False),
            hit("b", "many", 10),
            hit("c", "many", 20, snapshots=7),
            hit("d", "many", 3),
        ],
        differences=[
            Difference(table="t", catalog=4, ledger=5),
            Difference(table="u", catalog=None, ledger=5),
            Difference(table="v", catalog=4, ledger=None),
        ],
    )

    assert (found.state, found.missing, found.damaged) == ("Damaged", 2, 2)
    assert found.message.split("; ") == [
        "table many: 1 missing and 2 damaged of its files, with 33 rows, in 7 or more snapshots",
        "table few: 1 missing of its files, with 1 rows, in 2 or more snapshots, none of them the newest",
        "table t: the catalog counts 4 rows, 5 were committed",
        "table u: the catalog does not have it, but 5 rows were committed",
        "table v: the catalog has it, but no commit made it",
    ]


def test_a_message_is_never_too_long_and_says_what_it_leaves_out() -> None:
    names = [f"t{number:03}_{'x' * 50}" for number in range(100)]
    found = report(differences=[Difference(table=name, catalog=1, ledger=2) for name in names])
    few = report(differences=[Difference(table=f"t{n}", catalog=1, ledger=2) for n in range(7)])

    assert len(found.message) <= LONGEST_MESSAGE
    assert few.message.endswith("; and 2 more")


def parquet(rows: int) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"id": list(range(rows)), "text": ["x"] * rows})
    pq.write_table(table, sink, row_group_size=100)
    return bytes(sink.getvalue())


def file(rows: int) -> LakeFile:
    return LakeFile(path="f", size=1, rows=rows, footer=None, parquet=True)


@pytest.mark.parametrize("rows", [0, 1, 250])
def test_a_whole_footer_counts_its_rows(rows: int) -> None:
    content = parquet(rows)

    assert judge_footer(file(rows), content) is None
    assert judge_footer(file(rows), content[-len(content) + 4 :]) is None
    assert judge_footer(file(rows + 1), content) is Fault.ROWS


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:-1], id="cut"),
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda _: b"PAR1", id="magic alone"),
        pytest.param(
            lambda content: content[:-8] + struct.pack("<I", 2**31) + b"PAR1", id="length"
        ),
        pytest.param(lambda content: content[:-8] + struct.pack("<I", 0) + b"PAR1", id="no length"),
        pytest.param(lambda content: content[:-30] + bytes(22) + content[-8:], id="zeros"),
        pytest.param(lambda content: content[:-60] + b"\xff" * 52 + content[-8:], id="ones"),
        pytest.param(lambda content: content[-200:-8] + content[-8:], id="cut at its head"),
    ],
)
def test_a_broken_footer_is_seen(damage: object) -> None:
    assert judge_footer(file(250), damage(parquet(250))) is Fault.FOOTER  # type: ignore[operator]


class Checks:
    """An `IntegrityService` that does as it is told."""

    def __init__(self, *outcomes: Exception | None) -> None:
        self.outcomes = list(outcomes)
        self.enough = asyncio.Event()
        self.modes: list[Mode] = []

    async def check(self, mode: Mode) -> IntegrityReport:
        self.modes.append(mode)
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if not self.outcomes:
            self.enough.set()
        if outcome is not None:
            raise outcome
        return report(mode=mode, checked_at=datetime(2026, 1, 1, tzinfo=UTC))


async def test_checks_go_on_whatever_becomes_of_one() -> None:
    checks = Checks(
        Unavailable("STORAGE_UNAVAILABLE", "away"),
        Corrupt("INTEGRITY_CHECK_FAILED", "x"),
        OSError(),
        None,
    )
    watch = IntegrityWatch(
        checks,
        active=lambda: True,
        busy=lambda: False,
        interval_s=0,
        first_s=0,
        busy_s=0,  # type: ignore[arg-type]
    )

    async with watch.running():
        await asyncio.wait_for(checks.enough.wait(), 60)

    assert checks.modes[:4] == [Mode.CHEAP] * 4


async def test_only_the_committer_checks_and_only_when_nothing_presses() -> None:
    checks, looks = Checks(None), iter([(False, False), (True, True), (True, False)])
    state = (False, False)

    def active() -> bool:
        nonlocal state
        assert checks.modes == []
        state = next(looks)
        return state[0]

    watch = IntegrityWatch(
        checks,
        active=active,
        busy=lambda: state[1],
        interval_s=3600,
        first_s=0,
        busy_s=0,  # type: ignore[arg-type]
    )
    async with watch.running():
        await asyncio.wait_for(checks.enough.wait(), 60)

    assert checks.modes == [Mode.CHEAP]
    assert next(looks, None) is None


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({}, 200, ("healthy", "cheap")),
        ({"mode": "deep"}, 200, ("healthy", "deep")),
        ({"mode": "fast"}, 400, "mode"),
        ({"mode": "deep", "table": "t"}, 400, "table"),
    ],
)
async def test_the_door_checks_as_asked(
    parts: Parts, body: object, status: int, told: object
) -> None:
    parts.integrity = Checks()  # type: ignore[assignment]
    async for door in serve(parts):
        got, answer, _ = await door.call("POST", "/v1/integrity/run", json=body)

    assert got == status
    if status == 200:
        assert (answer["status"], answer["mode"]) == told
        assert answer["summary"] == "9 files are as the catalog says"
    else:
        assert str(told) in answer["message"]
