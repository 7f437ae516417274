"""From what DuckDB and Arrow raise to an error of the catalogue, without paths, URLs and engine names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

import duckdb
import msgspec
import pyarrow as pa

from duckmesh_runtime.domain import wire
from duckmesh_runtime.domain.sqlplace import place_of
from duckmesh_runtime.errors import DuckmeshError, Failed

MEMORY: Final = "the query needed more memory than its limit: read fewer rows or columns, or ask for a higher limit"
_LONGEST: Final = 1_600  # an error answer takes 2,000, and the quoted line comes behind

_URL: Final = re.compile(r"""\b\w+://[^\s'"`)]+""")
_PATH: Final = re.compile(r"""(?<![\w)/.])/(?:[^\s'"`/]+/)+[^\s'"`]*""")
_ENGINE_NAME: Final = re.compile(r"__ducklake\w*(\.\w+)*")
_ADVICE: Final = re.compile(
    r"\n+(Possible solutions:|See also https?:|\* |Stack Trace:).*", re.DOTALL
)
_SETTING: Final = re.compile(r'\s*Use "SET [^\n]*')
_HINT: Final = re.compile(r'\n*Did you mean "([^\n]*)"\?')
_NOT_OF_THE_LAKE: Final = re.compile(
    r"(\w+\.)*(pg_|duckdb_|sqlite_|pragma_|__)|(memory|system|temp|information_schema)\."
)

_CODES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (duckdb.OutOfMemoryException, "QUERY_MEMORY"),
    (MemoryError, "QUERY_MEMORY"),
    (duckdb.InterruptException, "QUERY_TIMEOUT"),
    (duckdb.InternalException, "QUERY_CRASHED"),
    (duckdb.FatalException, "QUERY_CRASHED"),
    (duckdb.PermissionException, "SQL_NOT_ALLOWED"),
)
# A failure in the middle of a result comes through Arrow's C stream as its text only.
_PREFIXES: Final = (
    ("Out of Memory Error", "QUERY_MEMORY"),
    ("INTERRUPT Error", "QUERY_TIMEOUT"),
    ("Interrupted", "QUERY_TIMEOUT"),
    ("INTERNAL Error", "QUERY_CRASHED"),
    ("FATAL Error", "QUERY_CRASHED"),
    ("Permission Error", "SQL_NOT_ALLOWED"),
)
# What DuckDB's Parquet reader says of bytes that are none (1.5.5, files changed at random). A text of error() begins with
# "Invalid Input Error" as well, but a statement does not know where the read proxy listens.
_DAMAGED: Final = re.compile(
    r"""Invalid Input Error: (No magic bytes found at end of|Failed to read) file ["']http://127\.0\.0\.1:\d+/lake/"""
    r"|Out of buffer|TProtocolException|don't know what type|invalid TType"
    r"|IO Error: Could not read enough bytes from file "
)
_BEFORE_JSON: Final = re.compile(r"(?:[A-Za-z ]+ Error: )?")
_STATUS: Final = re.compile(r"\(?HTTP (?:code )?(\d{3})")


def failure_of(error: BaseException, sql: str = "") -> wire.Failure:
    """The ERROR message for an exception; unknown kinds make the slot doubtful.

    Args:
        error: What a statement raised.
        sql: The statement as it was sent, to name the place in it.
    """
    if isinstance(error, DuckmeshError):
        return _placed(wire.Failure(code=error.code, message=error.message), sql, error.context)
    text, told = _read(error)
    code = _code(error, text)
    failure = wire.Failure(
        code=code,
        message=_MESSAGES.get(code, clean)(text),
        doubtful=code in ("QUERY_MEMORY", "QUERY_CRASHED", "INTERNAL"),
    )
    return _placed(failure, sql, told) if code == "SQL_ERROR" else failure


def with_reason(
    batches: Iterable[pa.RecordBatch],
    again: Callable[[], Iterable[pa.RecordBatch]],
    stopped: Callable[[], bool],
) -> Iterator[pa.RecordBatch]:
    """The batches of a statement, whose failure is the one that it has.

    When one of several threads fails, DuckDB stops the others with an interrupt, and whoever reads the result
    may see the interrupt first: the reason is then lost (`Executor::PushError` and
    `SimpleBufferedData::ExecuteTaskInternal` of DuckDB 1.5; seen in 1 of 200 failures). The statement runs again
    to find it.

    Args:
        batches: The result.
        again: Starts the statement a second time, on one thread, where nothing is lost.
        stopped: Whether the interrupt was asked for.

    Raises:
        Failed: QUERY_TIMEOUT: stopped; QUERY_CRASHED: the second run does not fail.
    """
    try:
        yield from batches
    except (duckdb.Error, OSError, ValueError) as error:
        if stopped() or _code(error, _read(error)[0]) != "QUERY_TIMEOUT":
            raise
    else:
        return
    for _ in again():
        if stopped():
            raise Failed("QUERY_TIMEOUT", _MESSAGES["QUERY_TIMEOUT"](""))
    raise Failed("QUERY_CRASHED", _MESSAGES["QUERY_CRASHED"](""))


def _read(error: BaseException) -> tuple[str, Mapping[str, object]]:
    """An exception's text as people know it ("<type> Error: ..."), and what else it tells."""
    text = str(error)
    before, brace, rest = text.partition("{")
    if not _BEFORE_JSON.fullmatch(before):
        return text, {}
    try:
        told = msgspec.json.decode(brace + rest, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeError):
        return text, {}
    # The type before the JSON is the engine's; a text of error() can have any JSON.
    kind = before or f"{told.get('exception_type')} Error: "
    position = str(told.get("position"))
    offset = {"offset": int(position)} if position.isdecimal() else {}
    return f"{kind}{told.get('exception_message')}", offset


def _placed(failure: wire.Failure, sql: str, told: Mapping[str, object]) -> wire.Failure:
    offset = told.get("offset")
    place = place_of(sql, offset) if isinstance(offset, int) else None
    if place is None:
        return failure
    message = f"{failure.message}\n\n{place.quote}"
    return replace(failure, message=message, line=place.line, column=place.column)


def clean(text: str) -> str:
    """DuckDB's text without what is nobody's business: places, engine names, advice on settings."""
    text = _HINT.sub(_hint, text)
    for pattern, instead in (
        (_ADVICE, ""),
        (_SETTING, ""),
        (_URL, "..."),
        (_PATH, "..."),
        (_ENGINE_NAME, "..."),
    ):
        text = pattern.sub(instead, text)
    return text[:_LONGEST].rstrip()


def _hint(found: re.Match[str]) -> str:
    names = [n for n in re.split(r", | or ", found[1]) if not _NOT_OF_THE_LAKE.match(n)]
    return f'\nDid you mean "{" or ".join(names)}"?' if names else ""


def _code(error: BaseException, text: str) -> str:
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    for prefix, code in _PREFIXES:
        if text.startswith(prefix):
            return code
    if _DAMAGED.match(text):
        return "DATA_FILE_MISSING"
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
    "DATA_FILE_MISSING": _fixed(
        "a data file of this snapshot is missing or damaged in the object store"
    ),
    "STORAGE_UNAVAILABLE": _fixed("a data file cannot be read now: repeat"),
    "INTERNAL": _fixed("the query process failed; the process was replaced"),
}
