"""One call of the API, and its place among the routes. The tables are `operations` and `web.routes`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp.typedefs import Handler

from duckmesh_runtime.web.auth import Role
from duckmesh_runtime.web.parameters import Parameters

OPEN_CODES = frozenset({"INTERNAL"})
KEY_CODES = OPEN_CODES | {"UNAUTHENTICATED", "FORBIDDEN", "VALIDATION_FAILED"}
BODY_CODES = frozenset({"PAYLOAD_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE", "OVERLOADED"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One call.

    Attributes:
        tag: The part of the API that it is of.
        summary: A line.
        about: Markdown, for who writes an application.
        answer: What it answers as JSON; None for another format.
        status: Of that answer.
        others: Answers with another status that are no error.
        streamed: Other formats of the answer, with what each is.
        query: Its query parameters.
        path: The parts of its path.
        headers: Request headers that it reads, beside those of every call.
        required: Of those, what it cannot do without.
        told: Headers of its answer, beside those of every answer.
        body: The JSON that it takes.
        rows: Other formats of its body, with what each is.
        error: What its failures are.
        codes: Of its failures; those of every call with a key or a body are added.
        examples: Bodies by media type and name; those of `application/json` are JSON, others text.
        open: Whether it needs no key.
    """

    tag: str
    summary: str
    about: str
    answer: Any = None
    status: int = 200
    others: Mapping[int, Any] = field(default_factory=dict)
    streamed: Mapping[str, str] = field(default_factory=dict)
    query: Parameters = field(default_factory=dict)
    path: Parameters = field(default_factory=dict)
    headers: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    body: Any = None
    rows: Mapping[str, str] = field(default_factory=dict)
    error: Any = None
    codes: frozenset[str] = frozenset()
    examples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    open: bool = False

    @property
    def all_codes(self) -> frozenset[str]:
        """Every code that a failure of this call can have."""
        own = self.codes | (OPEN_CODES if self.open else KEY_CODES)
        return own | BODY_CODES if self.body is not None else own


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One line of the API.

    Attributes:
        method: HTTP method.
        path: With `{names}`.
        roles: A caller needs one of these.
        handler: Answers.
        operation: What it is; None for calls among the lake's own processes.
        on_query: The query process serves it too; ingest serves all.
    """

    method: str
    path: str
    roles: frozenset[Role]
    handler: Handler
    operation: Operation | None
    on_query: bool = field(default=False)

    @property
    def name(self) -> str:
        """Unique among the calls."""
        return self.handler.__name__
