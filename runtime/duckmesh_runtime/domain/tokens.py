"""Visibility tokens: the opaque string a client gets for a write and hands to a query.

A token names lake, timeline and number. Numbers are given per row in commit order (docs/architecture.md, Consistency),
so "token T is visible" means every row with a number <= T is in the lake. A point-in-time restore of the catalog starts
a new timeline, which makes older tokens foreign. Pure.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

from duckmesh_runtime.errors import Invalid

_PLAIN = re.compile(r"([a-z][a-z0-9_]{0,39})\.(0|[1-9][0-9]{0,9})\.(0|[1-9][0-9]{0,18})")
_PREFIX = "v1_"
_MAX_NUMBER = 2**63 - 1  # bigint of the catalog


@dataclass(frozen=True, slots=True, kw_only=True, order=False)
class Token:
    """One point in a lake's input.

    Attributes:
        lake: Name of the lake (the catalog schema).
        timeline: 1 for a lake whose catalog was never restored from a backup; larger with each restore.
        number: Rows accepted up to and including this point; 0 is the empty lake.
    """

    lake: str
    timeline: int
    number: int

    def __str__(self) -> str:
        """The client's form: URL-safe, no padding, at most 90 characters."""
        plain = f"{self.lake}.{self.timeline}.{self.number}".encode()
        return _PREFIX + base64.urlsafe_b64encode(plain).rstrip(b"=").decode()


def parse_token(text: str, *, lake: str, timeline: int | None = None, field: str = "") -> Token:
    """Read a client's token and check that it belongs to this lake, and to the timeline if one is given.

    Args:
        text: The token.
        lake: Whose it must be.
        timeline: Which it must be of.
        field: What of a request it came in, for the error.

    Raises:
        Invalid: VISIBILITY_TOKEN_INVALID when it cannot be read, TOKEN_SCOPE_MISMATCH when it is another lake's.
    """
    token = read_token(text)
    context = {"field": field} if field else {}
    if token is None:
        raise Invalid(
            "VISIBILITY_TOKEN_INVALID",
            "the visibility token cannot be read: pass a max_visibility_token of an earlier answer, unchanged",
            context=context,
        )
    if token.lake != lake or timeline not in (None, token.timeline):
        raise Invalid(
            "TOKEN_SCOPE_MISMATCH",
            "the visibility token was given by another lake or before a restore: use a token of this lake",
            context=context,
        )
    return token


def read_token(text: str) -> Token | None:
    """The token that a text stands for, of whatever lake; None when it stands for none."""
    if not text.startswith(_PREFIX) or len(text) > 128 or not text.isascii():
        return None
    raw = text[len(_PREFIX) :]
    try:
        plain = base64.b64decode(raw + "=" * (-len(raw) % 4), altchars=b"-_", validate=True).decode(
            "ascii"
        )
    except ValueError:
        return None
    match = _PLAIN.fullmatch(plain)
    if match is None or int(match[3]) > _MAX_NUMBER:
        return None
    token = Token(lake=match[1], timeline=int(match[2]), number=int(match[3]))
    return token if str(token) == text else None
