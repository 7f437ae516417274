"""Bodies that work as they stand, one after the other, once numbers of snapshots and tokens are those of the lake. No code."""

from __future__ import annotations

from typing import Any, Final

from duckmesh_runtime.web.body import JSON

Examples = dict[str, Any]

_TOKEN: Final = "v1_bGFrZV9hLjEuMTc"  # noqa: S105 - no secret: it names a place in a lake's input

TABLES: Final[Examples] = {
    "Events without a key": {
        "name": "events",
        "columns": [
            {"name": "id", "type": "BIGINT", "nullable": False},
            {"name": "kind", "type": "VARCHAR", "default": "click"},
            {"name": "seen_at", "type": "TIMESTAMP WITH TIME ZONE"},
        ],
        "partition_by": ["kind"],
        "sort_by": ["id"],
    },
    "Users by id": {
        "name": "users",
        "columns": [{"name": "id", "type": "BIGINT"}, {"name": "mail", "type": "VARCHAR"}],
        "primary_key": ["id"],
    },
}
CHANGES: Final[Examples] = {
    "One of each": {
        "changes": [
            {"add_column": {"name": "source", "type": "VARCHAR", "default": "web"}},
            {"add_column": {"name": "note", "type": "VARCHAR"}},
            {"rename_column": {"name": "source", "to": "origin"}},
            {"widen_type": {"name": "id", "type": "DECIMAL(38,0)"}},
            {"set_default": {"name": "origin", "default": None}},
            {"drop_column": {"name": "note"}},
            {"partition_by": []},
            {"sort_by": ["id", "seen_at"]},
        ]
    },
}
ROWS: Final[dict[str, Examples]] = {
    JSON: {
        "Two rows, waited for": {
            "records": [
                {
                    "idempotency_key": "order-17",
                    "op": "insert",
                    "payload": {"id": 17, "kind": "order", "seen_at": "2026-01-31T12:00:00Z"},
                    "event_time": "2026-01-31T12:00:00Z",
                },
                {"payload": {"id": 18}},
            ],
            "wait_for_visibility": True,
            "visibility_timeout_ms": 30_000,
        }
    },
    "application/x-ndjson": {
        "Two rows": '{"id": 1, "kind": "click"}\n{"id": 2, "kind": "order"}\n'
    },
    "application/jsonl": {"One row": '{"id": 3}\n'},
    "text/csv": {"Two rows": "id,kind\n4,click\n5,\n"},
}
STATEMENTS: Final[Examples] = {
    "With values": {
        "sql": "SELECT kind, count(*) FROM events WHERE id > $1 GROUP BY kind",
        "params": [10],
        "row_limit": 1000,
        "timeout_ms": 10_000,
    },
    "Own writes": {
        "sql": "SELECT count(*) FROM events",
        "min_visibility_token": _TOKEN,
        "consistency_timeout_ms": 30_000,
        "max_staleness_ms": 60_000,
    },
    "A past snapshot": {"sql": "SELECT 1", "snapshot_id": 3},
    "As of a moment": {"sql": "SELECT 1", "snapshot_time": "2026-01-31T12:00:00Z"},
}
PINS: Final[Examples] = {
    "For a year": {
        "snapshot_id": 3,
        "name": "audit-2026",
        "expires_at": "2099-01-31T00:00:00Z",
    }
}
UNPINS: Final[Examples] = {"By name": {"snapshot_id": 3, "name": "audit-2026"}}
RESTORES: Final[Examples] = {"To a snapshot": {"snapshot_id": 3}}
INTEGRITY: Final[Examples] = {"Cheap": {"mode": "cheap"}, "Deep": {"mode": "deep"}}
