"""`POST /v1/ingest/{table}`, `GET /v1/visible` and `GET /v1/lag`: rows in, and how far they are."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from aiohttp import web

from duckmesh_runtime import metrics
from duckmesh_runtime.domain.records import RawRecord, Rejected
from duckmesh_runtime.domain.tokens import Token, parse_token
from duckmesh_runtime.errors import DuckmeshError, Invalid, Unavailable
from duckmesh_runtime.services.ingest import IngestAnswer
from duckmesh_runtime.services.lag import lag_report
from duckmesh_runtime.web.body import boolean, decode, parameters, require_type, whole_number
from duckmesh_runtime.web.errors import error_response, json_response
from duckmesh_runtime.web.parts import Parts, need, parts_of

JSON: Final = "application/json"
ARROW: Final = "application/vnd.apache.arrow.stream"
LONGEST_WAIT_MS: Final = 60_000
DEFAULT_WAIT_MS: Final = 10_000
_LONGEST_KEY: Final = 255


class _Record(msgspec.Struct, forbid_unknown_fields=True):
    payload: object
    idempotency_key: str | None = None
    op: str | None = None
    event_time: str | None = None


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    records: Annotated[list[_Record], msgspec.Meta(min_length=1)]
    wait_for_visibility: bool = False
    visibility_timeout_ms: Annotated[int, msgspec.Meta(ge=0, le=LONGEST_WAIT_MS)] = DEFAULT_WAIT_MS


_ENVELOPE: Final = msgspec.json.Decoder(_Envelope)
_ARROW_PARAMETERS: Final = {
    "wait_for_visibility": boolean,
    "visibility_timeout_ms": whole_number(0, LONGEST_WAIT_MS),
}

# Small JSON values become Python objects of 14 to 24 times their text (measured 2026-11-24); Arrow bodies stay as they are.
_JSON_BYTES: Final = 8 * 2**20
_JSON_GROWTH: Final = 24


async def ingest(request: web.Request) -> web.StreamResponse:
    """Accept rows; the answer is durable."""
    started = time.monotonic()
    try:
        response = await _ingest(request)
    except DuckmeshError as error:
        metrics.ingest_answered(error.code, time.monotonic() - started)
        raise
    metrics.ingest_answered("OK", time.monotonic() - started)
    return response


async def _ingest(request: web.Request) -> web.StreamResponse:
    parts = parts_of(request)
    service = need(parts.ingest)
    table = request.match_info["table"]
    kind = require_type(request, JSON, ARROW)
    key = _request_key(request)
    limit, growth = (None, 1) if kind == ARROW else (_JSON_BYTES, _JSON_GROWTH)
    async with parts.bodies.read(request, limit, growth=growth) as body:
        if kind == ARROW:
            asked = parameters(request, _ARROW_PARAMETERS)
            wait = asked.get("wait_for_visibility", False)
            timeout_ms = asked.get("visibility_timeout_ms", DEFAULT_WAIT_MS)
            answer = await service.ingest_arrow(table, body, request_key=key)
        else:
            parameters(request, {})
            if key is not None:
                raise Invalid(
                    "VALIDATION_FAILED",
                    "Idempotency-Key: covers Arrow bodies; give JSON records an idempotency_key each",
                )
            envelope = decode(_ENVELOPE, body)
            wait, timeout_ms = envelope.wait_for_visibility, envelope.visibility_timeout_ms
            answer = await service.ingest_records(table, _raw(envelope.records))
    if answer.rejected and not answer.accepted and not answer.duplicates:
        return _all_rejected(answer.rejected)
    snapshot_id = await _visible(parts, answer.number, timeout_ms) if wait else None
    return json_response(_answer(parts, answer, snapshot_id))


def _request_key(request: web.Request) -> str | None:
    keys = request.headers.getall("Idempotency-Key", [])
    if not keys:
        return None
    if len(keys) > 1 or not 0 < len(keys[0]) <= _LONGEST_KEY or not keys[0].isprintable():
        raise Invalid(
            "VALIDATION_FAILED",
            f"Idempotency-Key: want one of 1 to {_LONGEST_KEY} printable characters",
        )
    return keys[0]


def _raw(records: Sequence[_Record]) -> list[RawRecord]:
    return [
        RawRecord(
            idempotency_key=record.idempotency_key,
            op=record.op,
            payload=record.payload,
            event_time=record.event_time,
        )
        for record in records
    ]


def _all_rejected(rejected: Sequence[Rejected]) -> web.Response:
    """Nothing was accepted: an error, so that no client takes it for success; the details stay per record."""
    code, _ = Counter(r.code for r in rejected).most_common(1)[0]
    first = next(r for r in rejected if r.code == code)
    more = f" (and {len(rejected) - 1} more, see rejected)" if len(rejected) > 1 else ""
    error = Invalid(
        code, f"record {first.index}: {first.message}{more}", context={"rejected": len(rejected)}
    )
    metrics.ingest_answered(code, 0)
    return error_response(error, extra={"rejected": _rejected(rejected)})


def _rejected(rejected: Sequence[Rejected]) -> list[dict[str, object]]:
    return [{"index": r.index, "error_code": r.code, "message": r.message} for r in rejected]


async def _visible(parts: Parts, number: int, timeout_ms: int) -> int | None:
    """The snapshot that shows the rows, or None when they did not become visible in time; they are accepted anyway."""
    try:
        return (await need(parts.barrier).wait(number, timeout_ms)).snapshot_id
    except Unavailable:
        return None


def _answer(parts: Parts, answer: IngestAnswer, snapshot_id: int | None) -> dict[str, object]:
    status = "partial_duplicate" if answer.duplicates else "accepted"
    token = Token(lake=parts.settings.lake, timeline=answer.timeline, number=answer.number)
    return {
        "accepted_count": answer.accepted,
        "duplicate_count": answer.duplicates,
        "rejected": _rejected(answer.rejected),
        "max_visibility_token": str(token),
        "visible_snapshot_id": snapshot_id,
        "status": "visible" if snapshot_id is not None else status,
    }


async def visible(request: web.Request) -> web.StreamResponse:
    """Wait until a token is visible, or fail with CONSISTENCY_TIMEOUT."""
    parts = parts_of(request)
    text = parameters(request, {"token": str, "timeout_ms": str})
    if "token" not in text:
        raise Invalid("VALIDATION_FAILED", "token: is missing; pass a max_visibility_token")
    try:
        timeout_ms = whole_number(0, LONGEST_WAIT_MS)(text.get("timeout_ms", str(DEFAULT_WAIT_MS)))
    except ValueError as error:
        raise Invalid("VALIDATION_FAILED", f"timeout_ms: {error}") from None
    lake = parts.settings.lake
    barrier = need(parts.barrier)
    token = parse_token(text["token"], lake=lake, timeline=parts.timeline)
    progress = await barrier.wait(token.number, timeout_ms)
    watermark = Token(lake=lake, timeline=parts.timeline, number=progress.token)
    return json_response(
        {
            "visible": True,
            "visible_snapshot_id": progress.snapshot_id,
            "max_visibility_token": str(watermark),
        }
    )


async def lag(request: web.Request) -> web.StreamResponse:
    """How far the lake is behind its input."""
    parameters(request, {})
    return json_response(await lag_report(need(parts_of(request).bus)))
