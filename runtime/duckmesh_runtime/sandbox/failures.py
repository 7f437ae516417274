"""From what DuckDB and Arrow raise to an error of the catalogue, without paths, URLs and engine names."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import duckdb

from duckmesh_runtime.domain import wire
from duckmesh_runtime.errors import DuckmeshError

MEMORY: Final = "the query needed more memory than its limit: read fewer rows or columns, or ask for a higher limit"
_LONGEST: Final = 2_000

_URL: Final = re.compile(r"""\b\w+://[^\s'"`)]+""")
_PATH: Final = re.compile(r"""(?<![\w)/.])/(?:[^\s'"`/]+/)+[^\s'"`]*""")
_ENGINE_NAME: Final = re.compile(r"__ducklake\w*(\.\w+)*")
_ADVICE: Final = re.compile(
    r"\n+(Possible solutions:|See also https?:|\* |Stack Trace:).*", re.DOTALL
)
_HINT: Final = re.compile(r'\n*Did you mean "[^"\n]*(pg_|duckdb_|sqlite_|pragma_|__)[^\n]*')

_CODES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (duckdb.OutOfMemoryException, "QUERY_MEMORY"),
    (MemoryError, "QUERY_MEMORY"),
    (duckdb.InterruptException, "QUERY_TIMEOUT"),
    (duckdb.InternalException, "QUERY_CRASHED"),
    (duckdb.FatalException, "QUERY_CRASHED"),
    (duckdb.PermissionException, "SQL_NOT_ALLOWED"),
)
# A failure in the middle of a result comes through Arrow's C stream as its text only: "<type> Error: ...".
_PREFIXES: Final = (
    ("Out of Memory Error", "QUERY_MEMORY"),
    ("INTERRUPT Error", "QUERY_TIMEOUT"),
    ("Interrupted", "QUERY_TIMEOUT"),
    ("INTERNAL Error", "QUERY_CRASHED"),
    ("FATAL Error", "QUERY_CRASHED"),
    ("Permission Error", "SQL_NOT_ALLOWED"),
)
_STATUS: Final = re.compile(r"\(?HTTP (?:code )?(\d{3})")


def failure_of(error: BaseException) -> wire.Failure:
    """The ERROR message for an exception; unknown kinds make the slot doubtful."""
    if isinstance(error, DuckmeshError):
        return wire.Failure(code=error.code, message=error.message)
    code = _code(error)
    return wire.Failure(
        code=code,
        message=_MESSAGES.get(code, clean)(str(error)),
        doubtful=code in ("QUERY_MEMORY", "QUERY_CRASHED", "INTERNAL"),
    )


def clean(text: str) -> str:
    """DuckDB's text without what is nobody's business: places, engine names, advice on settings."""
    for pattern, instead in (
        (_ADVICE, ""),
        (_HINT, ""),
        (_URL, "..."),
        (_PATH, "..."),
        (_ENGINE_NAME, "..."),
    ):
        text = pattern.sub(instead, text)
    return text[:_LONGEST].rstrip()


def _code(error: BaseException) -> str:
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    text = str(error)
    for prefix, code in _PREFIXES:
        if text.startswith(prefix):
            return code
    if isinstance(error, duckdb.IOException) or text.startswith(("IO Error", "HTTP Error")):
        return _storage_code(error, text)
    # Arrow wraps the texts of a stream in OSError or a ValueError of its own.
    known = isinstance(error, (duckdb.Error, OSError, ValueError))
    return "SQL_ERROR" if known else "INTERNAL"


def _storage_code(error: BaseException, text: str) -> str:
    """All a statement reads by I/O are data files behind the read proxy."""
    status = getattr(error, "status_code", None)
    if status is None and (found := _STATUS.search(text)):
        status = int(found[1])
    # The read proxy says 410 for a file that the store has lost, 404 for one that no catalog names any more.
    return "DATA_FILE_MISSING" if status in (404, 410) else "STORAGE_UNAVAILABLE"


def _fixed(message: str) -> Callable[[str], str]:
    return lambda _: message


_MESSAGES: Final[dict[str, Callable[[str], str]]] = {
    "QUERY_MEMORY": _fixed(MEMORY),
    "QUERY_TIMEOUT": _fixed("the query was stopped"),
    "QUERY_CRASHED": _fixed(
        "the engine failed inside; the process was replaced: repeat, or report the statement"
    ),
    "SQL_NOT_ALLOWED": _fixed("sql: it reads something that is not a table of this lake"),
    "DATA_FILE_MISSING": _fixed("a data file of this snapshot is missing in the object store"),
    "STORAGE_UNAVAILABLE": _fixed("a data file cannot be read now: repeat"),
    "INTERNAL": _fixed("the query process failed; the process was replaced"),
}
