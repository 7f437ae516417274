"""The DuckDB under a writer of the lake, replaced before what it remembers of old snapshots fills its memory.

DuckLake keeps the statistics of a table for each snapshot that it has committed to, and neither a DETACH nor the memory
limit frees them (measured: 4 KiB a commit for a table of 5 columns, 26 KiB for one of 100; at the limit every commit
fails). Only a new instance does. It is opened beside the old one, so that no commit waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import duckdb

from duckmesh_runtime.adapters.duckdb_engine import Engine

T = TypeVar("T")

logger = logging.getLogger(__name__)

MOST_REMEMBERED_BYTES: Final = 16 * 2**20
LOOK_EVERY: Final = 64
"""Commits from one look at the memory to the next: 64 of them remember a few megabytes at most."""

_LOOK_S: Final = 5.0
_REMEMBERED: Final = "SELECT memory_usage_bytes FROM duckdb_memory() WHERE tag = 'OBJECT_CACHE'"


class LakeEngine:
    """An `Engine` with a successor in time. Made by `open`.

    Args:
        engine: The first one, open.
        open_engine: Opens another like it, or raises.
    """

    def __init__(self, engine: Engine, open_engine: Callable[[], Awaitable[Engine]]) -> None:
        self._engine = engine
        self._open_engine = open_engine
        self._opening: asyncio.Task[Engine] | None = None
        self._looks = 0

    @classmethod
    async def open(cls, open_engine: Callable[[], Awaitable[Engine]]) -> LakeEngine:
        """Open the first one.

        Raises:
            Unavailable: What `open_engine` raises.
        """
        return cls(await open_engine(), open_engine)

    async def run(self, work: Callable[[duckdb.DuckDBPyConnection], T], *, timeout_s: float) -> T:
        """See `Engine.run`."""
        return await self._engine.run(work, timeout_s=timeout_s)

    async def freshen(self) -> None:
        """Change to the successor when it is ready, and have one opened when it is time. Between transactions only."""
        if self._opening is not None and self._opening.done():
            opened, self._opening = self._opening, None
            await self._change(opened)
        self._looks += 1
        if self._opening is None and self._looks >= LOOK_EVERY:
            self._looks = 0
            if await self._remembers() > MOST_REMEMBERED_BYTES:
                self._opening = asyncio.create_task(self._open_next())

    async def close(self) -> None:
        """Close it, and a successor; safe to repeat."""
        opening, self._opening = self._opening, None
        try:
            if opening is not None:
                opening.cancel()
                await asyncio.wait({opening})
                if not opening.cancelled() and opening.exception() is None:
                    await opening.result().close()
        finally:
            await self._engine.close()

    async def _open_next(self) -> Engine:
        return await self._open_engine()

    async def _change(self, opening: asyncio.Task[Engine]) -> None:
        try:
            successor = await opening
        except (
            Exception
        ) as error:  # memory, threads, files: the old one goes on, and the next look tries again
            logger.warning("no new engine now", extra={"error_type": type(error).__name__})
            return
        old, self._engine = self._engine, successor
        await old.close()

    async def _remembers(self) -> int:
        """Bytes that the engine keeps of what it has read of the catalog."""

        def look(connection: duckdb.DuckDBPyConnection) -> int:
            return sum(row[0] for row in connection.execute(_REMEMBERED).fetchall())

        try:
            return await self.run(look, timeout_s=_LOOK_S)
        except (duckdb.Error, TimeoutError):
            return 0
