"""What becomes visible, told by a real process over a real catalog."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
import pytest

from tests.pods import AUTHORIZATION, Pod, Tenant

EVENTS = {"name": "events", "columns": [{"name": "id", "type": "BIGINT"}]}


@contextmanager
def listening(pod: Pod) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
    """The events of a stream, name and data."""
    request = urllib.request.Request(pod.url + "/v1/events", headers=AUTHORIZATION)
    with urllib.request.urlopen(request, timeout=60) as answer:

        def events() -> Iterator[tuple[str, dict[str, Any]]]:
            name = ""
            for line in answer:
                field, _, value = line.decode().strip().partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, json.loads(value)

        yield events()


def ingest(pod: Pod, number: int, wait: bool = False) -> str:
    body = {"records": [{"payload": {"id": number}}], "wait_for_visibility": wait}
    status, answer = pod.call("POST", "/v1/ingest/events", body)
    assert status == 200, answer
    return str(answer["max_visibility_token"])


@pytest.mark.timeout(200)
async def test_a_stream_tells_what_becomes_visible_and_ends_with_the_process(
    tenant: Tenant,
) -> None:
    pod = tenant.ingest()
    assert pod.call("POST", "/v1/tables", EVENTS)[0] == 201
    with listening(pod) as events:
        name, present = next(events)
        assert (name, next(events)[0]) == ("snapshot", "visible")

        token = ingest(pod, 1)
        told = [next(events), next(events)]
        assert [name for name, _ in told] == ["snapshot", "visible"]
        assert told[1][1]["max_visibility_token"] == token
        assert told[1][1]["snapshot_id"] > present["snapshot_id"]

        assert pod.stop() == 0
        assert list(events) == []


@pytest.mark.timeout(200)
async def test_a_restored_catalog_begins_a_timeline_that_old_tokens_are_foreign_to(
    tenant: Tenant,
) -> None:
    pod = tenant.ingest()
    assert pod.call("POST", "/v1/tables", EVENTS)[0] == 201
    old = ingest(pod, 1, wait=True)
    with listening(pod) as events:
        next(events)
        connection = await asyncpg.connect((tenant.lake.admin_dir / "dsn").read_text())
        await connection.execute(f'UPDATE "{tenant.lake.name}_bus".head SET timeline = 2')
        await connection.close()

        assert any(data["max_visibility_token"] != old for _, data in events)
        status, answer = pod.call("GET", f"/v1/visible?token={old}")
        new = ingest(pod, 2)

        assert (status, answer["error_code"]) == (400, "TOKEN_SCOPE_MISMATCH")
        assert pod.call("GET", f"/v1/visible?token={new}")[0] == 200
