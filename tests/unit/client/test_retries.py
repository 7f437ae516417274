"""What is sent again, how often, with what between, and what is never sent again."""

from __future__ import annotations

import httpx
import pyarrow as pa
import pytest

from duckmesh import Failed, Invalid, Limited, NotVisible, Unavailable, Unreachable
from tests.unit.client.answers import Breaks, accepted, arrow_bytes, found, refused
from tests.unit.client.conftest import KEY, Service

ROW = [{"id": 1}]
LOST = httpx.ReadError("reset")


def test_rows_are_sent_again_under_the_same_key_whatever_became_of_the_answer(
    service: Service,
) -> None:
    half = httpx.Response(200, stream=Breaks(b'{"accepted'))
    busy = refused(503, "CATALOG_UNAVAILABLE")
    service.answers = [LOST, busy, httpx.Response(502, text="bad gateway"), half, accepted()]

    receipt = service.run(lambda client: client.ingest("events", ROW))

    keys = {request.headers["Idempotency-Key"] for request in service.requests}
    assert len(service.requests) == 5
    assert keys == {f"{receipt.idempotency_key}-0"}
    assert {request.content for request in service.requests} == {b'{"id":1}\n'}
    assert (receipt.accepted, receipt.token) == (1, "v1_token")


def test_two_calls_have_two_keys(service: Service) -> None:
    service.answers = [accepted()]

    keys = {service.run(lambda client: client.ingest("e", ROW)).idempotency_key for _ in range(2)}

    assert len(keys) == 2


def test_pauses_grow_vary_and_respect_the_services_wish(service: Service) -> None:
    wish = refused(429, "OVERLOADED", retry_after="7")
    service.answers = [LOST, LOST, LOST, wish, accepted()]

    service.run(lambda client: client.ingest("events", ROW))

    plain, wished = service.pauses[:3], service.pauses[3]
    for pause, most in zip(plain, (0.2, 0.4, 0.8), strict=True):
        assert most / 2 <= pause <= most
    assert 7 < wished <= 7 + 1.6


def test_retries_end_in_time_and_say_so(service: Service) -> None:
    service.answers = [refused(503, "STORAGE_UNAVAILABLE", retry_after="1")]

    with pytest.raises(Unavailable, match="STORAGE_UNAVAILABLE") as caught:
        service.run(lambda client: client.ingest("events", ROW), retry_s=20)

    assert 5 < len(service.requests) < 20
    assert sum(service.pauses) <= 20
    assert "retry_s = 20" in caught.value.__notes__[0]
    receipt = caught.value.receipt
    assert receipt is not None
    assert service.requests[0].headers["Idempotency-Key"] == f"{receipt.idempotency_key}-0"


def test_a_wish_beyond_the_time_left_ends_at_once(service: Service) -> None:
    service.answers = [refused(429, "OVERLOADED", retry_after="3600")]

    with pytest.raises(Limited) as caught:
        service.run(lambda client: client.ingest("events", ROW))

    assert (len(service.requests), service.pauses) == (1, [])
    assert caught.value.retry_after_s == 3600


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (refused(400, "VALIDATION_FAILED"), Invalid),
        (refused(504, "CONSISTENCY_TIMEOUT"), NotVisible),
        (refused(503, "STALENESS_EXCEEDED"), NotVisible),
        (refused(500, "QUERY_CRASHED"), Failed),
        (refused(507, "QUERY_MEMORY", retryable=False), Failed),
        (httpx.UnsupportedProtocol("ftp"), Unreachable),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_would_only_happen_again_is_told_at_once(
    service: Service, answer: httpx.Response | Exception, error: type[Exception]
) -> None:
    service.answers = [answer]

    with pytest.raises(error):
        service.run(lambda client: client.query("SELECT 1"))

    assert len(service.requests) == 1


CHANGES = [{"drop_column": {"name": "x"}}]


@pytest.mark.parametrize("lost", [LOST, httpx.ReadTimeout("late")], ids=["cut", "silent"])
def test_a_change_that_may_have_been_done_is_not_sent_again(
    service: Service, lost: Exception
) -> None:
    service.answers = [lost]

    with pytest.raises(Unreachable, match="may have been done"):
        service.run(lambda client: client.tables.alter("events", CHANGES))

    assert len(service.requests) == 1


def test_a_change_that_was_surely_not_done_is_sent_again(service: Service) -> None:
    changed = httpx.Response(
        200, json={"name": "events", "columns": [], "max_visibility_token": "v1_t"}
    )
    never = httpx.ConnectError("refused")
    service.answers = [never, refused(429, "RATE_LIMITED"), changed]

    table = service.run(lambda client: client.tables.alter("events", CHANGES))

    assert (table.name, table.token) == ("events", "v1_t")
    assert len(service.requests) == 3


def test_an_unavailable_catalog_leaves_a_change_in_doubt(service: Service) -> None:
    service.answers = [refused(503, "CATALOG_UNAVAILABLE")]

    with pytest.raises(Unavailable):
        service.run(lambda client: client.tables.drop("events"))

    assert len(service.requests) == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (httpx.ConnectTimeout(""), "no connection within connect_timeout_s = 5"),
        (httpx.ReadTimeout(""), "no answer within answer_timeout_s = 9"),
        (httpx.ConnectError(""), "does not answer"),
    ],
    ids=["connect", "answer", "refused"],
)
def test_a_timeout_is_named(service: Service, error: Exception, said: str) -> None:
    service.answers = [error]

    with pytest.raises(Unreachable, match=said) as caught:
        service.run(lambda client: client.lag(), retry_s=0, answer_timeout_s=9)

    assert (caught.value.code, caught.value.retryable) == ("UNREACHABLE", True)


def test_a_query_is_given_the_time_that_its_caller_gives_it(service: Service) -> None:
    service.answers = [found(arrow_bytes(pa.table({"a": [1]})))]

    service.run(lambda client: client.query("SELECT 1", timeout_s=900))

    assert service.requests[0].extensions["timeout"]["read"] > 900


def test_an_answer_that_breaks_off_is_asked_for_once_more(service: Service) -> None:
    whole = arrow_bytes(pa.table({"a": [1]}))
    service.answers = [found(Breaks(whole[:40])), found(whole)]
    assert service.run(lambda client: client.query("SELECT 1")).rows() == [{"a": 1}]

    service.answers = [found(Breaks(whole[:40]))]
    with pytest.raises(Unreachable, match="broke off"):
        service.run(lambda client: client.query("SELECT 1"))

    assert len(service.requests) == 4


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>"),
        httpx.Response(308, headers={"Location": "https://lake.test/"}),
        httpx.Response(404, text="no"),
    ],
    ids=["page", "redirect", "not found"],
)
def test_what_is_not_duckmesh_is_said_to_be_so(service: Service, answer: httpx.Response) -> None:
    service.answers = [answer]

    for call in (lambda client: client.lag(), lambda client: client.query("SELECT 1")):
        with pytest.raises(Exception, match="check the URL"):
            service.run(call)


def test_waiting_goes_on_in_calls_that_the_service_takes(service: Service) -> None:
    def late(request: httpx.Request) -> httpx.Response:
        service.requests.append(request)
        service.now += int(request.url.params["timeout_ms"]) / 1000
        return refused(504, "CONSISTENCY_TIMEOUT", context={"watermark": 3})

    service.answer = late  # type: ignore[method-assign]  # takes the time that it is given

    with pytest.raises(NotVisible) as caught:
        service.run(lambda client: client.wait_visible("v1_t", timeout_s=150))

    asked = [request.url.params["timeout_ms"] for request in service.requests]
    assert asked == ["60000", "60000", "30000"]
    assert caught.value.context["watermark"] == 3


def test_the_key_shows_nowhere(service: Service) -> None:
    service.answers = [refused(401, "UNAUTHENTICATED"), LOST]
    shown = []
    for _ in range(2):
        with pytest.raises(Exception, match=r"UNAUTH|UNREACH") as caught:
            service.run(lambda client: shown.append(repr(client)) or client.lag(), retry_s=0)
        shown.append(repr(caught.value) + str(caught.value))

    assert service.requests[0].headers["Authorization"] == f"Bearer {KEY}"
    assert not any(KEY[-20:] in text for text in shown)
