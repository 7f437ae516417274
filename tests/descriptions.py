"""The API's description as tests read it: calls, and validators of what goes in and comes out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

from duckmesh_runtime.web.health import Health
from duckmesh_runtime.web.openapi import build_document
from duckmesh_runtime.web.routes import routes_of

METHODS = ("get", "post", "patch", "delete")


@dataclass(frozen=True)
class Call:
    """One operation of a description."""

    method: str
    path: str
    said: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.said["operationId"])

    @property
    def roles(self) -> set[str] | None:
        """Those of which a key needs one; None for no key at all, empty for any key."""
        if not self.said["security"]:
            return None
        return {role for each in self.said["security"] for role in each["apiKey"]}

    def parameters(self, place: str) -> dict[str, dict[str, Any]]:
        return {each["name"]: each for each in self.said["parameters"] if each["in"] == place}

    def body(self, media: str = "application/json") -> dict[str, Any] | None:
        content: dict[str, Any] = self.said.get("requestBody", {}).get("content", {})
        return content.get(media)

    def examples(self, media: str = "application/json") -> list[Any]:
        body = self.body(media) or {}
        return [each["value"] for each in body.get("examples", {}).values()]


def document(role: str = "ingest") -> dict[str, Any]:
    return json.loads(json.dumps(build_document(routes_of(role, Health()))))


def calls(said: Mapping[str, Any]) -> Iterator[Call]:
    for path, item in said["paths"].items():
        for method in METHODS:
            if method in item:
                yield Call(method.upper(), path, item[method])


class Described:
    """Holds bodies and answers to a description, and answers to no field that it does not tell."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self.said = said
        self.components = deepcopy(said["components"])
        for schema in self.components["schemas"].values():
            if "properties" in schema:
                schema.setdefault("additionalProperties", False)

    def check(self, schema: Mapping[str, Any], value: Any) -> None:
        whole = {**schema, "components": self.components}
        Draft202012Validator(whole, format_checker=FormatChecker()).validate(value)

    def fields(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of an object's schema."""
        if "$ref" in schema:
            schema = self.components["schemas"][schema["$ref"].rpartition("/")[2]]
        return dict(schema.get("properties", {}))

    def failure(self, call: Call, status: int) -> dict[str, Any]:
        found: dict[str, Any] = call.said["responses"][str(status)]
        if "$ref" in found:
            found = self.components["responses"][found["$ref"].rpartition("/")[2]]
        return found

    def codes(self, call: Call) -> set[str]:
        """Every code that a call can fail with."""
        found = set()
        for status in call.said["responses"]:
            for media in self.failure(call, int(status)).get("content", {}).values():
                properties = media["schema"].get("properties", {})
                found.update(properties.get("error_code", {}).get("enum", ()))
        return found

    def check_answer(self, call: Call, status: int, media: str, body: Any) -> None:
        """The answer is one that the call has, in a format and shape that are told."""
        assert str(status) in call.said["responses"], (call.name, status, body)
        content = self.failure(call, status)["content"]
        assert media in content, (call.name, status, media)
        if media == "application/json":
            self.check(content[media]["schema"], body)
