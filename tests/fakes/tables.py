"""The table service over a bus in memory, and a lake that takes its changes or refuses them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import Progress
from duckmesh_runtime.services.inlet import Inlet
from duckmesh_runtime.services.tables import TableService
from duckmesh_runtime.settings import IngestLimits
from tests.fakes.bus import FakeBus
from tests.fakes.doors import NOON


@dataclass
class JudgingBarrier:
    """Everything is visible as soon as someone waits for it; then the lake refuses the next changes that `refusals` says.

    Attributes:
        slow: So many waits end before the number is visible.
        waits: The numbers waited for.
    """

    bus: FakeBus
    refusals: list[str] = field(default_factory=list)
    slow: int = 0
    waits: list[int] = field(default_factory=list)

    def hush(self) -> None:
        return None

    async def wait(self, number: int, timeout_ms: int, *, timeline: int | None = None) -> Progress:
        self.waits.append(number)
        if self.slow:
            self.slow -= 1
            raise Unavailable("CONSISTENCY_TIMEOUT", "not visible yet")
        for entry in list(self.bus.entries):
            if self.bus.token < entry.last <= number:
                if entry.kind.is_change and self.refusals:
                    self.bus.set_aside_change(entry.last, self.refusals.pop(0))
                self.bus.token = entry.last
        return Progress(token=self.bus.token, snapshot_id=7, committed_at=NOON, now=NOON)


@dataclass
class TableLake:
    """A lake's tables as one process sees them."""

    bus: FakeBus
    inlet: Inlet
    tables: TableService
    barrier: JudgingBarrier


@asynccontextmanager
async def table_lake(bus: FakeBus | None = None) -> AsyncIterator[TableLake]:
    """One process over a bus; several may share it."""
    bus = bus or FakeBus()
    inlet = Inlet(bus, lake="lake_test", limits=IngestLimits(), on_accepted=lambda number: None)
    await inlet.start()
    try:
        yield TableLake(
            bus=bus, inlet=inlet, tables=TableService(inlet, bus), barrier=JudgingBarrier(bus)
        )
    finally:
        await inlet.drain()
