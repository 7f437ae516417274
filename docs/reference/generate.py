"""Write the pages beside this file: resources.md from crds/; metrics.md, errors.md and conditions.md from the code.

`make manifests` runs it, tests/contract compares.
"""  # noqa: INP001 - a script

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from prometheus_client.metrics import MetricWrapperBase

from duckmesh_operator import conditions, events
from duckmesh_operator import metrics as operator_metrics
from duckmesh_runtime import metrics as runtime_metrics
from duckmesh_runtime.errors import CATALOGUE

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

METRICS = """\
# Metrics

Generated from the code by `make manifests`.
Every process serves them on its metrics port (9090) at `/metrics`.
A histogram has `_bucket`, `_sum` and `_count`.
Labels are bounded; none holds a key, a text of SQL, a file or a row.
The tenant is no label of its own processes: the scrape adds it.

Of the lake and not of the process are `duckmesh_ingest_lag_events`, `duckmesh_ingest_pending_*`,
`duckmesh_ingest_claimed_rows`, `duckmesh_visibility_lag_ms`, `duckmesh_latest_*` and `duckmesh_dead_letters_kept`.
Every ingest pod reads them at the scrape, at most once a second: take the maximum over pods and not the sum.
`duckmesh_lag_observed_timestamp_seconds` tells how old they are, should the catalog not answer.
A query pod does not read them and shows 0.
"""
ERRORS = """\
# Errors

Generated from the code by `make manifests`.
The list is closed: an answer of the API that is no success has one of these codes as `error_code`.
`retry` says that the same request, unchanged, may pass later; the body says so too (`retryable`).
429 and 503 carry `Retry-After` in seconds.

| code | HTTP status | retry | meaning | what to do |
|---|---|---|---|---|
"""

CONDITIONS = """\
# Conditions and Events

Generated from the code by `make manifests`.
The reasons are API: a program may act on one, and none is renamed. Messages are for people and may get better.
Every condition carries the generation of the resource that it is about.
Wait for one with `kubectl wait --for=condition=Ready tenant/NAME`, or for the other state with `--for=condition=Fresh=False`.
"""
PROBLEMS = """
## Problems

What can keep a resource from its goal. Where a message below reads *problem*, it is that of one of these, and names what it is
about.

| reason | meaning |
|---|---|
"""
EVENTS = """
## Events

Each is told when it happens, the same reason for the same object at most once in five minutes.
An Event may be lost; what is so stands in the conditions.

| reason | type | meaning |
|---|---|---|
"""

Node = dict[str, Any]
_FACT, _EMPHASIS = re.compile(r"\{([a-z]+)\}"), r"*\1*"


def build_conditions() -> str:
    """The page of all conditions and Events."""
    kinds = (
        ("Tenant", conditions.CONDITIONS, conditions.MEANINGS),
        ("Compactor", conditions.COMPACTOR_CONDITIONS, conditions.COMPACTOR_MEANINGS),
    )
    parts = [CONDITIONS]
    for kind, table, meanings in kinds:
        parts.append(f"\n## {kind}\n")
        parts += [_condition(name, meanings[name], cases) for name, cases in table.items()]
    parts.append(PROBLEMS)
    parts += [f"| `{reason}` | {text} |\n" for reason, text in conditions.PROBLEMS.items()]
    parts.append(EVENTS)
    for reason, warning in events.REASONS.items():
        kind = "Warning" if warning else "Normal"
        parts.append(f"| `{reason}` | {kind} | {events.MEANINGS[reason]} |\n")
    return "".join(parts)


def _condition(name: str, meaning: str, cases: Mapping[str, conditions.Case]) -> str:
    head = f"\n### {name}\n\n{meaning}\n\n| reason | status | message |\n|---|---|---|\n"
    rows = [
        f"| `{reason}` | {case.status} | {_FACT.sub(_EMPHASIS, case.message)} |\n"
        for reason, case in cases.items()
    ]
    return head + "".join(rows)


def build_errors() -> str:
    """The page of all codes."""
    rows = [
        f"| `{code}` | {spec.status} | {'yes' if spec.retryable else 'no'} "
        f"| {spec.meaning} | {spec.advice} |\n"
        for code, spec in CATALOGUE.items()
    ]
    return ERRORS + "".join(rows)


def build_metrics() -> str:
    """The page of all metrics."""
    none = operator_metrics.QueueCollector(lambda: 0, lambda: 0.0).collect()
    tenants = operator_metrics.TenantCollector(dict, dict).collect()
    compactors = operator_metrics.CompactorCollector(dict, dict).collect()
    parts = (
        ("Ingest and query", _lines(runtime_metrics, ())),
        ("Operator", _lines(operator_metrics, [*none, *tenants, *compactors])),
    )
    return METRICS + "".join(f"\n## {title}\n\n{table}" for title, table in parts)


def _lines(module: ModuleType, more: Iterable[Any]) -> str:
    made = [value for value in vars(module).values() if isinstance(value, MetricWrapperBase)]
    found: list[Any] = [*(next(iter(one.describe())) for one in made), *more]
    labels = [one._labelnames for one in [*made, *more]]
    rows = [
        _metric(one.name, one.type, one.documentation, names, module.LABELS)
        for one, names in zip(found, labels, strict=True)
    ]
    head = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *sorted(rows)]) + "\n"


def _metric(
    name: str, kind: str, meaning: str, labels: Iterable[str], said: Mapping[str, str]
) -> str:
    full = f"{name}_total" if kind == "counter" else name
    named = "; ".join(f"`{label}`: {said[label]}" for label in labels)
    return f"| `{full}` | {kind} | {named} | {meaning} |"


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
    for page, text in (
        ("resources.md", build_reference()),
        ("metrics.md", build_metrics()),
        ("errors.md", build_errors()),
        ("conditions.md", build_conditions()),
    ):
        (HERE / page).write_text(text, encoding="utf-8")
