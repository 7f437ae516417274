"""Visibility tokens: opaque, of one lake, never guessed into validity."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duckmesh_runtime.domain.tokens import Token, parse_token
from duckmesh_runtime.errors import Invalid

LAKE = "lake_0123456789abcdef"


def code_of(text: str, *, lake: str = LAKE, timeline: int = 1) -> str:
    with pytest.raises(Invalid) as caught:
        parse_token(text, lake=lake, timeline=timeline)
    return caught.value.code


@given(number=st.integers(0, 2**63 - 1), timeline=st.integers(0, 10**9))
def test_a_token_reads_back(number: int, timeline: int) -> None:
    token = Token(lake=LAKE, timeline=timeline, number=number)

    assert parse_token(str(token), lake=LAKE, timeline=timeline) == token
    assert len(str(token)) <= 90


def test_a_token_is_a_word_that_urls_carry() -> None:
    assert (
        str(Token(lake=LAKE, timeline=1, number=2**63 - 1))
        .replace("_", "")
        .replace("-", "")
        .isalnum()
    )


@pytest.mark.parametrize(
    ("lake", "timeline"), [("lake_other", 1), (LAKE, 2)], ids=["other lake", "other timeline"]
)
def test_a_foreign_token_is_named_as_such(lake: str, timeline: int) -> None:
    token = str(Token(lake=LAKE, timeline=1, number=7))

    assert code_of(token, lake=lake, timeline=timeline) == "TOKEN_SCOPE_MISMATCH"


@given(text=st.text(max_size=200))
def test_no_text_is_a_token_by_chance(text: str) -> None:
    assert code_of(text) in ("VISIBILITY_TOKEN_INVALID", "TOKEN_SCOPE_MISMATCH")


@given(at=st.integers(0, 60), letter=st.characters(codec="ascii"))
def test_a_changed_letter_never_gives_the_same_token(at: int, letter: str) -> None:
    token = Token(lake=LAKE, timeline=1, number=123456789)
    text = str(token)
    at %= len(text)
    if text[at] == letter:
        return

    try:
        found = parse_token(text[:at] + letter + text[at + 1 :], lake=LAKE, timeline=1)
    except Invalid:
        return
    assert found != token


@pytest.mark.parametrize(
    "plain",
    ["a.1.01", "a.1.-1", "a.1.9223372036854775808", "a.1", "a.1.1.1", "A.1.1", "a.01.1", "a.1.1 "],
)
def test_only_the_one_form_of_a_number_is_read(plain: str) -> None:
    text = "v1_" + base64.urlsafe_b64encode(plain.encode()).rstrip(b"=").decode()

    assert code_of(text, lake="a") == "VISIBILITY_TOKEN_INVALID"


@pytest.mark.parametrize("tail", ["=", "==", "\n", " "])
def test_nothing_may_follow_a_token(tail: str) -> None:
    text = str(Token(lake=LAKE, timeline=1, number=7)) + tail

    assert code_of(text) == "VISIBILITY_TOKEN_INVALID"
