"""`/v1/dead-letters`: what the lake refused is listed, shown, replayed and dropped, one by one or by table."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from aiohttp import web

from duckmesh_runtime.domain.tokens import Token, read_token
from duckmesh_runtime.errors import Conflict, Unavailable
from duckmesh_runtime.ports import DeadLetter
from duckmesh_runtime.services.dead_letters import MOST_AT_ONCE, Replayed
from duckmesh_runtime.web.audit import audited
from duckmesh_runtime.web.body import (
    DEFAULT_WAIT_MS,
    LONGEST_WAIT_MS,
    invalid,
    parameters,
)
from duckmesh_runtime.web.errors import json_response
from duckmesh_runtime.web.letter_json import ALONE, IN_A_LIST, Room, letter_json
from duckmesh_runtime.web.parameters import TABLE, Parameters, table_name, text, whole_number
from duckmesh_runtime.web.parts import Parts, need, parts_of

_PAGE: Final = 20
_LONGEST_PAGE: Final = 100
_DEFAULT_AT_ONCE: Final = 100

LIST_PARAMETERS: Final[Parameters] = {
    "table": TABLE,
    "after": text(),
    "limit": whole_number(1, _LONGEST_PAGE, default=_PAGE),
}
WAIT_PARAMETERS: Final[Parameters] = {
    "visibility_timeout_ms": whole_number(0, LONGEST_WAIT_MS, default=DEFAULT_WAIT_MS)
}
DROP_PARAMETERS: Final[Parameters] = {
    "table": table_name(missing="name the table whose letters are meant"),
    "after": text(),
    "limit": whole_number(1, MOST_AT_ONCE, default=_DEFAULT_AT_ONCE),
}
REPLAY_PARAMETERS: Final[Parameters] = {**DROP_PARAMETERS, "upto": text(), **WAIT_PARAMETERS}


async def list_letters(request: web.Request) -> web.StreamResponse:
    """Some letters in the order of their numbers."""
    parts = parts_of(request)
    asked = parameters(request, LIST_PARAMETERS)
    after = _number("after", asked.get("after", "0"), parts)
    found, next_after = await need(parts.dead_letters).page(
        after, limit=asked["limit"], table=asked.get("table")
    )
    letters = await asyncio.to_thread(_shown, parts, found, IN_A_LIST)
    return json_response({"dead_letters": letters, "next_after": next_after})


async def read_letter(request: web.Request) -> web.StreamResponse:
    """One letter."""
    parts = parts_of(request)
    parameters(request, {})
    letter = await need(parts.dead_letters).find(_named(request))
    (shown,) = await asyncio.to_thread(_shown, parts, [letter], ALONE)
    return json_response(shown)


async def replay_letter(request: web.Request) -> web.StreamResponse:
    """Accept a letter's input again under a new token; answered when it is visible, or refused once more."""
    parts = parts_of(request)
    service = need(parts.dead_letters)
    timeout_ms: int = parameters(request, WAIT_PARAMETERS)["visibility_timeout_ms"]
    number = _named(request)
    with audited(request, "replay dead letter", str(number)) as told:
        replayed = await service.replay(number)
        told["replayed_as"] = replayed.first
        seen = await _wait(parts, replayed, timeout_ms)
        if seen["status"] == "visible":
            again = await service.refused_again(replayed, limit=1)
            if again:
                raise _refused_again(again[0])
    return json_response({"number": number} | seen)


async def drop_letter(request: web.Request) -> web.StreamResponse:
    """Remove a letter for good."""
    parts = parts_of(request)
    parameters(request, {})
    number = _named(request)
    with audited(request, "drop dead letter", str(number)):
        await need(parts.dead_letters).drop(number)
    return json_response({"number": number, "dropped_count": 1})


async def replay_letters(request: web.Request) -> web.StreamResponse:
    """Replay letters of a table in order; those that cannot be stay and are named."""
    parts = parts_of(request)
    service = need(parts.dead_letters)
    asked = parameters(request, REPLAY_PARAMETERS)
    table: str = asked["table"]
    after = _number("after", asked.get("after", "0"), parts)
    upto = _number("upto", asked["upto"], parts) if "upto" in asked else None
    with audited(request, "replay dead letters", table) as told:
        swept = await service.replay_all(table, after=after, upto=upto, limit=asked["limit"])
        told["replayed"] = swept.replayed.letters if swept.replayed else 0
        told["failed"] = len(swept.failures)
        failed = [
            {"number": f.number, "error_code": f.error.code, "message": f.error.message}
            for f in swept.failures
        ]
        seen: dict[str, object] = {
            "max_visibility_token": None,
            "visible_snapshot_id": None,
            "status": "accepted",
        }
        if swept.replayed:
            seen = await _wait(parts, swept.replayed, asked["visibility_timeout_ms"])
            if seen["status"] == "visible":
                again = await service.refused_again(swept.replayed, limit=MOST_AT_ONCE, table=table)
                failed += [_failure(letter) for letter in again]
    count = swept.replayed.letters if swept.replayed else 0
    answer = {"replayed_count": count, "failed": failed, "next_after": swept.next_after}
    return json_response(answer | {"upto": swept.upto} | seen)


async def drop_letters(request: web.Request) -> web.StreamResponse:
    """Remove letters of a table for good."""
    parts = parts_of(request)
    asked = parameters(request, DROP_PARAMETERS)
    after = _number("after", asked.get("after", "0"), parts)
    with audited(request, "drop dead letters", asked["table"]) as told:
        dropped, next_after = await need(parts.dead_letters).drop_all(
            asked["table"], after=after, limit=asked["limit"]
        )
        told["dropped"] = dropped
    return json_response({"dropped_count": dropped, "next_after": next_after})


def _shown(parts: Parts, letters: Sequence[DeadLetter], room: Room) -> Sequence[dict[str, object]]:
    return [letter_json(letter, _token(parts, letter.first), room) for letter in letters]


def _token(parts: Parts, number: int) -> Token:
    return Token(lake=parts.settings.lake, timeline=parts.timeline, number=number)


def _named(request: web.Request) -> int:
    return _number("number", request.match_info["number"], parts_of(request))


def _number(name: str, text: str, parts: Parts) -> int:
    """A letter's number, from its digits or from its token."""
    if text.isascii() and text.isdigit() and len(text) < 19:
        return int(text)
    token = read_token(text)
    if token is None or token.lake != parts.settings.lake:
        raise invalid(
            name, "want the number of a dead letter, or its token, as GET /v1/dead-letters tells it"
        )
    return token.number


async def _wait(parts: Parts, replayed: Replayed, timeout_ms: int) -> dict[str, object]:
    """The new token, and the snapshot that shows it; rows that are not visible in time are accepted all the same."""
    token = Token(lake=parts.settings.lake, timeline=replayed.timeline, number=replayed.last)
    snapshot_id, status = None, "accepted"
    try:
        seen = await need(parts.barrier).wait(replayed.last, timeout_ms, timeline=replayed.timeline)
        snapshot_id, status = seen.snapshot_id, "visible"
    except Unavailable:
        pass
    return {
        "max_visibility_token": str(token),
        "visible_snapshot_id": snapshot_id,
        "status": status,
    }


def _refused_again(letter: DeadLetter) -> Conflict:
    return Conflict(
        "SCHEMA_INCOMPATIBLE",
        f"the lake refused it again, it is kept as {letter.first}: {letter.error}",
        context={"number": letter.first},
    )


def _failure(letter: DeadLetter) -> dict[str, object]:
    error = _refused_again(letter)
    return {"number": letter.first, "error_code": error.code, "message": error.message}
