"""A lake and an election in memory, for tests of the committer.

tests/contract/test_lake_writer.py holds the lake to the real one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa

from duckmesh_runtime.domain.schema import TableDef
from duckmesh_runtime.ports import CommitOutcome, CommitResult, Progress, TableRows, Term


@dataclass
class FakeLake:
    """What is in the lake.

    Attributes:
        token: The watermark.
        epoch: The lease's epoch.
        tables: Definition and rows of each table.
        letters: Dead letters as `(last, error)`.
        commits: `(prev, tok)` of every transaction that landed.
        planned: Results of the next calls, in place of doing anything; an exception is raised.
        opened: Writers made.
        turn: Held by a call; take it to stand for a slow commit.
    """

    token: int = 0
    epoch: int = 1
    tables: dict[str, tuple[TableDef, list[pa.Table]]] = field(default_factory=dict)
    letters: list[tuple[int, str]] = field(default_factory=list)
    commits: list[tuple[int, int]] = field(default_factory=list)
    planned: list[CommitResult | Exception] = field(default_factory=list)
    opened: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def progress(self) -> Progress:
        now = datetime.now(UTC)
        return Progress(token=self.token, snapshot_id=None, committed_at=None, now=now)

    async def open_writer(self, epoch: int) -> FakeWriter:
        self.opened += 1
        return FakeWriter(self, epoch)

    def ids(self, table: str) -> list[int]:
        return [id_ for rows in self.tables[table][1] for id_ in rows.column("id").to_pylist()]


class FakeWriter:
    """`LakeWriter` of one epoch."""

    def __init__(self, lake: FakeLake, epoch: int) -> None:
        self._lake = lake
        self._epoch = epoch
        self.closed = False

    async def commit_rows(self, prev: int, tok: int, parts: Sequence[TableRows]) -> CommitResult:
        async with self._lake.turn:
            if (early := self._early(prev)) is not None:
                return early
            if (problem := self._problem(parts)) is not None:
                return CommitResult(outcome=CommitOutcome.REJECTED, error=problem)
            for part in parts:
                self._lake.tables[part.table][1].append(part.rows)
            return self._land(prev, tok)

    async def create_table(self, prev: int, tok: int, table: TableDef) -> CommitResult:
        if (early := self._early(prev)) is not None:
            return early
        there = self._lake.tables.get(table.name)
        if there is not None and there[0].columns != table.columns:
            return CommitResult(outcome=CommitOutcome.REJECTED, error="another table")
        self._lake.tables.setdefault(table.name, (table, []))
        return self._land(prev, tok)

    async def drop_table(self, prev: int, tok: int, name: str) -> CommitResult:
        if (early := self._early(prev)) is not None:
            return early
        self._lake.tables.pop(name, None)
        return self._land(prev, tok)

    async def set_aside(self, prev: int, tok: int, error: str) -> CommitResult:
        if (early := self._early(prev)) is not None:
            return early
        self._lake.letters.append((tok, error))
        return self._land(prev, tok)

    async def close(self) -> None:
        self.closed = True

    def _early(self, prev: int) -> CommitResult | None:
        if self._lake.planned:
            planned = self._lake.planned.pop(0)
            if isinstance(planned, Exception):
                raise planned
            return planned
        if self._epoch != self._lake.epoch:
            return CommitResult(outcome=CommitOutcome.FENCED)
        if prev != self._lake.token:
            return CommitResult(outcome=CommitOutcome.REREAD, error="the watermark has moved")
        return None

    def _problem(self, parts: Sequence[TableRows]) -> str | None:
        for part in parts:
            if part.table not in self._lake.tables:
                return f"no table {part.table}"
            columns = {c.name: c for c in self._lake.tables[part.table][0].columns}
            for name in part.rows.column_names:
                if name not in columns:
                    return f"no column {name}"
                if not columns[name].nullable and part.rows.column(name).null_count:
                    return f"NOT NULL {name}"
        return None

    def _land(self, prev: int, tok: int) -> CommitResult:
        self._lake.token = tok
        self._lake.commits.append((prev, tok))
        return CommitResult(outcome=CommitOutcome.DONE, committed_at=datetime.now(UTC))


class FakeElection:
    """`Election` over a `FakeLake`: elected whenever `open` is set.

    Attributes:
        open: Clear it to keep the process waiting.
        terms: Every term given.
        released: Calls of `release`.
    """

    def __init__(self, lake: FakeLake) -> None:
        self._lake = lake
        self.open = asyncio.Event()
        self.open.set()
        self.terms: list[Term] = []
        self.released = 0

    async def campaign(self) -> Term:
        await self.open.wait()
        self.terms.append(Term(epoch=self._lake.epoch))
        return self.terms[-1]

    async def release(self) -> None:
        self.released += 1
        for term in self.terms:
            term.lost.set()

    async def committer_address(self) -> str | None:
        return None
