"""A relay before Postgres that cuts a lake's connection when its COMMIT has landed: the answer is lost on the way back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from duckmesh_runtime.settings import read_secret
from tests.services import Lake

_CHUNK = 2**16
_NAMED = b"dm:"
"""How the connections of DuckDB are told from others of the same login: by their application name."""


class Relay:
    """Forwards each connection to Postgres.

    Attributes:
        armed: Whether the answer to the next COMMIT of a lake transaction is to be lost.
        cuts: How many were.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self.armed = False
        self.cuts = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(self._host, self._port)
        line = _Line(self)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(line.ask(reader, there[1]))
                group.create_task(line.answer(there[0], writer))
        except* (_Cut, OSError):
            pass
        finally:
            for end in (writer, there[1]):
                end.close()
                with suppress(OSError):
                    await end.wait_closed()


class _Cut(Exception):
    pass


class _Line:
    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._named = False
        self._losing = False

    async def ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            self._named = self._named or _NAMED in data
            if self._relay.armed and self._named and data.startswith(b"Q") and b"COMMIT" in data:
                self._losing = True
            writer.write(data)
            await writer.drain()
        raise _Cut

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            if self._losing and data.startswith(b"C") and b"COMMIT" in data:
                self._relay.armed = False
                self._relay.cuts += 1
                raise _Cut
            self._losing = False
            writer.write(data)
            await writer.drain()
        raise _Cut


@asynccontextmanager
async def relayed(lake: Lake, folder: Path) -> AsyncIterator[tuple[Lake, Relay]]:
    """The same lake, its writer on a line that can be cut."""
    url = urlsplit(read_secret(lake.writer_dir, "dsn"))
    relay = Relay(url.hostname or "", url.port or 5432)
    server = await asyncio.start_server(relay.serve, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    netloc = f"{url.netloc.rpartition('@')[0]}@127.0.0.1:{port}"
    secrets = folder / "relayed"
    secrets.mkdir()
    (secrets / "dsn").write_text(urlunsplit(url._replace(netloc=netloc)))
    try:
        yield replace(lake, writer_dir=secrets), relay
    finally:
        server.close()
