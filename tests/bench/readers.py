"""Who reads in the read-path scenarios: a query pod with a keep-alive caller, and DuckDB by itself on the same Parquet."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import duckdb
import pyarrow as pa

from duckmesh_runtime.adapters import duckdb_engine
from duckmesh_runtime.domain import lakesql
from duckmesh_runtime.settings import QueryLimits, read_secret
from tests.bench.bulk import ARROW
from tests.bench.stack import KEY
from tests.pods import Pod, Tenant
from tests.services import Lake

LIMITS = QueryLimits()
"""What a query pod has by default: slots, and memory of each."""

THREADS = 2
_READING = ("httpfs",)


class Caller:
    """One connection to a pod, kept alive."""

    def __init__(self, pod: Pod) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", pod.port, timeout=120)

    def rows(self, sql: str, *params: object) -> Any:
        """The rows of a JSON answer."""
        return json.loads(self._post(sql, params, "application/json"))["rows"]

    def answer(self, sql: str, *params: object) -> dict[str, Any]:
        """A JSON answer whole."""
        found: dict[str, Any] = json.loads(self._post(sql, params, "application/json"))
        return found

    def arrow(self, sql: str, *params: object) -> pa.Table:
        """An Arrow answer."""
        return pa.ipc.open_stream(self._post(sql, params, ARROW)).read_all()

    def close(self) -> None:
        self._connection.close()

    def _post(self, sql: str, params: Sequence[object], accept: str) -> bytes:
        headers = {
            "Authorization": f"Bearer {KEY}",
            "Content-Type": "application/json",
            "Accept": accept,
        }
        body = json.dumps({"sql": sql, "params": params, "timeout_ms": 30_000})
        self._connection.request("POST", "/v1/query", body, headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"a query failed: {content.decode()[:500]}")
        return content


@contextmanager
def calling(pod: Pod) -> Iterator[Caller]:
    caller = Caller(pod)
    try:
        yield caller
    finally:
        caller.close()


def query_pod(tenant: Tenant, *, warm: bool = True) -> tuple[Pod, Pod]:
    """Start the sandbox and the query process of a query pod, as many slots as by default.

    Args:
        tenant: Whose.
        warm: Wait until a first statement was answered.

    Returns:
        Query process and sandbox.
    """
    slots = str(LIMITS.concurrency)
    sandbox = tenant.start("sandbox", DUCKMESH_QUERY_CONCURRENCY=slots)
    pod = tenant.start("serve", "query", port=tenant.query_port, DUCKMESH_QUERY_CONCURRENCY=slots)
    pod.wait(pod.is_ready)
    if warm:
        pod.wait(lambda: pod.call("POST", "/v1/query", {"sql": "SELECT 1"})[0] == 200)
    return pod, sandbox


def files_of(lake: Lake, tables: Sequence[str]) -> dict[str, list[str]]:
    """The live data files of tables, as the catalog names them."""
    dsn = lakesql.conninfo(read_secret(lake.reader_dir, "dsn"))
    attach = lakesql.attach_lake(dsn, schema=lake.name, data_path=lake.store.url)
    connection = duckdb_engine.connect()
    try:
        duckdb_engine.use_store(connection, lake.store)
        connection.execute(attach[:-1] + ", READ_ONLY)")
        listing = "SELECT data_file FROM ducklake_list_files('lake', ?)"
        return {
            table: [name for (name,) in connection.execute(listing, [table]).fetchall()]
            for table in tables
        }
    finally:
        connection.close()


@contextmanager
def direct_reader(
    lake: Lake, files: Mapping[str, Sequence[str]], *, memory_bytes: int = LIMITS.memory_bytes
) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB in this process with a view a table over `read_parquet` of those files.

    It keeps what it read and, as the sandbox, does not ask whether a file has changed: the strongest form of the peer.
    """
    connection = duckdb_engine.connect(
        extensions=_READING, threads=THREADS, memory_bytes=memory_bytes
    )
    try:
        duckdb_engine.use_store(connection, lake.store)
        for setting in (
            "SET TimeZone = 'UTC'",
            "SET validate_external_file_cache = 'NO_VALIDATION'",
            "SET parquet_metadata_cache = true",
        ):
            connection.execute(setting)
        for table, names in files.items():
            listed = ", ".join(lakesql.quote_text(name) for name in names)
            connection.execute(
                f"CREATE VIEW {lakesql.quote_name(table)} AS FROM read_parquet([{listed}])"
            )
        yield connection
    finally:
        connection.close()


def milliseconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def in_turn(turns: int, *works: Callable[[int], object]) -> list[list[float]]:
    """Milliseconds of each kind of work, one call of each a turn: the machine's drift hits all. It gets the turn's number."""
    took = [[milliseconds(partial(work, turn)) for work in works] for turn in range(turns)]
    return [list(one) for one in zip(*took, strict=True)]
