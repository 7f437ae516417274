"""What the client makes of a supervisor that misbehaves: every answer is catalogued, no connection is left open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from duckmesh_runtime.adapters import sandbox_client
from duckmesh_runtime.adapters.sandbox_client import SandboxClient
from duckmesh_runtime.domain import wire
from duckmesh_runtime.domain.wire import Kind
from duckmesh_runtime.errors import DuckmeshError, Failed, Unavailable
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
SCHEMA = wire.encode_schema(BATCH.schema)
(ROWS,) = wire.encode_rows(BATCH)
END = wire.encode_message(Kind.END, wire.End(rows=2, duration_ms=3, scanned_files=4))

Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]]


@asynccontextmanager
async def supervisor(folder: Path, speak: Speak) -> AsyncIterator[SandboxClient]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind, size = wire.parse_header(await reader.readexactly(wire.HEADER_BYTES))
        assert kind is Kind.JOB
        assert wire.decode(await reader.readexactly(size), wire.Job).sql == JOB.sql
        await speak(reader, writer)
        writer.close()

    async with await asyncio.start_unix_server(serve, folder / "s.sock"):
        yield SandboxClient(folder / "s.sock")


def says(*frames: bytes) -> Speak:
    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for frame in frames:
            writer.write(frame)

    return speak


def error(code: str, message: str = "words") -> bytes:
    return wire.encode_message(Kind.ERROR, wire.Failure(code=code, message=message))


async def read(client: SandboxClient) -> list[pa.RecordBatch]:
    run = await client.run(JOB)
    return [batch async for batch in run.batches]


async def test_frames_become_batches_and_figures(tmp_path: Path) -> None:
    async with supervisor(tmp_path, says(HEAD, SCHEMA, ROWS, ROWS, END)) as client:
        run = await client.run(JOB)
        batches = [batch async for batch in run.batches]

    assert batches == [BATCH, BATCH]
    assert (run.stats.rows, run.stats.duration_ms, run.stats.scanned_files) == (2, 3, 4)
    assert list(run.type_names) == ["BIGINT"]


@pytest.mark.parametrize("code", sorted(sandbox_client._CLASSES))
@pytest.mark.parametrize("before", [(), (HEAD, SCHEMA, ROWS)], ids=["at-once", "after-rows"])
async def test_an_error_keeps_its_code(
    tmp_path: Path, code: str, before: tuple[bytes, ...]
) -> None:
    async with supervisor(tmp_path, says(*before, error(code))) as client:
        with pytest.raises(DuckmeshError, match="words") as caught:
            await read(client)

    assert caught.value.code == code


async def test_a_code_that_is_not_the_sandboxs_is_not_believed(tmp_path: Path) -> None:
    async with supervisor(tmp_path, says(error("UNAUTHENTICATED"))) as client:
        with pytest.raises(Failed) as caught:
            await read(client)

    assert caught.value.code == "QUERY_CRASHED"
    assert "words" not in caught.value.message


@pytest.mark.parametrize(
    "frames",
    [
        (),
        (HEAD,),
        (HEAD, SCHEMA),
        (HEAD, SCHEMA, ROWS[:20]),
        (SCHEMA, HEAD),
        (HEAD, HEAD),
        (HEAD, SCHEMA, SCHEMA),
        (b"\xff\x00\x00\x00\x00",),
        (b"\x04\xff\xff\xff\xff",),
        (wire.encode(Kind.HEAD, b"{"),),
        (HEAD, wire.encode(Kind.SCHEMA, b"x")),
        (HEAD, SCHEMA, wire.encode(Kind.ROWS, b"x")),
        (HEAD, SCHEMA, wire.encode(Kind.END, b"[]")),
        (wire.encode(Kind.ERROR, b"{}"),),
        (HEAD, SCHEMA, wire.encode(Kind.ERROR, b"{}")),
    ],
)
async def test_nonsense_means_that_nobody_answers(
    tmp_path: Path, frames: tuple[bytes, ...]
) -> None:
    async with supervisor(tmp_path, says(*frames)) as client:
        with pytest.raises(Unavailable) as caught:
            await read(client)

    assert caught.value.code == "QUERY_UNAVAILABLE"


async def test_silence_ends_after_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_client, "_GRACE_S", -0.95)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with supervisor(tmp_path, silent) as client:
        with pytest.raises(Unavailable) as caught:
            await read(client)

    assert caught.value.code == "QUERY_UNAVAILABLE"


@pytest.mark.parametrize("batches", [0, 1])
async def test_closing_the_batches_closes_the_connection(tmp_path: Path, batches: int) -> None:
    gone = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + SCHEMA + ROWS * 3)
        assert await reader.read() == b""
        gone.set()

    async with supervisor(tmp_path, endless) as client:
        run = await client.run(JOB)
        for _ in range(batches):
            await anext(run.batches)
        await run.batches.aclose()  # type: ignore[attr-defined]  # what the port's docstring promises
        async with asyncio.timeout(5):
            await gone.wait()


async def test_a_cancelled_start_closes_the_connection(tmp_path: Path) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        assert await reader.read() == b""
        gone.set()

    async with supervisor(tmp_path, silent) as client:
        asking = asyncio.create_task(client.run(JOB))
        await asked.wait()
        asking.cancel()
        async with asyncio.timeout(5):
            await gone.wait()
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        await SandboxClient(tmp_path / "absent.sock").run(JOB)

    assert caught.value.code == "QUERY_UNAVAILABLE"
    assert str(tmp_path) not in caught.value.message
