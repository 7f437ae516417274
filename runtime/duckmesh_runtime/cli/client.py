"""The command line's HTTP: one connection to a lake's API, retries included. The only user of aiohttp's client here."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final

import aiohttp

_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0
_CONNECT_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Where the lake is and how to get in.

    Attributes:
        url: Base URL of its API.
        api_key: `dmk_...`.
        retry_s: Longest time to repeat a refused or broken call for.
        timeout_s: Longest wait for one answer.
    """

    url: str
    api_key: str = field(repr=False)
    retry_s: float = 60.0
    timeout_s: float = 120.0


class ApiError(Exception):
    """The API refused a call, or does not answer.

    Attributes:
        code: Of the error catalogue, or `UNREACHABLE`.
        message: Field, problem, what to do.
        retryable: The same call may pass later.
        context: Details of the error body.
        trace_id: Leads to the server's log line.
        retry_after_s: The server's wish.
    """

    def __init__(self, body: Mapping[str, Any], *, retry_after_s: float = 0) -> None:
        self.code = str(body.get("error_code", "INTERNAL"))
        self.message = str(body.get("message", "the answer is not of duckmesh; check the URL"))
        self.retryable = bool(body.get("retryable", False))
        self.context: Mapping[str, Any] = body.get("context") or {}
        self.trace_id = str(body.get("trace_id", ""))
        self.rejected: list[dict[str, Any]] = body.get("rejected") or []
        self.retry_after_s = retry_after_s
        super().__init__(f"{self.code}: {self.message}")


class Client:
    """Calls of the API; use as an async context manager.

    `away` is told, once, of the first try that nobody answers and that is made again: the wait may be long.
    """

    def __init__(
        self, connection: Connection, *, away: Callable[[ApiError, float], None] | None = None
    ) -> None:
        self._connection = connection
        self._away = away
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        connection = self._connection
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {connection.api_key}"},
            timeout=aiohttp.ClientTimeout(total=connection.timeout_s, sock_connect=_CONNECT_S),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(self, method: str, path: str, **options: Any) -> Any:
        """The decoded JSON answer; `options` as of aiohttp (`json`, `data`, `params`, `headers`).

        Only calls that are safe to repeat may go through here: reads, and writes with an idempotency key.

        Raises:
            ApiError: Refused, or still failing after `retry_s`.
        """
        async with self._answer(method, path, **options) as answer:
            return await answer.json(content_type=None)

    async def once(self, method: str, path: str, **options: Any) -> Any:
        """As `call`, in one try: for what may not be repeated."""
        async with await self._once(method, path, **options) as answer:
            return await answer.json(content_type=None)

    async def peek(self, path: str) -> Any:
        """The decoded JSON answer of one GET, whatever its status.

        Raises:
            ApiError: No answer, or not one of duckmesh.
        """
        async with await self._request("GET", path) as answer:
            try:
                return await answer.json(content_type=None)
            except ValueError:
                raise await _refusal(answer) from None

    async def stream(
        self,
        path: str,
        body: object,
        accept: str,
        *,
        begun: Callable[[Mapping[str, str]], None] | None = None,
    ) -> AsyncIterator[bytes]:
        """The bytes of a streamed answer as they come; `begun` gets the answer's headers before the first of them.

        Raises:
            ApiError: As of `call`; INCOMPLETE when the answer breaks off.
        """
        async with self._answer("POST", path, json=body, headers={"Accept": accept}) as answer:
            if begun is not None:
                begun(answer.headers)
            try:
                async for chunk in answer.content.iter_any():
                    yield chunk
            except aiohttp.ClientError as error:
                raise ApiError(
                    {"error_code": "INCOMPLETE", "message": "the answer broke off"}
                ) from error

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        answer = await self._persist(method, path, **options)
        try:
            yield answer
        finally:
            answer.release()

    async def _persist(self, method: str, path: str, **options: Any) -> aiohttp.ClientResponse:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._connection.retry_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return await self._once(method, path, **options)
            except ApiError as error:
                wait_s = max(error.retry_after_s, pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - a pause, no secret
                if not error.retryable or loop.time() + wait_s > deadline:
                    raise
                if error.code == "UNREACHABLE" and self._away is not None:
                    self._away(error, deadline - loop.time())
                    self._away = None
            await asyncio.sleep(wait_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _once(self, method: str, path: str, **options: Any) -> aiohttp.ClientResponse:
        answer = await self._request(method, path, **options)
        if answer.status < 400:
            return answer
        async with answer:
            raise await _refusal(answer)

    async def _request(self, method: str, path: str, **options: Any) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("the client is not open")
        url = self._connection.url.rstrip("/") + path
        try:
            return await self._session.request(method, url, **options)
        except aiohttp.InvalidURL as error:
            message = f"{self._connection.url} is no URL: want one like http://127.0.0.1:8080"
            raise ApiError({"error_code": "UNREACHABLE", "message": message}) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            message = f"{self._connection.url} does not answer ({type(error).__name__})"
            raise ApiError(
                {"error_code": "UNREACHABLE", "message": message, "retryable": True}
            ) from error


async def _refusal(answer: aiohttp.ClientResponse) -> ApiError:
    try:
        body = await answer.json(content_type=None)
    except ValueError:
        body = None
    if not isinstance(body, dict) or "error_code" not in body:
        body = {
            "error_code": "INTERNAL",
            "message": f"HTTP {answer.status} without a duckmesh error; check the URL",
            "retryable": answer.status in (429, 502, 503, 504),
        }
    wish = answer.headers.get("Retry-After", "")
    return ApiError(body, retry_after_s=float(wish) if wish.isdigit() else 0)
