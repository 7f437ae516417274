"""`/v1/snapshots`: those that are kept, what is in them, their files for other engines, and pins."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
from aiohttp import web

from duckmesh_runtime.domain.snapshots import DataFile, DeleteFile, Pin, SnapshotInfo
from duckmesh_runtime.domain.tokens import Token
from duckmesh_runtime.services.snapshots import FilePage
from duckmesh_runtime.web.audit import audited
from duckmesh_runtime.web.body import (
    JSON,
    in_utc,
    parameters,
    path_part,
    require_type,
)
from duckmesh_runtime.web.envelope import decode
from duckmesh_runtime.web.errors import json_response
from duckmesh_runtime.web.parameters import (
    LAST_ID,
    SNAPSHOT_ID,
    TABLE,
    Parameters,
    text,
    whole_number,
)
from duckmesh_runtime.web.parts import Parts, need, parts_of

_BODY_BYTES: Final = 10_000
_PAGE: Final = 100
_LONGEST_PAGE: Final = 1_000
_FILES: Final = 1_000
_MOST_FILES: Final = 10_000

LIST_PARAMETERS: Final[Parameters] = {
    "limit": whole_number(1, _LONGEST_PAGE, default=_PAGE),
    "before": whole_number(0, LAST_ID),
}
FILES_PARAMETERS: Final[Parameters] = {
    "table": TABLE,
    "limit": whole_number(1, _MOST_FILES, default=_FILES),
    "after": text(),
}


class Unpin(msgspec.Struct, forbid_unknown_fields=True):
    """The body of an unpin."""

    snapshot_id: Annotated[int, msgspec.Meta(ge=0, le=LAST_ID)]
    name: str | None = None


class Pinned(Unpin, forbid_unknown_fields=True):
    """The body of a pin."""

    expires_at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


_UNPIN: Final = msgspec.json.Decoder(Unpin)
_PIN: Final = msgspec.json.Decoder(Pinned)


async def list_snapshots(request: web.Request) -> web.StreamResponse:
    """Some snapshots, newest first."""
    parts = parts_of(request)
    asked = parameters(request, LIST_PARAMETERS)
    found, next_before = await need(parts.snapshots).page(asked.get("before"), limit=asked["limit"])
    shown = [_snapshot(parts, each) for each in found]
    return json_response({"snapshots": shown, "next_before": next_before})


async def read_snapshot(request: web.Request) -> web.StreamResponse:
    """One snapshot and its tables."""
    parts = parts_of(request)
    parameters(request, {})
    snapshot, tables = await need(parts.snapshots).find(
        path_part(request, "snapshot_id", SNAPSHOT_ID)
    )
    return json_response(_snapshot(parts, snapshot) | {"tables": tables})


async def list_files(request: web.Request) -> web.StreamResponse:
    """Some files of a snapshot, with all that is needed to read its rows from them."""
    parts = parts_of(request)
    asked = parameters(request, FILES_PARAMETERS)
    page = await need(parts.snapshots).files(
        path_part(request, "snapshot_id", SNAPSHOT_ID),
        table=asked.get("table"),
        after=asked.get("after"),
        limit=asked["limit"],
    )
    return json_response(await asyncio.to_thread(_files, parts, page))


async def pin_snapshot(request: web.Request) -> web.StreamResponse:
    """Keep a snapshot from expiry until it is unpinned, or until a time."""
    parts = parts_of(request)
    parameters(request, {})
    asked = decode(_PIN, await _body(request, parts))
    expires_at = asked.expires_at and in_utc("expires_at", asked.expires_at)
    with audited(request, "pin snapshot", str(asked.snapshot_id)) as told:
        told["pin"] = asked.name
        told["expires_at"] = expires_at and expires_at.isoformat()
        snapshot = await need(parts.snapshots).pin(asked.snapshot_id, asked.name or "", expires_at)
    return json_response(_snapshot(parts, snapshot))


async def unpin_snapshot(request: web.Request) -> web.StreamResponse:
    """Take a pin off; the snapshot goes when expiry comes to it, unless another pin holds it."""
    parts = parts_of(request)
    parameters(request, {})
    asked = decode(_UNPIN, await _body(request, parts))
    with audited(request, "unpin snapshot", str(asked.snapshot_id)) as told:
        told["pin"] = asked.name
        snapshot, removed = await need(parts.snapshots).unpin(asked.snapshot_id, asked.name or "")
        told["removed"] = removed
    return json_response(_snapshot(parts, snapshot) | {"removed": removed})


async def _body(request: web.Request, parts: Parts) -> bytes:
    require_type(request, JSON)
    async with parts.bodies.read(request, _BODY_BYTES) as body:
        return bytes(body)


def _snapshot(parts: Parts, snapshot: SnapshotInfo) -> dict[str, object]:
    token = Token(lake=parts.settings.lake, timeline=parts.timeline, number=snapshot.token)
    return {
        "snapshot_id": snapshot.snapshot_id,
        "snapshot_time": snapshot.snapshot_time.astimezone(UTC),
        "max_visibility_token": str(token),
        "schema_version": snapshot.schema_version,
        "schema_changed": snapshot.schema_changed,
        "pinned": bool(snapshot.pins),
        "pins": [_pin(pin) for pin in snapshot.pins],
    }


def _pin(pin: Pin) -> dict[str, object]:
    return {
        "name": pin.name or None,
        "pinned_at": pin.pinned_at.astimezone(UTC),
        "expires_at": pin.expires_at and pin.expires_at.astimezone(UTC),
    }


def _files(parts: Parts, page: FilePage) -> dict[str, object]:
    data_url = parts.settings.store.url
    return _snapshot(parts, page.found.snapshot) | {
        "data_url": data_url,
        "tables": page.found.tables,
        "files": [_file(each, data_url) for each in page.found.files],
        "next_after": page.next_after,
    }


def _file(file: DataFile, data_url: str) -> dict[str, object]:
    return {
        "table": file.table,
        **_place(file, data_url),
        "delete_files": [_place(each, data_url) for each in file.delete_files],
        "partition": file.partition,
        "statistics": file.statistics,
        "field_names": file.names,
    }


def _place(file: DataFile | DeleteFile, data_url: str) -> dict[str, object]:
    """A file under its address, which is not percent-encoded: the path may hold percent signs of its own."""
    elsewhere = file.path.startswith("/") or "://" in file.path
    return {
        "path": file.path,
        "url": file.path if elsewhere else data_url + file.path,
        "size_bytes": file.size_bytes,
        "row_count": file.row_count,
        "upto_snapshot_id": file.upto_snapshot_id,
    }
