"""Frames come out as they were sent, however the bytes are cut; a sender is stopped by who does not take them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duckmesh_runtime.domain import wire
from duckmesh_runtime.domain.wire import Kind
from duckmesh_runtime.frames import FrameReader, receive_first

FRAMES = [
    (Kind.HEAD, b"{}"),
    (Kind.READY, b""),
    (Kind.ROWS, bytes(range(256)) * 1_000),
    (Kind.ROWS, b"x" * 65_531),  # with its header as long as the reader's scratch
    (Kind.END, b"e"),
]
FRAME = wire.encode(Kind.ROWS, b"x" * 100)
SENT = b"".join(wire.encode(kind, body) for kind, body in FRAMES)


@asynccontextmanager
async def reading() -> AsyncIterator[tuple[FrameReader, socket.socket]]:
    """A reader and the other end of its connection."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with theirs:
        loop = asyncio.get_running_loop()
        _, reader = await loop.create_unix_connection(FrameReader, sock=ours)
        try:
            yield reader, theirs
        finally:
            await reader.aclose()


async def take(reader: FrameReader, count: int) -> list[tuple[Kind, bytes]]:
    async with asyncio.timeout(10):
        return [(kind, bytes(body)) for kind, body in [await reader.next() for _ in range(count)]]


async def test_frames_keep_their_order() -> None:
    async with reading() as (reader, other):
        sending = asyncio.get_running_loop().sock_sendall(other, SENT)
        frames, _ = await asyncio.gather(take(reader, len(FRAMES)), sending)

    assert frames == FRAMES


@given(cuts=st.lists(st.integers(1, len(SENT) - 1), max_size=20))
@settings(max_examples=50, deadline=None)
def test_cuts_do_not_matter(cuts: list[int]) -> None:
    reader = asyncio.run(_fed(sorted(cuts)))

    assert [(kind, bytes(body)) for kind, body in reader._frames] == FRAMES


async def _fed(cuts: list[int]) -> FrameReader:
    reader = FrameReader()
    for start, end in zip([0, *cuts], [*cuts, len(SENT)], strict=True):
        left = memoryview(SENT)[start:end]
        while left:
            buffer = reader.get_buffer(-1)
            size = min(len(buffer), len(left))
            buffer[:size] = left[:size]
            reader.buffer_updated(size)
            left = left[size:]
    return reader


async def test_a_sender_waits_until_its_frames_are_taken() -> None:
    frame = wire.encode(Kind.ROWS, b"x" * 2**20)
    count = 2 * wire.BUFFER_BYTES // 2**20 + 4
    async with reading() as (reader, other):
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(other, frame * count))
        async with asyncio.timeout(10):
            while not reader._paused:
                await asyncio.sleep(0)
        assert not sending.done()
        assert reader._waiting_bytes <= wire.BUFFER_BYTES + 2**20

        assert len(await take(reader, count)) == count
        await sending


async def test_a_sender_of_empty_frames_waits_too() -> None:
    count = 200_000
    frames = wire.encode(Kind.ROWS) * count
    async with reading() as (reader, other):
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(other, frames))
        async with asyncio.timeout(10):
            while not reader._paused:
                await asyncio.sleep(0)
        assert not sending.done()
        assert len(reader._frames) < count / 4

        assert len(await take(reader, count)) == count
        await sending


@pytest.mark.parametrize("part", [b"", SENT[:3], FRAME[:20]], ids=["none", "header", "body"])
async def test_what_is_cut_off_is_no_frame(part: bytes) -> None:
    async with reading() as (reader, other):
        other.send(wire.encode(Kind.HEAD, b"whole") + part)
        other.close()

        assert await take(reader, 1) == [(Kind.HEAD, b"whole")]
        with pytest.raises(ConnectionResetError):
            await take(reader, 1)


async def test_nonsense_comes_after_the_frames_before_it() -> None:
    async with reading() as (reader, other):
        other.send(wire.encode(Kind.READY) + b"\xff\x00\x00\x00\x00")

        assert await take(reader, 1) == [(Kind.READY, b"")]
        with pytest.raises(wire.WireError):
            await take(reader, 1)


async def test_closing_tells_the_other_side_although_it_does_not_read() -> None:
    async with reading() as (reader, other):
        reader.write(b"x" * 2**22)
        async with asyncio.timeout(10):
            await reader.aclose()
            while await asyncio.get_running_loop().sock_recv(other, 2**20):
                pass


async def test_a_connection_begins_with_a_header_and_what_was_handed_with_it() -> None:
    ours, theirs = socket.socketpair()
    one, other = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs, one:
        waiting = asyncio.create_task(receive_first(ours))
        await asyncio.sleep(0)
        with other:
            socket.send_fds(theirs, [FRAME], [other.fileno()])
        header, (handed,) = await asyncio.wait_for(waiting, 10)
        with handed:
            assert not handed.get_inheritable()
            handed.send(b"rows")

        assert header + ours.recv(1_000) == FRAME
        assert one.recv(10) == b"rows"


@pytest.mark.parametrize("part", [b"", FRAME[:3]], ids=["none", "header"])
async def test_less_than_a_header_begins_nothing(part: bytes) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        theirs.send(part)
        theirs.shutdown(socket.SHUT_WR)

        with pytest.raises(wire.WireError):
            await asyncio.wait_for(receive_first(ours), 10)
