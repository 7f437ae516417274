"""A running Tenant that was asked for everything its description tells, each example of it included."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pyarrow as pa
import pyarrow.parquet as pq
import requests

from tests.descriptions import Call, Described, calls
from tests.fakes.doors import arrow_stream, write_keys
from tests.pods import AUTHORIZATION, Tenant, tenant_of
from tests.services import Lake

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"
ROLES = ("ingest_writer", "query_reader", "table_admin", "ops_admin")


@dataclass
class Service:
    """A running Tenant, and what it says of itself."""

    tenant: Tenant
    url: str
    query_url: str
    session: requests.Session
    said: dict[str, Any]
    state: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.described = Described(self.said)
        self.calls = {call.name: call for call in calls(self.said)}

    def send(
        self,
        call: Call,
        body: Any = None,
        *,
        media: str = JSON,
        path: dict[str, Any] | None = None,
        **options: Any,
    ) -> requests.Response:
        """A call with the path filled in; an answer that is not as told fails the test."""
        headers = dict(options.pop("headers", {}))
        if body is not None:
            headers.setdefault("Content-Type", media)
            data = json.dumps(body) if media == JSON and not isinstance(body, bytes) else body
            options["data"] = data
        answer = self.session.request(
            call.method, self.url + self.path(call, path), headers=headers, timeout=60, **options
        )
        self.check(call, answer)
        return answer

    def path(self, call: Call, parts: dict[str, Any] | None = None) -> str:
        return call.path.format(**{"table": "events", "number": 1, **(parts or self.state)})

    def check(self, call: Call, answer: requests.Response) -> None:
        media = answer.headers["Content-Type"].partition(";")[0]
        body = answer.json() if media == JSON else None
        self.described.check_answer(call, answer.status_code, media, body)
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Duckmesh-Trace-Id"])
        assert ("Retry-After" in answer.headers) == (answer.status_code in (429, 503))

    def filled(self, example: Any) -> Any:
        """An example with what only this lake knows: its snapshots and tokens."""
        if not isinstance(example, dict):
            return example
        return {name: self.state.get(name, value) for name, value in example.items()}


@contextmanager
def service_of(lake: Lake) -> Iterator[Service]:
    """The pods of a lake, after the story was told."""
    with tenant_of(lake) as tenant, requests.Session() as session:
        session.headers.update(AUTHORIZATION)
        tenant.env()
        keys = {"admin": ROLES, "nobody": (), **{role: (role,) for role in ROLES}}
        write_keys(tenant.folder / "auth", keys)
        ingest, query = tenant.ingest(), tenant.query()
        said = session.get(ingest.url + "/v1/openapi.json", timeout=30).json()
        found = Service(tenant, ingest.url, query.url, session, said)
        tell_the_story(found)
        yield found
        log = ingest.log.read_text() + query.log.read_text()
        assert "code is not described" not in log


async def plant_letters(service: Service) -> None:
    """Dead letters of a row each, as the committer leaves them; the last is of another table."""
    lake = service.tenant.lake
    connection = await asyncpg.connect((lake.admin_dir / "dsn").read_text())
    try:
        for number, table in ((1, "events"), (2, "events"), (3, "events"), (4, "ghosts")):
            await connection.execute(
                f'INSERT INTO "{lake.name}_bus".dead_letter VALUES '
                "($1, $1, 'rows', $3, 1, 1, $2, 'refused', now())",
                number,
                arrow_stream({"id": [number]}),
                table,
            )
    finally:
        await connection.close()


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": [7]}), sink)
    return sink.getvalue().to_pybytes()


STORY = (
    "live", "ready", "describe", "create_table", "list_tables", "read_table", "ingest", "visible", "events",
    "alter_table", "read_versions", "query", "lag", "run_compaction", "run_retention", "run_integrity",
    "list_snapshots", "read_snapshot", "list_files", "pin_snapshot", "unpin_snapshot",
    "list_letters", "read_letter", "replay_letter", "drop_letter", "replay_letters",
    "drop_letters", "restore", "drop_table",
)  # fmt: skip
"""Every call, in an order in which each can work."""


def tell_the_story(service: Service) -> None:
    """Send each example of the description, and each call that takes none."""
    assert set(STORY) == set(service.calls)
    for name in STORY:
        call = service.calls[name]
        if name == "list_letters":
            asyncio.run(plant_letters(service))
        if name == "drop_letter":
            service.state["number"] = 2
        for media, example in sent(call):
            answer = service.send(
                call,
                service.filled(example),
                media=media,
                params=required_of(service, call),
                **settings_of(call),
            )
            assert answer.status_code in (200, 201), (name, answer.text)
            if name == "events":
                see(service, answer)
            elif media == JSON and answer.headers["Content-Type"] == JSON:
                learn(service, name, answer.json())


def sent(call: Call) -> list[tuple[str, Any]]:
    content = call.said.get("requestBody", {}).get("content", {})
    if not content:
        return [(JSON, None)]
    binary = {ARROW: arrow_stream({"id": [6]}), PARQUET: parquet()}
    examples = [(media, each) for media in content for each in call.examples(media)]
    return examples + [(media, binary[media]) for media in content if media in binary]


def required_of(service: Service, call: Call) -> dict[str, Any]:
    required = {n for n, its in call.parameters("query").items() if its["required"]}
    return {name: {"table": "events", **service.state}[name] for name in required}


def settings_of(call: Call) -> dict[str, Any]:
    if call.name == "restore":
        return {"headers": {"Idempotency-Key": "a restore"}}
    return {"stream": True} if call.name == "events" else {}


def see(service: Service, answer: requests.Response) -> None:
    """The first event is as told."""
    with answer:
        lines = answer.iter_lines(chunk_size=1, decode_unicode=True)
        data = next(line for line in lines if line.startswith("data: "))
    event = {"$ref": "#/components/schemas/Event"}
    service.described.check(event, json.loads(data.removeprefix("data: ")))


def learn(service: Service, name: str, answer: dict[str, Any]) -> None:
    if token := answer.get("max_visibility_token"):
        service.state |= {"token": token, "min_visibility_token": token}
    if name == "ingest" and answer["visible_snapshot_id"] is not None:
        service.state["snapshot_id"] = answer["visible_snapshot_id"]
    if name == "query" and "snapshot_time" not in service.state:
        service.state["snapshot_time"] = answer["snapshot_time"]
    if name == "drop_table":
        service.state["table"] = "users"
