from __future__ import annotations

from typing import Any

import pytest

from duckmesh_operator.manifest import covers, dig, digest, list_at, number_at, object_at, text_at


def test_reading_a_path_that_is_not_there_gives_the_empty_value() -> None:
    obj = {"a": {"b": 1, "c": "x", "d": [1], "e": True}}

    assert dig(obj, "a", "b") == 1
    assert dig(obj, "a", "b", "c") is None
    assert (text_at(obj, "a", "c"), text_at(obj, "a", "b")) == ("x", "")
    assert (number_at(obj, "a", "b"), number_at(obj, "a", "e")) == (1, 0)
    assert (object_at(obj, "a", "x"), list_at(obj, "a", "d")) == ({}, [1])


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


@pytest.mark.parametrize(
    ("live", "wanted", "expected"),
    [
        pytest.param({"a": 1, "b": 2}, {"a": 1}, True, id="additions"),
        pytest.param({"a": 2}, {"a": 1}, False, id="changed"),
        pytest.param({}, {"a": 1}, False, id="missing"),
        pytest.param({}, {"a": "", "b": {}, "c": []}, True, id="dropped-empties"),
        pytest.param({"c": [1]}, {"c": []}, False, id="list-filled"),
        pytest.param({"v": {"sizeLimit": "1Gi"}}, {"v": {}}, True, id="defaults-in-empty"),
        pytest.param({"a": True}, {"a": 1}, False, id="true-is-not-one"),
        pytest.param(
            {"c": [{"name": "x"}, {"name": "a", "n": 1}]},
            {"c": [{"name": "a", "n": 1}]},
            True,
            id="named-items",
        ),
        pytest.param({"c": [{"name": "x"}]}, {"c": [{"name": "a"}]}, False, id="named-item-gone"),
        pytest.param({"c": [1, 2, 3]}, {"c": [1, 2]}, False, id="longer-list"),
        pytest.param({"c": [{"p": 1, "d": 0}]}, {"c": [{"p": 1}]}, True, id="unnamed-items"),
    ],
)
def test_a_live_object_covers_a_wanted_one(live: Any, wanted: Any, expected: bool) -> None:
    assert covers(live, wanted) is expected
