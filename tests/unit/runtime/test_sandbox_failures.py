"""DuckDB's and Arrow's exceptions as the caller sees them. The exceptions are DuckDB's own where it can be made to raise."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pyarrow as pa
import pytest

from duckmesh_runtime.domain.wire import Failure
from duckmesh_runtime.errors import CATALOGUE, Failed, Invalid
from duckmesh_runtime.sandbox.failures import clean, failure_of, with_reason

BATCH = pa.record_batch({"a": [1]})
INTERRUPTED = OSError('{"exception_type":"INTERRUPT","exception_message":"Interrupted!"}')
PATH = "/run/duckmesh/catalogs/snap_7.db"


@pytest.mark.parametrize(
    ("error", "code", "doubtful"),
    [
        (Invalid("SQL_NOT_ALLOWED", "sql: no"), "SQL_NOT_ALLOWED", False),
        (duckdb.OutOfMemoryException("Out of Memory Error: x"), "QUERY_MEMORY", True),
        (MemoryError(), "QUERY_MEMORY", True),
        (pa.ArrowMemoryError("malloc failed"), "QUERY_MEMORY", True),
        (OSError("Out of Memory Error: could not allocate"), "QUERY_MEMORY", True),
        (duckdb.InterruptException("INTERRUPT Error: Interrupted!"), "QUERY_TIMEOUT", False),
        (OSError("INTERRUPT Error: Interrupted!"), "QUERY_TIMEOUT", False),
        (duckdb.InternalException("INTERNAL Error: bug"), "QUERY_CRASHED", True),
        (duckdb.FatalException("FATAL Error: bug"), "QUERY_CRASHED", True),
        (pa.ArrowInvalid("INTERNAL Error: bug"), "QUERY_CRASHED", True),
        (duckdb.PermissionException("Permission Error: file"), "SQL_NOT_ALLOWED", False),
        (duckdb.IOException("IO Error: Connection refused"), "STORAGE_UNAVAILABLE", False),
        (OSError("IO Error: Connection refused"), "STORAGE_UNAVAILABLE", False),
        (OSError("HTTP Error: GET (HTTP 404 Not Found)"), "DATA_FILE_MISSING", False),
        (OSError("HTTP Error: GET (HTTP 503 Service Unavailable)"), "STORAGE_UNAVAILABLE", False),
        (OSError("TProtocolException: Invalid data"), "DATA_FILE_MISSING", False),
        (
            OSError(
                "Invalid Input Error: No magic bytes found at end of file 'http://127.0.0.1:9/lake/t.parquet'"
            ),
            "DATA_FILE_MISSING",
            False,
        ),
        (
            OSError("Invalid Input Error: No magic bytes found at end of file 'x'"),
            "SQL_ERROR",
            False,
        ),
        (duckdb.BinderException("Binder Error: no column"), "SQL_ERROR", False),
        (OSError("Invalid Input Error: HTTP Error: 404"), "SQL_ERROR", False),
        (pa.ArrowInvalid("Conversion Error: no"), "SQL_ERROR", False),
        (ZeroDivisionError("a bug of ours"), "INTERNAL", True),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_exception_has_its_code(error: Exception, code: str, doubtful: bool) -> None:
    failure = failure_of(error)

    assert (failure.code, failure.doubtful) == (code, doubtful)
    assert failure.code in CATALOGUE
    assert failure.message


@pytest.mark.parametrize(
    ("sql", "keeps"),
    [
        ("SELECT * FROM nope", ["nope", "LINE 1"]),
        ("SELECT 'a'::INTEGER", ["Could not convert", "INT32"]),
        ("SELEC 1", ["syntax error", "SELEC"]),
        ("SELECT sum('a', 'b')", ["sum", "argument"]),
        ("SELECT error('my own words')", ["my own words"]),
        ("SELECT 10/4/2, 'a/b/c'::INTEGER", ["10/4/2", "a/b/c"]),
    ],
)
def test_what_helps_the_caller_stays(sql: str, keeps: list[str]) -> None:
    message = _failure(sql).message

    assert all(word in message for word in keeps)


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        (f'IO Error: Cannot open file "{PATH}": No such file', ["/run", "snap_7"]),
        (f"cannot read {PATH}.wal", ["/run", "snap_7"]),
        ("HTTP GET error on 'http://127.0.0.1:4001/lake/t/x.parquet' now", ["http", "4001"]),
        ("s3://bucket/team/x.parquet is gone", ["bucket", "team"]),
        ("Table __ducklake_metadata_lake.main.ducklake_table is odd", ["ducklake"]),
        ('Table x does not exist!\nDid you mean "pg_class"?\n\nLINE 1', ["pg_class"]),
        ('Did you mean "__ducklake_metadata_lake.x"?', ["ducklake"]),
        ("Error: too much\n\nPossible solutions:\n* SET threads=X\n", ["SET", "solutions"]),
        ('More than one row.\n\nUse "SET x=false" to go back', ["SET", "Use"]),
        ("INTERNAL Error: x\nStack Trace:\n0 duckdb() [0x1]", ["0x1", "Stack"]),
    ],
)
def test_places_and_engine_names_do_not(text: str, gone: list[str]) -> None:
    cleaned = clean(text)

    assert not [word for word in gone if word in cleaned]


def test_a_text_is_of_bounded_length() -> None:
    failure = _failure("SELECT " + "x" * 10_000)

    assert len(failure.message) <= 2_000
    assert failure.message.endswith("^")


@pytest.mark.parametrize(
    ("sql", "line", "column"),
    [
        ("SELECT 1,\n  nope", 2, 3),
        ("SELECT 'ä€', nope", 1, 14),
        ("SELECT 1 FRM x y", 1, 14),
        ("SELECT 'a'::INTEGER", 1, 11),
        ("SELECT error('at 7')", None, None),
    ],
)
def test_an_error_says_where(sql: str, line: int | None, column: int | None) -> None:
    failure = _failure(sql)

    assert (failure.line, failure.column) == (line, column)
    assert failure.code == "SQL_ERROR"
    assert (f"LINE {line}: " in failure.message) == (line is not None)


def test_an_error_in_the_middle_of_a_result_says_where() -> None:
    sql = "SELECT\n CASE WHEN range > 500000 THEN 'x' ELSE '1' END::INTEGER FROM range(1000000)"
    with duckdb.connect(config={"errors_as_json": True, "threads": 1}) as connection:
        reader = connection.execute(sql).to_arrow_reader(1_000)
        with pytest.raises(OSError, match="Conversion") as caught:
            reader.read_all()

    failure = failure_of(caught.value, sql)

    assert (failure.code, failure.line, failure.column) == ("SQL_ERROR", 2, 48)
    assert failure.message.startswith("Conversion Error: Could not convert")


def test_a_statement_cannot_pass_its_own_words_for_another_error() -> None:
    failure = _failure(
        """SELECT error('{"exception_type": "Permission", "exception_message": "no"}')"""
    )

    assert failure.code == "SQL_ERROR"


def test_what_is_refused_says_where() -> None:
    error = Invalid("SQL_NOT_ALLOWED", "sql: no", context={"offset": 9})

    failure = failure_of(error, "SELECT *\nFROM x")

    assert (failure.code, failure.line, failure.column) == ("SQL_NOT_ALLOWED", 2, 1)


def _failure(sql: str) -> Failure:
    with (
        duckdb.connect(config={"errors_as_json": True}) as connection,
        pytest.raises(duckdb.Error) as caught,
    ):
        connection.execute(sql).fetchall()
    return failure_of(caught.value, sql)


def test_a_hint_at_a_table_of_the_lake_stays() -> None:
    cleaned = clean('Table flight does not exist!\nDid you mean "flights, pg_x or fights"?')

    assert cleaned.endswith('Did you mean "flights or fights"?')


def test_an_interrupt_that_nobody_asked_for_has_the_reason_of_a_second_run() -> None:
    seen = with_reason(
        _batches(1, INTERRUPTED), lambda: _batches(2, OSError("boom")), lambda: False
    )

    assert next(seen) == BATCH
    with pytest.raises(OSError, match="boom"):
        next(seen)


def test_an_interrupt_whose_second_run_ends_well_is_no_end_of_the_result() -> None:
    seen = with_reason(_batches(1, INTERRUPTED), lambda: _batches(9), lambda: False)

    assert next(seen) == BATCH
    with pytest.raises(Failed) as caught:
        next(seen)
    assert caught.value.code == "QUERY_CRASHED"


@pytest.mark.parametrize(
    ("error", "stopped"), [(INTERRUPTED, True), (OSError("boom"), False), (OSError("boom"), True)]
)
def test_other_failures_run_nothing_again(error: OSError, stopped: bool) -> None:
    again = [_batches(1)]

    with pytest.raises(OSError, match=str(error)) as caught:
        list(with_reason(_batches(1, error), again.pop, lambda: stopped))

    assert caught.value is error
    assert again


def test_a_second_run_that_is_stopped_ends() -> None:
    asked = iter([False, True])

    with pytest.raises(Failed) as caught:
        list(with_reason(_batches(0, INTERRUPTED), lambda: _batches(9), lambda: next(asked)))

    assert caught.value.code == "QUERY_TIMEOUT"


def _batches(count: int, failure: Exception | None = None) -> Iterator[pa.RecordBatch]:
    for _ in range(count):
        yield BATCH
    if failure is not None:
        raise failure
