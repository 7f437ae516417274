"""The API's description is well-formed, whole, and of this very service."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from duckmesh_runtime.errors import CATALOGUE, Corrupt
from duckmesh_runtime.web.app import ANYONE, INTERNAL, ROUTES
from duckmesh_runtime.web.openapi.words import FIELDS, NAMES, TYPES
from tests.descriptions import Call, Described, calls, document

SAID = document()
DESCRIBED = Described(SAID)
CALLS = {call.name: call for call in calls(SAID)}
HOLDERS = ("ingest_writer", "query_reader", "table_admin", "ops_admin")


@pytest.mark.parametrize("role", ["ingest", "query"])
def test_it_is_openapi_3_1(role: str) -> None:
    OpenAPIV31SpecValidator(document(role)).validate()


def test_every_route_is_described_and_nothing_else() -> None:
    described = {(call.method, call.path): call.roles for call in CALLS.values()}
    served: dict[Any, Any] = {
        (route.method, route.path): set() if route.roles == ANYONE else set(route.roles)
        for route in ROUTES
        if route.roles != INTERNAL
    }
    opened = {("GET", f"/v1/{name}"): None for name in ("health", "ready", "openapi.json")}

    assert described == served | opened


def test_the_query_process_describes_what_it_serves() -> None:
    served = {route.path for route in ROUTES if route.on_query}

    assert set(document("query")["paths"]) == served | {
        "/v1/health",
        "/v1/ready",
        "/v1/openapi.json",
    }


def test_every_type_and_field_has_a_meaning() -> None:
    schemas = SAID["components"]["schemas"]
    silent = [name for name, schema in schemas.items() if "description" not in schema]
    silent += [
        f"{name}.{field}"
        for name, schema in schemas.items()
        for field, its in schema.get("properties", {}).items()
        if not its.get("description")
    ]

    assert silent == []


def test_every_word_of_the_glossary_is_used() -> None:
    schemas = SAID["components"]["schemas"]
    own = {NAMES.get(name, name): name for name in TYPES}
    owned = {f"{own.get(n, n)}.{f}" for n, s in schemas.items() for f in s.get("properties", {})}
    owned |= {
        f"{call.name}.{name}"
        for call in CALLS.values()
        for place in ("path", "query")
        for name in call.parameters(place)
    }
    plain = {name.partition(".")[2] for name in owned}

    assert set(own) <= set(schemas)
    assert {word for word in FIELDS if word not in (owned if "." in word else plain)} == set()


def test_numbers_say_their_bounds() -> None:
    parameters = [
        (call.name, name, its)
        for call in CALLS.values()
        for place in ("path", "query")
        for name, its in call.parameters(place).items()
    ]

    for call, name, its in parameters:
        if its["schema"]["type"] == "integer":
            assert {"minimum", "maximum"} <= set(its["schema"]), (call, name)
        assert its["description"], (call, name)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_examples_are_of_the_shape_and_name_every_field(call: Call) -> None:
    body = call.body()
    if body is None:
        return
    examples = call.examples()
    for example in examples:
        DESCRIBED.check(body["schema"], example)

    assert {name for example in examples for name in example} == set(
        DESCRIBED.fields(body["schema"])
    )


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_codes_stand_under_their_status(call: Call) -> None:
    codes = DESCRIBED.codes(call)

    assert codes <= set(CATALOGUE)
    for code in codes:
        content = DESCRIBED.failure(call, CATALOGUE[code].status)["content"]["application/json"]
        assert code in content["schema"]["properties"]["error_code"]["enum"]


@pytest.mark.parametrize("holder", HOLDERS)
async def test_the_roles_are_those_that_open_the_calls(doors: Any, holder: str) -> None:
    for call in CALLS.values():
        path = re.sub(r"\{\w+\}", "7", call.path)
        status, answer, _ = await doors.call(
            call.method, path, as_key=holder.replace("_", "-") if call.roles is not None else None
        )

        refused = isinstance(answer, dict) and answer.get("error_code") == "FORBIDDEN"
        assert refused == bool(call.roles and holder not in call.roles), call.name
        assert status != 401, call.name


async def test_it_is_served_without_a_key(doors: Any) -> None:
    status, answer, response = await doors.call("GET", "/v1/openapi.json", as_key=None)

    assert (status, answer) == (200, SAID)
    assert response.content_type == "application/json"


async def test_a_code_that_is_not_told_of_its_call_is_noted(
    doors: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise Corrupt("DATA_FILE_MISSING", "gone")

    monkeypatch.setattr(doors.parts.tables, "all", fail)
    with caplog.at_level(logging.ERROR):
        _, answer, _ = await doors.call("GET", "/v1/tables")

    assert answer["error_code"] == "DATA_FILE_MISSING"
    assert [record.message for record in caplog.records] == ["code is not described for this call"]
