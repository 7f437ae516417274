from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from duckmesh_runtime.domain.texts import check_text

TEXTS = st.lists(st.none() | st.text(st.sampled_from("ab\0é"), max_size=4), max_size=12)


def refused(texts: pa.Array) -> bool:
    try:
        check_text(texts)
    except ValueError:
        return True
    return False


@given(TEXTS, st.integers(0, 12), st.integers(0, 12))
def test_nul_is_found_in_what_a_slice_shows_and_nowhere_else(
    values: list[str | None], start: int, count: int
) -> None:
    texts = pa.array(values, pa.string()).slice(start, count)

    assert refused(texts) == any("\0" in text for text in texts.to_pylist() if text)


def test_bytes_behind_a_null_may_be_anything() -> None:
    behind = pa.array(["a", "\0", "b"], pa.string())
    validity = pa.array([True, False, True]).buffers()[1]
    texts = pa.Array.from_buffers(pa.string(), 3, [validity, *behind.buffers()[1:]])

    assert texts.to_pylist() == ["a", None, "b"]
    assert not refused(texts)
