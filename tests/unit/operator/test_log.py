from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable

import pytest

from duckmesh_operator import log
from duckmesh_operator.errors import Invalid, Unavailable
from duckmesh_operator.queue import Key, Queue

KEY = Key("Tenant", "team", "acme")


def line_of(record: logging.LogRecord) -> dict[str, object]:
    line: dict[str, object] = json.loads(log.JsonFormatter().format(record))
    return line


@pytest.mark.parametrize(
    ("failure", "event"),
    [
        (lambda: Invalid(["no"]), "reconcile refused"),
        (lambda: Unavailable("away"), "reconcile failed"),
        (lambda: RuntimeError("planted"), "reconcile crashed"),
    ],
)
async def test_a_line_names_tenant_and_generation_of_the_reconcile(
    failure: Callable[[], Exception], event: str
) -> None:
    lines: list[dict[str, object]] = []
    worked = asyncio.Event()

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(line_of(record))
            worked.set()

    async def work(key: Key) -> float | None:
        log.note(generation=7)
        raise failure()

    queue = Queue(work, workers=1, clock=asyncio.get_running_loop().time)
    keep, logger = Keep(), logging.getLogger("duckmesh_operator.queue")
    logger.addHandler(keep)
    running = asyncio.create_task(queue.run())
    try:
        queue.add(KEY)
        await asyncio.wait_for(worked.wait(), 10)
    finally:
        running.cancel()
        await asyncio.wait([running])
        logger.removeHandler(keep)

    line = lines[0]
    assert (line["event"], line["service"]) == (event, "operator")
    assert (line["kind"], line["tenant"], line["generation"]) == ("Tenant", "team/acme", 7)


def test_a_line_outside_of_a_reconcile_names_neither() -> None:
    with log.about(tenant="team/acme"):
        log.note(generation=7)

    line = line_of(logging.LogRecord("a", logging.INFO, "f.py", 1, "it happened", (), None))

    assert not {"tenant", "generation"} & line.keys()


def test_a_lines_own_key_wins_and_text_has_them_too() -> None:
    record = logging.LogRecord("a", logging.INFO, "f.py", 1, "it happened", (), None)
    record.tenant = "team/other"
    with log.about(tenant="team/acme", generation=3):
        assert line_of(record)["tenant"] == "team/other"
        assert log.TextFormatter().format(record).endswith("tenant='team/other' generation=3")
