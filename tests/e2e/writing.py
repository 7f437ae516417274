"""Rows that go into a Tenant and come out of it while a test does something to it, from a pod beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.api import Api
from tests.e2e.product import VERSION, Tenant, wait_for

TABLE = {
    "name": "orders",
    "columns": [{"name": "writer", "type": "INTEGER"}, {"name": "number", "type": "BIGINT"}],
}
_PROGRAM = (Path(__file__).parent / "steady_load.py").read_text()
_COUNTS = "SELECT count(*), count(DISTINCT number), max(number) FROM orders"


class Load:
    """The pod that reads and writes."""

    def __init__(self, tenant: Tenant) -> None:
        self._tenant = tenant

    def state(self) -> dict[str, Any]:
        """What it printed last."""
        run = self._tenant.kube.kubectl(
            "logs", "-n", self._tenant.namespace, "load", "--tail=1", check=False
        )
        found: dict[str, Any] = json.loads(run.stdout) if run.stdout.startswith("{") else {}
        return found

    def goes_on(self) -> None:
        """Wait until every writer and the readers have got further; ends at the first failure."""
        before = self.state()

        def further() -> bool:
            now = self.state()
            if now.get("failures"):
                return True  # nothing to wait for: the result tells it
            was = before.get("acked", [0, 0])
            return bool(now) and (
                all(n > b + 5 for n, b in zip(now["acked"], was, strict=True))
                and now["reads"] > before.get("reads", 0) + 5
            )

        wait_for("writes and reads to go on", further, 120)

    def stop(self) -> dict[str, Any]:
        """End it; what it counted."""
        place = ("-n", self._tenant.namespace, "load")
        self._tenant.kube.kubectl(
            "exec", *place, "--", "python3", "-c", "open('/tmp/stop', 'w').close()"
        )
        self._tenant.kube.kubectl(
            *("wait", "pod/load", "-n", self._tenant.namespace, "--timeout=90s"),
            "--for=jsonpath={.status.phase}=Succeeded",
        )
        return self.state()


@contextmanager
def steady_load(tenant: Tenant) -> Iterator[Load]:
    """A pod of the runtime's image, since that has Python, beside the Tenant."""
    doors = [f"http://shop-{part}:8080" for part in ("ingest", "query")]
    tenant.kube.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "load", "namespace": tenant.namespace},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "containers": [
                    {
                        "name": "load",
                        "image": f"localhost/duckmesh-runtime:{VERSION}",
                        "command": [
                            "python3",
                            "-c",
                            _PROGRAM,
                            *doors,
                            tenant.admin_key(),
                            "/tmp/stop",
                        ],
                    }
                ],
            },
        }
    )
    yield Load(tenant)


def check(tenant: Tenant, result: dict[str, Any]) -> None:
    """No request failed for good, and every acknowledged row is there once."""
    assert result["failures"] == []
    with tenant.door() as url:
        api = Api(url, tenant.admin_key())
        for writer, (acked, token) in enumerate(zip(result["acked"], result["token"], strict=True)):
            assert api.rows(f"{_COUNTS} WHERE writer = {writer}", token) == [[acked, acked, acked]]
