"""`POST /v1/query`: one statement, answered as JSON, NDJSON, CSV, an Arrow stream or Parquet."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Final

import msgspec
import pyarrow as pa
from aiohttp import web

from duckmesh_runtime import metrics
from duckmesh_runtime.domain.moments import Moment
from duckmesh_runtime.domain.sqlgate import MAX_SQL_BYTES
from duckmesh_runtime.domain.tokens import Token, parse_token
from duckmesh_runtime.errors import DuckmeshError, Invalid
from duckmesh_runtime.ports import QueryRun
from duckmesh_runtime.services.query import QueryAnswer, QueryRequest
from duckmesh_runtime.web.audit import IDENTITY
from duckmesh_runtime.web.body import (
    ARROW,
    JSON,
    LONGEST_WAIT_MS,
    in_utc,
    invalid,
    parameters,
    require_type,
)
from duckmesh_runtime.web.columnar import check_sayable
from duckmesh_runtime.web.envelope import decode
from duckmesh_runtime.web.forward import abort
from duckmesh_runtime.web.parts import Parts, need, parts_of
from duckmesh_runtime.web.render import (
    ArrowWriter,
    CsvWriter,
    NdjsonWriter,
    ParquetWriter,
    Writer,
    json_rows,
)

logger = logging.getLogger(__name__)

_BODY_BYTES: Final = 2**20  # the statement has at most 64 KiB; the rest is for parameters
_SQL_CHARACTERS: Final = 65_536
_PARAM_LEVELS: Final = (
    60  # Arrow reads 64; a process on the way to the engine must not run out of stack
)
_LEAST_INTEGER: Final = -(2**127)
_MOST_INTEGER: Final = 2**128 - 1  # of HUGEINT and UHUGEINT
_DEFAULT_WAIT_MS: Final = 5_000
_SMALL_BYTES: Final = 8_192  # less than half a millisecond's work
_CELLS: Final = 2**20
"""Values that are written at once: as Python's objects a wide batch of one bit each would take a hundred times its bytes."""
_DAY_MS: Final = 86_400_000

STREAMED: Final[Mapping[str, Callable[[pa.Schema, Sequence[str]], Writer]]] = {
    "application/x-ndjson": NdjsonWriter,
    ARROW: ArrowWriter,
    "application/vnd.apache.parquet": ParquetWriter,
    "text/csv": CsvWriter,
}

_Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=_DAY_MS)]


class Statement(msgspec.Struct, forbid_unknown_fields=True):
    """The body."""

    sql: Annotated[str, msgspec.Meta(min_length=1, max_length=_SQL_CHARACTERS)]
    params: list[object] | None = []
    min_visibility_token: str | None = None
    max_staleness_ms: _Milliseconds | None = None
    consistency_timeout_ms: Annotated[int, msgspec.Meta(ge=0, le=LONGEST_WAIT_MS)] | None = (
        _DEFAULT_WAIT_MS
    )
    row_limit: Annotated[int, msgspec.Meta(ge=1)] | None = None
    timeout_ms: Annotated[int, msgspec.Meta(ge=1, le=_DAY_MS)] | None = None
    snapshot_id: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None
    snapshot_time: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


_PAST: Final = ("snapshot_id", "snapshot_time")
_CHOOSE: Final = ("min_visibility_token", "max_staleness_ms", *_PAST)
_ENVELOPE: Final = msgspec.json.Decoder(Statement)


async def query(request: web.Request) -> web.StreamResponse:
    """Run a statement here, or pass it on to the query Service."""
    parts = parts_of(request)
    parameters(request, {})
    require_type(request, JSON)
    if parts.query is None and parts.forward is not None:
        async with parts.bodies.read(request, _BODY_BYTES) as body:
            sent = bytes(body)
        return await parts.forward.send(request, sent)
    started = time.monotonic()
    try:
        return await _run(request, parts, started)
    except DuckmeshError as error:
        metrics.query_answered(error.code, time.monotonic() - started)
        raise


async def _run(request: web.Request, parts: Parts, started: float) -> web.StreamResponse:
    service = need(parts.query)
    media = _accepted(request)
    async with parts.bodies.read(request, _BODY_BYTES) as body:
        asked = _request(decode(_ENVELOPE, body), parts, request[IDENTITY].id)
    answer = await service.run(asked)
    async with aclosing(answer.run.batches):  # type: ignore[type-var]  # closing it cancels the statement
        check_sayable(answer.run.schema, answer.run.type_names)
        if media == JSON:
            return await _whole(answer, parts, started)
        return await _streamed(request, media, answer, parts, asked, started)


def _request(envelope: Statement, parts: Parts, caller: str) -> QueryRequest:
    if len(envelope.sql.encode("utf-8", "surrogatepass")) > MAX_SQL_BYTES:
        raise invalid("sql", f"want at most {MAX_SQL_BYTES} bytes: send long lists as params")
    params, wait_ms = envelope.params or [], envelope.consistency_timeout_ms
    _check_params(params)
    limits = parts.settings.query
    token = None
    if envelope.min_visibility_token is not None:
        text = envelope.min_visibility_token
        token = parse_token(text, lake=parts.settings.lake, field="min_visibility_token")
    return QueryRequest(
        sql=envelope.sql,
        params=params,
        min_number=token.number if token else 0,
        min_timeline=token.timeline if token else None,
        consistency_timeout_ms=_DEFAULT_WAIT_MS if wait_ms is None else wait_ms,
        max_staleness_ms=envelope.max_staleness_ms,
        at=_moment(envelope),
        row_limit=min(envelope.row_limit or limits.rows, limits.rows),
        timeout_ms=min(envelope.timeout_ms or limits.timeout_ms, limits.timeout_ms),
        caller=caller,
    )


def _moment(envelope: Statement) -> Moment | None:
    """The past snapshot asked for: one way of choosing a snapshot excludes the others."""
    chosen = [name for name in _PAST if getattr(envelope, name) is not None]
    if not chosen:
        return None
    others = (name for name in _CHOOSE if getattr(envelope, name) is not None)
    if other := next((name for name in others if name != chosen[0]), None):
        raise Invalid(
            "VALIDATION_FAILED",
            f"{chosen[0]}: says which snapshot to read, and so does {other}: give one of them",
            context={"fields": [chosen[0], other]},
        )
    if envelope.snapshot_time is None:
        return envelope.snapshot_id
    return in_utc("snapshot_time", envelope.snapshot_time)


def _check_params(params: list[object]) -> None:
    level = params
    for _ in range(_PARAM_LEVELS):
        if not level:
            return
        if any(isinstance(v, int) and not _LEAST_INTEGER <= v <= _MOST_INTEGER for v in level):
            raise invalid("params", "a whole number is beyond 128 bits: send it as text")
        level = [inner for value in level for inner in _inner(value)]
    raise invalid("params", f"are nested deeper than {_PARAM_LEVELS} levels")


def _inner(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _accepted(request: web.Request) -> str:
    """The wanted format: the first supported one by quality, then by place (RFC 9110, 12.5.1)."""
    header = ",".join(request.headers.getall("Accept", [])) or "*/*"
    ranked = sorted((_quality(part) for part in header.split(",")), key=lambda p: -p[1])
    for media, quality in ranked:
        if quality <= 0:
            continue
        if media in ("*/*", "application/*", JSON):
            return JSON
        if media in STREAMED:
            return media
        if media == "text/*":
            return "text/csv"
    supported = [JSON, *STREAMED]
    raise Invalid(
        "UNSUPPORTED_MEDIA_TYPE",
        "Accept: want " + " or ".join(supported),
        context={"supported": supported},
    )


def _quality(part: str) -> tuple[str, float]:
    media, *options = [piece.strip().lower() for piece in part.split(";")]
    for option in options:
        if option.startswith("q="):
            try:
                return media, float(option[2:])
            except ValueError:
                return media, 0.0
    return media, 1.0


async def _whole(answer: QueryAnswer, parts: Parts, started: float) -> web.Response:
    """A JSON answer of at most `result_bytes`; it is not sent before all rows are there."""
    run, limit = answer.run, parts.settings.query.result_bytes
    rows: list[bytes] = []
    size = 0
    async for batch in _cut(run.batches):
        if batch.num_rows == 0:
            continue
        rows.append(await _written(batch, json_rows, run.type_names))
        size += len(rows[-1])
        if size > limit:
            raise Invalid(
                "RESULT_TOO_LARGE",
                f"the JSON answer is larger than {limit} bytes: select less, or accept a streamed format",
                context={"limit_bytes": limit},
            )
    _count(run, started)
    fields = msgspec.json.encode(_fields(answer, parts, started))
    body = fields[:-1] + b',"rows":[' + b",".join(rows) + b"]}"
    return web.Response(body=body, content_type=JSON)


def _fields(answer: QueryAnswer, parts: Parts, started: float) -> dict[str, object]:
    run = answer.run
    columns = zip(run.schema.names, run.type_names, strict=True)
    return {
        "columns": [{"name": name, "type": type_name} for name, type_name in columns],
        "snapshot_id": answer.snapshot_id,
        "snapshot_time": answer.snapshot_time,
        "max_visibility_token": _watermark(answer, parts),
        "lag_ms": answer.lag_ms,
        "truncated": run.stats.truncated,
        "stats": {
            "duration_ms": round((time.monotonic() - started) * 1000),
            "waited_ms": answer.waited_ms,
            "scanned_files": run.stats.scanned_files,
            "scanned_bytes": run.stats.scanned_bytes,
        },
    }


def _watermark(answer: QueryAnswer, parts: Parts) -> str:
    return str(Token(lake=parts.settings.lake, timeline=parts.timeline, number=answer.token))


def _count(run: QueryRun, started: float) -> None:
    stats = run.stats
    metrics.query_answered(
        "OK",
        time.monotonic() - started,
        files=stats.scanned_files,
        size_bytes=stats.scanned_bytes,
    )


async def _streamed(
    request: web.Request,
    media: str,
    answer: QueryAnswer,
    parts: Parts,
    asked: QueryRequest,
    started: float,
) -> web.StreamResponse:
    """Rows as they come. A failure after the first byte breaks the connection: a part is never taken for the whole."""
    writer = STREAMED[media](answer.run.schema, answer.run.type_names)
    batches = _cut(answer.run.batches)
    begun = writer.start()
    async for first in batches:  # a statement that fails at once gets its error answer
        begun += await _written(first, writer.batch)
        break
    response = web.StreamResponse(headers=_headers(answer, parts, asked, media))
    await response.prepare(request)
    try:
        await response.write(begun)
        async for batch in batches:
            await response.write(await _written(batch, writer.batch))
        await response.write(await asyncio.to_thread(writer.end))
        await response.write_eof()
    except ConnectionResetError:
        raise
    except Exception as error:
        code = error.code if isinstance(error, DuckmeshError) else "INTERNAL"
        metrics.query_answered(code, time.monotonic() - started)
        logger.warning("query broke off", extra={"error_code": code}, exc_info=code == "INTERNAL")
        abort(request)
    else:
        _count(answer.run, started)
    return response


async def _cut(batches: AsyncIterator[pa.RecordBatch]) -> AsyncIterator[pa.RecordBatch]:
    """The batches, wide ones in pieces of fewer rows."""
    async for batch in batches:
        rows = max(1, _CELLS // max(1, batch.num_columns))
        for start in range(0, max(1, batch.num_rows), rows):
            yield batch.slice(start, rows)


async def _written(batch: pa.RecordBatch, write: Callable[..., bytes], *more: object) -> bytes:
    """A batch in its format; a small one at once, as a thread would cost more than it."""
    if batch.nbytes <= _SMALL_BYTES:
        return write(batch, *more)
    return await asyncio.to_thread(write, batch, *more)


def _headers(answer: QueryAnswer, parts: Parts, asked: QueryRequest, media: str) -> dict[str, str]:
    at = msgspec.to_builtins(answer.snapshot_time)
    return {
        "Content-Type": media + ("; charset=utf-8" if media == "text/csv" else ""),
        "X-Duckmesh-Snapshot-Id": str(answer.snapshot_id),
        "X-Duckmesh-Snapshot-Time": str(at),
        "X-Duckmesh-Watermark": _watermark(answer, parts),
        "X-Duckmesh-Lag-Ms": str(answer.lag_ms),
        # As many rows as this means that the answer may have been cut.
        "X-Duckmesh-Row-Limit": str(asked.row_limit),
    }
