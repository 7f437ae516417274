"""Histories against real processes: two ingest replicas over one lake, through the HTTP door, killed at will."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from duckmesh_runtime.adapters import duckdb_engine
from duckmesh_runtime.domain import lakesql
from duckmesh_runtime.domain.tokens import parse_token
from duckmesh_runtime.settings import read_secret
from tests.history.check import Snapshot
from tests.history.model import Answer, Change, Request, Row, row_of
from tests.history.steps import Again, Alter, Kill, Script, Send, Settle, Step, Together
from tests.pods import Pod, Tenant
from tests.services import Lake

ANSWER_S = 40.0
MOST_SNAPSHOTS = 15
_SNAPSHOTS = """
SELECT snapshot_id, (commit_extra_info::jsonb ->> 'tok')::bigint AS token
  FROM {lake}.ducklake_snapshot_changes
 WHERE commit_extra_info::jsonb ->> 'role' = 'w' AND (commit_extra_info::jsonb ->> 'tok')::bigint > $1
 ORDER BY snapshot_id
"""
_TABLES = """
SELECT table_name FROM {lake}.ducklake_table
 WHERE begin_snapshot <= $1 AND (end_snapshot IS NULL OR end_snapshot > $1) AND table_name LIKE $2
"""


@dataclass(slots=True)
class Driver:
    """Runs the steps of one history after the other.

    Args:
        tenant: Its ingest pods are started as needed; two run at any time.
    """

    tenant: Tenant
    pods: list[Pod] = field(default_factory=list)
    ended: list[Pod] = field(default_factory=list)
    _number: int = 0

    def run(self, steps: Sequence[Step]) -> tuple[list[Answer], list[Snapshot], int]:
        """Do all steps, wait until all is visible; answers, the lake's snapshots, and the watermark before."""
        self._number += 1
        script = Script(f"h{self._number}")
        self._all_ready()
        start = asyncio.run(watermark(self.tenant.lake))
        answers = [self._ask(script.create(keyed), 0) for keyed in (True, False)]
        with ThreadPoolExecutor(8) as threads:
            for turn, step in enumerate(steps):
                answers += self._do(script, step, turn, threads)
        last = max(answer.number or 0 for answer in answers)
        asyncio.run(reached(self.tenant.lake, last))
        return answers, asyncio.run(snapshots(self.tenant.lake, start, script.tag)), start

    def _do(
        self, script: Script, step: Step, turn: int, threads: ThreadPoolExecutor
    ) -> Sequence[Answer]:
        match step:
            case Send():
                return [self._ask(script.send(step), turn)]
            case Again():
                found = script.again(step)
                return [] if found is None else [self._ask(found, turn)]
            case Alter():
                return [self._change(c, turn) for c in script.alter(step.keyed, step.kind)]
            case Together():
                return self._together(script, step, threads)
            case Kill():
                self._kill(step)
            case Settle():
                asyncio.run(reached(self.tenant.lake, asyncio.run(head(self.tenant.lake))))
        return []

    def _together(
        self, script: Script, step: Together, threads: ThreadPoolExecutor
    ) -> Sequence[Answer]:
        requests = [script.send(each) for each in step.sends]
        changes = script.alter(True, step.alter) if step.alter else ()
        if changes:
            self._all_ready()
        asked: list[Request | Change] = [*requests[:1], *changes, *requests[1:]]
        return list(threads.map(self._ask, asked, range(len(asked))))

    def _change(self, change: Change, turn: int) -> Answer:
        # A change that gets no answer cannot be told from one that was refused: none is sent while a replica is away.
        self._all_ready()
        return self._ask(change, turn)

    def _kill(self, step: Kill) -> None:
        pod = self.pods.pop(step.replica)
        pod.process.send_signal(signal.SIGTERM if step.orderly else signal.SIGKILL)
        self.ended.append(pod)
        self.pods.append(self.tenant.start("serve", "ingest"))

    def _all_ready(self) -> None:
        while len(self.pods) < 2:
            self.pods.append(self.tenant.start("serve", "ingest"))
        for pod in self.pods:
            pod.wait(pod.is_ready, 60)
        self.pods[0].wait(lambda: any(p.metric("duckmesh_committer_active") for p in self.pods), 60)
        for pod in self.ended:
            pod.process.wait(60)
        self.ended.clear()

    def _ask(self, asked: Request | Change, turn: int) -> Answer:
        """Ask one replica after the other until one answers for good."""
        call = _call(asked)
        sure, deadline = True, time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            pod = self.pods[turn % len(self.pods)]
            try:
                status, body = call(pod)
            except (OSError, ValueError):
                sure = False
            else:
                if status < 300 or not body.get("retryable"):
                    return self._answer(asked, status, body, sure)
                sure = sure and status == 429
            turn += 1
            time.sleep(0.05)
        raise AssertionError(f"no replica answered {asked} in {ANSWER_S} s")

    def _answer(
        self, asked: Request | Change, status: int, body: dict[str, Any], sure: bool
    ) -> Answer:
        if isinstance(asked, Change):
            assert status < 300, f"{asked}: {status} {body}"
            return Answer(to=asked, number=self._token(body), accepted=1, sure=sure)
        rejected = {each["index"]: each["error_code"] for each in body.get("rejected", ())}
        if status >= 300:
            assert len(rejected) == len(asked.records), f"{asked}: {status} {body}"
            return Answer(to=asked, number=None, accepted=0, rejected=rejected, sure=sure)
        return Answer(
            to=asked,
            number=self._token(body),
            accepted=body["accepted_count"],
            duplicates=body["duplicate_count"],
            rejected=rejected,
            sure=sure,
        )

    def _token(self, body: dict[str, Any]) -> int:
        token = body["max_visibility_token"]
        return parse_token(token, lake=self.tenant.lake.name, timeline=1).number


def _call(asked: Request | Change) -> Callable[[Pod], tuple[int, Any]]:
    if isinstance(asked, Request):
        records = [
            {"idempotency_key": r.key, "payload": r.payload} | ({"op": r.op} if r.op else {})
            for r in asked.records
        ]
        path = f"/v1/ingest/{asked.table}"
        return lambda pod: pod.call("POST", path, {"records": records}, timeout=5)
    path = f"/v1/tables/{asked.table}"
    if asked.kind == "create":
        table = {
            "name": asked.table,
            "columns": [
                {"name": n, "type": kind, "nullable": n != "id", "default": default}
                for n, kind, default in asked.said["columns"]
            ],
            "primary_key": [asked.said["key"]] if asked.said["key"] else [],
        }
        return lambda pod: pod.call("POST", "/v1/tables", table)
    if asked.kind == "drop":
        return lambda pod: pod.call("DELETE", path)
    return lambda pod: pod.call("PATCH", path, {"changes": [{asked.kind: dict(asked.said)}]})


# -- the lake from outside


async def _fetchval(lake: Lake, statement: str, *args: object) -> Any:
    connection = await asyncpg.connect(lake.catalog_dsn)
    try:
        return await connection.fetchval(statement, *args)
    finally:
        await connection.close()


async def watermark(lake: Lake) -> int:
    """Number up to which all is in the lake."""
    query = "SELECT token FROM duckmesh.lake_status WHERE lake = $1"
    return int(await _fetchval(lake, query, lake.name))


async def head(lake: Lake) -> int:
    """The last number given."""
    return int(await _fetchval(lake, f"SELECT last FROM {lake.name}_bus.head"))


async def reached(lake: Lake, number: int, timeout_s: float = ANSWER_S) -> None:
    """Wait for the watermark; TimeoutError when it does not come."""
    async with asyncio.timeout(timeout_s):
        while await watermark(lake) < number:
            await asyncio.sleep(0.05)


async def snapshots(lake: Lake, after: int, tag: str) -> list[Snapshot]:
    """The lake at its watermarks past `after`, evenly chosen, and as it is now; only tables of this history."""
    catalog = await asyncpg.connect(lake.catalog_dsn)
    try:
        rows = await catalog.fetch(_SNAPSHOTS.format(lake=lake.name), after)
        assert rows, "nothing was committed"
        step = -(-len(rows) // MOST_SNAPSHOTS)
        chosen = {row["snapshot_id"]: row["token"] for row in [*rows[::step], rows[-1]]}
        names = {
            snapshot: [
                row["table_name"]
                for row in await catalog.fetch(
                    _TABLES.format(lake=lake.name), snapshot, f"%\\_{tag}"
                )
            ]
            for snapshot in chosen
        }
    finally:
        await catalog.close()
    found = await asyncio.to_thread(_read, lake, chosen, names)
    return [*found, Snapshot(token=await watermark(lake), tables=found[-1].tables)]


def _read(lake: Lake, chosen: dict[int, int], names: dict[int, list[str]]) -> list[Snapshot]:
    connection = duckdb_engine.connect(threads=1)
    try:
        duckdb_engine.use_store(connection, lake.store)
        conninfo = lakesql.conninfo(read_secret(lake.reader_dir, "dsn"))
        attach = lakesql.attach_lake(
            conninfo, schema=lake.name, data_path=duckdb_engine.data_path(lake.store)
        )
        connection.execute(attach.replace("(DATA_PATH", "(READ_ONLY, DATA_PATH"))
        found = []
        for snapshot, token in chosen.items():
            tables = {}
            for name in names[snapshot]:
                query = f'SELECT * FROM lake."{name}" AT (VERSION => {snapshot})'
                tables[name] = _counted(connection.execute(query))
            found.append(Snapshot(token=token, tables=tables))
        return found
    finally:
        connection.close()


def _counted(result: Any) -> Counter[Row]:
    columns = [column[0] for column in result.description]
    return Counter(row_of(dict(zip(columns, row, strict=True))) for row in result.fetchall())


def told(answers: Sequence[Answer]) -> str:
    """A history for a person who looks for the fault."""
    return "\n".join(json.dumps(_plain(answer), default=str) for answer in answers)


def _plain(answer: Answer) -> dict[str, Any]:
    asked = answer.to
    what: Any = [asked.kind, dict(asked.said)] if isinstance(asked, Change) else None
    if isinstance(asked, Request):
        what = [[r.key, r.op, dict(r.payload)] for r in asked.records]
    return {
        "table": asked.table,
        "asked": what,
        "number": answer.number,
        "accepted": answer.accepted,
        "duplicates": answer.duplicates,
        "rejected": answer.rejected,
        "sure": answer.sure,
    }
