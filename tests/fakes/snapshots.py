"""The snapshots of a lake in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from duckmesh_runtime.domain.moments import no_snapshot
from duckmesh_runtime.domain.snapshots import (
    DataFile,
    Pin,
    SnapshotColumn,
    SnapshotFiles,
    SnapshotInfo,
    SnapshotTable,
    TableSize,
)
from duckmesh_runtime.errors import Invalid, NotFound

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@dataclass
class FakeSnapshots:
    """`ports.SnapshotStore`: one snapshot a second from noon on, with one file more of the table `events` each."""

    kept: dict[int, SnapshotInfo] = field(default_factory=dict)
    replaced: set[int] = field(default_factory=set)
    now: datetime = NOON

    def add(self, count: int = 1) -> None:
        """Commit."""
        for _ in range(count):
            number = max(self.kept, default=-1) + 1
            self.now = NOON + timedelta(seconds=number)
            self.kept[number] = SnapshotInfo(
                snapshot_id=number,
                snapshot_time=self.now,
                token=number,
                schema_version=min(number, 1),
                schema_changed=number == 1,
            )

    def expire(self, *numbers: int) -> None:
        """Remove those that no pin holds."""
        for number in numbers:
            if number in self.kept and not self._now(number).pins:
                del self.kept[number]

    async def page(self, before: int | None, *, limit: int) -> Sequence[SnapshotInfo]:
        numbers = sorted(n for n in self.kept if before is None or n < before)
        return [self._now(number) for number in numbers[::-1][:limit]]

    async def find(self, snapshot_id: int) -> tuple[SnapshotInfo, Sequence[TableSize]]:
        self._check(snapshot_id)
        files = len(self._files(snapshot_id))
        tables = [TableSize(name="events", files=files, size_bytes=100 * files, delete_files=0)]
        return self._now(snapshot_id), tables if snapshot_id else []

    async def files(
        self, snapshot_id: int, *, table: str | None, after: int, limit: int
    ) -> SnapshotFiles:
        self._check(snapshot_id)
        if table not in (None, "events") or (table and not snapshot_id):
            raise NotFound(
                "TABLE_NOT_FOUND", f"table: there is no table {table} in snapshot {snapshot_id}"
            )
        numbers = self._files(snapshot_id)
        rest = [number for number in numbers if number > after]
        column = SnapshotColumn(
            field_id=1, name="id", type="BIGINT", nullable=True, initial_default=None
        )
        return SnapshotFiles(
            snapshot=self._now(snapshot_id),
            tables=[SnapshotTable(name="events", columns=[column])] if snapshot_id else [],
            files=[_file(number) for number in rest[:limit]],
            more=len(rest) > limit,
            before=len(numbers) - len(rest),
        )

    async def pin(self, snapshot_id: int, name: str, expires_at: datetime | None) -> SnapshotInfo:
        self._check(snapshot_id)
        if expires_at is not None and expires_at <= self.now:
            raise Invalid("VALIDATION_FAILED", "expires_at: is past: give a later time")
        others = [pin for pin in self.kept[snapshot_id].pins if pin.name != name]
        pins = [*others, Pin(name=name, pinned_at=self.now, expires_at=expires_at)]
        self.kept[snapshot_id] = replace(self.kept[snapshot_id], pins=pins)
        return self._now(snapshot_id)

    async def unpin(self, snapshot_id: int, name: str) -> tuple[SnapshotInfo, bool]:
        self._check(snapshot_id)
        before = self._now(snapshot_id)
        pins = [pin for pin in before.pins if pin.name != name]
        self.kept[snapshot_id] = replace(before, pins=pins)
        return self._now(snapshot_id), len(pins) < len(before.pins)

    def _now(self, number: int) -> SnapshotInfo:
        found = self.kept[number]
        holding = [p for p in found.pins if p.expires_at is None or p.expires_at > self.now]
        return replace(found, pins=holding)

    def _files(self, number: int) -> list[int]:
        return [n for n in range(number) if n not in self.replaced]

    def _check(self, number: int) -> None:
        if number not in self.kept:
            newest, oldest = max(self.kept), min(self.kept)
            raise no_snapshot(number, newest=newest, oldest=oldest, now=self.now)


def _file(number: int) -> DataFile:
    path = f"main/events/{number}.parquet"
    return DataFile(
        file_id=number,
        table="events",
        path=path,
        size_bytes=100,
        row_count=10,
        upto_snapshot_id=None,
    )
