"""A small HTTP/1.1 client for load: keep-alive connections, prepared bytes, answers with a Content-Length.

A general client spends more on a small request than the server does; this one takes about 30 microseconds a request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from urllib.parse import urlsplit


class Client:
    """Connections to one base URL, made as needed and used again.

    Args:
        url: `http://host:port`.
        key: API key of every request.
        headers: Further ones of every request, by their names with `_` for `-`.
    """

    def __init__(self, url: str, key: str, **headers: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        more = "".join(f"{n.replace('_', '-')}: {value}\r\n" for n, value in headers.items())
        self._head = f"Host: {parts.netloc}\r\nAuthorization: Bearer {key}\r\n{more}"
        self._free: deque[_Connection] = deque()
        self._all: set[_Connection] = set()
        self._busy = 0

    @property
    def busy(self) -> int:
        """Requests that wait for their answer."""
        return self._busy

    @property
    def idle(self) -> int:
        """Open connections that wait for a request."""
        return sum(connection.open for connection in self._free)

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body; OSError when the connection fails."""
        return await self._exchange(f"GET {path} HTTP/1.1\r\n{self._head}\r\n".encode())

    async def post(
        self, path: str, body: bytes, *, content_type: str = "application/json"
    ) -> tuple[int, bytes]:
        """Status and body; OSError when the connection fails."""
        head = (
            f"POST {path} HTTP/1.1\r\n{self._head}Content-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return await self._exchange(head.encode() + body)

    async def connect(self, count: int, *, at_once: int = 50) -> None:
        """Make so many idle connections ahead of time."""
        for start in range(0, count, at_once):
            made = [self._connect() for _ in range(min(at_once, count - start))]
            self._free.extend(await asyncio.gather(*made))

    def close(self) -> None:
        """Close all connections."""
        for connection in list(self._all):
            connection.close()

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        self._busy += 1
        try:
            connection = self._idle() or await self._connect()
            try:
                answer = await connection.exchange(request)
            except BaseException:
                connection.close()
                raise
        finally:
            self._busy -= 1
        if connection.open:
            self._free.append(connection)
        return answer

    def _idle(self) -> _Connection | None:
        """One that is open still: the server closes those that have not been used for long."""
        while self._free:
            if (found := self._free.pop()).open:
                return found
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: _Connection(self._all), self._host, self._port
        )
        return connection


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, living: set[_Connection]) -> None:
        self._living = living
        self._buffer = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._living.add(self)
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._living.discard(self)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or self._answer is None:
            return
        head = bytes(self._buffer[:end]).lower()
        start = head.index(b"content-length:") + 15
        length = int(head[start:].split(b"\r\n", 1)[0])
        if len(self._buffer) < end + 4 + length:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        self._buffer.clear()
        if b"connection: close" in head:
            self.close()
        if not self._answer.done():
            self._answer.set_result((int(head[9:12]), body))

    async def exchange(self, request: bytes) -> tuple[int, bytes]:
        if not self.open:
            raise ConnectionResetError("the server closed the connection")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self.open = False
        self._transport.close()
