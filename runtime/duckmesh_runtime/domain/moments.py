"""Which snapshot a query names, and what is said when there is none: by id, or by time. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from duckmesh_runtime.errors import Context, DuckmeshError, Invalid, NotFound

Moment = int | datetime
"""A snapshot's id, or a time with its zone: the newest snapshot that was committed at or before it."""


def no_snapshot(at: Moment, *, newest: int, oldest: int, now: datetime) -> DuckmeshError:
    """Why a lake has no snapshot at a moment.

    Args:
        at: Where there is none.
        newest: Id of the lake's newest snapshot.
        oldest: Id of the oldest one that is kept; ids are given one after the other from 0.
        now: Database time.
    """
    if not isinstance(at, datetime):
        return no_snapshot_of(at, newest=newest, oldest=oldest)
    if at > now:
        return future(now)
    context = _context("snapshot_time", newest, oldest)
    if oldest > 0:
        return NotFound(
            "SNAPSHOT_EXPIRED",
            f"snapshot_time: retention kept no snapshot that old: the oldest is {oldest}",
            context=context,
        )
    return NotFound(
        "SNAPSHOT_NOT_FOUND",
        "snapshot_time: the lake did not exist then: give a later time",
        context=context,
    )


def no_snapshot_of(number: int, *, newest: int, oldest: int) -> NotFound:
    """Why a lake has no snapshot of a number; arguments as of `no_snapshot`."""
    context = _context("snapshot_id", newest, oldest)
    if not 0 <= number <= newest:
        return NotFound(
            "SNAPSHOT_NOT_FOUND",
            f"snapshot_id: there is no snapshot {number}: the newest is {newest}",
            context=context,
        )
    return NotFound(
        "SNAPSHOT_EXPIRED",
        f"snapshot_id: snapshot {number} was removed by retention: GET /v1/snapshots lists those that are kept; "
        "pin those that must stay",
        context=context,
    )


def _context(field: str, newest: int, oldest: int) -> Context:
    return {"field": field, "newest_snapshot_id": newest, "oldest_snapshot_id": oldest}


def future(now: datetime) -> DuckmeshError:
    """A time that has not come has no snapshot yet: the next one may be at or before it."""
    shown = now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Invalid(
        "VALIDATION_FAILED",
        f"snapshot_time: is in the future: the catalog's time is {shown}",
        context={"field": "snapshot_time"},
    )
