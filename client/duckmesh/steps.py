"""How a call is done, step by step, without doing it: generators that `client` and `aio` run, each in its own way.

A step asks for one of three things and is given its result: an answer (`Send`), time (`Pause`), or work that may take
long (`Work`). So what is sent, what is sent again, and what an answer means stand here once, for both clients.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import httpx
import msgspec

from duckmesh.errors import DuckmeshError, Unavailable, refusal, unreachable

T = TypeVar("T")

_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0
_SLACK_S: Final = 30.0
"""What an answer may take beyond the time that the caller gave the service for it."""

# The caller's own bound was met, or the same would only happen again: his to decide.
_NOT_BY_ITSELF: Final = frozenset({"CONSISTENCY_TIMEOUT", "STALENESS_EXCEEDED", "QUERY_CRASHED"})
_NOTHING_DONE: Final = frozenset({"RATE_LIMITED", "OVERLOADED"})
_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_NEVER_RIGHT: Final = (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.ProxyError)

monotonic = time.monotonic


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call of the API.

    Attributes:
        method: GET, POST, PATCH, DELETE.
        path: From `/v1` on, percent-encoded.
        params: Query parameters.
        headers: Beside those of every call.
        content: Body.
        repeatable: Sent twice it does no more than sent once.
        answer_timeout_s: Longest silence; None means what the client has for all calls.
        stream: Its answer is not read yet when it is given back.
        breaks: How often it is sent again when its answer broke off; None means as long as there is time.
    """

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    repeatable: bool = True
    answer_timeout_s: float | None = None
    stream: bool = False
    breaks: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a client waits, in seconds; as of `Client`."""

    retry_s: float
    answer_timeout_s: float
    connect_timeout_s: float


@dataclass(frozen=True, slots=True)
class Send:
    """Give the answer, read to its end unless it is streamed; raises httpx.TransportError, or `BrokenOff`."""

    request: Request


@dataclass(frozen=True, slots=True)
class Pause:
    """Come back after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """Give what the function returns; it computes or reads for a while."""

    run: Callable[[], Any]


Step = Send | Pause | Work
Steps = Generator[Step, Any, T]


class BrokenOff(Exception):
    """The answer began and did not come to its end."""


def answered(request: Request, patience: Patience) -> Steps[httpx.Response]:
    """A good answer to the request, which is repeated while that may help, is safe and there is time.

    Raises:
        DuckmeshError: The last failure.
    """
    deadline = monotonic() + patience.retry_s
    pause_s, tries, breaks = _FIRST_PAUSE_S, 0, 0
    request = _with_timeout(request, patience)
    while True:
        tries += 1
        try:
            response: httpx.Response = yield Send(request)
            if response.is_success:
                return response
            header = response.headers.get("Retry-After", "")
            failure = refusal(response.status_code, response.content, header)
            again = _may_pass(failure, request)
        except httpx.TransportError as error:
            failure = _unreached(error, request, patience)
            again = failure.retryable and (request.repeatable or isinstance(error, _NEVER_SENT))
        except BrokenOff as error:
            breaks += 1
            failure = unreachable(f"the answer broke off ({_name(error.__cause__)}): repeat")
            again = request.repeatable and (request.breaks is None or breaks <= request.breaks)
        wait_s = failure.retry_after_s + pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - a pause, no secret
        if not again or monotonic() + wait_s > deadline:
            if tries > 1:
                failure.add_note(f"given up after {tries} tries (retry_s = {patience.retry_s:g})")
            raise failure
        yield Pause(wait_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


def told(request: Request, patience: Patience) -> Steps[dict[str, Any]]:
    """The JSON object that a request is answered with."""
    response = yield from answered(request, patience)
    return json_object(response)


def json_object(response: httpx.Response) -> dict[str, Any]:
    """The decoded body.

    Raises:
        Unavailable: It is none of duckmesh.
    """
    try:
        found = msgspec.json.decode(response.content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise Unavailable(
            "INTERNAL",
            "the answer is not of duckmesh: check the URL",
            status=response.status_code,
        )
    return found


def shaped(kind: type[T], value: object) -> T:
    """A part of an answer as one of `answers`.

    Raises:
        Unavailable: It has another shape.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message = f"the answer has another shape than this client knows: {error}"
        raise Unavailable("INTERNAL", message) from error


def _with_timeout(request: Request, patience: Patience) -> Request:
    asked_s = request.answer_timeout_s
    least_s = patience.answer_timeout_s
    return replace(
        request,
        answer_timeout_s=least_s if asked_s is None else max(least_s, asked_s + _SLACK_S),
    )


def _may_pass(failure: DuckmeshError, request: Request) -> bool:
    if not failure.retryable or failure.code in _NOT_BY_ITSELF:
        return False
    return request.repeatable or failure.code in _NOTHING_DONE


def _unreached(error: httpx.TransportError, request: Request, patience: Patience) -> DuckmeshError:
    if isinstance(error, httpx.PoolTimeout):
        what = f"no connection of the client came free within {request.answer_timeout_s:g} s"
    elif isinstance(error, httpx.ConnectTimeout):
        what = f"no connection within connect_timeout_s = {patience.connect_timeout_s:g}"
    elif isinstance(error, httpx.TimeoutException):
        what = f"no answer within answer_timeout_s = {request.answer_timeout_s:g}"
    else:
        what = f"the service does not answer ({_name(error)})"
    unsure = "" if request.repeatable or isinstance(error, _NEVER_SENT) else _UNSURE
    return unreachable(
        f"{request.method} {request.path}: {what}{unsure}",
        retryable=not isinstance(error, _NEVER_RIGHT),
    )


_UNSURE: Final = "; it may have been done: look before you repeat it"


def _name(error: BaseException | None) -> str:
    return type(error).__name__
