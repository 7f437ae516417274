"""Where a lake is and how to get in: what both clients are made with, and the HTTP settings that follow."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import httpx

from duckmesh.errors import Invalid
from duckmesh.steps import Patience, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """As of `Client`, checked."""

    url: str
    api_key: str = field(repr=False)
    patience: Patience

    def http(self) -> dict[str, Any]:
        """Arguments of httpx's clients."""
        headers = {
            "Authorization": f"Bearer {self.api_key}",
            "User-Agent": f"duckmesh-python/{version('duckmesh')}",
        }
        return {"base_url": self.url, "headers": headers}

    def request(self, request: Request) -> dict[str, Any]:
        """Arguments of httpx's `build_request`."""
        timeout = httpx.Timeout(request.answer_timeout_s, connect=self.patience.connect_timeout_s)
        return {
            "method": request.method,
            "url": request.path,
            "params": request.params or None,
            "headers": request.headers,
            "content": request.content,
            "timeout": timeout,
        }


def access(url: str | None, api_key: str | None, patience: Patience) -> Access:
    """Check what a client was made with; what is missing comes from the environment.

    Raises:
        Invalid: There is no URL or no key, or it cannot be one.
    """
    url = (url or os.environ.get("DUCKMESH_URL", "")).strip()
    api_key = (api_key or os.environ.get("DUCKMESH_API_KEY", "")).strip()
    if not url:
        raise _invalid("url", "pass the lake's URL, or set DUCKMESH_URL")
    if not api_key:
        raise _invalid("api_key", "pass an API key, or set DUCKMESH_API_KEY")
    if not (api_key.isascii() and api_key.isprintable()):
        raise _invalid("api_key", "want a key like dmk_...")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise _invalid("url", f"want one like http://127.0.0.1:8080 ({error})") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise _invalid("url", "want one like http://127.0.0.1:8080")
    return Access(url=url, api_key=api_key, patience=patience)


def _invalid(field: str, problem: str) -> Invalid:
    return Invalid("VALIDATION_FAILED", f"{field}: {problem}", context={"field": field})
