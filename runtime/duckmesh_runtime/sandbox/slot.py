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
from typing import NamedTuple

import pyarrow as pa

from duckmesh_runtime.domain import wire
from duckmesh_runtime.domain.wire import Kind
from duckmesh_runtime.errors import Failed, Invalid
from duckmesh_runtime.sandbox.engine import Engine, Result
from duckmesh_runtime.sandbox.failures import failure_of
from duckmesh_runtime.sandbox.limits import die_with_parent, limit_process

logger = logging.getLogger(__name__)


class _Asked(NamedTuple):
    """A statement, and the socket for its rows."""

    job: wire.Job
    rows: socket.socket


class Slot:
    """The talk with the supervisor: jobs in, frames out.

    Args:
        channel: Connected stream socket.
        engine: Runs the statements.
    """

    def __init__(self, channel: socket.socket, engine: Engine) -> None:
        self._channel = channel
        self._engine = engine
        self._orders: queue.SimpleQueue[_Asked | wire.Prepare] = queue.SimpleQueue()
        self._rows: socket.socket | None = None  # of the last statement
        self._stopped = threading.Event()

    def run(self) -> None:
        """Serve until a statement leaves the process in doubt; the supervisor's end of the socket ends it too."""
        threading.Thread(target=self._listen, daemon=True, name="control").start()
        self._send(wire.encode(Kind.READY))
        while self._obey(self._orders.get()):
            self._engine.make_ready()

    def _obey(self, order: _Asked | wire.Prepare) -> bool:
        return self._prepare(order) if isinstance(order, wire.Prepare) else self._answer(order)

    def _prepare(self, order: wire.Prepare) -> bool:
        """Attach a catalog; False when the process should not run a statement."""
        try:
            self._engine.prepare(order)
        except Exception as error:  # its caller gets an answer
            failure = failure_of(error, "")
            self._send(wire.encode_message(Kind.ERROR, failure))
            return not failure.doubtful
        self._send(wire.encode(Kind.READY))
        return True

    def _answer(self, asked: _Asked) -> bool:
        """Run a statement; False when the process should not run another."""
        ended = False
        try:
            with asked.rows:  # closed before its end is told
                end = self._run(asked.job, asked.rows)
            self._send(wire.encode_message(Kind.END, end))
            ended = not end.truncated
        except ConnectionError:
            return False
        except Exception as error:  # whatever a statement does, its caller gets an answer
            failure = failure_of(error, asked.job.sql)
            if failure.code == "INTERNAL":
                logger.exception("statement failed in an unknown way")
            self._send(wire.encode_message(Kind.ERROR, failure))
            return not failure.doubtful
        finally:
            self._engine.finish(ended=ended)
        return True

    def _run(self, job: wire.Job, channel: socket.socket) -> wire.End:
        started = time.monotonic()
        result = self._engine.start(job)
        head = wire.encode_message(Kind.HEAD, wire.Head(type_names=result.type_names))
        _send_rows(channel, head + wire.encode_schema(result.schema))
        rows, truncated = self._send_result(channel, result, job.row_limit)
        files, size = (0, 0) if truncated else self._engine.scanned()
        return wire.End(
            duration_ms=round((time.monotonic() - started) * 1000),
            rows=rows,
            truncated=truncated,
            scanned_files=files,
            scanned_bytes=size,
        )

    def _send_result(self, channel: socket.socket, result: Result, limit: int) -> tuple[int, bool]:
        """Send at most `limit` rows; returns how many, and whether there were more."""
        rows = 0
        for batch in result.batches:
            if self._stopped.is_set():
                raise _stopped()
            part = batch.slice(0, limit - rows)
            rows += part.num_rows
            if part.num_rows:
                _send_rows(channel, *_frames(part))
            if part.num_rows < batch.num_rows:
                return rows, True
        return rows, False

    def _send(self, frame: bytes) -> None:
        self._channel.sendall(frame)

    def _listen(self) -> None:
        """Take jobs and stops; the control thread."""
        with contextlib.suppress(OSError, wire.WireError):
            while True:
                header, handed = self._receive_header()
                kind, size = wire.parse_header(header)
                body = self._receive(size)
                if kind is Kind.JOB:
                    self._stopped.clear()
                    (self._rows,) = handed
                    self._orders.put(_Asked(wire.decode(body, wire.Job), self._rows))
                elif kind is Kind.PREPARE:
                    self._orders.put(wire.decode(body, wire.Prepare))
                elif kind is Kind.CANCEL:
                    self._stop()
        os._exit(0)  # the main thread may be deep in DuckDB

    def _stop(self) -> None:
        """Stop the statement, in the engine or where it waits for a client that does not read."""
        self._stopped.set()
        self._engine.interrupt()
        if self._rows is not None:
            with contextlib.suppress(OSError):
                self._rows.shutdown(socket.SHUT_RDWR)

    def _receive_header(self) -> tuple[bytes, list[socket.socket]]:
        """The next header, and the sockets that came with it."""
        begun, handles, _, _ = socket.recv_fds(self._channel, wire.HEADER_BYTES, 1)
        if not begun:
            raise ConnectionResetError("the supervisor is gone")
        handed = [socket.socket(fileno=handle) for handle in handles]
        return begun + self._receive(wire.HEADER_BYTES - len(begun)), handed

    def _receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self._channel.recv(size - len(data))
            if not part:
                raise ConnectionResetError("the supervisor is gone")
            data += part
        return bytes(data)


def _send_rows(channel: socket.socket, *frames: bytes) -> None:
    try:
        for frame in frames:
            channel.sendall(frame)
    except OSError:  # the client is gone, or `_stop` came: the supervisor's connection is well
        raise _stopped() from None


def _stopped() -> Failed:
    return Failed("QUERY_TIMEOUT", "the query was stopped")


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
    options.add_argument("--checked", action="store_true", help="the extensions' signatures")
    options.add_argument("--ungated", action="store_true", help="tests of the lock only")
    arguments = options.parse_args()
    die_with_parent(arguments.parent)
    # Where it is installed, DuckDB imports it with the first parameter: 0.2 s and 30 MB that no statement needs.
    sys.modules["pandas"] = None  # type: ignore[assignment]  # what Python calls a module that cannot be imported
    engine = Engine(
        catalog_dir=arguments.catalog_dir,
        gated=not arguments.ungated,
        checked=arguments.checked,
    )
    engine.bound(limit_process(arguments.memory_bytes))
    with socket.socket(fileno=arguments.socket) as channel:
        Slot(channel, engine).run()
    sys.stderr.flush()
    os._exit(0)  # nothing to save, and a wedged engine must not hold the process


if __name__ == "__main__":
    main()
