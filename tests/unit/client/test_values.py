"""JSON values by their types, for those without pyarrow."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pytest

from duckmesh.values import reader

CASES: list[tuple[str, Any, Any]] = [
    ("BIGINT", "9223372036854775807", 2**63 - 1),
    ("INTEGER", 5, 5),
    ("HUGEINT", 5, Decimal(5)),
    ("DECIMAL(18,3)", "1.250", Decimal("1.250")),
    ("DOUBLE", "Infinity", float("inf")),
    ("VARCHAR", "x", "x"),
    ("BLOB", "AP8=", b"\x00\xff"),
    ("DATE", "2024-01-31", date(2024, 1, 31)),
    ("DATE", "infinity", "infinity"),
    ("TIME", "12:00:00.5", time(12, 0, 0, 500_000)),
    ("TIMESTAMP", "2024-01-31T12:00:00.5Z", datetime.fromisoformat("2024-01-31T12:00:00.5")),
    ("TIMESTAMP WITH TIME ZONE", "2024-01-31T12:00:00Z", datetime(2024, 1, 31, 12, tzinfo=UTC)),
    ("TIMESTAMP_NS", "2024-01-31T12:00:00.123456789Z", "2024-01-31T12:00:00.123456789Z"),
    ("DECIMAL(5,2)[]", ["1.25", None], [Decimal("1.25"), None]),
    ("DATE[][2]", [["2024-01-31"], None], [[date(2024, 1, 31)], None]),
    (
        'STRUCT(a DECIMAL(5,2), "b, ""c" BLOB[], d STRUCT(e TIMESTAMP WITH TIME ZONE))',
        {"a": "1.25", 'b, "c': ["AA=="], "d": {"e": "2024-01-31T12:00:00Z"}},
        {
            "a": Decimal("1.25"),
            'b, "c': [b"\x00"],
            "d": {"e": datetime(2024, 1, 31, 12, tzinfo=UTC)},
        },
    ),
    ("STRUCT(INTEGER, VARCHAR)", [1, "x"], [1, "x"]),
    ("MAP(VARCHAR, DECIMAL(4,1))", {"k": "1.5", "n": None}, {"k": Decimal("1.5"), "n": None}),
    ("MAP(INTEGER, DATE)", [[1, "2024-01-31"]], {1: date(2024, 1, 31)}),
    ("ENUM('a', 'b)')", "a", "a"),
    ("INTERVAL", "P1D", "P1D"),
]


@pytest.mark.parametrize(("type_name", "value", "wanted"), CASES, ids=[case[0] for case in CASES])
def test_a_value_has_the_type_of_its_column(type_name: str, value: Any, wanted: Any) -> None:
    assert reader(type_name)(value) == wanted
