"""How far the lake is behind its input: the answer of `GET /v1/lag`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from duckmesh_runtime.domain.tokens import Token
from duckmesh_runtime.ports import IngestBus


@dataclass(frozen=True, slots=True, kw_only=True)
class TableLag:
    """One table's part; fields as in `LagReport`."""

    table: str
    pending_rows: int
    pending_bytes: int
    claimed_rows: int
    claimed_bytes: int
    oldest_pending_age_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LagReport:
    """The backlog at one moment of the database.

    Attributes:
        accepted: Numbers given so far.
        claimed: Numbers in the commit under way, as the committer tells it once a second.
        claimed_rows: Those of the pending rows that are in it.
        claimed_bytes: Bytes of the entries that these are in.
        pending_rows: Rows accepted and not yet visible.
        pending_bytes: Their bytes on the bus.
        oldest_pending_age_ms: Age of the oldest of them; 0 when nothing is pending.
        lag_ms: The same: the lake is so much behind.
        token_lag: Numbers accepted and not yet visible, table changes included.
        latest_token: Number of the last accepted row or change.
        latest_visibility_token: The same as clients use it, say as `min_visibility_token`.
        watermark: Number up to which everything is visible.
        watermark_token: The same as clients use it.
        latest_snapshot_id: Newest snapshot; maintenance makes some too. None before the first.
        latest_snapshot_at: When it was made (database time).
        committed_at: When the watermark last moved (database time).
        observed_at: Database time of this report.
        tables: The tables with pending rows or changes.
        dead_letters: Inputs that the lake refused and that are kept, counted up to 100,000.
    """

    accepted: int
    claimed: int
    claimed_rows: int
    claimed_bytes: int
    pending_rows: int
    pending_bytes: int
    oldest_pending_age_ms: int
    lag_ms: int
    token_lag: int
    latest_token: int
    latest_visibility_token: str
    watermark: int
    watermark_token: str
    latest_snapshot_id: int | None
    latest_snapshot_at: datetime | None
    committed_at: datetime | None
    observed_at: datetime
    tables: Sequence[TableLag]
    dead_letters: int = 0


async def lag_report(bus: IngestBus, lake: str) -> LagReport:
    """Read the backlog of a lake."""
    backlog = await bus.backlog()
    head, progress = backlog.head, backlog.progress

    def token(number: int) -> str:
        return str(Token(lake=lake, timeline=head.timeline, number=number))

    return LagReport(
        accepted=head.last,
        claimed=backlog.claimed,
        claimed_rows=backlog.claimed_rows,
        claimed_bytes=backlog.claimed_bytes,
        pending_rows=backlog.pending_rows,
        pending_bytes=backlog.pending_bytes,
        oldest_pending_age_ms=backlog.lag_ms,
        lag_ms=backlog.lag_ms,
        token_lag=max(0, head.last - progress.token),
        latest_token=head.last,
        latest_visibility_token=token(head.last),
        watermark=progress.token,
        watermark_token=token(progress.token),
        latest_snapshot_id=backlog.snapshot_id,
        latest_snapshot_at=backlog.snapshot_at,
        committed_at=progress.committed_at,
        observed_at=progress.now,
        tables=[
            TableLag(
                table=part.table,
                pending_rows=part.pending_rows,
                pending_bytes=part.pending_bytes,
                claimed_rows=part.claimed_rows,
                claimed_bytes=part.claimed_bytes,
                oldest_pending_age_ms=_age_ms(part.oldest_pending_at, progress.now),
            )
            for part in backlog.tables
        ],
        dead_letters=backlog.dead_letters,
    )


def _age_ms(at: datetime, now: datetime) -> int:
    return max(0, int((now - at).total_seconds() * 1000))
