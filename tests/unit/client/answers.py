"""Answers as the service gives them."""

from __future__ import annotations

from typing import Any

import httpx
import pyarrow as pa


def accepted(rows: int = 1, **more: Any) -> httpx.Response:
    said = {
        "accepted_count": rows,
        "duplicate_count": 0,
        "rejected": [],
        "rejected_count": 0,
        "max_visibility_token": "v1_token",
        "visible_snapshot_id": None,
        "status": "accepted",
    }
    return httpx.Response(200, json=said | more)


def refused(status: int, code: str, *, retry_after: str = "", **more: Any) -> httpx.Response:
    retryable = more.pop("retryable", status in (429, 500, 503, 504))
    said = {"error_code": code, "message": "why", "retryable": retryable, "trace_id": "t" * 32}
    headers = {"Retry-After": retry_after} if retry_after else {}
    return httpx.Response(status, json=said | {"context": {}} | more, headers=headers)


def arrow_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def found(content: bytes | httpx.SyncByteStream, *, row_limit: int = 1_000_000) -> httpx.Response:
    headers = {
        "X-Duckmesh-Snapshot-Id": "7",
        "X-Duckmesh-Snapshot-Time": "2026-01-31T12:00:00Z",
        "X-Duckmesh-Watermark": "v1_seen",
        "X-Duckmesh-Lag-Ms": "0",
        "X-Duckmesh-Row-Limit": str(row_limit),
    }
    if isinstance(content, bytes):
        return httpx.Response(200, content=content, headers=headers)
    return httpx.Response(200, stream=content, headers=headers)


class Breaks(httpx.SyncByteStream, httpx.AsyncByteStream):
    """An answer that ends before its end."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __iter__(self) -> Any:
        yield self._content
        raise httpx.RemoteProtocolError("peer closed connection")

    async def __aiter__(self) -> Any:
        yield self._content
        raise httpx.RemoteProtocolError("peer closed connection")
