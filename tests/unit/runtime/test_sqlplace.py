"""Places in statements, as DuckDB counts and as people read."""

from __future__ import annotations

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duckmesh_runtime.domain.sqlplace import as_read, place_of

BLANKS = "\u00a0\u2003\u202f\u3000\ufeff\u200b"


@pytest.mark.parametrize(
    ("sql", "offset", "line", "column"),
    [
        ("SELECT nope", 7, 1, 8),
        ("SELECT *\nFROM nope", 14, 2, 6),
        ("\n\n  x", 4, 3, 3),
        ("SELECT 'ä€😀', nope", 20, 1, 15),
        ("SELECT\u00a0nope", 7, 1, 8),
        ("\ufeffSELECT 'a\u00a0b', nope", 16, 1, 16),
        ("SELECT 1 FROM", 13, 1, 14),
        ("a\r\nb", 3, 2, 1),
    ],
)
def test_an_offset_is_a_line_and_a_column(sql: str, offset: int, line: int, column: int) -> None:
    place = place_of(sql, offset)

    assert place is not None
    assert (place.line, place.column) == (line, column)


@pytest.mark.parametrize("offset", [-1, 9, 2**64 - 1])
def test_an_offset_of_another_text_is_no_place(offset: int) -> None:
    assert place_of("SELECT 1", offset) is None


@pytest.mark.parametrize(
    ("sql", "offset", "quote"),
    [
        ("SELECT\n\tnope FROM t", 8, "LINE 2:  nope FROM t\n         ^"),
        ("SELECT '語語' || nope", 19, f"LINE 1: SELECT '語語' || nope\n{' ' * 25}^"),
        ("SELECT 'e\u0301' || x", 16, f"LINE 1: SELECT 'e\u0301' || x\n{' ' * 22}^"),
        ("SELECT '\u202e\x1b[2J' x", 17, f"LINE 1: SELECT '  [2J' x\n{' ' * 23}^"),
    ],
    ids=["tab", "wide", "combining", "controls"],
)
def test_the_mark_stands_below_the_place(sql: str, offset: int, quote: str) -> None:
    place = place_of(sql, offset)

    assert place is not None
    assert place.quote == quote


@given(column=st.integers(0, 999))
def test_of_a_long_line_the_part_around_the_place_is_quoted(column: int) -> None:
    sql = "x" * column + "?" + "x" * (999 - column)

    place = place_of(sql, column)

    assert place is not None
    line, mark = place.quote.split("\n")
    assert line[mark.index("^")] == "?"
    assert len(line) < 100


@given(text=st.text(max_size=60), offset=st.integers(0, 300))
def test_every_offset_of_every_text_has_a_place(text: str, offset: int) -> None:
    place = place_of(text, offset)

    assert (place is not None) == (offset <= len(as_read(text).encode()))


@given(
    parts=st.lists(
        st.sampled_from(
            [
                *BLANKS,
                " ",
                "1",
                "+",
                "'a'",
                f"'{BLANKS}'",
                "''''",
                f'x "{BLANKS}"',
                f"-- {BLANKS}\n",
            ]
        ),
        max_size=12,
    )
)
def test_blanks_are_read_as_duckdb_reads_them(parts: list[str]) -> None:
    sql = "SELECT 1 " + "".join(parts) + f" , $a${BLANKS}$a$ , 2"
    try:
        (statement,) = duckdb.extract_statements(sql)
    except duckdb.ParserException:
        return

    assert as_read(sql) == statement.query
