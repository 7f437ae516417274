"""Dead letters at the door: listed, shown within bounds, replayed, dropped, each act in the log."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from duckmesh_runtime.domain.tokens import Token
from duckmesh_runtime.ports import EntryKind, Progress
from duckmesh_runtime.web import letter_json
from tests.fakes.doors import LAKE, FakeBarrier
from tests.fakes.letters import Kept, kept_letters, make_table
from tests.fakes.server import Doors, serve

PATH = "/v1/dead-letters"
ROW = {"id": 1, "v": "a"}


def token(number: int) -> str:
    return str(Token(lake=LAKE, timeline=1, number=number))


@pytest.fixture
async def kept() -> AsyncIterator[Kept]:
    async with kept_letters() as found:
        yield found


@pytest.fixture
async def door(parts: Any, kept: Kept) -> AsyncIterator[Doors]:
    parts.dead_letters, parts.bus = kept.service, kept.bus
    async for found in serve(parts):
        yield found


async def test_a_letter_says_what_it_is_and_why_it_was_refused(door: Doors, kept: Kept) -> None:
    number = await kept.letter([ROW], error="Conversion Error: not a number")

    status, body, _ = await door.call("GET", f"{PATH}?table=events")

    (letter,) = body["dead_letters"]
    assert (status, body["next_after"]) == (200, None)
    assert letter.pop("accepted_at").endswith("Z")
    assert letter.pop("set_aside_at").endswith("Z")
    assert letter == {
        "number": number,
        "token": token(number),
        "kind": "rows",
        "op": "insert",
        "table": "events",
        "rows": 1,
        "error": "Conversion Error: not a number",
        "values": [ROW],
        "values_cut": False,
        "file": None,
    }
    for name in (number, token(number)):
        assert (await door.call("GET", f"{PATH}/{name}"))[1]["values"] == [ROW]


async def test_operations_files_and_changes_are_told_apart(door: Doors, kept: Kept) -> None:
    keyed = make_table("k", key=["id"])
    await kept.letter([{"id": 1, "v": "a"}], keyed)
    await kept.letter([{"id": 2, "deleted": True}], keyed)
    await kept.letter([{"id": 1, "v": "a"}, {"id": 2, "deleted": True}], keyed)
    await kept.file_letter("t/staged-1.parquet", rows=3)
    await kept.change_letter(make_table("other"))

    _, body, _ = await door.call("GET", PATH)

    letters = body["dead_letters"]
    assert [(one["kind"], one["op"], one["rows"]) for one in letters] == [
        ("rows", "upsert", 1),
        ("rows", "delete", 1),
        ("rows", "mixed", 2),
        ("file", None, 3),
        ("create_table", None, 0),
    ]
    assert letters[1]["values"] == [{"id": 2}]
    assert letters[3]["file"] == {"path": "t/staged-1.parquet", "size_bytes": 100}
    assert letters[4]["values"][0]["name"] == "other"


async def test_large_values_are_cut_with_a_mark_and_shown_further_alone(
    door: Doors, kept: Kept
) -> None:
    number = await kept.letter([{"id": i, "v": "x" * 1_000} for i in range(10)])

    (listed,) = (await door.call("GET", PATH))[1]["dead_letters"]
    _, alone, _ = await door.call("GET", f"{PATH}/{number}")

    assert len(listed["values"]) == 3
    assert listed["values"][0]["v"].endswith(letter_json.CUT)
    assert len(listed["values"][0]["v"]) < 300
    assert listed["values_cut"]
    assert (len(alone["values"]), alone["values_cut"]) == (10, False)


async def test_an_answer_stays_small_whatever_a_letter_holds(door: Doors, kept: Kept) -> None:
    wide = make_table("wide", *({"name": f"c{i:050}", "type": "VARCHAR"} for i in range(900)))
    number = await kept.letter([{c.name: "y" * 400 for c in wide.columns}] * 5, wide)

    _, _, listed = await door.call("GET", PATH)
    _, body, alone = await door.call("GET", f"{PATH}/{number}")

    assert int(listed.headers["Content-Length"]) < 20_000
    assert int(alone.headers["Content-Length"]) < 2 * 2**20
    assert body["values_cut"]


async def test_values_that_json_has_no_word_for_are_marked(door: Doors, kept: Kept) -> None:
    table = make_table("t", {"name": "b", "type": "BLOB"}, {"name": "f", "type": "DOUBLE"})
    number = await kept.letter([{"b": b"\xff\x00", "f": float("nan")}], table)

    _, body, _ = await door.call("GET", f"{PATH}/{number}")

    assert body["values"] == [{"b": "/wA=", "f": "NaN"}]


async def test_the_list_is_paged(door: Doors, kept: Kept) -> None:
    numbers = [await kept.letter([ROW]) for _ in range(3)]

    first = (await door.call("GET", f"{PATH}?limit=2"))[1]
    second = (await door.call("GET", f"{PATH}?limit=2&after={first['next_after']}"))[1]
    by_token = (await door.call("GET", f"{PATH}?after={token(numbers[1])}"))[1]

    assert [one["number"] for one in first["dead_letters"]] == numbers[:2]
    assert [one["number"] for one in second["dead_letters"]] == numbers[2:]
    assert second["next_after"] is None
    assert by_token == second


async def test_a_replay_waits_until_it_is_visible_and_has_a_new_token(
    door: Doors, kept: Kept
) -> None:
    number = await kept.letter([ROW])

    status, body, _ = await door.call("POST", f"{PATH}/{number}/replay")

    assert (status, body) == (
        200,
        {
            "number": number,
            "max_visibility_token": token(3),
            "visible_snapshot_id": 7,
            "status": "visible",
        },
    )
    assert door.barrier.waits == [(3, 10_000)]


async def test_a_replay_that_is_not_visible_in_time_is_accepted_all_the_same(
    door: Doors, kept: Kept
) -> None:
    number = await kept.letter([ROW])
    door.barrier.token = 0

    _, body, _ = await door.call("POST", f"{PATH}/{number}/replay?visibility_timeout_ms=5")

    assert (body["status"], body["visible_snapshot_id"]) == ("accepted", None)
    assert door.barrier.waits == [(3, 5)]


class RefusingBarrier(FakeBarrier):
    """The lake refuses what is waited for."""

    kept: Kept

    async def wait(self, number: int, timeout_ms: int, *, timeline: int | None = None) -> Progress:
        self.kept.bus.set_aside(number - 1, number, None, "still no")
        return await super().wait(number, timeout_ms)


async def test_what_is_refused_again_is_an_error_that_names_the_new_letter(
    parts: Any, kept: Kept
) -> None:
    parts.dead_letters, parts.barrier = kept.service, RefusingBarrier()
    parts.barrier.kept = kept
    number = await kept.letter([ROW])
    async for door in serve(parts):
        status, body, _ = await door.call("POST", f"{PATH}/{number}/replay")
        assert (status, body["error_code"]) == (409, "SCHEMA_INCOMPATIBLE")
        assert "still no" in body["message"]
        again = body["context"]["number"]

        _, many, _ = await door.call("POST", f"{PATH}/replay?table=events")

    assert again in (3, 4)
    assert many["replayed_count"] == 1
    assert [one["error_code"] for one in many["failed"]] == ["SCHEMA_INCOMPATIBLE"]
    assert many["next_after"] is None
    assert list(kept.bus.kept) == [many["failed"][0]["number"]]


async def test_what_fits_no_more_is_refused_with_the_reason(door: Doors, kept: Kept) -> None:
    number = await kept.letter([ROW])
    await kept.change(EntryKind.DROP_TABLE, make_table())

    status, body, _ = await door.call("POST", f"{PATH}/{number}/replay")

    assert (status, body["error_code"]) == (409, "SCHEMA_INCOMPATIBLE")
    assert "does not exist" in body["message"]
    assert number in kept.bus.kept


async def test_letters_of_a_table_are_replayed_and_dropped_together(
    door: Doors, kept: Kept
) -> None:
    for _ in range(3):
        await kept.letter([ROW])
    await kept.letter([ROW], make_table("other"))

    _, replayed, _ = await door.call("POST", f"{PATH}/replay?table=events&limit=2")
    _, nothing, _ = await door.call("POST", f"{PATH}/replay?table=unknown")
    _, dropped, _ = await door.call("DELETE", f"{PATH}?table=other")

    assert (replayed["replayed_count"], replayed["failed"]) == (2, [])
    assert (replayed["next_after"], replayed["status"]) == (3, "visible")
    assert (nothing["replayed_count"], nothing["max_visibility_token"]) == (0, None)
    assert dropped == {"dropped_count": 1, "next_after": None}
    assert list(kept.bus.kept) == [4]


async def test_each_act_is_one_line_of_the_log(
    door: Doors, kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first, second = await kept.letter([ROW]), await kept.letter([ROW])
    await door.call("POST", f"{PATH}/{first}/replay")
    await door.call("DELETE", f"{PATH}/{second}")
    await door.call("DELETE", f"{PATH}/{second}")
    await door.call("POST", f"{PATH}/replay?table=events")
    await door.call("DELETE", f"{PATH}?table=events")

    lines = [record.__dict__ for record in caplog.records if record.message == "admin action"]

    assert [(one["key_id"], one["action"], one["target"], one["outcome"]) for one in lines] == [
        ("admin", "replay dead letter", str(first), "OK"),
        ("admin", "drop dead letter", str(second), "OK"),
        ("admin", "drop dead letter", str(second), "DEAD_LETTER_NOT_FOUND"),
        ("admin", "replay dead letters", "events", "OK"),
        ("admin", "drop dead letters", "events", "OK"),
    ]
    assert lines[0]["replayed_as"] == 4
    assert (lines[3]["replayed"], lines[4]["dropped"]) == (0, 0)


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        pytest.param("GET", f"{PATH}/99", "DEAD_LETTER_NOT_FOUND", id="nothing to show"),
        pytest.param("POST", f"{PATH}/99/replay", "DEAD_LETTER_NOT_FOUND", id="nothing to replay"),
        pytest.param("DELETE", f"{PATH}/99", "DEAD_LETTER_NOT_FOUND", id="nothing to drop"),
        pytest.param("GET", f"{PATH}/-1", "VALIDATION_FAILED", id="negative"),
        pytest.param("GET", f"{PATH}/x", "VALIDATION_FAILED", id="no number"),
        pytest.param("GET", f"{PATH}/{'9' * 30}", "VALIDATION_FAILED", id="very long"),
        pytest.param(
            "GET",
            f"{PATH}/{Token(lake='lake_x', timeline=1, number=2)}",
            "VALIDATION_FAILED",
            id="another lake's token",
        ),
        pytest.param("GET", f"{PATH}?limit=0", "VALIDATION_FAILED", id="no limit"),
        pytest.param("GET", f"{PATH}?limit=101", "VALIDATION_FAILED", id="long page"),
        pytest.param("GET", f"{PATH}?tabel=t", "VALIDATION_FAILED", id="unknown parameter"),
        pytest.param("GET", f"{PATH}?table=a%22b", "VALIDATION_FAILED", id="bad table"),
        pytest.param("GET", f"{PATH}?after=x", "VALIDATION_FAILED", id="bad after"),
        pytest.param("DELETE", PATH, "VALIDATION_FAILED", id="drop without a table"),
        pytest.param("POST", f"{PATH}/replay", "VALIDATION_FAILED", id="replay without a table"),
        pytest.param(
            "POST", f"{PATH}/replay?table=t&limit=501", "VALIDATION_FAILED", id="too many at once"
        ),
        pytest.param("POST", f"{PATH}/replay?table=t&upto=x", "VALIDATION_FAILED", id="bad upto"),
        pytest.param(
            "POST",
            f"{PATH}/replay?table=t&visibility_timeout_ms=60001",
            "VALIDATION_FAILED",
            id="too long a wait",
        ),
        pytest.param(
            "DELETE", f"{PATH}?table=t&upto=3", "VALIDATION_FAILED", id="upto is for replays"
        ),
    ],
)
async def test_bad_calls_get_their_code(
    door: Doors, kept: Kept, method: str, path: str, code: str
) -> None:
    await kept.letter([ROW])

    status, body, _ = await door.call(method, path)

    assert (status, body["error_code"]) == (404 if code.endswith("FOUND") else 400, code)
    assert len(kept.bus.kept) == 1
    assert "lake_" not in json.dumps(body)
