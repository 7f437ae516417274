"""An ending query pod answers what runs; its sandbox is ended after it, as Kubernetes does with a sidecar."""

from __future__ import annotations

import signal

from tests.integration.test_query_limits import answering
from tests.pods import Tenant

#: More than all buffers between a slot and a client that does not read.
ROWS = 2_000_000
LIMITS = {"DUCKMESH_DRAIN_S": "120", "DUCKMESH_QUERY_ROWS": str(ROWS)}


def test_an_answer_under_way_is_whole_though_the_pod_was_told_to_end(tenant: Tenant) -> None:
    sandbox = tenant.start("sandbox")
    query = tenant.start("serve", "query", port=tenant.query_port, **LIMITS)
    query.wait(lambda: query.call("POST", "/v1/query", {"sql": "SELECT 1"})[0] == 200)

    sql = f"SELECT range AS n FROM range({ROWS})"
    with answering(query, sql, accept="application/x-ndjson") as connection:
        answer = connection.getresponse()
        begun = answer.read(100)
        query.process.send_signal(signal.SIGTERM)
        query.wait(lambda: "draining" in query.log.read_text())
        rest = answer.read()

    assert (begun + rest).count(b"\n") == ROWS
    assert query.process.wait(60) == 0
    assert sandbox.running
    assert sandbox.stop() == 0
