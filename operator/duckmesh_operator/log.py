"""Logs: one JSON object a line in production, plain text on a laptop. Called by `__main__` once; leaf module.

Code logs with `logging.getLogger(__name__)`: a fixed short event text, data as `extra={...}` keys.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final

_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {
    *("message", "asctime", "taskName"),
    *("settings", "k8s_skip", "k8s_ref"),  # what kopf hangs on its own records
}

_about: ContextVar[Mapping[str, object] | None] = ContextVar("about", default=None)


@contextmanager
def about(**keys: object) -> Iterator[None]:
    """Put keys into every line of this block, such as the Tenant that it works on."""
    mark = _about.set(keys)
    try:
        yield
    finally:
        _about.reset(mark)


def note(**keys: object) -> None:
    """Put further keys into the lines of the rest of the block."""
    _about.set({**(_about.get() or {}), **keys})


def configure(*, log_format: str, level: str) -> None:
    """Send all logs to standard error in the wanted form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # kopf tells of each event it passes on; that is our queue's to tell.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: timestamp, level, service, event and the record's own keys."""

    def format(self, record: logging.LogRecord) -> str:
        """Render the record; values that JSON lacks become their text."""
        line: dict[str, object] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(
                timespec="milliseconds"
            ),
            "level": record.levelname.lower(),
            "service": "operator",
            "logger": record.name,
            "event": record.getMessage(),
        }
        line.update(_extra(record))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=True)


class TextFormatter(logging.Formatter):
    """`12:00:01 info event key=value ...` for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Render the record on one line, a traceback below it."""
        stamp = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S")
        keys = " ".join(f"{key}={value!r}" for key, value in _extra(record).items())
        line = f"{stamp} {record.levelname.lower()} {record.getMessage()} {keys}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _extra(record: logging.LogRecord) -> dict[str, object]:
    own = {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
    return {**(_about.get() or {}), **own}
