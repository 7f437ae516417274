"""What the API server does with a custom resource by its schema: fill in defaults, refuse what does not fit."""

from __future__ import annotations

import copy
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CRDS = Path(__file__).parents[2] / "crds"
Node = dict[str, Any]
_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}


@cache
def schema(kind: str) -> Node:
    """The OpenAPI schema of `tenant` or `compactor`."""
    crd = yaml.safe_load((CRDS / f"{kind}.yaml").read_text(encoding="utf-8"))
    return crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def with_defaults(node: Node, value: Any) -> Any:
    """A value as the API server completes it; the value itself is left alone."""
    if isinstance(value, list) and "items" in node:
        return [with_defaults(node["items"], item) for item in value]
    if not isinstance(value, dict) or "properties" not in node:
        return value
    found = dict(value)
    for name, child in node["properties"].items():
        if name not in found and "default" in child:
            found[name] = copy.deepcopy(child["default"])
        if name in found:
            found[name] = with_defaults(child, found[name])
    return found


def problems(node: Node, value: Any, path: str = "") -> list[str]:
    """What the API server would refuse, rules in CEL apart."""
    wanted = _TYPES.get(node.get("type", ""), (int, str))
    if not isinstance(value, wanted) or (isinstance(value, bool) and node.get("type") != "boolean"):
        return [f"{path}: {value!r} is no {node.get('type')}"]
    found = _scalar_problems(node, value, path)
    if isinstance(value, list):
        for index, item in enumerate(value):
            found += problems(node["items"], item, f"{path}[{index}]")
    if isinstance(value, dict):
        found += [f"{path}.{name}: missing" for name in node.get("required", []) if name not in value]  # fmt: skip
        for name, item in value.items():
            child = node.get("properties", {}).get(name) or node.get("additionalProperties")
            below = f"{path}.{name}"
            found += problems(child, item, below) if child else [f"{below}: unknown field"]
    return found


def _scalar_problems(node: Node, value: Any, path: str) -> list[str]:
    found = []
    if value not in node.get("enum", [value]):
        found.append(f"{path}: {value!r} is not one of {node['enum']}")
    if isinstance(value, str):
        if "pattern" in node and not re.search(node["pattern"], value):
            found.append(f"{path}: {value!r} does not match {node['pattern']}")
        if len(value) > node.get("maxLength", len(value)):
            found.append(f"{path}: longer than {node['maxLength']}")
    if isinstance(value, int | float) and value < node.get("minimum", value):
        found.append(f"{path}: below {node['minimum']}")
    return found
