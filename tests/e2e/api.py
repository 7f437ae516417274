"""The HTTP API as an application uses it: keys, one retry, tokens."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Api:
    """One Tenant's API with one key."""

    url: str
    key: str

    def call(
        self, method: str, path: str, body: object = None, *, timeout: float = 60
    ) -> tuple[int, Any]:
        """Status and decoded body."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def ok(self, method: str, path: str, body: object = None) -> Any:
        """The body of a call that must succeed."""
        status, answer = self.call(method, path, body)
        assert status < 300, f"{method} {path}: {status} {answer}"
        return answer

    def persist(self, method: str, path: str, body: object, *, timeout_s: float = 60) -> Any:
        """Repeat a safe-to-repeat call while it is refused as retryable or the connection breaks."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                # A killed pod may leave the connection open and silent: ask again soon, it is safe.
                status, answer = self.call(method, path, body, timeout=3)
                if status < 300:
                    return answer
                assert answer.get("retryable"), f"{method} {path}: {status} {answer}"
            except (OSError, ValueError) as error:
                answer = repr(error)
            assert time.monotonic() < deadline, f"{method} {path} still fails: {answer}"
            time.sleep(0.1)

    def rows(self, sql: str, token: str | None = None) -> list[list[Any]]:
        """The rows of a query, at least as fresh as the token."""
        body = {"sql": sql} | (
            {"min_visibility_token": token, "consistency_timeout_ms": 30_000} if token else {}
        )
        found: list[list[Any]] = self.ok("POST", "/v1/query", body)["rows"]
        return found
