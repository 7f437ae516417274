"""`POST /v1/ingest/{table}` and `GET /v1/lag`: rows in, and how far they are."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from aiohttp import web

from duckmesh_runtime import metrics
from duckmesh_runtime.domain.columns import json_number
from duckmesh_runtime.domain.decode import BulkFormat, Op, Rejected
from duckmesh_runtime.domain.records import RawRecord
from duckmesh_runtime.domain.tokens import Token
from duckmesh_runtime.errors import DuckmeshError, Invalid, Limited, Unavailable
from duckmesh_runtime.services.ingest import IngestAnswer
from duckmesh_runtime.services.lag import lag_report
from duckmesh_runtime.web.body import (
    ARROW,
    DEFAULT_WAIT_MS,
    JSON,
    LONGEST_WAIT_MS,
    invalid,
    parameters,
    require_type,
)
from duckmesh_runtime.web.envelope import check_once, decode
from duckmesh_runtime.web.errors import error_response, json_response
from duckmesh_runtime.web.parameters import Parameters, boolean, one_of, whole_number
from duckmesh_runtime.web.parts import Parts, need, parts_of

MOST_REJECTED: Final = 1_000
"""Refusals that an answer names; `rejected_count` tells all."""

_LONGEST_KEY: Final = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bulk:
    """A bulk format; `growth` as of `BodyBudget.read`: what body, decoded rows and their parts take together.

    Measured 2026-11-24 with bodies of 58 MB, peak over idle: Arrow 2.5 times the body, NDJSON 3.0, CSV 4.3, Parquet (not
    compressed) 4.6; one of the largest must fit. What is compressed inside counts by `bulk_writer.LARGE_AT_ONCE`.
    """

    format: BulkFormat
    growth: int


BULK: Final = {
    "application/x-ndjson": _Bulk(format=BulkFormat.NDJSON, growth=3),
    "application/jsonl": _Bulk(format=BulkFormat.NDJSON, growth=3),
    "text/csv": _Bulk(format=BulkFormat.CSV, growth=4),
    ARROW: _Bulk(format=BulkFormat.ARROW, growth=3),
    "application/vnd.apache.parquet": _Bulk(format=BulkFormat.PARQUET, growth=4),
}
_TYPES: Final = (JSON, *BULK)

# Small JSON values become Python objects of 14 to 24 times their text (measured 2026-11-24).
_JSON_BYTES: Final = 8 * 2**20
_JSON_GROWTH: Final = 24
_INLINE_BYTES: Final = 128 * 2**10
"""Up to here a JSON body is decoded on the event loop (below 1 ms); above, in a thread and its payloads one by one."""

_STEP: Final = 500
"""Records freed at a time."""


class _RecordAsText(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A record with its payload still JSON: decoding many at once would hold up every other thread."""

    payload: msgspec.Raw
    idempotency_key: str | None = None
    op: str | None = None
    event_time: str | None = None


class _Wait(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    wait_for_visibility: bool | None = None
    visibility_timeout_ms: Annotated[int, msgspec.Meta(ge=0, le=LONGEST_WAIT_MS)] | None = (
        DEFAULT_WAIT_MS
    )


class Records(_Wait, forbid_unknown_fields=True, kw_only=True):
    """The body of JSON records."""

    records: Annotated[list[RawRecord], msgspec.Meta(min_length=1)]


class _EnvelopeAsText(_Wait, forbid_unknown_fields=True, kw_only=True):
    records: Annotated[list[_RecordAsText], msgspec.Meta(min_length=1)]


# Numbers keep the digits that a double would lose.
_ENVELOPE: Final = msgspec.json.Decoder(Records, float_hook=json_number)
_ENVELOPE_AS_TEXT: Final = msgspec.json.Decoder(_EnvelopeAsText)
_PAYLOAD: Final = msgspec.json.Decoder(float_hook=json_number)


JSON_PARAMETERS: Final[Parameters] = {
    "atomic": boolean,
    "wait_for_visibility": boolean,
    "visibility_timeout_ms": whole_number(0, LONGEST_WAIT_MS),
}
BULK_PARAMETERS: Final[Parameters] = {"op": one_of(tuple(Op)), **JSON_PARAMETERS}


async def ingest(request: web.Request) -> web.StreamResponse:
    """Accept rows; the answer is durable."""
    started = time.monotonic()
    try:
        response, code = await _ingest(request)
    except DuckmeshError as error:
        metrics.ingest_answered(error.code, time.monotonic() - started)
        raise
    metrics.ingest_answered(code, time.monotonic() - started)
    return response


async def _ingest(request: web.Request) -> tuple[web.StreamResponse, str]:
    parts = parts_of(request)
    kind = require_type(request, *_TYPES)
    take = _records if kind == JSON else _bulk
    answer, atomic, wait_ms = await take(request, parts)
    if answer.rejected and not answer.accepted and not answer.duplicates:
        return _all_rejected(answer.rejected, atomic)
    snapshot_id = None if wait_ms is None else await _visible(parts, answer, wait_ms)
    return json_response(_answer(parts, answer, snapshot_id)), "OK"


async def _records(request: web.Request, parts: Parts) -> tuple[IngestAnswer, bool, int | None]:
    """Take JSON records; gives the answer, whether it is atomic, and how long to wait for visibility if at all."""
    asked = parameters(request, JSON_PARAMETERS)
    atomic: bool = asked.get("atomic", False)
    if request_key(request) is not None:
        raise invalid(
            "Idempotency-Key",
            "covers NDJSON, CSV, Arrow and Parquet bodies; give JSON records an idempotency_key each",
        )
    service = need(parts.ingest)
    async with parts.bodies.read(request, _JSON_BYTES, growth=_JSON_GROWTH) as body:
        if len(body) <= _INLINE_BYTES:
            records, wait = _decoded(body)
        else:
            records, wait = await asyncio.to_thread(_decoded_by_payload, body)
        table = request.match_info["table"]
        answer = await service.ingest_records(table, records, atomic=atomic)
        if len(body) > _INLINE_BYTES:
            await asyncio.to_thread(_free, records)
    said_ms = wait.visibility_timeout_ms
    wait_ms: int = asked.get(
        "visibility_timeout_ms", DEFAULT_WAIT_MS if said_ms is None else said_ms
    )
    waits = asked.get("wait_for_visibility", wait.wait_for_visibility)
    return answer, atomic, wait_ms if waits else None


async def _bulk(request: web.Request, parts: Parts) -> tuple[IngestAnswer, bool, int | None]:
    """Take a body of rows; gives what `_records` does."""
    asked = parameters(request, BULK_PARAMETERS)
    atomic: bool = asked.get("atomic", False)
    key = request_key(request)
    service = need(parts.ingest)
    bulk = BULK[request.content_type]
    async with parts.bodies.read(request, growth=bulk.growth) as body:
        answer = await service.ingest_bulk(
            request.match_info["table"],
            bulk.format,
            body,
            asked.get("op"),
            request_key=key,
            atomic=atomic,
        )
    wait_ms: int = asked.get("visibility_timeout_ms", DEFAULT_WAIT_MS)
    return answer, atomic, wait_ms if asked.get("wait_for_visibility") else None


def request_key(request: web.Request) -> str | None:
    """The idempotency key of a whole request, if it has one.

    Raises:
        Invalid: VALIDATION_FAILED.
    """
    keys = request.headers.getall("Idempotency-Key", [])
    if not keys:
        return None
    if len(keys) > 1 or not 0 < len(keys[0]) <= _LONGEST_KEY or not keys[0].isprintable():
        raise invalid("Idempotency-Key", f"want one of 1 to {_LONGEST_KEY} printable characters")
    return keys[0]


def _decoded(body: bytes) -> tuple[list[RawRecord], _Wait]:
    envelope = decode(_ENVELOPE, body, once=False)
    _check_once(body, envelope.records, envelope)
    return envelope.records, envelope


def _decoded_by_payload(body: bytes) -> tuple[list[RawRecord], _Wait]:
    envelope = decode(_ENVELOPE_AS_TEXT, body, once=False)
    records = [
        RawRecord(
            idempotency_key=record.idempotency_key,
            op=record.op,
            payload=decode(_PAYLOAD, record.payload, once=False),
            event_time=record.event_time,
        )
        for record in envelope.records
    ]
    _free(envelope.records)
    _check_once(body, records, envelope)
    return records, envelope


def _check_once(body: bytes, records: Sequence[RawRecord], wait: _Wait) -> None:
    around = 1 + (wait.wait_for_visibility is not None)
    around += wait.visibility_timeout_ms != DEFAULT_WAIT_MS
    for r in records:
        around += 1 + (r.idempotency_key is not None) + (r.op is not None)
        around += r.event_time is not None
    payloads = [r.payload for r in records if isinstance(r.payload, dict)]
    check_once(
        body, lambda: around + sum(map(len, payloads)), lambda: around + _names_inside(payloads)
    )


def _names_inside(values: Iterable[object]) -> int:
    """Names in all objects of these values."""
    total, todo = 0, list(values)
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            total += len(value)
            todo += value.values()
        elif isinstance(value, list):
            todo += value
    return total


def _free(records: list[Any]) -> None:
    """Take apart a long list step by step: freed at once it would hold up every other thread."""
    while records:
        del records[-_STEP:]


def _all_rejected(rejected: Sequence[Rejected], atomic: bool) -> tuple[web.Response, str]:
    """Nothing was accepted: an error, so that no client takes it for success; the details stay per record."""
    code, _ = Counter(r.code for r in rejected).most_common(1)[0]
    first = next(r for r in rejected if r.code == code)
    more = f" (and {len(rejected) - 1} more, see rejected)" if len(rejected) > 1 else ""
    whole = "; the request is atomic: nothing was written" if atomic else ""
    error = Invalid(
        code,
        f"record {first.index}: {first.message}{more}{whole}",
        context={"rejected": len(rejected)},
    )
    return error_response(error, extra=_rejected(rejected, len(rejected))), code


def _rejected(rejected: Sequence[Rejected], count: int) -> dict[str, object]:
    named = [
        {"index": r.index, "error_code": r.code, "message": r.message}
        for r in rejected[:MOST_REJECTED]
    ]
    return {"rejected": named, "rejected_count": count}


async def _visible(parts: Parts, answer: IngestAnswer, timeout_ms: int) -> int | None:
    """The snapshot that shows the rows, or None when they did not become visible in time; they are accepted anyway."""
    try:
        seen = await need(parts.barrier).wait(answer.number, timeout_ms, timeline=answer.timeline)
    except (Unavailable, Limited):
        return None
    return seen.snapshot_id


def _answer(parts: Parts, answer: IngestAnswer, snapshot_id: int | None) -> dict[str, object]:
    status = "partial_duplicate" if answer.duplicates else "accepted"
    token = Token(lake=parts.settings.lake, timeline=answer.timeline, number=answer.number)
    return {
        "accepted_count": answer.accepted,
        "duplicate_count": answer.duplicates,
        **_rejected(answer.rejected, len(answer.rejected) + answer.unnamed),
        "max_visibility_token": str(token),
        "visible_snapshot_id": snapshot_id,
        "status": "visible" if snapshot_id is not None else status,
    }


async def lag(request: web.Request) -> web.StreamResponse:
    """How far the lake is behind its input."""
    parameters(request, {})
    parts = parts_of(request)
    return json_response(await lag_report(need(parts.bus), parts.settings.lake))
