"""A relay before an HTTP service that loses answers: the request went through, and nobody tells the client."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

_CHUNK = 2**16


@dataclass
class Relay:
    """A running relay.

    Attributes:
        url: Its address.
        losing: How many answers it is to lose from now on.
        lost: How many it lost.
        after_bytes: How much of an answer it lets through before it cuts the connection.
    """

    url: str
    losing: int = 0
    lost: int = 0
    after_bytes: int = 0


@contextmanager
def relay(url: str) -> Iterator[Relay]:
    """A relay before `url`, on a thread of its own."""
    there = urlsplit(url)
    ready, ended = threading.Event(), asyncio.Event()
    found = Relay("")
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _carry(found, there.hostname or "", there.port or 80, reader, writer)

        server = await asyncio.start_server(accept, "127.0.0.1")
        found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await ended.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait(10)
    try:
        yield found
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)
        loop.close()


class _Cut(Exception):
    pass


async def _carry(
    relay: Relay,
    host: str,
    port: int,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    far_reader, far_writer = await asyncio.open_connection(host, port)

    async def ask() -> None:
        while data := await reader.read(_CHUNK):
            far_writer.write(data)
            await far_writer.drain()
        raise _Cut

    async def answer() -> None:
        passed = 0
        while data := await far_reader.read(_CHUNK):
            if relay.losing and passed + len(data) > relay.after_bytes:
                relay.losing -= 1
                relay.lost += 1
                raise _Cut
            writer.write(data)
            await writer.drain()
            passed += len(data)
        raise _Cut

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(ask())
            group.create_task(answer())
    except* (_Cut, OSError):
        pass
    finally:
        for end in (writer, far_writer):
            end.close()
            with suppress(OSError):
                await end.wait_closed()
