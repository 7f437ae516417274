"""The read proxy: the sandbox's only way to Parquet, on loopback of the query process.

It signs towards the store, so the sandbox needs no key, and serves exactly the files of the catalogs now frozen, by GET
and HEAD; every other path, however spelled, is the same 404.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Final

from aiohttp import web

from duckmesh_runtime.errors import Corrupt, DuckmeshError
from duckmesh_runtime.ports import ObjectStore

_PREFIX: Final = "/lake/"
_RANGE: Final = re.compile(r"bytes=(\d{1,15})-(\d{0,15})")
_CHUNK_BYTES: Final = 4 * 2**20  # bounds the memory of a request for a whole file
_HEADERS: Final = {
    # Files of a lake never change: the same for each request, so that the reader's cache holds.
    "ETag": '"immutable"',
    "Last-Modified": "Thu, 01 Jan 1970 00:00:00 GMT",
    "Accept-Ranges": "bytes",
}


class ReadProxy:
    """One listener over one store; `allow` and `release` follow the frozen catalogs.

    Args:
        store: Reads the objects.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._sizes: dict[str, int] = {}
        self._holders: Counter[str] = Counter()
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def data_url(self) -> str:
        """Base URL of the files; ends with a slash."""
        return f"http://127.0.0.1:{self._port}{_PREFIX}"

    def allow(self, files: Mapping[str, int]) -> None:
        """Serve these files (path -> size in bytes), until `release` was called as often."""
        self._sizes.update(files)
        self._holders.update(files.keys())

    def release(self, files: Mapping[str, int]) -> None:
        """Take back one `allow` of these files."""
        for path in files:
            self._holders[path] -= 1
            if self._holders[path] <= 0:
                del self._holders[path]
                self._sizes.pop(path, None)

    async def start(self) -> int:
        """Listen on a free port of 127.0.0.1; returns it."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._port = int(self._runner.addresses[0][1])
        return self._port

    async def close(self) -> None:
        """Stop listening; safe to repeat."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        # The path as sent: no decoding and no normalising can turn another path into an allowed one.
        sent = request.raw_path
        path = sent.removeprefix(_PREFIX)
        size = self._sizes.get(path) if sent.startswith(_PREFIX) else None
        if size is None:
            return web.Response(status=404)
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, headers={"Allow": "GET, HEAD"})
        start, end, status = _range(request.headers.get("Range"), size)
        headers = {
            **_HEADERS,
            "Content-Length": str(end - start),
            "Content-Type": "application/octet-stream",
        }
        if status == 416:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        if request.method == "HEAD":
            return web.Response(status=status, headers=headers)
        return await self._send(
            request, path, start, end, web.StreamResponse(status=status, headers=headers)
        )

    async def _send(
        self, request: web.Request, path: str, start: int, end: int, response: web.StreamResponse
    ) -> web.StreamResponse:
        try:
            chunk = await self._read(path, start, end)
        except DuckmeshError as error:
            # 404 is "not allowed"; the sandbox tells a lost file from an outage by these two.
            return web.Response(status=410 if isinstance(error, Corrupt) else 503)
        await response.prepare(request)
        while True:
            await response.write(chunk)
            start += len(chunk)
            if start >= end:
                await response.write_eof()
                return response
            chunk = await self._read(path, start, end)

    async def _read(self, path: str, start: int, end: int) -> bytes:
        length = min(end - start, _CHUNK_BYTES)
        chunk = await self._store.read(path, start, length) if length else b""
        if len(chunk) != length:
            raise Corrupt(
                "INTEGRITY_CHECK_FAILED", "a file of the snapshot is shorter than recorded"
            )
        return chunk


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
