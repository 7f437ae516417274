"""Logs: one JSON object a line in production, plain text on a laptop. Called by `__main__` once; leaf module.

Code logs with `logging.getLogger(__name__)`: a fixed short event text, data as `extra={...}` keys.
"""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final

trace_id: ContextVar[str] = ContextVar("trace_id", default="")

_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {
    "message",
    "asctime",
    "taskName",
}


def configure(*, log_format: str, level: str, service: str, tenant: str) -> None:
    """Send all logs to standard error in the wanted form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter(service, tenant) if log_format == "json" else TextFormatter()
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: timestamp, level, service, tenant, event, trace_id and the record's own keys."""

    def __init__(self, service: str, tenant: str) -> None:
        super().__init__()
        self._base = {"service": service, "tenant": tenant}

    def format(self, record: logging.LogRecord) -> str:
        """Render the record; values that JSON lacks become their text."""
        line: dict[str, object] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(
                timespec="milliseconds"
            ),
            "level": record.levelname.lower(),
            **self._base,
            "logger": record.name,
            "event": record.getMessage(),
        }
        if found := trace_id.get():
            line["trace_id"] = found
        line.update(_extra(record))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=True)


class TextFormatter(logging.Formatter):
    """`12:00:01 info event key=value ... trace_id=...` for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Render the record on one line, a traceback below it."""
        stamp = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S")
        told = _extra(record)
        if found := trace_id.get():
            told.setdefault("trace_id", found)
        keys = " ".join(f"{k}={v!r}" for k, v in told.items())
        line = f"{stamp} {record.levelname.lower()} {record.getMessage()} {keys}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {k: v for k, v in record.__dict__.items() if k not in _STANDARD}
