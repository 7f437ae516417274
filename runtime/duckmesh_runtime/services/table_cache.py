"""The lake's tables as a process knows them: read from the bus when needed, by one query at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from duckmesh_runtime.domain.schema import TableDef
from duckmesh_runtime.errors import NotFound
from duckmesh_runtime.ports import IngestBus


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """The tables at one schema version, by name in order."""

    version: int
    by_name: Mapping[str, TableDef] = field(default_factory=dict)

    def find(self, name: str) -> TableDef:
        """One table.

        Raises:
            NotFound: TABLE_NOT_FOUND.
        """
        table = self.by_name.get(name)
        if table is None:
            raise NotFound(
                "TABLE_NOT_FOUND",
                f"table {name[:64]!r} does not exist: create it with POST /v1/tables",
            )
        return table


class TableCache:
    """Remembers `IngestBus.tables`."""

    def __init__(self, bus: IngestBus) -> None:
        self._bus = bus
        self._known: Tables | None = None
        self._reads = 0
        self._lock = asyncio.Lock()

    async def known(self) -> Tables:
        """The tables as last read; another process may have changed them since."""
        return self._known if self._known is not None else await self.fresh()

    async def fresh(self) -> Tables:
        """The tables as of now or later; callers that wait together share one read that begins after they asked."""
        wanted = self._reads + 2 if self._lock.locked() else self._reads + 1
        async with self._lock:
            if self._known is None or self._reads < wanted:
                version, tables = await self._bus.tables()
                self._known = Tables(version=version, by_name={t.name: t for t in tables})
                self._reads += 1
            return self._known

    async def find(self, name: str) -> tuple[int, TableDef]:
        """Schema version and one table; reads again before it says that there is none.

        Raises:
            NotFound: TABLE_NOT_FOUND.
        """
        tables = await self.known()
        if name not in tables.by_name:
            tables = await self.fresh()
        return tables.version, tables.find(name)
