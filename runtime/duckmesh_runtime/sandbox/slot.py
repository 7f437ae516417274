"""A slot: the process that runs one tenant statement at a time and may be killed at any moment.

Started by the supervisor with one socket and an empty environment. It holds nothing worth stealing: no credential, no
open file but that socket, frozen catalogs and the read proxy's data.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import queue
import socket
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa

from duckmesh_runtime.domain import wire
from duckmesh_runtime.domain.wire import Kind
from duckmesh_runtime.errors import Failed, Invalid
from duckmesh_runtime.sandbox.engine import Engine, Result
from duckmesh_runtime.sandbox.failures import failure_of
from duckmesh_runtime.sandbox.limits import die_with_parent, limit_process

logger = logging.getLogger(__name__)


class Slot:
    """The talk with the supervisor: jobs in, frames out.

    Args:
        channel: Connected stream socket.
        engine: Runs the statements.
    """

    def __init__(self, channel: socket.socket, engine: Engine) -> None:
        self._channel = channel
        self._engine = engine
        self._jobs: queue.SimpleQueue[wire.Job] = queue.SimpleQueue()
        self._stopped = threading.Event()

    def run(self) -> None:
        """Serve until a statement leaves the process in doubt; the supervisor's end of the socket ends it too."""
        threading.Thread(target=self._listen, daemon=True, name="control").start()
        self._send(wire.encode(Kind.READY))
        while self._answer(self._jobs.get()):
            pass

    def _answer(self, job: wire.Job) -> bool:
        """Run a statement; False when the process should not run another."""
        try:
            self._send(wire.encode_message(Kind.END, self._run(job)))
        except ConnectionError:
            return False
        except Exception as error:  # whatever a statement does, its caller gets an answer
            failure = failure_of(error)
            if failure.code == "INTERNAL":
                logger.exception("statement failed in an unknown way")
            self._send(wire.encode_message(Kind.ERROR, failure))
            return not failure.doubtful
        finally:
            self._engine.finish()
        return True

    def _run(self, job: wire.Job) -> wire.End:
        started = time.monotonic()
        result = self._engine.start(job)
        self._send(wire.encode_message(Kind.HEAD, wire.Head(type_names=result.type_names)))
        self._send(wire.encode_schema(result.schema))
        rows, truncated = self._send_rows(result, job.row_limit)
        files, size = (0, 0) if truncated else self._engine.scanned()
        return wire.End(
            duration_ms=round((time.monotonic() - started) * 1000),
            rows=rows,
            truncated=truncated,
            scanned_files=files,
            scanned_bytes=size,
        )

    def _send_rows(self, result: Result, limit: int) -> tuple[int, bool]:
        """Send at most `limit` rows; returns how many, and whether there were more."""
        rows = 0
        for batch in result.batches:
            if self._stopped.is_set():
                raise Failed("QUERY_TIMEOUT", "the query was stopped")
            part = batch.slice(0, limit - rows)
            rows += part.num_rows
            if part.num_rows:
                self._send(*_frames(part))
            if part.num_rows < batch.num_rows:
                return rows, True
        return rows, False

    def _send(self, *frames: bytes) -> None:
        for frame in frames:
            self._channel.sendall(frame)

    def _listen(self) -> None:
        """Take jobs and stops; the control thread."""
        with contextlib.suppress(OSError, wire.WireError):
            while True:
                kind, size = wire.parse_header(self._receive(wire.HEADER_BYTES))
                body = self._receive(size)
                if kind is Kind.JOB:
                    self._stopped.clear()
                    self._jobs.put(wire.decode(body, wire.Job))
                elif kind is Kind.CANCEL:
                    self._stopped.set()
                    self._engine.interrupt()
        os._exit(0)  # the main thread may be deep in DuckDB

    def _receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self._channel.recv(size - len(data))
            if not part:
                raise ConnectionResetError("the supervisor is gone")
            data += part
        return bytes(data)


def _frames(batch: pa.RecordBatch) -> list[bytes]:
    try:
        return wire.encode_rows(batch)
    except wire.WireError:
        limit = wire.MAX_BODY_BYTES
        raise Invalid(
            "RESULT_TOO_LARGE", f"one row of the result is larger than {limit} bytes: select less"
        ) from None


def main() -> int:
    """Start as the supervisor says; returns the exit code."""
    options = argparse.ArgumentParser()
    options.add_argument("--socket", type=int, required=True, help="inherited file descriptor")
    options.add_argument("--parent", type=int, required=True, help="process id of the supervisor")
    options.add_argument("--catalog-dir", type=Path, required=True)
    options.add_argument("--memory-bytes", type=int, required=True)
    options.add_argument("--ungated", action="store_true", help="tests of the lock only")
    arguments = options.parse_args()
    die_with_parent(arguments.parent)
    engine = Engine(catalog_dir=arguments.catalog_dir, gated=not arguments.ungated)
    engine.bound(limit_process(arguments.memory_bytes))
    with socket.socket(fileno=arguments.socket) as channel:
        Slot(channel, engine).run()
    sys.stderr.flush()
    os._exit(0)  # nothing to save, and a wedged engine must not hold the process


if __name__ == "__main__":
    main()
