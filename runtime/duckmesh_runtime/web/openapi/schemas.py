"""JSON Schemas of bodies and answers, from the types that handlers decode into and answer with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from duckmesh_runtime.web.openapi.words import FIELDS, NAMES, TYPES

REFERENCE: Final = "#/components/schemas/{name}"
_ANYTHING: Final = "x-anything"  # msgspec wants to hear something of a type that is any
_ATTRIBUTE: Final = re.compile(r"^        (\w+): (.+(?:\n {12}.+)*)", re.MULTILINE)

Schema = dict[str, Any]


def component_schemas(types: Iterable[Any]) -> tuple[dict[Any, Schema], dict[str, Schema]]:
    """Per type a reference to its schema; and the schemas by name, each field with its meaning."""
    wanted = tuple(dict.fromkeys(types))
    references, found = msgspec.json.schema_components(
        wanted, ref_template=REFERENCE, schema_hook=lambda _: {_ANYTHING: True}
    )
    told = {name: meaning for each in wanted for name, meaning in _attributes(each)}
    named = {
        NAMES.get(name, name): _described(name, schema, told) for name, schema in found.items()
    }
    return dict(zip(wanted, map(_tidy, references), strict=True)), named


def _described(name: str, schema: Schema, told: Mapping[str, str]) -> Schema:
    """The schema with what the glossary says of it; where that is silent, with what docstrings of the answers say."""
    tidy: Schema = _tidy(schema)
    if name in TYPES:
        tidy["description"] = TYPES[name]
    for field, its in tidy.get("properties", {}).items():
        meaning = FIELDS.get(f"{name}.{field}") or FIELDS.get(field) or told.get(field)
        if meaning:
            its["description"] = meaning
    return tidy


def _tidy(schema: Any) -> Any:
    """Without titles and docstrings, which are written for people who read the code."""
    if isinstance(schema, list):
        return [_tidy(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        schema = {**schema, "$ref": REFERENCE.format(name=NAMES.get(name, name))}
    if "properties" in schema:
        fields = {name: _tidy(each) for name, each in schema["properties"].items()}
        return {
            **_tidy({k: v for k, v in schema.items() if k != "properties"}),
            "properties": fields,
        }
    return {k: _tidy(v) for k, v in schema.items() if k not in ("title", "description", _ANYTHING)}


def _attributes(of: Any) -> Iterator[tuple[str, str]]:
    """What the section Attributes of a docstring says."""
    for name, meaning in _ATTRIBUTE.findall(of.__doc__ or ""):
        yield name, " ".join(meaning.split())
