"""Waiting at the door: the long poll and the stream of events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from duckmesh_runtime import metrics
from duckmesh_runtime.domain.tokens import Token
from duckmesh_runtime.services import barrier as barriers
from duckmesh_runtime.services.barrier import Barrier
from duckmesh_runtime.web import auth
from duckmesh_runtime.web import events as module
from tests.fakes.doors import LAKE, key, write_keys
from tests.fakes.progress import FakeProgress
from tests.fakes.server import Doors, serve

EVENTS = "/v1/events"


def token(number: int, *, lake: str = LAKE, timeline: int = 1) -> str:
    return str(Token(lake=lake, timeline=timeline, number=number))


@pytest.fixture
def progress() -> FakeProgress:
    return FakeProgress(token=10)


@pytest.fixture
async def live(parts: Any, progress: FakeProgress) -> AsyncIterator[Doors]:
    """A server with a true barrier."""
    parts.barrier = barrier = Barrier(progress)
    async for doors in serve(parts):
        yield doors
    await barrier.close()


class Stream:
    """Reads server-sent events."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer

    async def block(self) -> dict[str, str]:
        """The fields up to the next empty line; a comment has the field ``."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(10):
            while line := (await self.answer.content.readline()).decode():
                if line == "\n":
                    return fields
                name, _, value = line.rstrip("\n").partition(":")
                fields[name] = value.removeprefix(" ")
        raise EOFError

    async def event(self) -> tuple[str, dict[str, Any], str | None]:
        """Name, data and id of the next event."""
        while "event" not in (found := await self.block()):
            pass
        return found["event"], json.loads(found["data"]), found.get("id")


@asynccontextmanager
async def listening(doors: Doors, **headers: str) -> AsyncIterator[Stream]:
    sent = {"Authorization": f"Bearer {key('query-reader')}"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    async with doors.session.get(doors.url + EVENTS, headers=sent) as answer:
        assert answer.status == 200
        yield Stream(answer)


# ---------------------------------------------------------------- the long poll


@pytest.mark.parametrize(
    ("text", "status", "code"),
    [
        pytest.param("17", 400, "VISIBILITY_TOKEN_INVALID", id="a mere number"),
        pytest.param("", 400, "VISIBILITY_TOKEN_INVALID", id="empty"),
        pytest.param(token(5)[:-1], 400, "VISIBILITY_TOKEN_INVALID", id="cut"),
        pytest.param(token(5) + "A", 400, "VISIBILITY_TOKEN_INVALID", id="longer"),
        pytest.param("v1_" + "é" * 9, 400, "VISIBILITY_TOKEN_INVALID", id="not ascii"),
        pytest.param(token(5, lake="lake_x"), 400, "TOKEN_SCOPE_MISMATCH", id="another lake's"),
        pytest.param(token(5, timeline=2), 400, "TOKEN_SCOPE_MISMATCH", id="another timeline's"),
        pytest.param(token(11), 504, "CONSISTENCY_TIMEOUT", id="not visible"),
        pytest.param(token(10), 200, None, id="visible"),
        pytest.param(token(0), 200, None, id="the empty lake"),
    ],
)
async def test_each_token_gets_its_answer(
    live: Doors, text: str, status: int, code: str | None
) -> None:
    found, body, _ = await live.call(
        "GET", "/v1/visible", params={"token": text, "timeout_ms": "50"}, as_key="query-reader"
    )

    assert (found, body.get("error_code")) == (status, code)


async def test_a_timeout_tells_how_far_it_is(live: Doors, progress: FakeProgress) -> None:
    _, body, _ = await live.call("GET", f"/v1/visible?token={token(15)}&timeout_ms=40")

    assert body["retryable"]
    assert body["context"].pop("waited_ms") >= 40
    assert body["context"] == {"watermark": 10, "behind": 5, "estimated_wait_ms": None}


async def test_a_timeout_is_the_callers_own_and_no_line_in_the_log(
    live: Doors, caplog: pytest.LogCaptureFixture
) -> None:
    await live.call("GET", f"/v1/visible?token={token(15)}&timeout_ms=0")

    assert not caplog.records


async def test_waiting_ends_with_the_move(live: Doors, progress: FakeProgress) -> None:
    waiting = asyncio.create_task(live.call("GET", f"/v1/visible?token={token(11)}"))
    await _polled(progress)

    progress.token = 12
    status, body, _ = await waiting

    assert status == 200
    assert body == {
        "visible": True,
        "visible_snapshot_id": 12,
        "max_visibility_token": token(12),
    }


async def test_a_thousand_connections_are_answered_by_one_move(
    live: Doors, progress: FakeProgress
) -> None:
    host, port = live.url.removeprefix("http://").split(":")
    sent = (
        f"GET /v1/visible?token={token(11)}&timeout_ms=60000 HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {key('admin')}\r\n\r\n"
    ).encode()

    async def wait() -> bytes:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        first = await reader.readline()
        writer.close()
        return first

    waiting = [asyncio.create_task(wait()) for _ in range(1_000)]
    await _until(lambda: live.parts.barrier.waiting == 1_000)
    progress.token = 11

    assert set(await asyncio.gather(*waiting)) == {b"HTTP/1.1 200 OK\r\n"}


async def test_after_a_restore_tokens_are_judged_by_the_catalog_itself(
    live: Doors, progress: FakeProgress
) -> None:
    await live.call("GET", f"/v1/visible?token={token(10)}")
    progress.timeline, progress.token = 2, 5

    old = await live.call("GET", f"/v1/visible?token={token(7)}&timeout_ms=50")
    new = await live.call("GET", f"/v1/visible?token={token(5, timeline=2)}&timeout_ms=50")
    old_again = await live.call("GET", f"/v1/visible?token={token(3)}&timeout_ms=50")

    assert new[0] == 200
    assert old[1].get("error_code") in (None, "TOKEN_SCOPE_MISMATCH")  # within the trusted second
    assert old_again[1]["error_code"] == "TOKEN_SCOPE_MISMATCH"


# ---------------------------------------------------------------- the stream


async def test_the_first_events_are_the_present_state(live: Doors) -> None:
    async with listening(live) as stream:
        assert stream.answer.content_type == "text/event-stream"
        assert stream.answer.headers["Cache-Control"] == "no-store"
        assert await stream.block() == {"retry": "1000"}
        snapshot, visible = await stream.event(), await stream.event()

    data = {
        "max_visibility_token": token(10),
        "snapshot_id": 10,
        "committed_at": "2026-01-31T12:00:00Z",
    }
    assert snapshot == ("snapshot", data, None)
    assert visible == ("visible", data, f"{token(10)}:10")


async def test_each_move_is_told_and_a_snapshot_only_when_it_is_new(
    live: Doors, progress: FakeProgress
) -> None:
    async with listening(live) as stream:
        for _ in range(2):
            await stream.event()
        progress.token, progress.snapshot_id = 11, 10  # input that changed nothing
        third = await stream.event()
        progress.snapshot_id = 11  # a change without input
        fourth = await stream.event()

    assert (third[0], third[1]["snapshot_id"], third[2]) == ("visible", 10, f"{token(11)}:10")
    assert (fourth[0], fourth[1]["snapshot_id"], fourth[2]) == ("snapshot", 11, f"{token(11)}:11")


async def test_an_empty_lake_has_a_watermark_and_no_snapshot(
    live: Doors, progress: FakeProgress
) -> None:
    progress.token, progress.snapshot_id = 0, None
    async with listening(live) as stream:
        name, data, _ = await stream.event()

    assert (name, data["snapshot_id"]) == ("visible", None)


@pytest.mark.parametrize(
    ("last", "told"),
    [
        pytest.param(f"{token(10)}:10", [], id="the present state"),
        pytest.param(f"{token(9)}:10", ["visible"], id="an older watermark"),
        pytest.param(f"{token(9)}:9", ["snapshot", "visible"], id="an older state"),
        pytest.param(f"{token(10, timeline=2)}:10", ["snapshot", "visible"], id="another timeline"),
        pytest.param(f"{token(10, lake='lake_x')}:10", ["snapshot", "visible"], id="another lake"),
        pytest.param("17", ["snapshot", "visible"], id="no id of ours"),
        pytest.param(":" * 5_000, ["snapshot", "visible"], id="nonsense"),
        pytest.param(f"{token(10)}:²", ["snapshot", "visible"], id="odd digits"),
    ],
)
async def test_who_comes_back_is_told_what_is_new(
    live: Doors, progress: FakeProgress, last: str, told: list[str]
) -> None:
    async with listening(live, Last_Event_ID=last) as stream:
        await stream.block()
        blocks = [await stream.block() for _ in told or [""]]
        progress.token = 11
        following = await stream.event()

    assert [block["event"] for block in blocks if "event" in block] == told
    assert following[1]["max_visibility_token"] == token(11)


async def test_silence_is_filled_and_the_key_looked_at_again(
    live: Doors, auth_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(auth, "_CHECK_S", 0.0)
    async with listening(live) as stream:
        for _ in range(2):
            await stream.event()
        assert await stream.block() == {"": "still here"}

        write_keys(auth_dir, {"admin": ["query_reader"]})

        with pytest.raises(EOFError):
            await stream.event()


async def test_a_key_taken_away_ends_a_busy_stream_too(
    live: Doors, progress: FakeProgress, auth_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(auth, "_CHECK_S", 0.0)

    async def move() -> None:
        while True:
            progress.token += 1
            await asyncio.sleep(0.01)

    moving = asyncio.create_task(move())
    async with listening(live) as stream:
        await stream.event()
        write_keys(auth_dir, {"admin": ["query_reader"]})
        with pytest.raises(EOFError):
            await _read_on(stream)
    moving.cancel()


async def test_a_client_that_goes_is_forgotten(live: Doors) -> None:
    async with listening(live) as stream:
        await stream.event()
        assert live.parts.barrier.listening == 1
        stream.answer.close()

    await _until(lambda: live.parts.barrier.listening == 0)


async def test_one_stream_too_many_is_an_ordinary_error(
    live: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(barriers, "MOST_LISTENERS", 1)
    async with listening(live) as stream:
        await stream.event()

        status, body, answer = await live.call("GET", EVENTS)

    assert (status, body["error_code"]) == (429, "OVERLOADED")
    assert answer.headers["Retry-After"] == "10"


async def test_a_silent_catalog_is_an_ordinary_error(live: Doors, progress: FakeProgress) -> None:
    progress.down = True

    status, body, _ = await live.call("GET", EVENTS)

    assert (status, body["error_code"]) == (503, "CATALOG_UNAVAILABLE")


async def test_a_drain_ends_streams_at_once_and_whole(parts: Any, progress: FakeProgress) -> None:
    parts.barrier = barrier = Barrier(progress)
    serving = serve(parts, answer_s=100)
    doors = await anext(serving)
    async with aiohttp.ClientSession() as session:
        doors.session, its_own = session, doors.session
        async with listening(doors) as stream:
            for _ in range(2):
                await stream.event()
            await its_own.close()

            async with asyncio.timeout(50):  # for a call under way the server would wait longer
                await anext(serving, None)

            with pytest.raises(EOFError):
                await stream.event()
    await barrier.close()


async def test_a_reader_that_takes_nothing_is_cut_off(
    live: Doors, progress: FakeProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STUCK_S", 0.1)
    monkeypatch.setattr(module, "_COMMENT", b":" + b"x" * 2**22 + b"\n\n")
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.01)
    host, port = live.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1_024)
    writer.write(
        f"GET {EVENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key('admin')}\r\n\r\n".encode()
    )
    await reader.readline()
    assert live.parts.barrier.listening == 1

    await _until(lambda: live.parts.barrier.listening == 0)

    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def test_open_streams_and_waiting_calls_are_shown(
    live: Doors, progress: FakeProgress
) -> None:
    def shown(name: str) -> float:
        return metrics.REGISTRY.get_sample_value(name) or 0.0

    streams = shown("duckmesh_event_streams")
    async with listening(live) as stream:
        await stream.event()
        waiting = asyncio.create_task(live.call("GET", f"/v1/visible?token={token(11)}"))
        await _until(lambda: shown("duckmesh_barrier_waiters") == 1)
        assert shown("duckmesh_event_streams") == streams + 1
        progress.token = 11
        await waiting

    await _until(lambda: shown("duckmesh_event_streams") == streams)
    assert shown("duckmesh_barrier_waiters") == 0


async def _read_on(stream: Stream) -> None:
    while True:
        await stream.event()


async def _polled(progress: FakeProgress) -> None:
    reads = progress.reads
    await _until(lambda: progress.reads > reads + 1)


async def _until(reached: Any) -> None:
    async with asyncio.timeout(10):
        while not reached():
            await asyncio.sleep(0.005)
