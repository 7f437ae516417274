"""The document: routes and operations put together, once per process. Pure but for `handler`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from importlib.metadata import version
from typing import Any, Final

import msgspec
from aiohttp import web

from duckmesh_runtime.errors import CATALOGUE
from duckmesh_runtime.web import answers
from duckmesh_runtime.web.auth import Role
from duckmesh_runtime.web.body import JSON
from duckmesh_runtime.web.openapi.operation import Operation, Route
from duckmesh_runtime.web.openapi.operations import TAGS
from duckmesh_runtime.web.openapi.schemas import component_schemas
from duckmesh_runtime.web.openapi.words import ANSWER_HEADERS, FIELDS, REQUEST_HEADERS
from duckmesh_runtime.web.parameters import Parameters

PATH: Final = "/v1/openapi.json"
SCHEME: Final = "apiKey"

Json = dict[str, Any]

_ABOUT: Final = (
    "One base URL serves the whole API of one lake. Fields are only ever added within `/v1`; unknown fields and query "
    "parameters are refused by name. Text is UTF-8, times are RFC 3339 in UTC, bounds are in milliseconds and bytes as their "
    "names say. Bodies may be compressed (`Content-Encoding`). Any other path is ROUTE_NOT_FOUND with status 404, another "
    "method at a path the same code with 405 and `Allow`.\n\nThe page docs/http-api.md of the product tells the same at length."
)
_KEY: Final = (
    "`Authorization: Bearer dmk_...`, once. A key has roles; each call needs one of those named in its security: "
    + ", ".join(f"`{role}`" for role in Role)
    + "."
)
_OF_STATUS: Final = {"Retry-After": (429, 503), "WWW-Authenticate": (401,)}
_HEADER_SCHEMAS: Final[Mapping[str, Json]] = {
    "Content-Encoding": {
        "type": "string",
        "enum": ["gzip", "zstd", "identity"],
        "default": "identity",
    },
    "Idempotency-Key": {"type": "string", "minLength": 1, "maxLength": 255},
    "Retry-After": {"type": "integer", "minimum": 1},
    "X-Duckmesh-Trace-Id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    "X-Duckmesh-Snapshot-Id": {"type": "integer"},
    "X-Duckmesh-Snapshot-Time": {"type": "string", "format": "date-time"},
    "X-Duckmesh-Lag-Ms": {"type": "integer"},
    "X-Duckmesh-Row-Limit": {"type": "integer"},
}


def build_document(routes: Iterable[Route]) -> Json:
    """The description of these routes; those without an operation are nobody's business."""
    told = [(route, route.operation) for route in routes if route.operation is not None]
    types = [each for _, operation in told for each in _types(operation)]
    references, schemas = component_schemas([answers.Error, answers.Event, *types])
    schemas["Error"]["properties"]["error_code"]["enum"] = list(CATALOGUE)
    failures: Json = {}
    paths: Json = {}
    for route, operation in told:
        said = _Call(route, operation, references, failures).document()
        paths.setdefault(route.path, {})[route.method.lower()] = said
    used = {operation.tag for _, operation in told}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "duckmesh",
            "version": version("duckmesh-runtime"),
            "description": _ABOUT,
        },
        "servers": [{"url": "/", "description": "Where this document was had."}],
        "tags": [{"name": tag, "description": text} for tag, text in TAGS.items() if tag in used],
        "paths": paths,
        "components": {
            "securitySchemes": {SCHEME: {"type": "http", "scheme": "bearer", "description": _KEY}},
            "headers": {name: _header(name, meaning) for name, meaning in ANSWER_HEADERS.items()},
            "responses": failures,
            "schemas": schemas,
        },
    }


def handler(
    routes: Iterable[Route],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Answers with the document, which is made when it is first asked for."""
    made: list[bytes] = []

    async def describe(_: web.Request) -> web.StreamResponse:
        if not made:
            made.append(msgspec.json.encode(build_document(routes)))
        return web.Response(body=made[0], content_type=JSON)

    return describe


def _types(operation: Operation) -> Iterable[Any]:
    found = (operation.answer, operation.body, operation.error, *operation.others.values())
    return (each for each in found if each is not None)


class _Call:
    """One operation of the document; new kinds of failures are added to `failures`."""

    def __init__(
        self, route: Route, operation: Operation, references: Mapping[Any, Json], failures: Json
    ) -> None:
        self._route, self._operation = route, operation
        self._references, self._failures = references, failures

    def document(self) -> Json:
        its = self._operation
        roles = [] if its.open else sorted(self._route.roles)
        anyone = len(roles) == len(Role)
        said: Json = {
            "tags": [its.tag],
            "operationId": self._route.name,
            "summary": its.summary,
            "description": its.about,
            "security": [{SCHEME: []}] if anyone else [{SCHEME: [role]} for role in roles],
            "parameters": [
                *self._parameters("path", its.path),
                *self._parameters("query", its.query),
                *self._headers(),
            ],
            "responses": self._successes() | self._failed(),
        }
        if its.body is not None:
            said["requestBody"] = {"required": True, "content": self._bodies()}
        return said

    def _parameters(self, place: str, known: Parameters) -> Iterable[Json]:
        for name, parameter in known.items():
            meaning = FIELDS.get(f"{self._route.name}.{name}") or FIELDS[name]
            default = {} if parameter.default is None else {"default": parameter.default}
            required = place == "path" or bool(parameter.missing)
            yield {
                "name": name,
                "in": place,
                "description": meaning,
                "required": required,
                "schema": {**parameter.schema, **default},
            }

    def _headers(self) -> Iterable[Json]:
        names = (*self._operation.headers, *(["Content-Encoding"] if self._operation.body else []))
        for name in (*names, "traceparent"):
            meaning = REQUEST_HEADERS.get(f"{self._route.name}.{name}") or REQUEST_HEADERS[name]
            yield {
                "name": name,
                "in": "header",
                "description": meaning,
                "required": name in self._operation.required,
                "schema": _HEADER_SCHEMAS.get(name, {"type": "string"}),
            }

    def _bodies(self) -> Json:
        its = self._operation
        schemas = {JSON: self._references[its.body]} | {
            media: _text(media, meaning) for media, meaning in its.rows.items()
        }
        return {
            media: {"schema": schema} | _examples(its.examples.get(media, {}))
            for media, schema in schemas.items()
        }

    def _successes(self) -> Json:
        its = self._operation
        content = {} if its.answer is None else {JSON: {"schema": self._references[its.answer]}}
        content |= {m: {"schema": _text(m, meaning)} for m, meaning in its.streamed.items()}
        found = {str(its.status): self._answer("Done.", content, its.told)}
        for status, answer in its.others.items():
            schema = {"schema": self._references[answer]}
            found[str(status)] = self._answer("Not now.", {JSON: schema}, ())
        return found

    def _answer(self, meaning: str, content: Json, told: Iterable[str]) -> Json:
        return {
            "description": meaning,
            "headers": {
                name: _reference("headers", name) for name in ("X-Duckmesh-Trace-Id", *told)
            },
            "content": content,
        }

    def _failed(self) -> Json:
        by_status: dict[int, list[str]] = {}
        for code in CATALOGUE:
            if code in self._operation.all_codes:
                by_status.setdefault(CATALOGUE[code].status, []).append(code)
        return {
            str(status): self._failure(status, by_status[status]) for status in sorted(by_status)
        }

    def _failure(self, status: int, codes: list[str]) -> Json:
        kind = self._operation.error or answers.Error
        name = ".".join((kind.__name__, *codes))
        if name not in self._failures:
            meaning = "\n".join(f"- `{code}`: {CATALOGUE[code].meaning}" for code in codes)
            schema = {**self._references[kind], "properties": {"error_code": {"enum": codes}}}
            more = [header for header, when in _OF_STATUS.items() if status in when]
            self._failures[name] = self._answer(meaning, {JSON: {"schema": schema}}, more)
        return _reference("responses", name)


def _header(name: str, meaning: str) -> Json:
    required = name in ("X-Duckmesh-Trace-Id", *_OF_STATUS)
    schema = _HEADER_SCHEMAS.get(name, {"type": "string"})
    return {"description": meaning, "required": required, "schema": schema}


def _reference(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _text(media: str, meaning: str) -> Json:
    return {"type": "string", "contentMediaType": media, "description": meaning}


def _examples(named: Mapping[str, Any]) -> Json:
    return {"examples": {name: {"value": value} for name, value in named.items()}} if named else {}
