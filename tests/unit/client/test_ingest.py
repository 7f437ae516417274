"""Calls that go in pieces: their keys, their receipt, and what is known when they fail on the way."""

from __future__ import annotations

import httpx
import pytest

from duckmesh import Conflict, Invalid, NotVisible, Unreachable, bodies
from tests.unit.client.answers import accepted, refused
from tests.unit.client.conftest import Service

ROWS = [{"id": i} for i in range(6)]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "PIECE_ROWS", 2)


def bad(*places: int) -> dict[str, object]:
    named = [{"index": i, "error_code": "VALIDATION_FAILED", "message": "why"} for i in places]
    return {"rejected": named, "rejected_count": len(named)}


def test_each_piece_has_a_key_made_of_the_calls(service: Service) -> None:
    service.answers = [accepted(2)]

    receipt = service.run(lambda client: client.ingest("e", ROWS, idempotency_key="day-17"))

    keys = [request.headers["Idempotency-Key"] for request in service.requests]
    assert keys == ["day-17-0", "day-17-1", "day-17-2"]
    assert (receipt.idempotency_key, receipt.accepted) == ("day-17", 6)


def test_refused_rows_are_named_by_their_place_in_the_call(service: Service) -> None:
    service.answers = [
        accepted(1, **bad(1), max_visibility_token="v1_a"),
        refused(400, "VALIDATION_FAILED", **bad(0, 1)),
        accepted(1, **bad(0), max_visibility_token="v1_c"),
    ]

    receipt = service.run(lambda client: client.ingest("e", ROWS))

    assert [rejection.index for rejection in receipt.rejected] == [1, 2, 3, 4]
    assert (receipt.accepted, receipt.rejected_count, receipt.token) == (2, 4, "v1_c")


def test_when_every_row_is_refused_the_call_is(service: Service) -> None:
    service.answers = [refused(400, "VALIDATION_FAILED", **bad(0, 1))]

    with pytest.raises(Invalid) as caught:
        service.run(lambda client: client.ingest("e", ROWS))

    assert caught.value.receipt is not None
    assert caught.value.receipt.rejected_count == 6


def test_far_too_many_bad_rows_end_the_call(service: Service) -> None:
    many = {**bad(0, 1), "rejected_count": 9_000}
    service.answers = [accepted(1), refused(400, "VALIDATION_FAILED", **many)]

    with pytest.raises(Invalid) as caught:
        service.run(lambda client: client.ingest("e", ROWS * 10))

    assert len(service.requests) == 3
    assert caught.value.receipt is not None
    assert caught.value.receipt.accepted == 1


def test_atomic_is_one_request_that_is_refused_whole(service: Service) -> None:
    service.answers = [refused(400, "VALIDATION_FAILED", **bad(3))]

    with pytest.raises(Invalid) as caught:
        service.run(lambda client: client.ingest("e", ROWS, atomic=True))

    assert len(service.requests) == 1
    assert service.requests[0].url.params["atomic"] == "true"
    assert [rejection.index for rejection in caught.value.rejected] == [3]


def test_a_call_that_fails_on_the_way_tells_how_to_go_on(service: Service) -> None:
    service.answers = [accepted(2), httpx.ReadError("reset")]

    with pytest.raises(Unreachable) as caught:
        service.run(lambda client: client.ingest("e", ROWS), retry_s=1)
    receipt = caught.value.receipt
    assert receipt is not None
    assert receipt.accepted == 2

    service.requests.clear()
    service.answers = [accepted(0, duplicate_count=2), accepted(2)]
    again = service.run(
        lambda client: client.ingest("e", ROWS, idempotency_key=receipt.idempotency_key)
    )

    assert service.requests[0].headers["Idempotency-Key"] == f"{receipt.idempotency_key}-0"
    assert (again.accepted, again.duplicates) == (4, 2)


def test_other_rows_under_a_used_key_are_a_conflict(service: Service) -> None:
    service.answers = [refused(409, "IDEMPOTENCY_CONFLICT")]

    with pytest.raises(Conflict):
        service.run(lambda client: client.ingest("e", ROWS, idempotency_key="used"))


def test_rows_that_are_not_visible_in_time_are_accepted_all_the_same(service: Service) -> None:
    late = refused(504, "CONSISTENCY_TIMEOUT")
    service.answers = [accepted(2), accepted(2), accepted(2), late]

    with pytest.raises(NotVisible) as caught:
        service.run(lambda client: client.ingest("e", ROWS, wait=True, wait_timeout_s=0))

    assert caught.value.receipt is not None
    assert (caught.value.receipt.accepted, caught.value.receipt.token) == (6, "v1_token")


@pytest.mark.parametrize(
    "key", ["", "x" * 241, "a\nb", "schlüssel"], ids=["none", "long", "line", "text"]
)
def test_a_key_that_no_header_takes_is_refused_before_anything_is_sent(
    service: Service, key: str
) -> None:
    with pytest.raises(Invalid, match="idempotency_key"):
        service.run(lambda client: client.ingest("e", ROWS, idempotency_key=key))

    assert not service.requests
