"""The load client, a process of its own: `python -m tests.bench.load open|closed|waiters --url ... --api-key ...`.

Prints one JSON object. `open`: requests leave on schedule whatever the answers do, and latency counts from the schedule;
what is due while `--most` are under way is given up (`NotSent`); `--burst` of them leave together, to the `--tables` in
turn. `closed`: each connection sends its next request when the last one is answered. `waiters`: long polls on one token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import uuid
from dataclasses import dataclass, field

from tests.bench.client import Client
from tests.bench.figures import quantiles

BUSY_CORES = 0.9
LATE_MS = 5.0


@dataclass(slots=True)
class Report:
    """What a run saw; times in milliseconds."""

    seconds: float = 0.0
    ack: list[float] = field(default_factory=list)
    visible: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    tenths: list[list[float]] = field(default_factory=lambda: [[] for _ in range(10)])
    visible_tenths: list[list[float]] = field(default_factory=lambda: [[] for _ in range(10)])
    failed: dict[str, int] = field(default_factory=dict)
    more: dict[str, object] = field(default_factory=dict)
    cores: float = 0.0

    def fail(self, what: str) -> None:
        self.failed[what] = self.failed.get(what, 0) + 1

    def as_dict(self) -> dict[str, object]:
        late = quantiles(self.late)
        limit = ""
        if self.cores > BUSY_CORES:
            limit = "; THE CLIENT WAS THE LIMIT (its core is full)"
        elif late.get("p99", 0.0) > LATE_MS:
            limit = f"; THE CLIENT SENT LATE (p99 {late['p99']} ms), which the latencies hold"
        return {
            "requests": len(self.ack),
            "seconds": self.seconds,
            "failed": self.failed,
            "ack_ms": quantiles(self.ack),
            "ack_p95_ms_by_tenth": [quantiles(one).get("p95") for one in self.tenths],
            "write_to_visible_ms": quantiles(self.visible),
            "write_to_visible_p95_ms_by_tenth": [
                quantiles(one).get("p95") for one in self.visible_tenths
            ],
            "client": {"cores": self.cores, "late_ms": late, "limit": limit},
            **self.more,
        }


class Bodies:
    """Request bodies of so many rows, each row with a key of its own unless told otherwise."""

    def __init__(self, rows: int, *, keys: bool = True) -> None:
        self._rows = rows
        self._run = uuid.uuid4().hex[:8] if keys else ""

    def make(self, number: int) -> bytes:
        first = number * self._rows
        records = ",".join(self._record(first + i) for i in range(self._rows))
        return b'{"records":[' + records.encode() + b"]}"

    def _record(self, number: int) -> str:
        name = f'"idempotency_key":"{self._run}-{number}",' if self._run else ""
        return (
            f'{{{name}"payload":{{"id":{number},"kind":"order","amount":{number * 0.5},'
            '"at":"2026-01-01T00:00:00Z"}}'
        )


async def open_loop(client: Client, args: argparse.Namespace) -> Report:
    """`rate` requests of `rows` rows a second; each `every`-th is followed until it is visible."""
    report, warm_up = Report(), Report()
    bodies, tables = Bodies(args.rows), args.tables.split(",")
    await client.connect(32)
    async with asyncio.TaskGroup() as group:
        start = time.perf_counter() + 0.1
        for number in range(int((args.warm_up + args.seconds) * args.rate)):
            due = start + number // args.burst * args.burst / args.rate
            body = bodies.make(number)
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            counted = report if due - start >= args.warm_up else warm_up
            counted.late.append((time.perf_counter() - due) * 1000)
            if client.busy >= args.most:
                counted.fail("NotSent")
                continue
            tenth = min(9, int((due - start - args.warm_up) / args.seconds * 10))
            watch = number % args.every == 0
            table = tables[number % len(tables)]
            group.create_task(_one(client, table, body, due, counted, tenth=tenth, watch=watch))
    report.seconds = args.seconds
    return report


async def _one(
    client: Client, table: str, body: bytes, due: float, report: Report, *, tenth: int, watch: bool
) -> None:
    try:
        status, answer = await client.post(f"/v1/ingest/{table}", body)
        if status != 200:
            report.fail(json.loads(answer).get("error_code", str(status)))
            return
        took = (time.perf_counter() - due) * 1000
        report.ack.append(took)
        report.tenths[tenth].append(took)
        if watch:
            token = json.loads(answer)["max_visibility_token"]
            status, _ = await client.get(f"/v1/visible?token={token}&timeout_ms=30000")
            if status == 200:
                took = (time.perf_counter() - due) * 1000
                report.visible.append(took)
                report.visible_tenths[tenth].append(took)
            else:
                report.fail(f"visible {status}")
    except OSError as error:
        report.fail(type(error).__name__)


async def closed_loop(client: Client, args: argparse.Namespace) -> Report:
    """So many connections, each busy with one request of `rows` rows at a time."""
    report, bodies = Report(), Bodies(args.rows, keys=not args.no_keys)
    await client.connect(args.connections)
    start = time.perf_counter()
    begin, end = start + args.warm_up, start + args.warm_up + args.seconds
    numbers = iter(range(sys.maxsize))

    async def one() -> None:
        while (sent := time.perf_counter()) < end:
            try:
                status, answer = await client.post("/v1/ingest/load", bodies.make(next(numbers)))
            except OSError as error:
                report.fail(type(error).__name__)
                return
            now = time.perf_counter()
            if status != 200:
                report.fail(json.loads(answer).get("error_code", str(status)))
            elif begin <= now <= end:
                report.ack.append((now - sent) * 1000)

    async with asyncio.TaskGroup() as group:
        for _ in range(args.connections):
            group.create_task(one())
    report.seconds = args.seconds
    return report


async def waiters(client: Client, args: argparse.Namespace) -> Report:
    """Long polls on one token that is not given yet; `seen` holds the wall clock at which each was answered."""
    report, seen = Report(), []
    path = f"/v1/visible?token={args.token}&timeout_ms=60000"

    async def one() -> None:
        try:
            status, answer = await client.get(path)
        except OSError as error:
            report.fail(type(error).__name__)
            return
        if status == 200:
            seen.append(time.time())
        else:
            report.fail(json.loads(answer).get("error_code", str(status)))

    await client.connect(args.connections)
    async with asyncio.TaskGroup() as group:
        for _ in range(args.connections):
            group.create_task(one())
        await asyncio.sleep(0)
        print("waiting", file=sys.stderr, flush=True)
    report.more["seen"] = seen
    return report


KINDS = {"open": open_loop, "closed": closed_loop, "waiters": waiters}


async def run(url: str, key: str, args: argparse.Namespace) -> Report:
    """Run one kind of load against a base URL."""
    client = Client(url, key)
    begin, cpu = time.monotonic(), time.process_time()
    try:
        report = await KINDS[args.kind](client, args)
    finally:
        client.close()
    report.cores = (time.process_time() - cpu) / (time.monotonic() - begin)
    return report


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("--url", required=True)
    parser.add_argument("--api-key", required=True)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--rows", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--warm-up", type=float, default=3)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--burst", type=int, default=1)
    parser.add_argument("--tables", default="load")
    parser.add_argument("--most", type=int, default=2_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--no-keys", type=lambda text: text == "True", default=False)
    parser.add_argument("--token", default="")
    return parser.parse_args(words)


def main() -> None:
    args = arguments()
    json.dump(asyncio.run(run(args.url, args.api_key, args)).as_dict(), sys.stdout)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
