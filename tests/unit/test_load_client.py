"""The load client takes no idle connection for a live one: its count of resets is the server's, not its own."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from tests.bench.client import Client

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def test_a_connection_that_was_closed_while_idle_is_replaced() -> None:
    """As a server does after its keep-alive time; those at the bottom of the stack are used in bursts only."""
    open_now: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_now.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(ANSWER)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "key")
    await client.connect(3)
    for writer in open_now:
        writer.close()
    async with asyncio.timeout(10):
        while client.idle:
            await asyncio.sleep(0)

    answers = await asyncio.gather(*(client.get("/") for _ in range(3)))

    assert answers == [(200, b"ok")] * 3
    client.close()
    async with asyncio.timeout(10):
        for writer in open_now:
            with suppress(ConnectionError):
                await writer.wait_closed()
    server.close()
    await server.wait_closed()
