"""The API's description and a running service agree: what it tells works, and what works is told."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import ValidationError
from schemathesis.checks import not_a_server_error
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from duckmesh_runtime.dev.postgres import PostgresServer
from duckmesh_runtime.domain.tokens import Token
from tests.descriptions import Call, calls, document
from tests.fakes.doors import key
from tests.fuzz import examples
from tests.pods import AUTHORIZATION
from tests.services import new_lake
from tests.stories import ARROW, JSON, PARQUET, Service, required_of, service_of, settings_of


def without_keys(said: dict[str, Any]) -> dict[str, Any]:
    """A description of calls that the test has a key for: schemathesis shall not try others."""
    del said["components"]["securitySchemes"]
    for item in said["paths"].values():
        for call in item.values():
            del call["security"]
    return said


pytestmark = pytest.mark.timeout(300)  # a whole Tenant comes up first

BIG = 2**64
EXAMPLES = examples(4)
SCHEMA = schemathesis.openapi.from_dict(without_keys(document()))
CALLS = [call for call in calls(document()) if call.name != "events"]  # has no end
TRIED = [(call.name, GenerationMode.POSITIVE) for call in CALLS] + [
    (call.name, GenerationMode.NEGATIVE)
    for call in CALLS  # some take nothing that could be wrong
    if call.body() or call.parameters("query") or call.parameters("path")
]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
TIMEOUTS = {"CONSISTENCY_TIMEOUT", "QUERY_TIMEOUT", "STALENESS_EXCEEDED"}
"""What the caller's own bound brings about, and no fault of the server."""


@pytest.fixture(scope="module")
def service(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    lake = asyncio.run(new_lake(tmp_path_factory.mktemp("lake"), postgres))
    with service_of(lake) as found:
        yield found


def test_the_examples_work_as_they_stand(service: Service) -> None:
    """The story was told when the service came up."""
    tables = service.send(service.calls["list_tables"]).json()["tables"]

    assert [table["name"] for table in tables] == ["users"]


def test_results_come_in_every_format_that_is_told(service: Service) -> None:
    call = service.calls["query"]
    formats = call.said["responses"]["200"]["content"]

    for media in formats:
        answer = service.send(call, {"sql": "SELECT 1 AS one"}, headers={"Accept": media})
        told = {name for name in answer.headers if name.startswith("X-Duckmesh-")}
        assert answer.headers["Content-Type"].partition(";")[0] == media
        wanted = set(call.said["responses"]["200"]["headers"])
        assert told == (wanted if media != JSON else {"X-Duckmesh-Trace-Id"})
    assert set(formats) == {JSON, ARROW, PARQUET, "text/csv", "application/x-ndjson"}


def test_the_query_process_serves_what_it_tells(service: Service) -> None:
    own = service.session.get(service.query_url + "/v1/openapi.json", timeout=30).json()

    for call in service.calls.values():
        if call.name != "events":  # has no end
            url = service.query_url + service.path(call)
            status = service.session.request(call.method, url, timeout=30).status_code
            assert (status in (404, 405)) == (call.path not in own["paths"]), call.name


def test_exactly_the_told_query_parameters_are_taken(service: Service) -> None:
    for call in guarded(service):
        answer = service.send(call, params={"nonsense": "1"}, headers=typed(call))
        known = re.search("known: (.*)", answer.json()["message"])
        told = sorted(call.parameters("query"))
        if call.name == "ingest":
            told.remove("op")  # of bulk bodies
        assert answer.status_code == 400, call.name
        assert known is not None
        assert known[1] == (", ".join(told) or "none"), call.name


def test_bounds_of_query_parameters_are_kept(service: Service) -> None:
    checked = 0
    for call in guarded(service):
        for name, its in call.parameters("query").items():
            for wrong in refused_by(its["schema"]):
                params = required_of(service, call) | {name: wrong}
                answer = service.send(call, params=params, headers=typed(call))
                assert (answer.status_code, answer.json()["context"].get("field")) == (
                    400,
                    name,
                ), (call.name, name, wrong, answer.text)
                checked += 1
    assert checked > 30


def test_the_largest_values_that_are_told_are_taken(service: Service) -> None:
    for name in ("list_snapshots", "list_files", "list_letters", "drop_letters"):
        call = service.calls[name]
        limit = call.parameters("query")["limit"]["schema"]["maximum"]
        params = {**required_of(service, call), "limit": limit}
        if name == "list_snapshots":
            params["before"] = call.parameters("query")["before"]["schema"]["maximum"]
        assert service.send(call, params=params).status_code == 200, name


def refused_by(schema: dict[str, Any]) -> list[str]:
    """Texts that a parameter does not take."""
    if schema["type"] == "integer":
        return [str(schema["maximum"] + 1), "-1", "x", "1.5", "", "٣"]
    if schema["type"] == "boolean":
        return ["1", "TRUE", ""]
    return ["no such word"] if "enum" in schema or "pattern" in schema else []


def guarded(service: Service) -> list[Call]:
    return [call for call in service.calls.values() if call.roles is not None]


def typed(call: Call) -> dict[str, str]:
    """Headers without which a call does not come to look at its parameters."""
    if call.name != "ingest":
        return {"Content-Type": JSON} if call.body() else {}
    return {"Content-Type": JSON}


def test_exactly_the_told_fields_are_taken(service: Service) -> None:
    for call in service.calls.values():
        body = call.body()
        if body is None:
            continue
        example = service.filled(call.examples()[0])
        answer = service.send(call, {**example, "nonsense": 1}, **settings_of(call))
        assert (answer.status_code, "nonsense" in answer.json()["message"]) == (400, True), (
            call.name
        )
        for name, schema in service.described.fields(body["schema"]).items():
            for wrong in not_of(service, schema):
                answer = service.send(call, {**example, name: wrong}, **settings_of(call))
                assert answer.status_code == 400, (call.name, name, wrong, answer.text)
                field = answer.json()["context"]["field"]
                assert field.startswith(name), (call.name, name, wrong, answer.text)


def not_of(service: Service, schema: dict[str, Any]) -> Iterator[Any]:
    """Values that a schema does not take."""
    for value in ({"x": 1}, [[]], "x", -1, BIG, True, 1.5):
        try:
            service.described.check(schema, value)
        except ValidationError:
            yield value


INSIDE = {
    "Record": ("ingest", lambda inner: {"records": [inner]}),
    "NewColumn": ("create_table", lambda inner: {"name": "t", "columns": [inner]}),
    "Change": ("alter_table", lambda inner: {"changes": [inner]}),
    "ColumnName": ("alter_table", lambda inner: {"changes": [{"drop_column": inner}]}),
    "RenameColumn": ("alter_table", lambda inner: {"changes": [{"rename_column": inner}]}),
    "WidenType": ("alter_table", lambda inner: {"changes": [{"widen_type": inner}]}),
    "SetDefault": ("alter_table", lambda inner: {"changes": [{"set_default": inner}]}),
}


@pytest.mark.parametrize("name", INSIDE)
def test_exactly_the_told_fields_are_taken_inside(service: Service, name: str) -> None:
    call, around = INSIDE[name]
    told = set(service.said["components"]["schemas"][name]["properties"])

    answer = service.send(service.calls[call], around({"nonsense": 1, "payload": {}})).json()

    assert "nonsense" in answer["message"]
    if known := re.search("known: (.*)", answer["message"]):
        assert set(known[1].split(", ")) == told
    else:
        assert name == "Record"
        for field in told:
            answer = service.send(service.calls[call], around({"payload": {}, field: [1]})).json()
            assert field in answer["message"]


def test_keys_and_media_types_are_asked_for_as_told(service: Service) -> None:
    for call in guarded(service):
        codes = service.described.codes(call)
        bare = service.send(call, headers={"Authorization": ""})
        assert (bare.status_code, bare.headers["WWW-Authenticate"]) == (401, "Bearer")
        other = service.send(call, headers={"Authorization": f"Bearer {key('nobody')}"})
        assert other.json()["error_code"] == "FORBIDDEN"
        if "UNSUPPORTED_MEDIA_TYPE" in codes:
            xml = service.send(call, b"<a/>", media="application/xml", **settings_of(call))
            assert xml.json()["error_code"] == "UNSUPPORTED_MEDIA_TYPE", call.name
            large = service.send(call, b" " * (65 * 2**20), **settings_of(call))
            assert large.json()["error_code"] == "PAYLOAD_TOO_LARGE", call.name
        assert ("requestBody" in call.said) == ("PAYLOAD_TOO_LARGE" in codes)


def refusals(service: Service) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """A call, the code that it fails with, and how it is sent."""
    lake = service.tenant.lake.name
    late = str(Token(lake=lake, timeline=1, number=10**12))
    foreign = str(Token(lake="lake_x", timeline=1, number=5))
    for code, sql in (("SQL_ERROR", "SELEC 1"), ("SQL_NOT_ALLOWED", "DROP TABLE users")):
        yield "query", code, {"body": {"sql": sql}}
    for code, text in (("VISIBILITY_TOKEN_INVALID", "x"), ("TOKEN_SCOPE_MISMATCH", foreign)):
        yield "query", code, {"body": {"sql": "SELECT 1", "min_visibility_token": text}}
        yield "visible", code, {"params": {"token": text}}
    waiting = {"min_visibility_token": late, "consistency_timeout_ms": 1}
    yield "query", "CONSISTENCY_TIMEOUT", {"body": {"sql": "SELECT 1", **waiting}}
    yield "visible", "CONSISTENCY_TIMEOUT", {"params": {"token": late, "timeout_ms": 1}}
    yield "query", "SNAPSHOT_NOT_FOUND", {"body": {"sql": "SELECT 1", "snapshot_id": 10**9}}
    slow = "SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b"
    yield "query", "QUERY_TIMEOUT", {"body": {"sql": slow, "timeout_ms": 300}}
    large = "SELECT repeat('x', 1000000) FROM range(100)"
    yield "query", "RESULT_TOO_LARGE", {"body": {"sql": large}}
    users = {"name": "users", "columns": [{"name": "id", "type": "BIGINT"}]}
    yield "create_table", "TABLE_EXISTS", {"body": users}
    at_once = {"params": {"visibility_timeout_ms": 0}}
    yield "create_table", "CONSISTENCY_TIMEOUT", {"body": users | {"name": "late"}, **at_once}
    add = {"changes": [{"add_column": {"name": "more", "type": "BIGINT"}}]}
    yield "alter_table", "CONSISTENCY_TIMEOUT", {"body": add, **at_once}
    yield (
        "alter_table",
        "SCHEMA_INCOMPATIBLE",
        {"body": {"changes": [{"drop_column": {"name": "id"}}]}},
    )
    row = {"idempotency_key": "k", "payload": {"id": 1}}
    again = {"idempotency_key": "k", "payload": {"id": 2}}
    yield (
        "ingest",
        "IDEMPOTENCY_CONFLICT",
        {"first": {"records": [row]}, "body": {"records": [again]}},
    )
    yield "ingest", "SCHEMA_INCOMPATIBLE", {"body": b"id,nope\n1,2\n", "media": "text/csv"}
    nowhere = {"table": "nowhere", "snapshot_id": 10**9, "number": 10**9}
    yield "ingest", "TABLE_NOT_FOUND", {"body": {"records": [row]}, "path": nowhere}
    yield "alter_table", "TABLE_NOT_FOUND", {"body": add, "path": nowhere}
    for call in ("read_table", "read_versions", "drop_table"):
        yield call, "TABLE_NOT_FOUND", {"path": nowhere}
    yield "list_files", "TABLE_NOT_FOUND", {"params": {"table": "nowhere"}}
    for call in ("read_snapshot", "list_files"):
        yield call, "SNAPSHOT_NOT_FOUND", {"path": nowhere}
    for call in ("pin_snapshot", "unpin_snapshot", "restore"):
        headers = {"Idempotency-Key": "another restore"}
        yield call, "SNAPSHOT_NOT_FOUND", {"body": {"snapshot_id": 10**9}, "headers": headers}
    old, key_of_old = {"body": {"snapshot_id": 1}}, {"Idempotency-Key": "a restore"}
    yield "restore", "IDEMPOTENCY_CONFLICT", {**old, "headers": key_of_old}
    for call in ("read_letter", "replay_letter", "drop_letter"):
        yield call, "DEAD_LETTER_NOT_FOUND", {"path": nowhere}
    yield "replay_letter", "SCHEMA_INCOMPATIBLE", {"path": {"number": 4}}


EVERYWHERE = {
    "UNAUTHENTICATED",
    "FORBIDDEN",
    "VALIDATION_FAILED",
    "PAYLOAD_TOO_LARGE",
    "UNSUPPORTED_MEDIA_TYPE",
}
"""Codes that the tests above meet at every call that tells them."""

NEEDED = {
    "a fault": {"INTERNAL", "CATALOG_UNAVAILABLE", "STORAGE_UNAVAILABLE", "QUERY_UNAVAILABLE"}
    | {"QUERY_CRASHED", "QUERY_MEMORY", "DATA_FILE_MISSING"},
    "load": {"OVERLOADED", "RATE_LIMITED", "STALENESS_EXCEEDED"},
    "time": {"SNAPSHOT_EXPIRED"},
    "a declaration": {"TABLE_DECLARED"},
}  # fmt: skip
"""What a call cannot be brought to in a moment; tests of these things name the code."""

RACES = {
    "ingest": {"TOKEN_SCOPE_MISMATCH"},
    "create_table": {"TOKEN_SCOPE_MISMATCH", "SCHEMA_INCOMPATIBLE"},
    "alter_table": {"TOKEN_SCOPE_MISMATCH"},
    "drop_table": {"TOKEN_SCOPE_MISMATCH", "SCHEMA_INCOMPATIBLE", "CONSISTENCY_TIMEOUT"},
    "replay_letter": {"TOKEN_SCOPE_MISMATCH"},
    "replay_letters": {"TOKEN_SCOPE_MISMATCH"},
    "restore": {"TOKEN_SCOPE_MISMATCH", "CONSISTENCY_TIMEOUT", "SNAPSHOT_NOT_RESTORABLE"},
}
"""A catalog taken back, or a change refused by the lake, between accepting and waiting."""


def test_each_told_code_is_had_and_no_other(service: Service) -> None:
    met: dict[str, set[str]] = {}
    for name, code, how in refusals(service):
        call = service.calls[name]
        how = {"headers": {}, **how}
        path = service.state | how.pop("path", {})
        if (first := how.pop("first", None)) is not None:
            assert service.send(call, first).status_code == 200
        answer = service.send(call, how.pop("body", None), path=path, **how)
        assert answer.json()["error_code"] == code, (name, answer.text)
        met.setdefault(name, set()).add(code)

    rare = set().union(*NEEDED.values())
    for call in service.calls.values():
        left = service.described.codes(call) - rare - EVERYWHERE - RACES.get(call.name, set())
        assert left == met.get(call.name, set()) - RACES.get(call.name, set()), call.name


@pytest.mark.parametrize(("name", "mode"), TRIED, ids=[f"{n}-{m.value}" for n, m in TRIED])
def test_answers_are_as_described(service: Service, name: str, mode: GenerationMode) -> None:
    call = service.calls[name]
    operation = SCHEMA[call.path][call.method]

    @settings(
        max_examples=EXAMPLES,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), ours=st.booleans())
    def hold(case: Any, ours: bool) -> None:
        path = case.meta.components.get(ParameterLocation.PATH)
        if (
            ours
            and path
            and path.mode is GenerationMode.POSITIVE
            and "table" in case.path_parameters
        ):
            case.path_parameters["table"] = "users"
        if mode is GenerationMode.POSITIVE and case.headers:
            case.headers.pop("Content-Encoding", None)  # of bytes that are not compressed
        answer = case.call(
            base_url=service.url, session=service.session, headers=AUTHORIZATION, timeout=60
        )
        checks = CHECKS
        if answer.status_code >= 500:
            assert answer.json()["error_code"] in TIMEOUTS, answer.text
            checks = [check for check in CHECKS if check is not not_a_server_error]
        case.validate_response(answer, checks=checks)

    hold()
