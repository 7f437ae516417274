"""Relays before Postgres and S3 through which each write of a process is seen, and something happens before or after one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from duckmesh_runtime.settings import read_secret
from tests.services import Lake

_CHUNK = 2**18
_CATALOG = re.compile(
    rb"\bCOMMIT\b|\bINSERT INTO\b|\bUPDATE \b|\bDELETE FROM\b|duckmesh\.(?:take_over|beat|report_\w+)"
)
_STORE = re.compile(rb"^(?:PUT|POST|DELETE) ")

When = Literal["before", "after"]
Act = Callable[[], Awaitable[bool]]
"""What happens; whether the step, or its answer, is passed on afterwards."""


class _Ended(Exception):
    pass


@dataclass
class Steps:
    """What is to happen, and what was seen.

    Attributes:
        act: Happens once, at the step `at`: before it is passed on, or when its answer is there and before that is passed on.
        at: Counted from 0; None for never.
        when: Before or after it.
        only: Steps whose name has none of this are not counted.
        seen: Names of the counted steps so far.
        hit: Whether it happened.
    """

    act: Act
    at: int | None = None
    when: When = "before"
    only: re.Pattern[str] = field(default_factory=lambda: re.compile(""))
    seen: list[str] = field(default_factory=list)
    hit: bool = False
    _happening: asyncio.Future[bool] | None = None

    def is_it(self, name: str) -> bool:
        """Count a step; whether it is the one."""
        if not self.only.search(name):
            return False
        self.seen.append(name)
        return not self.hit and len(self.seen) - 1 == self.at

    async def happen(self) -> None:
        """Let it happen; raises what ends the line when that is the end."""
        self.hit = True
        self._happening = asyncio.ensure_future(self.act())
        if not await asyncio.shield(self._happening):  # the line may end meanwhile
            raise _Ended

    async def happened(self) -> None:
        """Wait for its end; raises what it raised."""
        if self._happening is not None:
            await self._happening


@asynccontextmanager
async def stepping(lake: Lake, folder: Path, steps: Steps) -> AsyncIterator[Lake]:
    """The same lake with its maintenance login and its store behind relays.

    Args:
        lake: Over S3.
        folder: For the login's DSN.
        steps: Of the one process that uses it.
    """
    url = urlsplit(read_secret(lake.maintenance_dir, "dsn"))
    store = urlsplit(lake.store.endpoint)
    async with (
        _relay(url.hostname or "", url.port or 5432, _CATALOG, steps) as catalog,
        _relay(store.hostname or "", store.port or 80, _STORE, steps) as objects,
    ):
        netloc = f"{url.netloc.rpartition('@')[0]}@127.0.0.1:{catalog}"
        secrets = folder / "relayed"
        secrets.mkdir(exist_ok=True)
        (secrets / "dsn").write_text(urlunsplit(url._replace(netloc=netloc)))
        endpoint = f"http://127.0.0.1:{objects}"
        yield replace(lake, maintenance_dir=secrets, store=replace(lake.store, endpoint=endpoint))
        await steps.happened()


@asynccontextmanager
async def _relay(
    host: str, port: int, writes: re.Pattern[bytes], steps: Steps
) -> AsyncIterator[int]:
    lines: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        lines.add(task)
        try:
            await _carry(await asyncio.open_connection(host, port), (reader, writer), writes, steps)
        except asyncio.CancelledError:
            pass  # below; asyncio would complain of a task that ends so
        finally:
            lines.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1")
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for line in list(lines):
            line.cancel()
        await asyncio.gather(*lines, return_exceptions=True)


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _carry(there: Stream, here: Stream, writes: re.Pattern[bytes], steps: Steps) -> None:
    answered = False  # whether the next answer is that of the step

    async def ask() -> None:
        nonlocal answered
        while data := await here[0].read(_CHUNK):
            found = writes.search(data)
            if found and steps.is_it(found[0].decode().strip()):
                if steps.when == "before":
                    await steps.happen()
                else:
                    answered = True
            there[1].write(data)
            await there[1].drain()
        raise _Ended

    async def answer() -> None:
        nonlocal answered
        while data := await there[0].read(_CHUNK):
            if answered:
                answered = False
                await steps.happen()
            here[1].write(data)
            await here[1].drain()
        raise _Ended

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(ask())
            group.create_task(answer())
    except* (_Ended, OSError):
        pass
    finally:
        for end in (here[1], there[1]):
            end.close()
            with suppress(OSError):
                await end.wait_closed()
