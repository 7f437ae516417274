"""`GET /v1/visible` and `GET /v1/events`: learn when rows are visible, by one long poll or a stream of server-sent events.

The stream is https://html.spec.whatwg.org/multipage/server-sent-events.html: any EventSource reads it.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from functools import lru_cache
from typing import Final

import msgspec
from aiohttp import web

from duckmesh_runtime.domain.tokens import Token, parse_token, read_token
from duckmesh_runtime.errors import Unauthorized
from duckmesh_runtime.ports import Progress
from duckmesh_runtime.services.barrier import state_of
from duckmesh_runtime.web.body import (
    DEFAULT_WAIT_MS,
    LONGEST_WAIT_MS,
    parameters,
)
from duckmesh_runtime.web.errors import json_response
from duckmesh_runtime.web.forward import abort
from duckmesh_runtime.web.parameters import Parameters, text, whole_number
from duckmesh_runtime.web.parts import need, parts_of

HEARTBEAT_S: Final = 15.0
"""Longest silence of a stream; its key is looked at again as often."""

_STUCK_S: Final = 60.0  # a reader that takes nothing for so long is cut off
_RETRY_MS: Final = 1_000
_COMMENT: Final = b": still here\n\n"
_MARK: Final = ":"
_LONGEST_NUMBER: Final = 19
_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "X-Accel-Buffering": "no",  # a proxy in between must pass events on as they come
}


VISIBLE_PARAMETERS: Final[Parameters] = {
    "token": text(missing="pass a max_visibility_token"),
    "timeout_ms": whole_number(0, LONGEST_WAIT_MS, default=DEFAULT_WAIT_MS),
}


async def visible(request: web.Request) -> web.StreamResponse:
    """Wait until a token is visible, or fail with CONSISTENCY_TIMEOUT."""
    parts = parts_of(request)
    asked = parameters(request, VISIBLE_PARAMETERS)
    lake = parts.settings.lake
    barrier = need(parts.barrier)
    token = parse_token(asked["token"], lake=lake, field="token")
    progress = await barrier.wait(token.number, asked["timeout_ms"], timeline=token.timeline)
    return json_response(_visible(lake, progress))


@lru_cache(maxsize=8)  # thousands who waited for one commit get the same answer
def _visible(lake: str, progress: Progress) -> msgspec.Raw:
    return msgspec.Raw(
        msgspec.json.encode(
            {
                "visible": True,
                "visible_snapshot_id": progress.snapshot_id,
                "max_visibility_token": _token(lake, progress),
            }
        )
    )


async def events(request: web.Request) -> web.StreamResponse:
    """Stream `visible` and `snapshot` events until the client goes, its key is taken away, or the process drains."""
    parts = parts_of(request)
    parameters(request, {})
    lake = parts.settings.lake
    async with aclosing(need(parts.barrier).changes(HEARTBEAT_S)) as changes:
        state: Progress | None = await anext(
            changes
        )  # until here a failure is an answer of the catalogue
        told = _told(request.headers.get("Last-Event-ID", ""), lake)
        response = web.StreamResponse(headers=_HEADERS)
        await response.prepare(request)
        await _write(request, response, b"retry: %d\n\n" % _RETRY_MS)
        checked_at = time.monotonic()
        while True:
            await _write(request, response, _events(lake, state, told) if state else _COMMENT)
            told = state_of(state) if state else told
            try:
                state = await anext(changes)
                if time.monotonic() - checked_at >= HEARTBEAT_S:
                    parts.keys.identify(request.headers)
                    checked_at = time.monotonic()
            except (StopAsyncIteration, Unauthorized):
                break
        await response.write_eof()
        return response


State = tuple[int, int, int | None]


def _events(lake: str, state: Progress, told: State | None) -> bytes:
    """What of a state is new to who was told another; the id stands at the last of its events."""
    token = _token(lake, state)
    facts: dict[str, object] = {
        "max_visibility_token": token,
        "snapshot_id": state.snapshot_id,
        "committed_at": state.committed_at,
    }
    timeline, number, snapshot_id = told or (0, 0, None)
    restored = state.timeline != timeline
    names = []
    if state.snapshot_id is not None and (restored or state.snapshot_id != snapshot_id):
        names.append("snapshot")
    if restored or state.token != number:
        names.append("visible")
    if not names:
        return _COMMENT
    data = msgspec.json.encode(facts).decode()
    lines = [f"event: {name}\ndata: {data}\n" for name in names]
    lines[-1] = f"id: {token}{_MARK}{state.snapshot_id or 0}\n" + lines[-1]
    return "".join(line + "\n" for line in lines).encode()


def _told(last_id: str, lake: str) -> State | None:
    """The state that an id of `_events` stands for; None for any other text, which is answered like no id at all."""
    text, _, snapshot = last_id.partition(_MARK)
    token = read_token(text)
    if token is None or token.lake != lake or not (snapshot.isascii() and snapshot.isdigit()):
        return None
    return token.timeline, token.number, int(snapshot[:_LONGEST_NUMBER])


def _token(lake: str, progress: Progress) -> str:
    return str(Token(lake=lake, timeline=progress.timeline, number=progress.token))


async def _write(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    try:
        async with asyncio.timeout(_STUCK_S):
            await response.write(data)
    except TimeoutError:
        abort(request)
        raise ConnectionResetError("the reader of a stream takes nothing") from None
