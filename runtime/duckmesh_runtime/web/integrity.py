"""`POST /v1/integrity/run`: whether the lake's files and rows are what its catalog says, looked at now."""

from __future__ import annotations

import asyncio
from datetime import UTC
from typing import Final

import msgspec
from aiohttp import web

from duckmesh_runtime.domain.integrity import IntegrityReport, Mode
from duckmesh_runtime.errors import Limited
from duckmesh_runtime.web.audit import audited
from duckmesh_runtime.web.body import JSON, parameters, require_type
from duckmesh_runtime.web.envelope import decode
from duckmesh_runtime.web.errors import json_response
from duckmesh_runtime.web.parts import need, parts_of

_BODY_BYTES: Final = 10_000
LONGEST_S: Final = 100.0
"""Before callers and what is between give up; what takes longer is for a Compactor."""


class IntegrityRun(msgspec.Struct, forbid_unknown_fields=True):
    """The body."""

    mode: Mode = Mode.CHEAP


_WANTED: Final = msgspec.json.Decoder(IntegrityRun)


async def run_integrity(request: web.Request) -> web.StreamResponse:
    """Check once and say what was found."""
    parts = parts_of(request)
    service = need(parts.integrity)
    parameters(request, {})
    require_type(request, JSON)
    async with parts.bodies.read(request, _BODY_BYTES) as body:
        mode = decode(_WANTED, body).mode
    with audited(request, "check integrity", mode.value) as told:
        try:
            async with asyncio.timeout(LONGEST_S):
                report = await service.check(mode)
        except TimeoutError as error:
            raise Limited(
                "OVERLOADED",
                f"the check did not end in {LONGEST_S:.0f} s and was given up: "
                "repeat it when less goes on, or let a Compactor with spec.integrity do it",
                retry_after_s=60,
            ) from error
        told["state"] = report.state
    return json_response(_answer(report))


def _answer(report: IntegrityReport) -> dict[str, object]:
    return {
        "status": "healthy" if report.is_healthy else "damaged",
        "summary": report.message,
        "mode": report.mode.value,
        "checked_at": report.checked_at.astimezone(UTC),
        "files_checked": report.files,
        "missing_files": report.missing,
        "damaged_files": report.damaged,
    }
