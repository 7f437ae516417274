"""Restore to a snapshot: what the entry says, what is to be done to which table, and why it may not be possible. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from duckmesh_runtime.domain.moments import no_snapshot_of
from duckmesh_runtime.domain.schema import TableDef, invalid, parse_object, parse_table, table_json
from duckmesh_runtime.errors import Conflict, Context, DuckmeshError

ALL_TABLES: Final = "*"
"""What an entry of the bus has in place of a table's name."""

_ROW_ID: Final = "rowid"


@dataclass(frozen=True, slots=True, kw_only=True)
class LakeTable:
    """A table as the lake's catalog has it at a snapshot.

    Attributes:
        name: Its name.
        table_id: Which it is: one that was dropped and made anew is another.
        shape: All that the catalog says of columns, partitions and sorting; the same shape of the same table means that a
            row with the same row id has the same values.
        columns: Column names.
    """

    name: str
    table_id: int
    shape: str
    columns: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePlan:
    """What to do, by table name.

    Attributes:
        drop: Tables that go for good, or before they are made anew.
        create: Tables that are made anew, with all rows of then.
        reconcile: Tables of which only the rows differ.
    """

    drop: Sequence[str]
    create: Sequence[str]
    reconcile: Sequence[str]


def plan_restore(then: Sequence[LakeTable], now: Sequence[LakeTable]) -> RestorePlan:
    """Compare the tables of a snapshot with those of today.

    DuckLake never gives a row id twice within a table and keeps it when files are merged or rewritten. So rows of a table
    that is still the same one need only be compared by id. A column named like the row id would hide it.
    """
    today = {table.name: table for table in now}
    same = [
        table.name
        for table in then
        if table == today.get(table.name) and _ROW_ID not in {c.lower() for c in table.columns}
    ]
    return RestorePlan(
        drop=[table.name for table in now if table.name not in same],
        create=[table.name for table in then if table.name not in same],
        reconcile=same,
    )


def restore_json(snapshot_id: int, tables: Sequence[TableDef]) -> dict[str, object]:
    """What the entry says; `parse_restore` reads it back."""
    return {"snapshot_id": snapshot_id, "tables": [table_json(table) for table in tables]}


def parse_restore(raw: object) -> tuple[int, Sequence[TableDef]]:
    """The snapshot, and the tables as they are at it.

    Raises:
        Invalid: VALIDATION_FAILED.
    """
    body: Mapping[str, object] = parse_object(raw, "restore", {"snapshot_id", "tables"})
    snapshot_id, tables = body.get("snapshot_id"), body.get("tables")
    if not isinstance(snapshot_id, int) or not isinstance(tables, list):
        raise invalid("restore", "want a snapshot_id and tables")
    return snapshot_id, [parse_table(table) for table in tables]


def refused(
    problem: str,
    snapshot_id: int,
    *,
    nearest: int | None = None,
    newest: int = 0,
    oldest: int = 0,
) -> DuckmeshError:
    """Why a restore is not accepted, for its caller.

    Args:
        problem: As `duckmesh.restore` of migration 0006 says it.
        snapshot_id: What was asked for.
        nearest: With `no_token`, the snapshot to take instead.
        newest: With `missing`, id of the lake's newest snapshot.
        oldest: With `missing`, id of the oldest one that is kept.
    """
    if problem == "missing":
        return no_snapshot_of(snapshot_id, newest=newest, oldest=oldest)
    if problem == "conflict":
        return Conflict(
            "IDEMPOTENCY_CONFLICT",
            "Idempotency-Key: was used with another request; use a new key for a new restore",
            context={"field": "Idempotency-Key"},
        )
    instead: Context = {} if nearest is None else {"restorable_snapshot_id": nearest}
    return Conflict(
        "SNAPSHOT_NOT_RESTORABLE",
        f"snapshot_id: {_reason(problem, snapshot_id, nearest)}",
        context={"field": "snapshot_id", **instead},
    )


def _reason(problem: str, snapshot_id: int, nearest: int | None) -> str:
    match problem:
        case "in_request":
            return (
                f"snapshot {snapshot_id} holds the first rows of a large request and not the others, so that the request "
                "could be neither sent again nor left as it is: take a snapshot before or after it"
            )
        case "too_old":
            return (
                f"snapshot {snapshot_id} is from before this release was installed, and which tables there were is not "
                "known for sure: read its rows with a query, and write those you miss again"
            )
        case _ if nearest is not None:
            return (
                f"snapshot {snapshot_id} was made by maintenance and has no place among writes: "
                f"take snapshot {nearest}, which holds the same rows"
            )
        case _:
            return (
                f"snapshot {snapshot_id} was made with the lake itself and has no place among writes: "
                "drop the tables to empty a lake"
            )
