"""`/v1/tables`: create, list, read, change and drop; a change is answered when the lake has taken or refused it."""

from __future__ import annotations

from datetime import UTC
from typing import Final

import msgspec
from aiohttp import web

from duckmesh_runtime.domain.changes import parse_changes
from duckmesh_runtime.domain.schema import TableDef, parse_table, table_json
from duckmesh_runtime.domain.tokens import Token
from duckmesh_runtime.errors import Conflict, Unavailable
from duckmesh_runtime.ports import TableVersion
from duckmesh_runtime.services.tables import Changed, TableService
from duckmesh_runtime.web.body import (
    DEFAULT_WAIT_MS,
    JSON,
    LONGEST_WAIT_MS,
    parameters,
    require_type,
)
from duckmesh_runtime.web.envelope import decode
from duckmesh_runtime.web.errors import json_response
from duckmesh_runtime.web.parameters import Parameters, whole_number
from duckmesh_runtime.web.parts import Parts, need, parts_of

_TABLE_BYTES = 2**20
_ANY = msgspec.json.Decoder()
CHANGE_PARAMETERS: Final[Parameters] = {
    "visibility_timeout_ms": whole_number(0, LONGEST_WAIT_MS, default=DEFAULT_WAIT_MS)
}


async def create_table(request: web.Request) -> web.StreamResponse:
    """Create a table; an equal existing one is the same success."""
    parts = parts_of(request)
    service = need(parts.tables)
    asked = parameters(request, CHANGE_PARAMETERS)
    table = parse_table(await _body(request, parts))
    if parts.is_declared(table.name) and table not in await service.all():
        raise _declared(table.name)
    changed = await service.create(table)
    return json_response(await _settle(parts, service, changed, asked), status=201)


async def list_tables(request: web.Request) -> web.StreamResponse:
    """All tables as accepted."""
    parameters(request, {})
    found = await need(parts_of(request).tables).all()
    return json_response({"tables": [table_json(table) for table in found]})


async def read_table(request: web.Request) -> web.StreamResponse:
    """One table, and the schema version since which it is so."""
    parameters(request, {})
    service, name = need(parts_of(request).tables), request.match_info["table"]
    table = await service.find(name)
    newest = (await service.versions(name))[-1]
    return json_response(_version(newest) if newest.table is not None else table_json(table))


async def read_versions(request: web.Request) -> web.StreamResponse:
    """Every definition that tables of this name had, oldest first; `columns` is missing where it was dropped."""
    parameters(request, {})
    name = request.match_info["table"]
    found = await need(parts_of(request).tables).versions(name)
    return json_response({"name": name, "versions": [_version(version) for version in found]})


async def alter_table(request: web.Request) -> web.StreamResponse:
    """Change a table: all of the changes or none."""
    parts = parts_of(request)
    service, name = need(parts.tables), request.match_info["table"]
    asked = parameters(request, CHANGE_PARAMETERS)
    changes = parse_changes(await _body(request, parts))
    if parts.is_declared(name):
        raise _declared(name)
    changed = await service.alter(name, changes)
    return json_response(await _settle(parts, service, changed, asked))


async def drop_table(request: web.Request) -> web.StreamResponse:
    """Drop a table; rows accepted before stay in the snapshots before."""
    parts = parts_of(request)
    service, name = need(parts.tables), request.match_info["table"]
    asked = parameters(request, CHANGE_PARAMETERS)
    if parts.is_declared(name):
        raise _declared(name)
    changed = await service.drop(name)
    return json_response(await _settle(parts, service, changed, asked))


async def _body(request: web.Request, parts: Parts) -> object:
    require_type(request, JSON)
    async with parts.bodies.read(request, _TABLE_BYTES) as body:
        return decode(_ANY, body)


async def _settle(
    parts: Parts, service: TableService, changed: Changed, asked: dict[str, int]
) -> dict[str, object]:
    """Wait until the change is in the lake, or refused by it, and say what came of it."""
    token = str(Token(lake=parts.settings.lake, timeline=parts.timeline, number=changed.number))
    try:
        progress = await need(parts.barrier).wait(changed.number, asked["visibility_timeout_ms"])
    except Unavailable as error:
        if error.code != "CONSISTENCY_TIMEOUT":
            raise
        raise Unavailable(
            error.code,
            "the change is accepted and comes later: wait for max_visibility_token with /v1/visible",
            context={**error.context, "max_visibility_token": token},
            retry_after_s=error.retry_after_s,
        ) from None
    await service.confirm(changed)
    said = _table(changed.name, changed.table)
    return said | {"max_visibility_token": token, "visible_snapshot_id": progress.snapshot_id}


def _table(name: str, table: TableDef | None) -> dict[str, object]:
    return {"name": name} if table is None else table_json(table)


def _version(version: TableVersion) -> dict[str, object]:
    table = {"dropped": True} if version.table is None else table_json(version.table)
    return table | {
        "schema_version": version.schema_version,
        "changed_at": version.changed_at.astimezone(UTC),
    }


def _declared(name: str) -> Conflict:
    return Conflict(
        "TABLE_DECLARED",
        f"table {name} is declared in spec.tables of the Tenant: change it there, or take its entry out first",
    )
