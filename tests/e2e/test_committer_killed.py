"""The pod that commits is killed in the middle of a stream of writes: nothing acknowledged is lost or doubled."""

from __future__ import annotations

import threading
import time

from tests.e2e.api import Api
from tests.e2e.product import Tenant, wait_for

TABLE = {
    "name": "orders",
    "columns": [{"name": "writer", "type": "INTEGER"}, {"name": "number", "type": "BIGINT"}],
}

COUNTS = "SELECT count(*), count(DISTINCT number), min(number), max(number) FROM orders"


def test_killing_the_committer_loses_nothing_and_doubles_nothing(tenant: Tenant) -> None:
    tenant.apply()
    tenant.wait("Ready")
    with tenant.door() as url:
        Api(url, tenant.admin_key()).ok("POST", "/v1/tables", TABLE)
    stop = threading.Event()
    writers = [_Writer(number, tenant, stop) for number in range(2)]
    for writer in writers:
        writer.start()

    wait_for("a stream of writes", lambda: all(w.acked > 20 for w in writers), 30)
    killed = _committer(tenant)
    tenant.kube.kubectl(
        "delete",
        "pod",
        "-n",
        tenant.namespace,
        killed,
        "--grace-period=0",
        "--force",
        "--wait=false",
    )
    at_kill = [w.acked for w in writers]
    wait_for(
        "another committer",
        lambda: (found := _committer(tenant)) and found != killed,
        30,
    )
    wait_for(
        "writes after the kill",
        lambda: all(w.acked > a + 20 for w, a in zip(writers, at_kill, strict=True)),
        60,
    )
    stop.set()
    for writer in writers:
        writer.join(60)

    assert [w.problem for w in writers] == [None, None]
    with tenant.door() as url:
        api = Api(url, tenant.admin_key())
        found = [api.rows(f"{COUNTS} WHERE writer = {w.number}", w.token)[0] for w in writers]
    assert found == [[w.acked, w.acked, 1, w.acked] for w in writers]


def _committer(tenant: Tenant) -> str:
    """The pod that holds the commit lease, as status reports it."""
    found = tenant.read()["status"]["ingest"].get("committer", "")
    return str(found)


class _Writer(threading.Thread):
    """Sends rows one request at a time, each until it is acknowledged, through port-forwards of its own."""

    def __init__(self, number: int, tenant: Tenant, stop: threading.Event) -> None:
        super().__init__()
        self.number = number
        self.acked = 0
        self.token = ""
        self.problem: BaseException | None = None
        self._tenant = tenant
        self._halt = stop

    def run(self) -> None:
        try:
            key = self._tenant.admin_key()
            deadline = time.monotonic() + 180
            while not self._halt.is_set() and time.monotonic() < deadline:
                self._write_through_one_door(key)
        except BaseException as error:
            self.problem = error

    def _write_through_one_door(self, key: str) -> None:
        """A port-forward goes to one pod; when that pod dies, a new one finds another."""
        try:
            with self._tenant.door() as url:
                api = Api(url, key)
                while not self._halt.is_set():
                    record = {
                        "idempotency_key": f"{self.number}-{self.acked + 1}",
                        "payload": {"writer": self.number, "number": self.acked + 1},
                    }
                    answer = api.persist(
                        "POST", "/v1/ingest/orders", {"records": [record]}, timeout_s=5
                    )
                    self.acked += 1
                    self.token = answer["max_visibility_token"]
        except AssertionError:
            time.sleep(
                0.2
            )  # the door may be closed until the next pod is ready; the outer loop has the deadline
