"""`POST /v1/snapshots/restore`: the lake as it was at a snapshot, answered when it is so, or when the lake refused."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from aiohttp import web

from duckmesh_runtime.domain.tokens import Token
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.services.restore import Restored, RestoreService
from duckmesh_runtime.web.audit import audited
from duckmesh_runtime.web.body import (
    DEFAULT_WAIT_MS,
    JSON,
    LONGEST_WAIT_MS,
    invalid,
    parameters,
    require_type,
)
from duckmesh_runtime.web.envelope import decode
from duckmesh_runtime.web.errors import json_response
from duckmesh_runtime.web.ingest import request_key
from duckmesh_runtime.web.parameters import LAST_ID, Parameters, whole_number
from duckmesh_runtime.web.parts import Parts, need, parts_of

_BODY_BYTES: Final = 10_000
_NO_KEY: Final = (
    "is missing: choose one for each restore, so that a repeat does not take back what came after"
)
RESTORE_PARAMETERS: Final[Parameters] = {
    "visibility_timeout_ms": whole_number(0, LONGEST_WAIT_MS, default=DEFAULT_WAIT_MS)
}


class RestoreTo(msgspec.Struct, forbid_unknown_fields=True):
    """The body."""

    snapshot_id: Annotated[int, msgspec.Meta(ge=0, le=LAST_ID)]


_WANTED: Final = msgspec.json.Decoder(RestoreTo)


async def restore(request: web.Request) -> web.StreamResponse:
    """Take all tables back to a snapshot."""
    parts = parts_of(request)
    service = need(parts.restore)
    timeout_ms = parameters(request, RESTORE_PARAMETERS)["visibility_timeout_ms"]
    require_type(request, JSON)
    async with parts.bodies.read(request, _BODY_BYTES) as body:
        snapshot_id = decode(_WANTED, body).snapshot_id
    key = request_key(request)
    if key is None:
        raise invalid("Idempotency-Key", _NO_KEY)
    with audited(request, "restore snapshot", str(snapshot_id)) as told:
        restored = await service.restore(snapshot_id, key)
        told["number"], told["repeated"] = restored.number, not restored.new
        answer = await _settle(parts, service, restored, timeout_ms)
    return json_response({"restored_snapshot_id": snapshot_id} | answer)


async def _settle(
    parts: Parts, service: RestoreService, restored: Restored, timeout_ms: int
) -> dict[str, object]:
    """Wait until the restore is in the lake, or refused by it, and say what came of it."""
    token = str(Token(lake=parts.settings.lake, timeline=restored.timeline, number=restored.number))
    try:
        progress = await need(parts.barrier).wait(
            restored.number, timeout_ms, timeline=restored.timeline
        )
    except Unavailable as error:
        if error.code != "CONSISTENCY_TIMEOUT":
            raise
        raise Unavailable(
            error.code,
            "the restore is accepted and comes later: wait for max_visibility_token with /v1/visible, or repeat it "
            "with the same Idempotency-Key",
            context={**error.context, "max_visibility_token": token},
            retry_after_s=error.retry_after_s,
        ) from None
    await service.confirm(restored)
    return {"max_visibility_token": token, "visible_snapshot_id": progress.snapshot_id}
