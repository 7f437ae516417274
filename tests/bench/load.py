"""An open-loop client: requests leave on schedule whatever the answers do, and latency counts from the schedule.

Used by `make bench` and by hand:

    python -m tests.bench.load --url http://127.0.0.1:8080 --api-key ... --rate 200 --rows 10 --seconds 30
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
import uuid
from dataclasses import dataclass, field

import aiohttp

TABLE = {
    "name": "load",
    "columns": [
        {"name": "id", "type": "BIGINT", "nullable": False},
        {"name": "kind", "type": "VARCHAR"},
        {"name": "amount", "type": "DOUBLE"},
        {"name": "at", "type": "TIMESTAMP WITH TIME ZONE"},
    ],
}


@dataclass(slots=True)
class Figures:
    """What a run saw; times in milliseconds from the scheduled start of a request."""

    ack: list[float] = field(default_factory=list)
    visible: list[float] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        return {
            "requests": len(self.ack),
            "failed": self.failed,
            "ack_ms": quantiles(self.ack),
            "write_to_visible_ms": quantiles(self.visible),
        }


def quantiles(values: list[float]) -> dict[str, float]:
    """p50, p95, p99 and max, rounded to 0.1 ms."""
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    marks = {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(values)}
    return {name: round(value, 1) for name, value in marks.items()}


async def run(
    url: str,
    key: str,
    *,
    rate: float,
    rows: int,
    seconds: float,
    warm_up: float = 3,
    every: int = 5,
) -> Figures:
    """Send `rate` requests of `rows` rows a second; wait for the visibility of each `every`-th."""
    figures = Figures()
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(url, headers=headers, connector=connector) as session:
        await _ensure_table(session)
        async with asyncio.TaskGroup() as group:
            start = time.perf_counter() + 0.1
            for number in range(int((warm_up + seconds) * rate)):
                due = start + number / rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                counted = figures if due - start >= warm_up else Figures()
                group.create_task(_one(session, number, rows, due, counted, number % every == 0))
    return figures


async def _ensure_table(session: aiohttp.ClientSession) -> None:
    async with session.post("/v1/tables", json=TABLE) as answer:
        if answer.status not in (200, 201, 409):
            raise RuntimeError(f"cannot make the table: {answer.status} {await answer.text()}")


async def _one(
    session: aiohttp.ClientSession,
    number: int,
    rows: int,
    due: float,
    figures: Figures,
    watch: bool,
) -> None:
    run_id = uuid.uuid4().hex
    records = [
        {
            "idempotency_key": f"{run_id}-{i}",
            "payload": {
                "id": number * rows + i,
                "kind": "click",
                "amount": i * 0.5,
                "at": "2026-01-01T00:00:00Z",
            },
        }
        for i in range(rows)
    ]
    try:
        async with session.post("/v1/ingest/load", json={"records": records}) as answer:
            body = await answer.json()
            if answer.status != 200:
                code = body.get("error_code", str(answer.status))
                figures.failed[code] = figures.failed.get(code, 0) + 1
                return
        figures.ack.append((time.perf_counter() - due) * 1000)
        if watch:
            query = {"token": body["max_visibility_token"], "timeout_ms": "20000"}
            async with session.get("/v1/visible", params=query) as answer:
                if answer.status == 200:
                    figures.visible.append((time.perf_counter() - due) * 1000)
    except aiohttp.ClientError as error:
        name = type(error).__name__
        figures.failed[name] = figures.failed.get(name, 0) + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--api-key", required=True)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--rows", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=30)
    args = parser.parse_args()
    figures = asyncio.run(
        run(args.url, args.api_key, rate=args.rate, rows=args.rows, seconds=args.seconds)
    )
    json.dump(figures.as_dict(), sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
