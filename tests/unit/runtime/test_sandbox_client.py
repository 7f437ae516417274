"""What the client makes of a supervisor that misbehaves: every answer is catalogued, no connection is left open."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from duckmesh_runtime.adapters import sandbox_client
from duckmesh_runtime.adapters.sandbox_client import SandboxClient
from duckmesh_runtime.domain import wire
from duckmesh_runtime.domain.wire import Kind
from duckmesh_runtime.errors import DuckmeshError, Failed, Unavailable
from duckmesh_runtime.frames import receive_first
from duckmesh_runtime.ports import QueryJob

JOB = QueryJob(
    sql="SELECT 1",
    params=[1, None],
    catalog_path="/c/s.db",
    data_url="http://127.0.0.1:1/lake/",
    row_limit=10,
    timeout_ms=1_000,
)
BATCH = pa.record_batch({"n": [1, 2]})
HEAD = wire.encode_message(Kind.HEAD, wire.Head(type_names=["BIGINT"]))
LONG_HEAD = wire.encode(Kind.HEAD, HEAD[wire.HEADER_BYTES :] + b" " * 2**24)
SCHEMA = wire.encode_schema(BATCH.schema)
(ROWS,) = wire.encode_rows(BATCH)
END = wire.encode_message(Kind.END, wire.End(rows=4, duration_ms=3, scanned_files=4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a supervisor has of a statement: the connection, and the socket on which its slot sends rows."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    rows: asyncio.StreamWriter


Speak = Callable[[Line], Coroutine[None, None, None]]


@asynccontextmanager
async def supervisor(folder: Path, speak: Speak) -> AsyncIterator[SandboxClient]:
    path = folder / "s.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.setblocking(False)
        listener.bind(str(path))
        listener.listen()
        serving = asyncio.create_task(_serve(listener, speak))
        try:
            yield SandboxClient(path)
            await serving
        finally:
            serving.cancel()
            await asyncio.wait({serving})


async def _serve(listener: socket.socket, speak: Speak) -> None:
    """One statement."""
    connection, _ = await asyncio.get_running_loop().sock_accept(listener)
    header, (handed,) = await receive_first(connection)
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    _, rows = await asyncio.open_unix_connection(sock=handed)
    kind, size = wire.parse_header(header)
    assert kind is Kind.JOB
    assert wire.decode(await reader.readexactly(size), wire.Job).sql == JOB.sql
    try:
        await speak(Line(reader=reader, writer=writer, rows=rows))
    finally:
        for one in (rows, writer):
            one.close()
            with suppress(OSError):
                await one.wait_closed()


def says(*frames: bytes, ending: bytes = b"") -> Speak:
    async def speak(line: Line) -> None:
        for frame in frames:
            line.rows.write(frame)
        line.writer.write(ending)

    return speak


def error(code: str, message: str = "words") -> bytes:
    return wire.encode_message(Kind.ERROR, wire.Failure(code=code, message=message))


async def read(client: SandboxClient) -> list[pa.RecordBatch]:
    run = await client.run(JOB)
    return [batch async for batch in run.batches]


async def test_frames_become_batches_and_figures(tmp_path: Path) -> None:
    async with supervisor(tmp_path, says(HEAD, SCHEMA, ROWS, ROWS, ending=END)) as client:
        run = await client.run(JOB)
        batches = [batch async for batch in run.batches]

    assert batches == [BATCH, BATCH]
    assert (run.stats.rows, run.stats.duration_ms, run.stats.scanned_files) == (4, 3, 4)
    assert list(run.type_names) == ["BIGINT"]


@pytest.mark.parametrize("code", sorted(sandbox_client._CLASSES))
@pytest.mark.parametrize("before", [(), (HEAD, SCHEMA, ROWS)], ids=["at-once", "after-rows"])
async def test_an_error_keeps_its_code(
    tmp_path: Path, code: str, before: tuple[bytes, ...]
) -> None:
    async with supervisor(tmp_path, says(*before, ending=error(code))) as client:
        with pytest.raises(DuckmeshError, match="words") as caught:
            await read(client)

    assert caught.value.code == code


async def test_an_error_keeps_its_place(tmp_path: Path) -> None:
    failure = wire.Failure(code="SQL_ERROR", message="words", line=2, column=7)
    frame = wire.encode_message(Kind.ERROR, failure)

    async with supervisor(tmp_path, says(ending=frame)) as client:
        with pytest.raises(DuckmeshError) as caught:
            await read(client)

    assert caught.value.context == {"line": 2, "column": 7}


async def test_a_code_that_is_not_the_sandboxs_is_not_believed(tmp_path: Path) -> None:
    async with supervisor(tmp_path, says(ending=error("UNAUTHENTICATED"))) as client:
        with pytest.raises(Failed) as caught:
            await read(client)

    assert caught.value.code == "QUERY_CRASHED"
    assert "words" not in caught.value.message


@pytest.mark.parametrize(
    ("frames", "ending"),
    [
        ((), b""),
        ((HEAD,), b""),
        ((HEAD, SCHEMA), b""),
        ((HEAD, SCHEMA, ROWS[:20]), b""),
        ((SCHEMA, HEAD), END),
        ((HEAD, HEAD), END),
        ((HEAD, SCHEMA, SCHEMA), END),
        ((b"\xff\x00\x00\x00\x00",), END),
        ((b"\x04\xff\xff\xff\xff",), END),
        ((wire.encode(Kind.HEAD, b"{"),), END),
        ((LONG_HEAD, SCHEMA, ROWS, ROWS), END),
        ((HEAD, wire.encode(Kind.SCHEMA, b"x")), END),
        ((HEAD, SCHEMA, wire.encode(Kind.ROWS, b"x")), END),
        ((HEAD, SCHEMA, ROWS, ROWS), wire.encode(Kind.END, b"[]")),
        ((HEAD, SCHEMA, ROWS, ROWS), ROWS),
        ((), wire.encode(Kind.ERROR, b"{}")),
        ((HEAD, SCHEMA), wire.encode(Kind.ERROR, b"{}")),
        # Only the supervisor says how a statement ended, and that must fit what came.
        ((HEAD, SCHEMA, ROWS, ROWS, END), b""),
        ((HEAD, SCHEMA, error("QUERY_TIMEOUT")), b""),
        ((), END),
        ((HEAD, SCHEMA, ROWS), END),
        ((HEAD, SCHEMA, ROWS, ROWS, ROWS), END),
        ((HEAD, SCHEMA, ROWS, ROWS[:20]), END),
    ],
)
async def test_nonsense_means_that_nobody_answers(
    tmp_path: Path, frames: tuple[bytes, ...], ending: bytes
) -> None:
    async with supervisor(tmp_path, says(*frames, ending=ending)) as client:
        with pytest.raises(Unavailable) as caught:
            await read(client)

    assert caught.value.code == "QUERY_UNAVAILABLE"


async def test_silence_ends_after_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_client, "_GRACE_S", -0.95)

    async def silent(line: Line) -> None:
        await line.reader.read()

    async with supervisor(tmp_path, silent) as client:
        with pytest.raises(Unavailable) as caught:
            await read(client)

    assert caught.value.code == "QUERY_UNAVAILABLE"


@pytest.mark.parametrize("batches", [0, 1])
async def test_closing_the_batches_closes_the_connection(tmp_path: Path, batches: int) -> None:
    gone = asyncio.Event()

    async def endless(line: Line) -> None:
        line.rows.write(HEAD + SCHEMA + ROWS * 3)
        assert await line.reader.read() == b""
        gone.set()

    async with supervisor(tmp_path, endless) as client:
        run = await client.run(JOB)
        for _ in range(batches):
            await anext(run.batches)
        await run.batches.aclose()  # type: ignore[attr-defined]  # what the port's docstring promises
        async with asyncio.timeout(30):
            await gone.wait()


async def test_a_cancelled_start_closes_the_connection(tmp_path: Path) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def silent(line: Line) -> None:
        asked.set()
        assert await line.reader.read() == b""
        gone.set()

    async with supervisor(tmp_path, silent) as client:
        asking = asyncio.create_task(client.run(JOB))
        await asked.wait()
        asking.cancel()
        async with asyncio.timeout(30):
            await gone.wait()
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        await SandboxClient(tmp_path / "absent.sock").run(JOB)

    assert caught.value.code == "QUERY_UNAVAILABLE"
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize(
    ("answer", "done"),
    [
        pytest.param(wire.encode(Kind.READY), True, id="attached"),
        pytest.param(error("OVERLOADED"), False, id="none idle"),
        pytest.param(b"", False, id="hangs up"),
        pytest.param(b"nonsense", False, id="nonsense"),
        pytest.param(None, False, id="says nothing"),
    ],
)
async def test_attaching_ahead_takes_a_moment_and_raises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | None, done: bool
) -> None:
    monkeypatch.setattr(sandbox_client, "_PREPARE_S", 5.0 if answer is not None else 0.05)
    asked = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind, size = wire.parse_header(await reader.readexactly(wire.HEADER_BYTES))
        asked.append((kind, wire.decode(await reader.readexactly(size), wire.Prepare)))
        if answer is None:
            await reader.read()
        writer.write(answer or b"")
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / "s.sock"):
        found = await SandboxClient(tmp_path / "s.sock").prepare("/c/s.db", "http://p/")

    assert found is done
    assert asked == [(Kind.PREPARE, wire.Prepare(catalog_path="/c/s.db", data_url="http://p/"))]


async def test_attaching_ahead_without_a_sandbox_is_not_done(tmp_path: Path) -> None:
    assert not await SandboxClient(tmp_path / "none.sock").prepare("/c/s.db", "http://p/")
