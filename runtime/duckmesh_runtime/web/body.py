"""Request bodies and query parameters: bounded, decompressed, decoded, or refused. Used by the handlers."""

from __future__ import annotations

import asyncio
import sys
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from aiohttp import web

from duckmesh_runtime.errors import Invalid, Limited
from duckmesh_runtime.web.parameters import Parameter, Parameters

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

JSON: Final = "application/json"
ARROW: Final = "application/vnd.apache.arrow.stream"
DEFAULT_WAIT_MS: Final = 10_000
LONGEST_WAIT_MS: Final = 60_000
"""For visibility: what callers get who do not say, and the most they can ask for."""

_READ_S: Final = 60.0  # a body that trickles holds memory; a 64 MB body takes this long at 9 Mbit/s
_STEP: Final = 2**20
_BODIES_AT_ONCE: Final = 4
_LEAST_TOTAL_BYTES: Final = 256 * 2**20


class BodyBudget:
    """Bytes of request bodies in memory at a time; past it requests are OVERLOADED rather than the process killed.

    Args:
        body_bytes: Largest (decompressed) single body.
        total_bytes: All of them; default four of the largest, and room for one of JSON at least.
    """

    def __init__(self, body_bytes: int, total_bytes: int | None = None) -> None:
        self.body_bytes = body_bytes
        self.total_bytes = total_bytes or max(_BODIES_AT_ONCE * body_bytes, _LEAST_TOTAL_BYTES)
        self.used_bytes = 0

    @asynccontextmanager
    async def read(
        self, request: web.Request, limit_bytes: int | None = None, *, growth: int = 1
    ) -> AsyncIterator[bytes]:
        """The body, decompressed; its bytes count until the block ends.

        Args:
            request: Whose body.
            limit_bytes: Largest body of this kind.
            growth: Bytes of memory that a byte becomes when the body is decoded.

        Raises:
            Invalid: PAYLOAD_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, or VALIDATION_FAILED for a broken or too slow body.
            Limited: OVERLOADED when too many bodies are in memory.
        """
        limit = min(limit_bytes or self.body_bytes, self.body_bytes)
        taken = 0
        parts: list[bytes] = []
        try:
            async for part in _parts(request, limit):
                taken += len(part) * growth
                self.used_bytes += len(part) * growth
                _check_size(taken // growth, limit)
                if self.used_bytes > self.total_bytes:
                    raise Limited(
                        "OVERLOADED",
                        "too many large bodies at once: repeat in a second",
                        retry_after_s=1,
                    )
                parts.append(part)
            yield await _joined(parts)
        finally:
            self.used_bytes -= taken


def _parts(request: web.Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it comes; a small one that came with its headers needs no waiting and no clock."""
    if request.content.is_eof() and "Content-Encoding" not in request.headers:
        return _arrived(request.content.read_nowait(), limit)
    return _with_deadline(_decoded(request, limit))


async def _arrived(body: bytes, limit: int) -> AsyncIterator[bytes]:
    _check_size(len(body), limit)
    yield body


async def _joined(parts: list[bytes]) -> bytes:
    """The parts as one, which are taken apart: large bodies are not in memory twice, and copied beside the event loop."""
    if len(parts) == 1:
        return parts.pop()
    if sum(map(len, parts)) < _STEP:
        return b"".join(parts)
    return await asyncio.to_thread(_join, parts)


def _join(parts: list[bytes]) -> bytes:
    body = b"".join(parts)  # from 1 MiB on it lets other threads run
    parts.clear()
    return body


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise Invalid(
            "PAYLOAD_TOO_LARGE",
            f"body: larger than {limit} bytes (decompressed): send it in smaller parts",
            context={"limit_bytes": limit},
        )


async def _with_deadline(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    deadline = asyncio.get_running_loop().time() + _READ_S
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                part = await anext(parts)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Invalid(
                "VALIDATION_FAILED", f"body: did not arrive within {_READ_S:.0f} s"
            ) from None
        yield part


async def _decoded(request: web.Request, limit: int) -> AsyncIterator[bytes]:
    encodings = request.headers.getall("Content-Encoding", ["identity"])
    encoding = ",".join(encodings).strip().lower()
    if encoding not in ("identity", *_MEMBERS):
        raise Invalid(
            "UNSUPPORTED_MEDIA_TYPE",
            "Content-Encoding: want gzip, zstd or identity, and one at most",
            context={"supported": list(_MEMBERS)},
        )
    _check_size(request.content_length or 0, limit)
    unpack = _Unpack(encoding) if encoding in _MEMBERS else None
    async for chunk in request.content.iter_any():
        if unpack is None:
            yield chunk
            continue
        for part in unpack.feed(chunk):
            yield part
            await asyncio.sleep(0)  # others wait for one step, not for all that a few bytes become
    if unpack is not None:
        unpack.close()


class _Member(Protocol):
    """One gzip member or zstd frame."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _GzipMember:
    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        part = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        # When the step is full more may come out of what is already in.
        self.needs_input = len(part) < max_length and not self._inner.unconsumed_tail
        return part


_ZSTD_WINDOW_LOG: Final = 23
"""8 MiB, what https://www.rfc-editor.org/rfc/rfc9659 allows senders over HTTP."""


def _zstd_frame() -> _Member:
    return zstd.ZstdDecompressor(
        options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
    )


_MEMBERS: Final[Mapping[str, Callable[[], _Member]]] = {"gzip": _GzipMember, "zstd": _zstd_frame}
_MOST_MEMBERS: Final = (
    10_000  # each costs a decompressor; writers that split make them of 64 kB at least
)


class _Unpack:
    """Streaming decompression in steps of at most 1 MiB, so that a bomb is refused before it is in memory."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._inner = _MEMBERS[encoding]()
        self._members = 1
        self._fed = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The parts of one network chunk, each made only when the one before was accepted."""
        self._fed = self._fed or bool(chunk)
        while chunk or not (self._inner.eof or self._inner.needs_input):
            if self._inner.eof:  # both formats may be several, one after the other
                self._next()
            try:
                part = self._inner.decompress(chunk, _STEP)
            except (zlib.error, zstd.ZstdError):
                raise self._broken() from None
            yield part
            chunk = self._inner.unused_data if self._inner.eof else b""

    def close(self) -> None:
        """Refuse a cut stream."""
        if not self._fed or not self._inner.eof:
            raise self._broken()

    def _next(self) -> None:
        self._members += 1
        if self._members > _MOST_MEMBERS:
            raise Invalid(
                "VALIDATION_FAILED", f"body: is more than {_MOST_MEMBERS} {self._encoding} streams"
            )
        self._inner = _MEMBERS[self._encoding]()

    def _broken(self) -> Invalid:
        window = f" with a window of at most {2**_ZSTD_WINDOW_LOG} bytes"
        return Invalid(
            "VALIDATION_FAILED",
            f"body: is not the {self._encoding} stream that Content-Encoding promises"
            + (window if self._encoding == "zstd" else ""),
        )


def require_type(request: web.Request, *supported: str) -> str:
    """The body's media type, one of `supported`."""
    if request.content_type not in supported or len(request.headers.getall("Content-Type", [])) > 1:
        raise Invalid(
            "UNSUPPORTED_MEDIA_TYPE",
            "Content-Type: want " + " or ".join(supported),
            context={"supported": list(supported)},
        )
    return request.content_type


def parameters(request: web.Request, known: Parameters) -> dict[str, Any]:
    """The query parameters, parsed, with the defaults of those not sent; unknown and doubled ones are refused by name."""
    found: dict[str, Any] = {}
    for name, value in request.query.items() if request.query_string else ():
        if name not in known:
            wanted = ", ".join(sorted(known)) or "none"
            raise invalid(name, f"is no parameter of this call; known: {wanted}")
        if name in found:
            raise invalid(name, "is given twice")
        found[name] = _parsed(name, value, known[name])
    for name, parameter in known.items():
        if name in found:
            continue
        if parameter.missing:
            raise invalid(name, f"is missing; {parameter.missing}")
        if parameter.default is not None:
            found[name] = parameter.default
    return found


def path_part(request: web.Request, name: str, known: Parameter) -> Any:
    """A part of the path, parsed."""
    return _parsed(name, request.match_info[name], known)


def _parsed(name: str, sent: str, known: Parameter) -> Any:
    try:
        return known.parse(sent)
    except ValueError as error:
        raise invalid(name, str(error)) from None


def invalid(field: str, problem: str) -> Invalid:
    """VALIDATION_FAILED of a field, a parameter or a header."""
    return Invalid("VALIDATION_FAILED", f"{field}: {problem}", context={"field": field})


def in_utc(field: str, time: datetime) -> datetime:
    """A time with its zone, in UTC.

    Raises:
        Invalid: VALIDATION_FAILED naming the field: there it is in no year from 1 to 9999.
    """
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise invalid(field, "want a time that is in the years 1 to 9999 in UTC") from None
