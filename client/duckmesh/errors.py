"""What can go wrong, one class for each thing that a caller can do about it.

    DuckmeshError                 code, message, retryable, context, trace_id
    +-- Invalid                   the request is wrong: change it
    +-- Unauthorized              no key, or a key that is not enough
    +-- NotFound                  the named thing is not there
    +-- Conflict                  the request contradicts what is already there
    +-- Limited                   too much or too fast: wait and repeat
    +-- Unavailable               a part the request needs does not answer: repeat
    |   +-- Unreachable           no answer came at all, or it broke off
    |   +-- NotVisible            accepted, but not visible within the time that was given
    +-- Failed                    the query ran and ended badly
    +-- Corrupt                   stored data is missing or damaged: repeating does not help

The classes are the families of the service's error catalogue, the codes its lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from duckmesh.answers import Receipt, Rejection

__all__ = [
    "Conflict",
    "Corrupt",
    "CutWarning",
    "DuckmeshError",
    "Failed",
    "Invalid",
    "Limited",
    "NotFound",
    "NotVisible",
    "Unauthorized",
    "Unavailable",
    "Unreachable",
]


class DuckmeshError(Exception):
    """Root of all failures.

    Attributes:
        code: A line of the service's catalogue, or UNREACHABLE.
        message: Field, problem, what to do.
        retryable: The same call may pass later.
        context: Details: `field`, `watermark`, `limit_bytes` and the like.
        trace_id: Leads to the service's log lines; empty when it did not answer.
        status: HTTP status; 0 without an answer.
        rejected: Refused rows, where rows were the problem.
        rejected_count: All of them; `rejected` has the first 1,000.
        retry_after_s: How long the service wants to be left alone, in seconds.
        receipt: Of an `ingest` that failed on its way: what was accepted before. Call again with its `idempotency_key`,
            and nothing of it is written twice.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool = False,
        context: Mapping[str, Any] | None = None,
        trace_id: str = "",
        status: int = 0,
        rejected: tuple[Rejection, ...] = (),
        rejected_count: int = 0,
        retry_after_s: float = 0.0,
    ) -> None:
        trace = f" (trace_id {trace_id})" if trace_id else ""
        super().__init__(f"{code}: {message}{trace}")
        self.code = code
        self.message = message
        self.retryable = retryable
        self.context: Mapping[str, Any] = context or {}
        self.trace_id = trace_id
        self.status = status
        self.rejected = rejected
        self.rejected_count = rejected_count
        self.retry_after_s = retry_after_s
        self.receipt: Receipt | None = None


class Invalid(DuckmeshError):
    """The request is wrong: change it."""


class Unauthorized(DuckmeshError):
    """No API key, or one that is not enough."""


class NotFound(DuckmeshError):
    """The named thing is not there, or no longer."""


class Conflict(DuckmeshError):
    """The request contradicts what is already there."""


class Limited(DuckmeshError):
    """Too much or too fast: wait and repeat."""


class Unavailable(DuckmeshError):
    """A part the request needs does not answer: repeat."""


class Unreachable(Unavailable):
    """No answer came, or it broke off."""


class NotVisible(Unavailable):
    """What was asked for did not become visible in time; what was accepted is accepted all the same."""


class Failed(DuckmeshError):
    """The query ran and ended badly."""


class Corrupt(DuckmeshError):
    """Stored data is missing or damaged."""


class CutWarning(UserWarning):
    """An answer has as many rows as the tenant's limit, which the caller did not ask for: there may be more rows."""


FAMILIES: Final[Mapping[str, type[DuckmeshError]]] = {
    "VALIDATION_FAILED": Invalid,
    "SCHEMA_INCOMPATIBLE": Conflict,
    "TABLE_NOT_FOUND": NotFound,
    "TABLE_EXISTS": Conflict,
    "TABLE_DECLARED": Conflict,
    "DEAD_LETTER_NOT_FOUND": NotFound,
    "ROUTE_NOT_FOUND": NotFound,
    "IDEMPOTENCY_CONFLICT": Conflict,
    "VISIBILITY_TOKEN_INVALID": Invalid,
    "TOKEN_SCOPE_MISMATCH": Invalid,
    "CONSISTENCY_TIMEOUT": NotVisible,
    "STALENESS_EXCEEDED": NotVisible,
    "SNAPSHOT_NOT_FOUND": NotFound,
    "SNAPSHOT_EXPIRED": NotFound,
    "SNAPSHOT_NOT_RESTORABLE": Conflict,
    "SQL_NOT_ALLOWED": Invalid,
    "SQL_ERROR": Invalid,
    "QUERY_TIMEOUT": Failed,
    "QUERY_MEMORY": Failed,
    "QUERY_CRASHED": Failed,
    "RESULT_TOO_LARGE": Invalid,
    "PAYLOAD_TOO_LARGE": Invalid,
    "UNSUPPORTED_MEDIA_TYPE": Invalid,
    "RATE_LIMITED": Limited,
    "OVERLOADED": Limited,
    "UNAUTHENTICATED": Unauthorized,
    "FORBIDDEN": Unauthorized,
    "DATA_FILE_MISSING": Corrupt,
    "INTEGRITY_CHECK_FAILED": Corrupt,
    "CATALOG_UNAVAILABLE": Unavailable,
    "STORAGE_UNAVAILABLE": Unavailable,
    "QUERY_UNAVAILABLE": Unavailable,
    "READ_ONLY": Conflict,
    "INTERNAL": Unavailable,
}
"""The class of each code that this release knows; others go by the status of the answer."""

_BY_STATUS: Final[Mapping[int, type[DuckmeshError]]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    409: Conflict,
    410: NotFound,
    429: Limited,
}
_PASSING: Final = frozenset({429, 502, 503, 504})
"""Statuses by which something on the way (a proxy, an ingress) says that the same call may pass later."""


def unreachable(message: str, *, retryable: bool = True) -> Unreachable:
    """No answer came."""
    return Unreachable("UNREACHABLE", message, retryable=retryable)


def refusal(status: int, body: bytes, retry_after: str) -> DuckmeshError:
    """The error of an answer that is none of success."""
    from duckmesh.answers import Rejection

    wish = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.0
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        said = None
    if not isinstance(said, dict) or not isinstance(said.get("error_code"), str):
        return _family("", status)(
            "INTERNAL",
            f"HTTP {status} without an error of duckmesh: check the URL",
            retryable=status in _PASSING,
            status=status,
            retry_after_s=wish,
        )
    rejected = tuple(
        Rejection(index=int(r["index"]), code=str(r["error_code"]), message=str(r["message"]))
        for r in said.get("rejected") or ()
    )
    return _family(said["error_code"], status)(
        said["error_code"],
        str(said.get("message", "")),
        retryable=bool(said.get("retryable")),
        context=said.get("context"),
        trace_id=str(said.get("trace_id") or ""),
        status=status,
        rejected=rejected,
        rejected_count=int(said.get("rejected_count") or len(rejected)),
        retry_after_s=wish,
    )


def _family(code: str, status: int) -> type[DuckmeshError]:
    if (found := FAMILIES.get(code)) is not None:
        return found
    return _BY_STATUS.get(status, Unavailable if status >= 500 else Invalid)
