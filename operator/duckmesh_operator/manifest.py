"""Kubernetes objects as plain JSON values: reading nested fields, comparing, hashing. Pure; leaf module.

Manifests are plain dicts since they come from and go to JSON; typed views (`model`) are made where a rule needs one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

Manifest = dict[str, object]
Json = Mapping[str, object]


def dig(value: object, *path: str) -> object:
    """The value at a path of keys; None when any step is missing."""
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def text_at(value: object, *path: str) -> str:
    """The text at a path, or an empty one."""
    found = dig(value, *path)
    return found if isinstance(found, str) else ""


def number_at(value: object, *path: str) -> int:
    """The whole number at a path, or 0."""
    found = dig(value, *path)
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


def object_at(value: object, *path: str) -> Manifest:
    """The object at a path, or an empty one."""
    found = dig(value, *path)
    return dict(found) if isinstance(found, Mapping) else {}


def list_at(value: object, *path: str) -> list[object]:
    """The list at a path, or an empty one."""
    found = dig(value, *path)
    return list(found) if isinstance(found, list) else []


def digest(value: object) -> str:
    """16 hex digits that change when the JSON value does; the order of keys does not matter."""
    packed = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(packed.encode()).hexdigest()[:16]


def covers(live: object, wanted: object) -> bool:
    """Whether everything wanted is so in the live object; what the API server or others added does not count.

    Empty wanted values equal absent ones: the API server drops them. Lists of named items are matched by name, so that
    an addition in the middle does not look like a change of all; other lists must agree item by item.
    """
    if _empty(wanted):
        return live is None or _empty(live) or isinstance(live, Mapping)
    if isinstance(wanted, Mapping):
        return isinstance(live, Mapping) and all(covers(live.get(k), v) for k, v in wanted.items())
    if isinstance(wanted, list):
        return isinstance(live, list) and _covers_list(live, wanted)
    return type(live) is type(wanted) and live == wanted


def _empty(value: object) -> bool:
    return value is None or value in ("", {}, [])


def _covers_list(live: list[object], wanted: list[object]) -> bool:
    names = [text_at(item, "name") for item in wanted]
    if all(names) and len(set(names)) == len(names):
        by_name = {text_at(item, "name"): item for item in live}
        return all(covers(by_name.get(text_at(item, "name")), item) for item in wanted)
    return len(live) == len(wanted) and all(
        covers(one, other) for one, other in zip(live, wanted, strict=True)
    )
