"""Write docs/reference/resources.md from crds/; `make manifests` runs it, tests/contract compares."""  # noqa: INP001 - a script

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
CRDS = HERE.parents[1] / "crds"
KINDS = ("tenant", "compactor")
HEADER = """\
# Fields of the resources

Generated from `crds/` by `make manifests`.
A duration is one or more whole numbers with a unit, such as `200ms`, `90s` or `1h30m` (units `ms`, `s`, `m`, `h`).
A quantity of bytes is a whole number with or without a unit, such as `64Mi` or `2G`.
A quantity of CPU is a number of cores, such as `250m`, `0.5` or `2`.
"""

Node = dict[str, Any]


def build_reference() -> str:
    """The page as Markdown."""
    return "\n".join([HEADER, *(_kind(kind) for kind in KINDS)])


def _kind(kind: str) -> str:
    spec = yaml.safe_load((CRDS / f"{kind}.yaml").read_text(encoding="utf-8"))["spec"]
    version = spec["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    names = spec["names"]
    lines = [
        f"## {names['kind']}",
        "",
        schema["description"],
        "",
        f"`apiVersion: {spec['group']}/{version['name']}`, short name `{names['shortNames'][0]}`, "
        f"category `{names['categories'][0]}`.",
        f"Fields to select by: {_listed(field['jsonPath'] for field in version['selectableFields'])}.",
        "",
        *_table(schema["properties"]["spec"], "spec"),
        "",
        "Rules:",
        "",
        *(f"- `{path}`: {rule['message']}." for path, rule in _rules(schema, "")),
        "",
        "Reported by the operator:",
        "",
        *_table(schema["properties"]["status"], "status"),
        "",
    ]
    return "\n".join(lines)


def _listed(words: Iterator[str]) -> str:
    return ", ".join(f"`{word.lstrip('.')}`" for word in words)


def _table(node: Node, path: str) -> list[str]:
    rows = [_row(below, child) for below, child in _walk(node, path)]
    return ["| field | type | default | meaning |", "|---|---|---|---|", *rows]


def _row(path: str, node: Node) -> str:
    default = node.get("default", {})
    if isinstance(default, dict | list):
        shown, meaning = "", node["description"]
    else:
        text = str(default).lower() if isinstance(default, bool) else str(default)
        shown, meaning = f"`{text}`", node["description"].removesuffix(f" Default: {text}.")
    cells = [f"`{path}`", _type(node), shown, meaning]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(node: Node) -> str:
    if "x-kubernetes-int-or-string" in node:
        return "quantity"
    if "enum" in node:
        return " / ".join(str(value) for value in node["enum"])
    if node["type"] == "array":
        return f"list of {_type(node['items'])}s"
    if node.get("format") == "date-time":
        return "time"
    return "duration" if "ms|s|m|h" in node.get("pattern", "") else str(node["type"])


def _walk(node: Node, path: str) -> Iterator[tuple[str, Node]]:
    for name, child in node.get("properties", {}).items():
        below = f"{path}.{name}"
        yield below, child
        yield from _walk(child, below)
        if isinstance(items := child.get("items"), dict):
            yield from _walk(items, f"{below}[]")


def _rules(node: Node, path: str) -> Iterator[tuple[str, Node]]:
    for rule in node.get("x-kubernetes-validations", []):
        yield f"{path}{rule.get('fieldPath', '')}".lstrip("."), rule
    for name, child in node.get("properties", {}).items():
        yield from _rules(child, f"{path}.{name}")
        if isinstance(items := child.get("items"), dict):
            yield from _rules(items, f"{path}.{name}[]")


if __name__ == "__main__":
    (HERE / "resources.md").write_text(build_reference(), encoding="utf-8")
