"""`/v1/tables`: create, list, read and drop; a change is answered when it is visible."""

from __future__ import annotations

import msgspec
from aiohttp import web

from duckmesh_runtime.domain.schema import TableDef, parse_table, table_json
from duckmesh_runtime.domain.tokens import Token
from duckmesh_runtime.web.body import decode, parameters, require_type, whole_number
from duckmesh_runtime.web.errors import json_response
from duckmesh_runtime.web.ingest import DEFAULT_WAIT_MS, JSON, LONGEST_WAIT_MS
from duckmesh_runtime.web.parts import Parts, need, parts_of

_TABLE_BYTES = 2**20
_ANY = msgspec.json.Decoder()
_CHANGE = {"visibility_timeout_ms": whole_number(0, LONGEST_WAIT_MS)}


async def create_table(request: web.Request) -> web.StreamResponse:
    """Create a table; an equal existing one is the same success."""
    parts = parts_of(request)
    service = need(parts.ingest)
    asked = parameters(request, _CHANGE)
    require_type(request, JSON)
    async with parts.bodies.read(request, _TABLE_BYTES) as body:
        table = parse_table(decode(_ANY, body))
    number = await service.create_table(table)
    seen = await _wait(parts, number, asked)
    return json_response(_table(table) | seen, status=201)


async def list_tables(request: web.Request) -> web.StreamResponse:
    """All tables as accepted."""
    parameters(request, {})
    found = await need(parts_of(request).ingest).tables()
    return json_response({"tables": [_table(t) for t in found]})


async def read_table(request: web.Request) -> web.StreamResponse:
    """One table."""
    parameters(request, {})
    return json_response(
        _table(await need(parts_of(request).ingest).table(request.match_info["table"]))
    )


async def drop_table(request: web.Request) -> web.StreamResponse:
    """Drop a table; rows accepted before stay in the snapshots before."""
    parts = parts_of(request)
    asked = parameters(request, _CHANGE)
    name = request.match_info["table"]
    number = await need(parts.ingest).drop_table(name)
    return json_response({"name": name} | await _wait(parts, number, asked))


def _table(table: TableDef) -> dict[str, object]:
    return dict(table_json(table))


async def _wait(parts: Parts, number: int, asked: dict[str, int]) -> dict[str, object]:
    timeout_ms = asked.get("visibility_timeout_ms", DEFAULT_WAIT_MS)
    progress = await need(parts.barrier).wait(number, timeout_ms)
    token = Token(lake=parts.settings.lake, timeline=parts.timeline, number=number)
    return {"max_visibility_token": str(token), "visible_snapshot_id": progress.snapshot_id}
