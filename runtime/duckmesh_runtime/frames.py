"""Frames of `domain/wire.py` off an asyncio socket, received straight into the bodies they become.

An `asyncio.StreamReader` copies every byte three times; with answers of some megabytes that was a fifth of all the time
spent outside of the engine. Both ends of a sandbox's sockets may use it.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import Final, cast

from duckmesh_runtime.domain import wire
from duckmesh_runtime.domain.wire import Kind

_SCRATCH_BYTES: Final = 65_536
"""Small frames come many at a time; only what is left of a larger one goes into its own memory."""

_FRAME_BYTES: Final = 256
"""What a frame takes beside its body, so that one who sends empty frames is stopped as well."""

_MOST_HANDED: Final = 4


async def receive_first(connection: socket.socket) -> tuple[bytes, list[socket.socket]]:
    """The header that a connection begins with, and the sockets that were sent with it, which a transport would drop.

    Args:
        connection: Not blocking, and no transport's yet.

    Raises:
        OSError: The other side is gone.
        wire.WireError: It sent less than a header.
    """
    readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(connection, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(connection)
    header, handles, _, _ = socket.recv_fds(connection, wire.HEADER_BYTES, _MOST_HANDED)
    handed = [socket.socket(fileno=handle) for handle in handles]
    for one in handed:
        one.set_inheritable(False)
    if len(header) < wire.HEADER_BYTES:
        for one in handed:
            one.close()
        raise wire.WireError("a connection starts with a header")
    return header, handed


class FrameReader(asyncio.BufferedProtocol):
    """One connection. The protocol of a transport; `next` takes the frames in their order.

    Past `wire.BUFFER_BYTES` that nobody took it stops reading, which stops the sender.
    """

    def __init__(self) -> None:
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._filled = 0  # of the scratch
        self._kind: Kind | None = None
        self._body = bytearray()
        self._missing = 0  # of the body
        self._frames: deque[tuple[Kind, bytearray]] = deque()
        self._waiting_bytes = 0
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._closed = asyncio.get_running_loop().create_future()

    async def next(self) -> tuple[Kind, bytearray]:
        """The next frame: kind and body. One caller at a time.

        Raises:
            ConnectionResetError: The other side is gone.
            wire.WireError: It does not speak this protocol.
        """
        while not self._frames:
            if self._failure is not None:
                raise self._failure
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        kind, body = self._frames.popleft()
        self._waiting_bytes -= len(body) + _FRAME_BYTES
        if self._paused and self._waiting_bytes <= wire.BUFFER_BYTES:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()
        return kind, body

    def write(self, frame: bytes) -> None:
        """Queue a frame for sending."""
        self._transport.write(frame)

    async def aclose(self) -> None:
        """Close the connection, whatever is not sent yet; safe to repeat."""
        self._transport.abort()
        await asyncio.shield(self._closed)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.BaseProtocol`."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        self._end(ConnectionResetError("the other side is gone"))
        if not self._closed.done():
            self._closed.set_result(None)

    def get_buffer(self, sizehint: int) -> memoryview:
        """See `asyncio.BufferedProtocol`."""
        if self._missing:
            return memoryview(self._body)[len(self._body) - self._missing :]
        return self._scratch[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """See `asyncio.BufferedProtocol`."""
        if self._missing:
            self._missing -= nbytes
            self._take_whole()
        else:
            self._filled += nbytes
            try:
                self._split()
            except wire.WireError as error:
                self._end(error)
                self._transport.abort()

    def eof_received(self) -> None:
        """See `asyncio.BufferedProtocol`; the transport closes itself."""
        self._end(ConnectionResetError("the other side is gone"))

    def _split(self) -> None:
        """Take the frames out of the scratch; what is left of the last one goes to the front, or into its body."""
        at = 0
        while self._filled - at >= wire.HEADER_BYTES:
            self._kind, size = wire.parse_header(bytes(self._scratch[at : at + wire.HEADER_BYTES]))
            at += wire.HEADER_BYTES
            here = min(size, self._filled - at)
            self._body = bytearray(size)
            self._body[:here] = self._scratch[at : at + here]
            self._missing = size - here
            at += here
            self._take_whole()
        rest = bytes(self._scratch[at : self._filled])
        self._scratch[: len(rest)] = rest
        self._filled = len(rest)

    def _take_whole(self) -> None:
        if self._missing or self._kind is None:
            return
        self._frames.append((self._kind, self._body))
        self._waiting_bytes += len(self._body) + _FRAME_BYTES
        self._kind, self._body = None, bytearray()
        if self._waiting_bytes > wire.BUFFER_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def _end(self, failure: Exception) -> None:
        if self._failure is None:
            self._failure = failure
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
