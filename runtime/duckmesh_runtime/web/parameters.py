"""Query parameters and path parts: how each is read, and what the API's description says of it. Used by the handlers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from duckmesh_runtime.domain.schema import TABLE_NAME

LAST_ID: Final = 10**18 - 1
"""The largest number of a snapshot that a caller can name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter.

    Attributes:
        parse: Gives the value; raises ValueError saying what is wanted.
        schema: The texts it takes, as JSON Schema of what they stand for.
        default: The value when it is not sent; None for none.
        missing: What to say when it is not sent but must be; empty when it need not be.
    """

    parse: Callable[[str], Any]
    schema: Mapping[str, object] = field(default_factory=lambda: {"type": "string"})
    default: object = None
    missing: str = ""

    def __call__(self, text: str) -> Any:
        """The value."""
        return self.parse(text)


Parameters = Mapping[str, Parameter]


def whole_number(low: int, high: int, *, default: int | None = None) -> Parameter:
    """A whole number within bounds."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
            raise ValueError(f"want a whole number from {low} to {high}")
        return int(text)

    bounds: dict[str, object] = {"type": "integer", "minimum": low, "maximum": high}
    return Parameter(parse=parse, schema=bounds, default=default)


def one_of(names: Sequence[str]) -> Parameter:
    """One of a few words."""

    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"want {', '.join(names[:-1])} or {names[-1]}")
        return text

    return Parameter(parse=parse, schema={"type": "string", "enum": list(names)})


def table_name(*, missing: str = "") -> Parameter:
    """The name of a table, which need not be there."""

    def parse(text: str) -> str:
        if not TABLE_NAME.fullmatch(text):
            raise ValueError("want a small letter, then at most 62 small letters, digits or _")
        return text

    schema = {"type": "string", "pattern": f"^{TABLE_NAME.pattern}$"}
    return Parameter(parse=parse, schema=schema, missing=missing)


def text(*, missing: str = "") -> Parameter:
    """Any text, checked by the handler."""
    return Parameter(parse=str, missing=missing)


def _boolean(sent: str) -> bool:
    if sent not in ("true", "false"):
        raise ValueError("want true or false")
    return sent == "true"


boolean: Final = Parameter(parse=_boolean, schema={"type": "boolean"})

SNAPSHOT_ID: Final = whole_number(0, LAST_ID)
TABLE: Final = table_name()
