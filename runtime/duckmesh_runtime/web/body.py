"""Request bodies and query parameters: bounded, decompressed, decoded, or refused. Used by the handlers."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from duckmesh_runtime.errors import Invalid, Limited

T = TypeVar("T")

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
            async for part in _with_deadline(_decoded(request, limit)):
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
            yield b"".join(parts)
        finally:
            self.used_bytes -= taken


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
    encodings = request.headers.getall("Content-Encoding", [])
    encoding = ",".join(encodings).strip().lower()
    if encoding not in ("", "identity", "gzip"):
        raise Invalid(
            "UNSUPPORTED_MEDIA_TYPE",
            "Content-Encoding: want gzip or none",
            context={"supported": ["gzip"]},
        )
    _check_size(request.content_length or 0, limit)
    gunzip = _Gunzip() if encoding == "gzip" else None
    async for chunk in request.content.iter_any():
        if gunzip is None:
            yield chunk
        else:
            for part in gunzip.feed(chunk):
                yield part
    if gunzip is not None:
        gunzip.close()


class _Gunzip:
    """Streaming gzip in steps of at most 1 MiB, so that a bomb is refused before it is in memory."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)
        self._fed = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The parts of one network chunk, each made only when the one before was accepted."""
        while chunk:
            self._fed = True
            if self._inner.eof:  # gzip files may have several members
                self._inner = zlib.decompressobj(wbits=31)
            try:
                part = self._inner.decompress(chunk, _STEP)
            except zlib.error:
                raise _broken_gzip() from None
            yield part
            chunk = self._inner.unconsumed_tail or self._inner.unused_data

    def close(self) -> None:
        """Refuse a cut stream."""
        if not self._fed or not self._inner.eof:
            raise _broken_gzip()


def _broken_gzip() -> Invalid:
    return Invalid(
        "VALIDATION_FAILED", "body: is not the gzip stream that Content-Encoding promises"
    )


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decode a JSON envelope.

    Raises:
        Invalid: VALIDATION_FAILED naming the field.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Invalid("VALIDATION_FAILED", f"body: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Invalid("VALIDATION_FAILED", "body: is not well-formed JSON in UTF-8") from None
    except RecursionError:
        raise Invalid("VALIDATION_FAILED", "body: is nested too deeply") from None


def require_type(request: web.Request, *supported: str) -> str:
    """The body's media type, one of `supported`."""
    if request.content_type not in supported or len(request.headers.getall("Content-Type", [])) > 1:
        raise Invalid(
            "UNSUPPORTED_MEDIA_TYPE",
            "Content-Type: want " + " or ".join(supported),
            context={"supported": list(supported)},
        )
    return request.content_type


def parameters(request: web.Request, known: Mapping[str, Callable[[str], T]]) -> dict[str, T]:
    """The query parameters that were sent, parsed; unknown and doubled ones are refused by name."""
    found: dict[str, T] = {}
    for name, value in request.query.items():
        if name not in known:
            wanted = ", ".join(sorted(known)) or "none"
            raise Invalid(
                "VALIDATION_FAILED", f"{name}: is no parameter of this call; known: {wanted}"
            )
        if name in found:
            raise Invalid("VALIDATION_FAILED", f"{name}: is given twice")
        try:
            found[name] = known[name](value)
        except ValueError as error:
            raise Invalid("VALIDATION_FAILED", f"{name}: {error}") from None
    return found


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """A parser of `parameters`."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 19 and low <= int(text) <= high):
            raise ValueError(f"want a whole number from {low} to {high}")
        return int(text)

    return parse


def boolean(text: str) -> bool:
    """A parser of `parameters`."""
    if text not in ("true", "false"):
        raise ValueError("want true or false")
    return text == "true"
