"""What the supervisor makes of a slot that a statement took over."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from duckmesh_runtime.domain import wire
from duckmesh_runtime.domain.wire import Kind
from duckmesh_runtime.sandbox.child import Child


async def test_a_slot_that_says_too_much_is_gone() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    process: Any = SimpleNamespace(stderr=None)
    child = Child(process, reader, writer)
    with theirs:
        theirs.send(wire.encode(Kind.READY) + wire.encode(Kind.ERROR, b"x" * (2**20 + 1))[:100])

        assert await child.receive() == (Kind.READY, b"")
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(child.receive(), 5)
    writer.close()
    await writer.wait_closed()
