"""`POST /v1/compaction/run` and `/v1/retention/run`: what maintenance does by itself, done now as far as some seconds go."""

from __future__ import annotations

from aiohttp import web

from duckmesh_runtime.web.audit import audited
from duckmesh_runtime.web.body import parameters
from duckmesh_runtime.web.errors import json_response
from duckmesh_runtime.web.parts import need, parts_of


async def run_compaction(request: web.Request) -> web.StreamResponse:
    """Merge and rewrite files."""
    service = need(parts_of(request).compaction)
    parameters(request, {})
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
