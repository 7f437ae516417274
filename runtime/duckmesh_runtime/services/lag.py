"""How far the lake is behind its input: the answer of `GET /v1/lag`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from duckmesh_runtime.ports import IngestBus


@dataclass(frozen=True, slots=True, kw_only=True)
class TableLag:
    """One table's part; fields as in `LagReport`."""

    table: str
    pending_rows: int
    pending_bytes: int
    oldest_pending_age_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LagReport:
    """The backlog at one moment of the database.

    Attributes:
        accepted: Numbers given so far.
        claimed: Numbers in the commit under way.
        pending_rows: Rows accepted and not yet visible.
        pending_bytes: Their bytes on the bus.
        oldest_pending_age_ms: Age of the oldest of them; 0 when nothing is pending.
        lag_ms: The same: the lake is so much behind.
        token_lag: Numbers accepted and not yet visible, table changes included.
        latest_token: Number of the last accepted row or change.
        watermark: Number up to which everything is visible.
        latest_snapshot_id: Snapshot that brought the watermark; None before the first.
        committed_at: When (database time).
        observed_at: Database time of this report.
        tables: The tables with pending rows or changes.
    """

    accepted: int
    claimed: int
    pending_rows: int
    pending_bytes: int
    oldest_pending_age_ms: int
    lag_ms: int
    token_lag: int
    latest_token: int
    watermark: int
    latest_snapshot_id: int | None
    committed_at: datetime | None
    observed_at: datetime
    tables: Sequence[TableLag]


async def lag_report(bus: IngestBus) -> LagReport:
    """Read the backlog."""
    backlog = await bus.backlog()
    head, progress = backlog.head, backlog.progress
    return LagReport(
        accepted=head.last,
        claimed=backlog.claimed,
        pending_rows=backlog.pending_rows,
        pending_bytes=backlog.pending_bytes,
        oldest_pending_age_ms=backlog.lag_ms,
        lag_ms=backlog.lag_ms,
        token_lag=max(0, head.last - progress.token),
        latest_token=head.last,
        watermark=progress.token,
        latest_snapshot_id=progress.snapshot_id,
        committed_at=progress.committed_at,
        observed_at=progress.now,
        tables=[
            TableLag(
                table=part.table,
                pending_rows=part.pending_rows,
                pending_bytes=part.pending_bytes,
                oldest_pending_age_ms=_age_ms(part.oldest_pending_at, progress.now),
            )
            for part in backlog.tables
        ],
    )


def _age_ms(at: datetime, now: datetime) -> int:
    return max(0, int((now - at).total_seconds() * 1000))
