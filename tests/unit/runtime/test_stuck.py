"""When failures of the piece that stands first count as a refusal."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from duckmesh_runtime.ports import Entry, EntryKind
from duckmesh_runtime.services.pieces import Piece
from duckmesh_runtime.services.stuck import LEAST_S, LEAST_TRIES, NEXT_TRIES, Stuck


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stuck(clock: Clock) -> Stuck:
    return Stuck(clock)


def piece(number: int = 1, table: str = "t") -> Piece:
    entry = Entry(
        first=number,
        last=number,
        kind=EntryKind.ROWS,
        table=table,
        schema_version=1,
        payload=b"",
        accepted_at=datetime.now(UTC),
    )
    return Piece(entry=entry, first=number, last=number)


def test_many_failures_over_a_long_time_are_enough(stuck: Stuck, clock: Clock) -> None:
    for _ in range(LEAST_TRIES - 1):
        assert stuck.failed(piece()) is None
    clock.now = LEAST_S
    assert stuck.failed(piece()) == f"{LEAST_TRIES} times in 300 s, while all else could be written"


def test_many_failures_in_a_short_time_are_not(stuck: Stuck, clock: Clock) -> None:
    for _ in range(100):
        assert stuck.failed(piece()) is None
    clock.now = LEAST_S - 1
    assert stuck.failed(piece()) is None


def test_few_failures_over_a_long_time_are_not(stuck: Stuck, clock: Clock) -> None:
    for _ in range(LEAST_TRIES - 1):
        assert stuck.failed(piece()) is None
        clock.now += LEAST_S


@pytest.mark.parametrize("how", ["another piece", "forgotten"])
def test_the_count_begins_anew(stuck: Stuck, clock: Clock, how: str) -> None:
    for _ in range(LEAST_TRIES - 1):
        stuck.failed(piece())
    clock.now = LEAST_S

    if how == "forgotten":
        stuck.forget()
    else:
        stuck.failed(piece(2))

    assert stuck.failed(piece()) is None


def given_up(stuck: Stuck, clock: Clock) -> None:
    for _ in range(LEAST_TRIES - 1):
        stuck.failed(piece())
    clock.now += LEAST_S
    assert stuck.failed(piece()) is not None
    stuck.forget()


def test_what_follows_of_the_same_table_is_given_up_sooner(stuck: Stuck, clock: Clock) -> None:
    given_up(stuck, clock)

    assert [stuck.failed(piece(2)) is None for _ in range(NEXT_TRIES)] == [True, False]


@pytest.mark.parametrize(("table", "landed"), [("other", False), ("t", True)])
def test_what_follows_of_another_table_or_after_a_commit_is_not(
    stuck: Stuck, clock: Clock, table: str, landed: bool
) -> None:
    given_up(stuck, clock)
    if landed:
        stuck.landed()

    assert [stuck.failed(piece(2, table)) for _ in range(LEAST_TRIES - 1)] == [None] * 7


def test_a_restore_is_tried_twice(stuck: Stuck) -> None:
    restore = replace(piece(), entry=replace(piece().entry, kind=EntryKind.RESTORE, table="*"))

    assert stuck.failed(restore) is None
    stuck.forget()
    assert stuck.failed(restore) == "2 times in 0 s, while all else could be written"
