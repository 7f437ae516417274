"""Faults planted in a committer: something happens at the first statement of DuckDB or Postgres that holds a text."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from duckmesh_runtime.adapters import duckdb_engine
from duckmesh_runtime.adapters.ducklake import DuckLakeWriter
from duckmesh_runtime.adapters.postgres_bus import PostgresBus

Act = Callable[[], None]


class Failpoint:
    """Acts once.

    Args:
        text: What the statement holds, or `trim` for the removal of committed input.
        when: `before` or `after` the statement, or `during` it: 0 to 15 ms after its start, in another thread.
        act: What happens; an exception from it is what the caller sees.
    """

    def __init__(self, text: str, when: str, act: Act) -> None:
        self._text = text
        self._when = when
        self._act = act
        self.hit = False

    def run(self, statement: str, work: Callable[[], Any]) -> Any:
        """Do the work that is the statement."""
        if self.hit or self._text not in statement:
            return work()
        if self._when == "after":
            result = work()  # a statement that fails is not the one
            self.hit = True
            self._act()
            return result
        self.hit = True
        if self._when == "before":
            self._act()
        else:
            threading.Timer(random.uniform(0, 0.015), self._act).start()  # noqa: S311 - no secret
        return work()

    def plant(self, patch: pytest.MonkeyPatch) -> None:
        """Put it into every writer that is opened from now on, and into the bus."""
        connect, call, trim = duckdb_engine.connect, DuckLakeWriter._call, PostgresBus.trim

        async def call_postgres(writer: DuckLakeWriter, query: str, *args: object) -> Any:
            await self._around(query)
            result = await call(writer, query, *args)
            await self._around(query, "after")
            return result

        async def trim_bus(bus: PostgresBus, upto: int) -> int:
            await self._around("trim")
            return await trim(bus, upto)

        patch.setattr(
            duckdb_engine, "connect", lambda **options: _Connection(connect(**options), self)
        )
        patch.setattr(DuckLakeWriter, "_call", call_postgres)
        patch.setattr(PostgresBus, "trim", trim_bus)

    async def _around(self, statement: str, when: str = "before") -> None:
        if not self.hit and self._when == when and self._text in statement:
            self.hit = True
            self._act()


class _Connection:
    def __init__(self, connection: Any, failpoint: Failpoint) -> None:
        self._connection = connection
        self._failpoint = failpoint

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: str, *args: object) -> Any:
        return self._failpoint.run(statement, lambda: self._connection.execute(statement, *args))
