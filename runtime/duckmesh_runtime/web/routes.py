"""Every call of the API: where it is, for whom, who answers, and what it is. Served by `app`, described by `openapi`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aiohttp.typedefs import Handler

from duckmesh_runtime.web import (
    dead_letters,
    events,
    ingest,
    integrity,
    maintenance,
    nudge,
    query,
    restore,
    snapshots,
    tables,
)
from duckmesh_runtime.web.auth import Role
from duckmesh_runtime.web.health import Health, handlers
from duckmesh_runtime.web.openapi import PATH, Operation, Route, handler, operations

ANYONE: Final = frozenset(Role)
"""Any valid key."""

INTERNAL: Final[frozenset[Role]] = frozenset()
"""No key at all opens it, only the secret of the lake's own processes."""


def _route(
    method: str,
    path: str,
    roles: frozenset[Role],
    handler: Handler,
    operation: Operation | None,
    *,
    on_query: bool = False,
) -> Route:
    return Route(
        method=method,
        path=path,
        roles=roles,
        handler=handler,
        operation=operation,
        on_query=on_query,
    )


_WRITER: Final = frozenset({Role.INGEST_WRITER})
_READER: Final = frozenset({Role.QUERY_READER})
_TABLES: Final = frozenset({Role.TABLE_ADMIN})
_OPS: Final = frozenset({Role.OPS_ADMIN})

ROUTES: Final = (
    _route("POST", "/v1/ingest/{table}", _WRITER, ingest.ingest, operations.INGEST),
    _route("POST", "/v1/query", _READER, query.query, operations.QUERY, on_query=True),
    _route("POST", "/v1/tables", _TABLES, tables.create_table, operations.CREATE_TABLE),
    _route("GET", "/v1/tables", _READER | _TABLES, tables.list_tables, operations.LIST_TABLES),
    _route(
        "GET", "/v1/tables/{table}", _READER | _TABLES, tables.read_table, operations.READ_TABLE
    ),
    _route(
        "GET",
        "/v1/tables/{table}/versions",
        _READER | _TABLES,
        tables.read_versions,
        operations.READ_VERSIONS,
    ),
    _route("PATCH", "/v1/tables/{table}", _TABLES, tables.alter_table, operations.ALTER_TABLE),
    _route("DELETE", "/v1/tables/{table}", _TABLES, tables.drop_table, operations.DROP_TABLE),
    _route(
        "GET", "/v1/snapshots", _READER | _OPS, snapshots.list_snapshots, operations.LIST_SNAPSHOTS
    ),
    _route("POST", "/v1/snapshots/pin", _OPS, snapshots.pin_snapshot, operations.PIN_SNAPSHOT),
    _route(
        "POST", "/v1/snapshots/unpin", _OPS, snapshots.unpin_snapshot, operations.UNPIN_SNAPSHOT
    ),
    _route("POST", "/v1/snapshots/restore", _OPS, restore.restore, operations.RESTORE),
    _route(
        "GET",
        "/v1/snapshots/{snapshot_id}",
        _READER | _OPS,
        snapshots.read_snapshot,
        operations.READ_SNAPSHOT,
    ),
    _route(
        "GET",
        "/v1/snapshots/{snapshot_id}/files",
        _READER,
        snapshots.list_files,
        operations.LIST_FILES,
    ),
    _route("GET", "/v1/lag", _OPS, ingest.lag, operations.LAG),
    _route(
        "POST", "/v1/compaction/run", _OPS, maintenance.run_compaction, operations.RUN_COMPACTION
    ),
    _route("POST", "/v1/retention/run", _OPS, maintenance.run_retention, operations.RUN_RETENTION),
    _route("POST", "/v1/integrity/run", _OPS, integrity.run_integrity, operations.RUN_INTEGRITY),
    _route("GET", "/v1/visible", ANYONE, events.visible, operations.VISIBLE),
    _route("GET", "/v1/events", ANYONE, events.events, operations.EVENTS),
    _route("GET", "/v1/dead-letters", _OPS, dead_letters.list_letters, operations.LIST_LETTERS),
    _route(
        "POST",
        "/v1/dead-letters/replay",
        _OPS,
        dead_letters.replay_letters,
        operations.REPLAY_LETTERS,
    ),
    _route("DELETE", "/v1/dead-letters", _OPS, dead_letters.drop_letters, operations.DROP_LETTERS),
    _route(
        "GET", "/v1/dead-letters/{number}", _OPS, dead_letters.read_letter, operations.READ_LETTER
    ),
    _route(
        "POST",
        "/v1/dead-letters/{number}/replay",
        _OPS,
        dead_letters.replay_letter,
        operations.REPLAY_LETTER,
    ),
    _route(
        "DELETE",
        "/v1/dead-letters/{number}",
        _OPS,
        dead_letters.drop_letter,
        operations.DROP_LETTER,
    ),
    _route("POST", nudge.PATH, INTERNAL, nudge.nudge, None),
)


def routes_of(role: str, health: Health) -> Sequence[Route]:
    """What a process serves on its API port; `role` is `ingest` or `query`."""
    served = [route for route in ROUTES if role == "ingest" or route.on_query]
    probes = handlers(health)
    for path, answer, operation in (
        ("/v1/health", probes["/v1/health"], operations.HEALTH),
        ("/v1/ready", probes["/v1/ready"], operations.READY),
        (PATH, handler(served), operations.DESCRIBE),  # the list as it will be
    ):
        served.append(_route("GET", path, frozenset(), answer, operation))
    return served
