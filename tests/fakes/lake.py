"""A lake and an election in memory, for tests of the committer.

tests/contract/test_lake_writer.py holds the lake to the real one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa

from duckmesh_runtime.domain.bus_rows import DELETED, key_of
from duckmesh_runtime.domain.changes import Change, apply_changes
from duckmesh_runtime.domain.schema import TableDef
from duckmesh_runtime.errors import DuckmeshError
from duckmesh_runtime.ports import (
    CommitOutcome,
    CommitResult,
    Progress,
    TableFile,
    TableRows,
    Term,
)


@dataclass(frozen=True)
class Letter:
    """What was set aside: the numbers `first..last`; the payload is None for a whole entry's own or a table change."""

    first: int
    last: int
    payload: bytes | None
    error: str


@dataclass
class FakeLake:
    """What is in the lake.

    Attributes:
        token: The watermark.
        epoch: The lease's epoch.
        tables: Definition and rows of each table.
        store: Rows of staged files by path.
        letters: Dead letters.
        commits: `(prev, tok)` of every transaction that landed.
        planned: Results of the next calls, in place of doing anything; an exception is raised.
        opened: Writers made.
        healthy: Whether a writer's probe succeeds.
        probes: How many there were.
        turn: Held by a call; take it to stand for a slow commit.
        snapshots: Tables and rows after each commit that changed some, by snapshot id.
    """

    token: int = 0
    epoch: int = 1
    tables: dict[str, tuple[TableDef, list[pa.Table]]] = field(default_factory=dict)
    store: dict[str, pa.Table] = field(default_factory=dict)
    letters: list[Letter] = field(default_factory=list)
    commits: list[tuple[int, int]] = field(default_factory=list)
    planned: list[CommitResult | Exception] = field(default_factory=list)
    opened: int = 0
    healthy: bool = True
    probes: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    snapshots: dict[int, dict[str, tuple[TableDef, list[pa.Table]]]] = field(
        default_factory=lambda: {0: {}}
    )

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

    async def commit(
        self, prev: int, tok: int, parts: Sequence[TableRows | TableFile]
    ) -> CommitResult:
        async with self._lake.turn:
            if (early := self._early(prev)) is not None:
                return early
            for part in parts:
                if (problem := self._problem(part)) is not None:
                    return problem
            for part in parts:
                self._write(part)
            return self._land(prev, tok)

    async def create_table(self, prev: int, tok: int, table: TableDef) -> CommitResult:
        if (early := self._early(prev)) is not None:
            return early
        there = self._lake.tables.get(table.name)
        if there is not None and there[0].columns != table.columns:
            return _refused("another table", whole=True)
        self._lake.tables.setdefault(table.name, (table, []))
        return self._land(prev, tok)

    async def alter_table(
        self, prev: int, tok: int, table: TableDef, changes: Sequence[Change]
    ) -> CommitResult:
        if (early := self._early(prev)) is not None:
            return early
        if table.name not in self._lake.tables:
            return _refused(f"no table {table.name}", whole=True)
        there, rows = self._lake.tables[table.name]
        try:
            changed = apply_changes(there, changes)
        except DuckmeshError as error:
            return _refused(error.message, whole=True)
        if changed.columns != table.columns:
            return _refused("another table", whole=True)
        self._lake.tables[table.name] = (changed, rows)
        return self._land(prev, tok)

    async def drop_table(self, prev: int, tok: int, name: str) -> CommitResult:
        if (early := self._early(prev)) is not None:
            return early
        self._lake.tables.pop(name, None)
        return self._land(prev, tok)

    async def restore(
        self, prev: int, tok: int, snapshot_id: int, tables: Sequence[TableDef]
    ) -> CommitResult:
        if (early := self._early(prev)) is not None:
            return early
        then = self._lake.snapshots.get(snapshot_id)
        if then is None:
            return _refused("SNAPSHOT_EXPIRED: it is gone", whole=True)
        if {table.name: table for table in tables} != {n: t for n, (t, _) in then.items()}:
            return _refused("another table", whole=True)
        self._lake.tables = {name: (table, list(rows)) for name, (table, rows) in then.items()}
        return self._land(prev, tok)

    async def set_aside(
        self, prev: int, tok: int, payload: bytes | None, error: str
    ) -> CommitResult:
        if (early := self._early(prev)) is not None:
            return early
        self._lake.letters.append(Letter(prev + 1, tok, payload, error))
        return self._land(prev, tok)

    async def set_aside_change(self, prev: int, tok: int, error: str) -> CommitResult:
        return await self.set_aside(prev, tok, None, error)

    async def probe(self) -> bool:
        self._lake.probes += 1
        return self._lake.healthy and self._epoch == self._lake.epoch

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

    def _problem(self, part: TableRows | TableFile) -> CommitResult | None:
        if part.table not in self._lake.tables:
            return _refused(f"no table {part.table}", whole=True)
        if isinstance(part, TableFile):
            if part.file.path not in self._lake.store:
                return _refused("DATA_FILE_MISSING: it is gone", whole=True)
            return None
        columns = {c.name: c for c in self._lake.tables[part.table][0].columns}
        for name in part.rows.column_names:
            if name not in columns and name != DELETED:
                return _refused(f"no column {name}", whole=True)
        for name, column in columns.items():
            if not column.nullable and part.rows.column(name).null_count:
                return _refused(f"NOT NULL {name}")
        return None

    def _write(self, part: TableRows | TableFile) -> None:
        rows = self._lake.tables[part.table][1]
        if isinstance(part, TableFile):
            rows.append(self._lake.store[part.file.path])
        elif key := key_of(part.rows.schema):
            there = {_key(row, key): row for table in rows for row in table.to_pylist()}
            for row in part.rows.to_pylist():
                there.pop(_key(row, key), None)
                if not row.pop(DELETED):
                    there[_key(row, key)] = row
            schema = part.rows.schema.remove(part.rows.schema.get_field_index(DELETED))
            rows[:] = [pa.Table.from_pylist(list(there.values()), schema=schema)]
        else:
            rows.append(part.rows)

    def _land(self, prev: int, tok: int) -> CommitResult:
        self._lake.token = tok
        self._lake.commits.append((prev, tok))
        tables = {name: (table, list(rows)) for name, (table, rows) in self._lake.tables.items()}
        self._lake.snapshots[len(self._lake.commits)] = tables
        return CommitResult(outcome=CommitOutcome.DONE, committed_at=datetime.now(UTC))


def _refused(error: str, *, whole: bool = False) -> CommitResult:
    return CommitResult(outcome=CommitOutcome.REJECTED, error=error, whole=whole)


def _key(row: Mapping[str, object], key: Sequence[str]) -> tuple[object, ...]:
    return tuple(row[name] for name in key)


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
