"""The read proxy: the sandbox's only way to Parquet, on loopback of the query process.

It signs towards the store, so the sandbox needs no key, and serves exactly the files of the catalogs now frozen, by GET
and HEAD; every other path, however spelled, is the same 404. It speaks as much HTTP as that takes, at a fifth of the
processor's time of a server for all of HTTP: a cold scan of a lake of small files asks twice for each.
Who asks may be a statement that took its process over, so every bound is here.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Final, NamedTuple, cast

from duckmesh_runtime.domain.read_ahead import MOST_FILES, ReadAhead
from duckmesh_runtime.errors import Corrupt, DuckmeshError
from duckmesh_runtime.ports import ObjectStore

_PREFIX: Final = "/lake/"
_RANGE: Final = re.compile(r"bytes=(\d{1,15})-(\d{0,15})")
_CHUNK_BYTES: Final = 4 * 2**20
_CHUNKS: Final = 16
"""Chunks at once: with `_CHUNK_BYTES` what all answers that are on their way may hold."""

_SMALL_BYTES: Final = 2**20
_KEPT_BYTES: Final = 32 * 2**20
_HEAD_BYTES: Final = 16_384
_CONNECTIONS: Final = 512
"""A slot may have 256 files open, and none needs nearly as many."""

_STALLED_S: Final = 30.0
"""A slot takes what it asked for at once; one that does not must not keep others from their chunks."""

_SHORTER: Final = "a file of the snapshot is shorter than recorded"
_FIXED_HEADERS: Final = (
    # Files of a lake never change: the same for each request, so that the reader's cache holds.
    'ETag: "immutable"\r\n'
    "Last-Modified: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
    "Accept-Ranges: bytes\r\n"
    "Content-Type: application/octet-stream\r\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What counts of a request; header names in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    keep: bool


class _Span(NamedTuple):
    """Bytes `start .. end` of a file of `size` bytes."""

    path: str
    size: int
    start: int
    end: int


class ReadProxy:
    """One listener over one store; `allow` and `release` follow the frozen catalogs.

    Args:
        store: Reads the objects.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._sizes: dict[str, int] = {}
        self._holders: Counter[str] = Counter()
        self._small = _SmallFiles()
        self._coming: dict[str, asyncio.Task[bytes]] = {}  # small files
        self._ahead = ReadAhead(_SMALL_BYTES)
        self._broken: set[str] = set()  # files that ended in the middle of an answer
        self._chunks = asyncio.Semaphore(_CHUNKS)
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._port = 0

    @property
    def data_url(self) -> str:
        """Base URL of the files; ends with a slash."""
        return f"http://127.0.0.1:{self._port}{_PREFIX}"

    def allow(self, files: Mapping[str, int]) -> None:
        """Serve these files (path -> size in bytes), until `release` was called as often."""
        self._sizes.update(files)
        self._holders.update(files.keys())
        self._ahead.follow(files)

    def release(self, files: Mapping[str, int]) -> None:
        """Take back one `allow` of these files."""
        for path in files:
            self._holders[path] -= 1
            if self._holders[path] <= 0:
                del self._holders[path]
                self._sizes.pop(path, None)
                self._small.forget(path)
                self._broken.discard(path)

    async def start(self) -> int:
        """Listen on a free port of 127.0.0.1; returns it."""
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, limit=_HEAD_BYTES, backlog=_CONNECTIONS
        )
        self._port = int(self._server.sockets[0].getsockname()[1])
        return self._port

    async def close(self) -> None:
        """Stop listening and break off what is being sent; safe to repeat."""
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = [*self._connections, *self._coming.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection; whatever goes wrong on it ends it and nothing else."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._connections.add(task)
        try:
            if len(self._connections) <= _CONNECTIONS:
                while await self._answer(reader, writer):
                    pass
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()  # an answer that was begun must not look whole
        except BaseException:
            writer.transport.abort()
            raise
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer the next request; False when the connection is to end."""
        request = _parse(await reader.readuntil(b"\r\n\r\n"))
        if request is None:
            writer.write(_head(400, "Connection: close\r\n"))
            return False
        # The path as sent: no decoding and no normalising can turn another path into an allowed one.
        path = request.target.removeprefix(_PREFIX)
        size = self._sizes.get(path) if request.target.startswith(_PREFIX) else None
        if size is None:
            writer.write(_head(404))
        elif request.method not in ("GET", "HEAD"):
            writer.write(_head(405, "Allow: GET, HEAD\r\n"))
        else:
            await self._send(request, path, size, writer)
        await _drained(writer)
        return request.keep

    async def _send(
        self, request: _Request, path: str, size: int, writer: asyncio.StreamWriter
    ) -> None:
        start, end, status = _range(request.headers.get("range"), size)
        if status == 416:
            writer.write(_head(416, f"Content-Range: bytes */{size}\r\n"))
            return
        told = f"Content-Range: bytes {start}-{end - 1}/{size}\r\n" if status == 206 else ""
        head = _head(status, told + _FIXED_HEADERS, length=end - start)
        if request.method == "HEAD":
            writer.write(head)
            return
        try:
            if path in self._broken:
                await self._check(path, size)
            await self._send_bytes(_Span(path, size, start, end), head, writer)
        except DuckmeshError as error:
            # 404 is "not allowed"; the sandbox tells a lost file from an outage by these two.
            writer.write(_head(410 if isinstance(error, Corrupt) else 503))

    async def _send_bytes(self, span: _Span, head: bytes, writer: asyncio.StreamWriter) -> None:
        """Head and bytes, chunk by chunk.

        Raises:
            DuckmeshError: The first chunk cannot be read, and nothing is sent.
            ConnectionError: A later one cannot.
        """
        start = span.start
        while start < span.end:
            async with self._chunks:
                try:
                    chunk = await self._chunk(span, start)
                except DuckmeshError as error:
                    if head:
                        raise
                    if isinstance(error, Corrupt) and span.path in self._sizes:
                        self._broken.add(span.path)  # the reader asks again, and is to hear why
                    raise ConnectionAbortedError("the file broke off") from error
                if len(chunk) <= _SMALL_BYTES:
                    writer.write(head + chunk)
                else:
                    writer.write(head)
                    writer.write(chunk)
                await _drained(writer)
            head = b""
            start += len(chunk)
        writer.write(head)  # of no bytes at all

    async def _chunk(self, span: _Span, start: int) -> bytes:
        if span.size <= _SMALL_BYTES:
            return (await self._whole(span.path, span.size))[start : span.end]
        return await self._read(span.path, start, min(span.end - start, _CHUNK_BYTES))

    async def _whole(self, path: str, size: int) -> bytes:
        """A small file: its footer was asked for, so the rest will be. One trip to the store instead of two."""
        found = self._small.get(path)
        if found is None:
            self._fetch(path, size)
        for ahead, ahead_size in self._ahead.asked(path, missed=found is None):
            known = ahead not in self._sizes or self._small.has(ahead)
            if not known and len(self._coming) < MOST_FILES:
                self._fetch(ahead, ahead_size)
        return await asyncio.shield(self._fetch(path, size)) if found is None else found

    def _fetch(self, path: str, size: int) -> asyncio.Task[bytes]:
        """Begin to read a small file, unless that has begun."""
        if (coming := self._coming.get(path)) is None:
            coming = self._coming[path] = asyncio.create_task(self._read(path, 0, size))
            coming.add_done_callback(partial(self._fetched, path))
        return coming

    def _fetched(self, path: str, task: asyncio.Task[bytes]) -> None:
        del self._coming[path]
        # Who asks for a file that was fetched ahead in vain finds the reason by itself.
        if not task.cancelled() and task.exception() is None and path in self._sizes:
            self._small.keep(path, task.result())

    async def _read(self, path: str, start: int, length: int) -> bytes:
        chunk = await self._store.read(path, start, length) if length else b""
        if len(chunk) != length:
            raise Corrupt("INTEGRITY_CHECK_FAILED", _SHORTER)
        return chunk

    async def _check(self, path: str, size: int) -> None:
        if await self._store.size(path) < size:
            raise Corrupt("INTEGRITY_CHECK_FAILED", _SHORTER)
        self._broken.discard(path)  # it was brought back


class _SmallFiles:
    """The small files that were used last, whole: they never change."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def get(self, path: str) -> bytes | None:
        found = self._files.get(path)
        if found is not None:
            self._files.move_to_end(path)
        return found

    def has(self, path: str) -> bool:
        return path in self._files

    def keep(self, path: str, content: bytes) -> None:
        self.forget(path)
        self._files[path] = content
        self._bytes += len(content)
        while self._bytes > _KEPT_BYTES:
            self.forget(next(iter(self._files)))

    def forget(self, path: str) -> None:
        self._bytes -= len(self._files.pop(path, b""))


async def _drained(writer: asyncio.StreamWriter) -> None:
    """Wait until the other side has taken all but a little.

    Raises:
        TimeoutError: It takes nothing.
    """
    if writer.transport.get_write_buffer_size():
        async with asyncio.timeout(_STALLED_S):
            await writer.drain()


def _parse(head: bytes) -> _Request | None:
    """A request without body; None for anything else, which is not worth an answer that says why."""
    first, *lines = head[:-4].decode("utf-8", "surrogateescape").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        return None
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            return None
        headers[name.lower()] = value.strip()
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        return (
            None  # nobody here reads a body, and what follows one must not be taken for a request
        )
    keep = words[2] == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    return _Request(method=words[0], target=words[1], headers=headers, keep=keep)


def _head(status: int, headers: str = "", *, length: int = 0) -> bytes:
    phrase = HTTPStatus(status).phrase
    return f"HTTP/1.1 {status} {phrase}\r\n{headers}Content-Length: {length}\r\n\r\n".encode()


def _range(header: str | None, size: int) -> tuple[int, int, int]:
    """Start, end (exclusive) and status of an answer. One range of the plain form; others count as none (RFC 9110, 14.2)."""
    match = _RANGE.fullmatch(header or "")
    if match is None:
        return 0, size, 200
    start = int(match[1])
    end = min(int(match[2]) + 1, size) if match[2] else size
    if start >= size or end <= start:
        return 0, 0, 416
    return start, end, 206
