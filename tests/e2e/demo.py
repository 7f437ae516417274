"""`make demo`: from nothing to a Tenant with real rows, queried, checked against pandas, lag shown by kubectl.

Every step is idempotent: a second run finds the cluster, the images, the Tenant and the rows, and is quick.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

from tests.e2e import cluster as clusters
from tests.e2e import flights
from tests.e2e.product import Kube, Tenant, ensure_installed, hanging_store

NAMESPACE = "demo"
NAME = "flights"
HANG_S = 7
#: Few enough to go through the bus.
FIRST_ROWS = 10_000
DATA = Path.home() / ".cache" / "duckmesh" / "demo"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["up", "down"])
    if parser.parse_args().what == "down":
        clusters.down()
        return
    try:
        Demo().run()
    except (AssertionError, clusters.ClusterError) as error:
        raise SystemExit(f"the demo stopped: {error}") from error


class Demo:
    """The steps, each with its heading and the seconds it took."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def run(self) -> None:
        self._say("1/5 a Kubernetes cluster with duckmesh installed by helm")
        kube = ensure_installed(lambda text: self._say(f"    {text}"))
        tenant = Tenant(kube, NAMESPACE, NAME)
        self._say("2/5 a Tenant: two lines of spec, its own lake")
        tenant.apply()
        tenant.wait("Ready")
        print(tenant.row(), flush=True)
        with tenant.door() as url:
            token = self._ingest(tenant, url)
            self._say("4/5 a query that asks for the token of the last write")
            self._query(tenant, url, token)
        self._say("5/5 done")
        self._next(kube, tenant)

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._start:6.1f} s] {text}", flush=True)

    def _ingest(self, tenant: Tenant, url: str) -> str:
        """Run the command line with its progress bar, and `kubectl get tenants` beside it.

        The first time the object store hangs while the first rows go in, so that there is a lag to see: they are
        acknowledged all the same, since they are durable in the bus.
        """
        first = flights.write_parquet(DATA / "flights-first.parquet", slice(FIRST_ROWS))
        others = flights.write_parquet(DATA / "flights-others.parquet", slice(FIRST_ROWS, None))
        hang_s = 0 if tenant.read()["status"]["ingest"].get("watermark") else HANG_S
        self._say(f"3/5 {flights.ROWS:,} flights in, lag as kubectl shows it")
        if hang_s:
            self._say(
                f"    the object store hangs for {hang_s} s: the first {FIRST_ROWS:,} rows are taken, lag rises; then it falls"
            )
        done = threading.Event()
        watcher = threading.Thread(target=_show_lag, args=(tenant, done))
        watcher.start()
        try:
            with hanging_store(tenant.kube) if hang_s else nullcontext():
                self._send(tenant, url, first)
                done.wait(hang_s)
            token = self._send(tenant, url, others)
        finally:
            done.set()
            watcher.join()
        return token

    def _send(self, tenant: Tenant, url: str, file: Path) -> str:
        """The token of the file's last row."""
        sent = self._duckmesh(tenant, url, "ingest", str(file), "--table", "flights", "--create")
        return str(json.loads(sent)["token"])

    def _duckmesh(self, tenant: Tenant, url: str, *args: str) -> str:
        """What the command line prints; its progress goes to the terminal."""
        run = subprocess.run(
            [
                str(Path(sys.executable).parent / "duckmesh"),
                "--url",
                url,
                *args,
                "--output",
                "json",
            ],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            env=tenant.kube.env() | {"DUCKMESH_API_KEY": tenant.admin_key()},
        )
        if run.returncode:
            raise SystemExit(f"duckmesh {args[0]} failed; see the lines above")
        return run.stdout

    def _query(self, tenant: Tenant, url: str, token: str) -> None:
        asked = time.monotonic()
        answer = json.loads(
            self._duckmesh(tenant, url, "query", flights.SQL.strip(), "--token", token)
        )
        took_ms = (time.monotonic() - asked) * 1000
        want = flights.expected()
        for row in answer["rows"][:3]:
            print("   ", *row)
        if not same(answer["rows"], want):
            raise SystemExit(f"the answer differs from pandas: {answer['rows']} instead of {want}")
        lag, snapshot = answer["lag_ms"], answer["snapshot_id"]
        self._say(
            f"    {len(want)} rows equal to pandas; snapshot {snapshot}, lag {lag} ms, {took_ms:.0f} ms with start-up"
        )

    def _next(self, kube: Kube, tenant: Tenant) -> None:
        secret = f"kubectl get secret -n {tenant.namespace} {tenant.name}-admin-key -o jsonpath='{{.data.key}}'"
        print(
            f"""
Try next:
  export KUBECONFIG={kube.kubeconfig} PATH={kube.bin_dir}:{Path(sys.executable).parent}:$PATH
  kubectl get tenants -A -o wide -w
  kubectl describe tenant -n {tenant.namespace} {tenant.name}
  kubectl port-forward -n {tenant.namespace} service/{tenant.name}-ingest 8080 &
  export DUCKMESH_URL=http://127.0.0.1:8080
  export DUCKMESH_API_KEY=$({secret} | base64 -d)
  duckmesh query "SELECT origin, count(*) FROM flights GROUP BY origin"
  duckmesh lag -w
  make demo-down     # removes all of it
""",
            flush=True,
        )


def same(rows: list[list[object]], want: list[list[object]]) -> bool:
    """Equal row by row; times compared as instants, floats to six digits."""
    return [[_plain(v) for v in row] for row in rows] == [[_plain(v) for v in row] for row in want]


def _plain(value: object) -> object:
    if isinstance(value, float):
        return round(value, 6)
    return str(value).replace("+00:00", "Z") if isinstance(value, str) else value


def _show_lag(tenant: Tenant, done: threading.Event) -> None:
    """Print what `kubectl get tenants` shows whenever it changes, until all is visible again."""
    last: list[str] = []
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        header, row = tenant.row(wide=False).splitlines()[:2]
        shown = row.split()[:4]
        if shown != last:
            print(row if last else f"{header}\n{row}", flush=True)
            last = shown
        if done.is_set() and shown[3] == "0s":
            return
        time.sleep(0.3)


if __name__ == "__main__":
    main()
