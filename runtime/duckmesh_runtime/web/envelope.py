"""JSON bodies: decoded, or refused in the words of the API with the field that is wrong. Used by the handlers.

Null stands for a field that is not sent, wherever one may be left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec

from duckmesh_runtime.errors import Invalid

T = TypeVar("T")

_SHOWN: Final = 64  # characters of a name that is not ours


def decode(decoder: msgspec.json.Decoder[T], body: bytes, *, once: bool = True) -> T:
    """Decode a JSON body.

    Args:
        decoder: Says what is wanted.
        body: Of a request.
        once: Refuse names that are twice in an object; without it the last one counts, see `check_once`.

    Raises:
        Invalid: VALIDATION_FAILED naming the field.
    """
    try:
        found = decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _refused(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Invalid("VALIDATION_FAILED", "body: is not well-formed JSON in UTF-8") from None
    except RecursionError:
        raise _too_deep() from None
    if once:
        check_once(body)
    return found


def check_once(body: bytes, *counts: Callable[[], int]) -> None:
    """Refuse a body, which can be decoded, when one of its objects has a name twice.

    Args:
        body: Of a request.
        counts: Ways to count the names in what was decoded, the quickest first. A body with as many signs of a name as one
            of them says has none twice: a second look at it (0.1 s for 1 MiB, 5 us for a record) is spared.

    Raises:
        Invalid: VALIDATION_FAILED naming it.
    """
    signs = body.count(b'":') if counts else -1
    if any(count() == signs for count in counts):
        return
    try:
        _STRICT.decode(body.decode())
    except _Twice as error:
        name = str(error)[:_SHOWN]
        raise Invalid(
            "VALIDATION_FAILED",
            f"{name}: is given twice in one object: send it once",
            context={"field": name},
        ) from None
    except (ValueError, RecursionError):  # what the one library reads the other may not
        raise _too_deep() from None


class _Twice(Exception):
    """The name."""


def _no_twin(pairs: Sequence[tuple[str, object]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise _Twice(next(name for name in names if names.count(name) > 1))


# Numbers stay text: one of thousands of digits takes long to read, or is refused.
_STRICT: Final = json.JSONDecoder(object_pairs_hook=_no_twin, parse_int=str, parse_float=str)


def _too_deep() -> Invalid:
    return Invalid("VALIDATION_FAILED", "body: is nested too deeply")


# ---------------------------------------------------------------------------------- what msgspec says, in our words

_PLACE: Final = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")
_MISSING: Final = re.compile(r"Object missing required field `([^`]+)`")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.+)`$")
_OTHER: Final = re.compile(r"Expected `([^`]+)`, got `([^`]+)`")
_BOUND: Final = re.compile(r"Expected `([^`]+)` (of length )?(>=|<=) (\S+)")
_ZONE: Final = re.compile(r"Expected `datetime` with a timezone component")
_TIME: Final = re.compile(r"Invalid RFC3339 encoded datetime")
_RANGE: Final = re.compile(r"(?:Integer value|Number) out of range")

_WORDS: Final = {
    "int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "array": "a list",
    "object": "an object", "null": "null", "datetime": "a time (RFC 3339) with its zone",
}  # fmt: skip
_LENGTHS: Final = {"str": ("character", "characters"), "array": ("entry", "entries")}
_TIME_WANTED: Final = f"want {_WORDS['datetime']}, for example 2026-01-31T12:00:00Z"


def _refused(problem: str) -> Invalid:
    place = _PLACE.search(problem)
    path, said = (place[1], problem[: place.start()]) if place else ("", problem)
    if match := _MISSING.search(said) or _UNKNOWN.search(said):
        path = f"{path}.{match[1][:_SHOWN]}".lstrip(".")
    context = {"field": path} if path else {}
    return Invalid("VALIDATION_FAILED", f"{path or 'body'}: {_wanted(said)}", context=context)


def _wanted(said: str) -> str:
    if _MISSING.search(said):
        return "is missing"
    if _UNKNOWN.search(said):
        return "unknown field"
    if _ZONE.search(said) or _TIME.search(said):
        return _TIME_WANTED
    if match := _OTHER.search(said):
        return f"want {_words(match[1])}, not {_words(match[2])}"
    if match := _BOUND.search(said):
        kind, length, sign, bound = match.groups()
        least = "at least" if sign == ">=" else "at most"
        if length:
            one, more = _LENGTHS.get(kind, _LENGTHS["array"])
            return f"want {least} {bound} {one if bound == '1' else more}"
        return f"want {_words(kind)} of {least} {bound}"
    return "is a number that is too large" if _RANGE.search(said) else "is not what this call takes"


def _words(types: str) -> str:
    kinds = [kind for kind in types.split(" | ") if kind != "null"] or ["null"]
    return " or ".join(_WORDS.get(kind, "a value") for kind in kinds)
