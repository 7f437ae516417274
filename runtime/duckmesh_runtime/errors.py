"""Every failure the runtime can answer with: one root, one class per thing a caller can do.

    DuckmeshError                 code, message, context; `retryable` says whether the same call may pass later
    +-- Invalid                   the request is wrong: change it
    +-- Unauthorized              no key, or a key that is not enough
    +-- NotFound                  the named thing is not there (or not yours: the same answer)
    +-- Conflict                  the request contradicts what is already there
    +-- Limited                   too much or too fast: wait and repeat
    +-- Unavailable               a part the request needs does not answer: repeat
    +-- Failed                    the query ran and ended badly
    +-- Corrupt                   stored data is missing or damaged: repeat does not help

The codes are a closed catalogue (`CATALOGUE`); `web` maps each to its one HTTP status. Messages name the field, what is
wrong with its value and what to do; they never carry paths, connection strings or other tenants' names.
Leaf module: imports nothing of the runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

Scalar = str | int | float | bool | None
Context = Mapping[str, "Scalar | Sequence[Scalar]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorSpec:
    """One line of the catalogue.

    Attributes:
        status: HTTP status of the answer.
        retryable: The same request may succeed later, unchanged.
        meaning: One line for the reference page.
        advice: What to do, likewise.
    """

    status: int
    retryable: bool
    meaning: str
    advice: str


def _spec(status: int, retryable: bool, meaning: str, advice: str) -> ErrorSpec:
    return ErrorSpec(status=status, retryable=retryable, meaning=meaning, advice=advice)


CATALOGUE: Final[Mapping[str, ErrorSpec]] = {
    "VALIDATION_FAILED": _spec(
        400,
        False,
        "A field of the request is missing, unknown or wrong.",
        "Correct what the message names.",
    ),
    "SCHEMA_INCOMPATIBLE": _spec(
        409,
        False,
        "The change does not fit the table as it is.",
        "Read the table's definition, change the rows or the change.",
    ),
    "TABLE_NOT_FOUND": _spec(
        404,
        False,
        "There is no table of this name.",
        "Check the name with `GET /v1/tables`, or create the table.",
    ),
    "TABLE_EXISTS": _spec(
        409,
        False,
        "A table of this name exists with another definition.",
        "Use the table as it is, change it with PATCH, or take another name.",
    ),
    "TABLE_DECLARED": _spec(
        409,
        False,
        "The table is declared in the Tenant and changed there only.",
        "Change `spec.tables` of the Tenant.",
    ),
    "DEAD_LETTER_NOT_FOUND": _spec(
        404,
        False,
        "There is no such dead letter: it was replayed or dropped, or never was.",
        "List the letters again; after a lost answer the first call has done it.",
    ),
    "ROUTE_NOT_FOUND": _spec(
        404,
        False,
        "There is no such path, or not with this method.",
        "Check path and method with `GET /v1/openapi.json`.",
    ),
    "IDEMPOTENCY_CONFLICT": _spec(
        409,
        False,
        "The idempotency key was used with other content.",
        "Take a new key for new content; send the same bytes under the same key.",
    ),
    "VISIBILITY_TOKEN_INVALID": _spec(
        400,
        False,
        "The visibility token cannot be read.",
        "Pass a token of an earlier answer, unchanged.",
    ),
    "TOKEN_SCOPE_MISMATCH": _spec(
        400,
        False,
        "The visibility token belongs to another lake.",
        "Ask the lake that gave the token; after a restore of the catalog forget tokens from before.",
    ),
    "CONSISTENCY_TIMEOUT": _spec(
        504,
        True,
        "The token did not become visible in time.",
        "Repeat with a longer timeout; `estimated_wait_ms` says how long. If it stays, look at the lag.",
    ),
    "STALENESS_EXCEEDED": _spec(
        503,
        True,
        "The lake lags more than the request allows.",
        "Repeat later or allow more; if it stays, look at the lag.",
    ),
    "SNAPSHOT_NOT_FOUND": _spec(
        404, False, "There never was such a snapshot.", "List the snapshots and take one of them."
    ),
    "SNAPSHOT_EXPIRED": _spec(
        410,
        False,
        "The snapshot was removed by retention.",
        "Take a younger snapshot; pin those that must stay.",
    ),
    "SNAPSHOT_NOT_RESTORABLE": _spec(
        409,
        False,
        "The lake cannot be restored to this snapshot; the message says why.",
        "Take another snapshot, or remove what the message names.",
    ),
    "SQL_NOT_ALLOWED": _spec(
        403,
        False,
        "The statement is not one SELECT over this lake's tables.",
        "Write one SELECT over the lake's tables.",
    ),
    "SQL_ERROR": _spec(
        400,
        False,
        "The statement does not parse, bind or run.",
        "Correct the statement; `line` and `column` of the context say where.",
    ),
    "QUERY_TIMEOUT": _spec(
        504,
        False,
        "The query ran longer than its limit.",
        "Select less, or allow more with `timeout_ms` up to the Tenant's limit.",
    ),
    "QUERY_MEMORY": _spec(
        507,
        False,
        "The query needed more memory than its limit.",
        "Select, group or sort less at once, or raise the Tenant's limit.",
    ),
    "QUERY_CRASHED": _spec(
        500,
        True,
        "The process that ran the query ended; no other query is hit.",
        "Repeat once; if it stays, report the trace_id with the statement.",
    ),
    "RESULT_TOO_LARGE": _spec(
        413,
        False,
        "The result is larger than the limit.",
        "Select less, or accept a streamed format.",
    ),
    "PAYLOAD_TOO_LARGE": _spec(
        413, False, "The request body is larger than the limit.", "Send it in smaller pieces."
    ),
    "UNSUPPORTED_MEDIA_TYPE": _spec(
        415,
        False,
        "The body's or answer's format is not supported.",
        "Send or accept a format that the message names.",
    ),
    "RATE_LIMITED": _spec(
        429,
        True,
        "More requests per second than the limit.",
        "Wait for `Retry-After`; send more rows in fewer requests.",
    ),
    "OVERLOADED": _spec(
        429,
        True,
        "Too much accepted and not yet committed, or too many queries wait.",
        "Wait for `Retry-After`, then longer each time.",
    ),
    "UNAUTHENTICATED": _spec(
        401,
        False,
        "No valid API key.",
        "Send `Authorization: Bearer <key>` with a key of this lake.",
    ),
    "FORBIDDEN": _spec(
        403,
        False,
        "The API key lacks the role for this call.",
        "Take a key with a role that the context names.",
    ),
    "DATA_FILE_MISSING": _spec(
        500,
        False,
        "A file of the snapshot is missing or damaged in the store.",
        "Tell the platform team; the file must come back from the store's versions or a backup.",
    ),
    "INTEGRITY_CHECK_FAILED": _spec(
        500,
        False,
        "Stored data differs from the catalog.",
        "Tell the platform team; repeating does not help.",
    ),
    "CATALOG_UNAVAILABLE": _spec(
        503,
        True,
        "The catalog database does not answer.",
        "Repeat with the same idempotency keys until it answers.",
    ),
    "STORAGE_UNAVAILABLE": _spec(
        503,
        True,
        "The object store does not answer.",
        "Repeat with the same idempotency keys until it answers.",
    ),
    "QUERY_UNAVAILABLE": _spec(
        503,
        True,
        "No query process answers.",
        "Repeat in a second; if it stays, look at the query pods.",
    ),
    "READ_ONLY": _spec(
        403,
        False,
        "The lake takes no writes now.",
        "Write again when the platform team has lifted it.",
    ),
    "INTERNAL": _spec(
        500,
        True,
        "A fault of duckmesh; the trace_id leads to its log line.",
        "Repeat with the same idempotency keys; if it stays, report the trace_id.",
    ),
}


class DuckmeshError(Exception):
    """Root of all failures.

    Attributes:
        code: A key of `CATALOGUE`.
        message: For the caller: field, problem, what to do.
        context: Machine-readable details (watermark, lag, limits); JSON scalars or lists of them.
        retry_after_s: Seconds to wait before repeating, when the runtime can tell.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        context: Context | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        if code not in CATALOGUE:
            raise LookupError(f"{code} is not in the catalogue")
        super().__init__(message)
        self.code = code
        self.message = message
        self.context: Context = context or {}
        self.retry_after_s = retry_after_s

    @property
    def spec(self) -> ErrorSpec:
        """The catalogue line of this error."""
        return CATALOGUE[self.code]


class Invalid(DuckmeshError):
    """The request is wrong: change it."""


class Unauthorized(DuckmeshError):
    """No key, or a key that is not enough."""


class NotFound(DuckmeshError):
    """The named thing is not there."""


class Conflict(DuckmeshError):
    """The request contradicts what is already there."""


class Limited(DuckmeshError):
    """Too much or too fast: wait and repeat."""


class Unavailable(DuckmeshError):
    """A part the request needs does not answer: repeat."""


class Failed(DuckmeshError):
    """The query ran and ended badly."""


class Corrupt(DuckmeshError):
    """Stored data is missing or damaged."""


class SettingsError(Exception):
    """Start-up settings are wrong; the text lists every bad value."""
