"""`POST /v1/compaction/run` and `/v1/retention/run`: what maintenance does by itself, done now as far as some seconds go."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from duckmesh_runtime.web.audit import audited
from duckmesh_runtime.web.body import parameters
from duckmesh_runtime.web.envelope import decode
from duckmesh_runtime.web.errors import json_response
from duckmesh_runtime.web.parts import need, parts_of

_BODY_BYTES: Final = 10_000


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """The body, which may be left out."""


_NOTHING: Final = msgspec.json.Decoder(Nothing)


async def run_compaction(request: web.Request) -> web.StreamResponse:
    """Merge and rewrite files."""
    service = need(parts_of(request).compaction)
    parameters(request, {})
    await _no_body(request)
    with audited(request, "run compaction", "") as told:
        done = await service.run()
        told["status"] = done.status.value
    summary = {
        "files_in": done.files_in,
        "files_out": done.files_out,
        "bytes_rewritten": done.size,
        "slices": done.slices,
        "conflicts": done.conflicts,
        "debt_files": done.left.files,
        "debt_bytes": done.left.size,
    }
    return json_response({"status": done.status.value, "summary": summary})


async def run_retention(request: web.Request) -> web.StreamResponse:
    """Give up snapshots and remove files that no snapshot has any more."""
    service = need(parts_of(request).expiry)
    parameters(request, {})
    await _no_body(request)
    with audited(request, "run retention", "") as told:
        done = await service.run()
        told["status"] = done.status.value
    summary = {
        "snapshots_expired": done.snapshots,
        "files_removed": done.files,
        "snapshots_kept": done.snapshots_kept,
        "files_waiting": done.files_waiting,
    }
    return json_response({"status": done.status.value, "summary": summary})


async def _no_body(request: web.Request) -> None:
    """Refuse what nothing would be done with."""
    async with parts_of(request).bodies.read(request, _BODY_BYTES) as body:
        if body:
            decode(_NOTHING, body)
