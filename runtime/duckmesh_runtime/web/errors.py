"""Error answers: every failure becomes a line of the catalogue, as JSON, with a trace id. Used by `app`.

Nothing else of a failure reaches the client: unknown exceptions become INTERNAL and their text goes to the log.
"""

from __future__ import annotations

import logging
import math
import random
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

import msgspec
from aiohttp import web

from duckmesh_runtime import log
from duckmesh_runtime.errors import CATALOGUE, Context, DuckmeshError, Invalid, NotFound

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

TRACE_HEADER: Final = "X-Duckmesh-Trace-Id"
TRACE: Final = web.RequestKey("trace_id", str)
"""Key of the trace id in a request."""
_TRACEPARENT: Final = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
    r"(?P<more>-.*)?"  # of later versions only
)
_LONGEST_MESSAGE: Final = 2_000  # characters; names out of the request may be of any length
_DEFAULT_RETRY_S: Final = 1
_EXPECTED: Final = frozenset({"CONSISTENCY_TIMEOUT", "STALENESS_EXCEEDED"})
"""The caller's own bound was met, by thousands of calls at a time perhaps: counted, no line each."""


class _Headers(Protocol):
    def getall(self, name: str, default: list[str], /) -> list[str]: ...


def trace_of(headers: _Headers) -> str:
    """The trace id of a W3C `traceparent`, or a new one (https://www.w3.org/TR/trace-context/)."""
    said = headers.getall("traceparent", [])
    match = _TRACEPARENT.fullmatch(said[0]) if len(said) == 1 else None
    if match is None or (match["version"] == "00" and match["more"]):
        return _new_trace()
    return match["trace"]


def _new_trace() -> str:
    return f"{random.getrandbits(128):032x}"  # a name, no secret: the system's generator takes as long as a lookup of the key


def traceparent() -> str:
    """The header that takes this request's trace on to another process."""
    return f"00-{log.trace_id.get() or _new_trace()}-{secrets.token_hex(8)}-01"


@web.middleware
async def catalogued(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every failure from the catalogue and give the request its trace id."""
    request[TRACE] = trace_of(request.headers)
    mark = log.trace_id.set(request[TRACE])
    try:
        return await handler(request)
    except DuckmeshError as error:
        _note(request, error)
        return error_response(error)
    except web.HTTPException as error:
        return _of_aiohttp(request, error)
    except ConnectionResetError:
        raise  # the client is gone: aiohttp ends the request
    except web.RequestPayloadError:
        return error_response(
            Invalid("VALIDATION_FAILED", "body: its transfer encoding is broken: send it again")
        )
    except Exception:
        logger.exception(
            "request failed",
            extra={
                "method": request.method,
                "route": _route(request),
                "error_code": "INTERNAL",
            },
        )
        return error_response(internal())
    finally:
        log.trace_id.reset(mark)


def internal() -> DuckmeshError:
    """The error of a fault of our own."""
    return DuckmeshError("INTERNAL", "duckmesh failed; repeat, and report the trace_id if it stays")


def error_response(
    error: DuckmeshError, *, status: int | None = None, extra: Mapping[str, object] | None = None
) -> web.Response:
    """The JSON answer of an error; `extra` are further fields beside the fixed ones."""
    headers = {}
    answer = status or error.spec.status
    if answer in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s or _DEFAULT_RETRY_S)))
    if answer == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = error_body(error.code, error.message, error.context) | dict(extra or {})
    return json_response(body, status=answer, headers=headers)


def error_body(code: str, message: str, context: Context) -> dict[str, object]:
    """The fields of every error answer."""
    return {
        "error_code": code,
        "message": message[:_LONGEST_MESSAGE],
        "retryable": CATALOGUE[code].retryable,
        "context": dict(context),
        "trace_id": log.trace_id.get(),
    }


def json_response(
    body: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Any JSON answer; datetimes in UTC become RFC 3339 with a Z."""
    return web.Response(
        body=msgspec.json.encode(body),
        status=status,
        headers=headers,
        content_type="application/json",
    )


def _note(request: web.Request, error: DuckmeshError) -> None:
    expected = error.spec.status < 500 or error.code in _EXPECTED
    level = logging.DEBUG if expected else logging.WARNING
    logger.log(
        level,
        "request refused",
        extra={"method": request.method, "route": _route(request), "error_code": error.code},
        exc_info=error if error.code == "INTERNAL" else None,
    )


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource else "unknown"


def _of_aiohttp(request: web.Request, error: web.HTTPException) -> web.Response:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        response = error_response(
            NotFound(
                "ROUTE_NOT_FOUND",
                f"method: {request.method} is not served at this path, only {allowed}",
                context={"allowed": sorted(error.allowed_methods)},
            ),
            status=405,
        )
        response.headers["Allow"] = allowed
        return response
    if error.status == 404:
        return error_response(
            NotFound("ROUTE_NOT_FOUND", "path: there is no such path; all paths begin with /v1/")
        )
    if error.status == 413:
        return error_response(Invalid("PAYLOAD_TOO_LARGE", "body: larger than the limit"))
    if error.status < 500:
        return error_response(Invalid("VALIDATION_FAILED", f"request: {error.reason.lower()}"))
    return error_response(internal())
