"""One log line for each act of a lake's administrators: whose key, what, on what, how it ended. Used by the handlers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from aiohttp import web

from duckmesh_runtime.errors import DuckmeshError
from duckmesh_runtime.web.auth import Identity

logger = logging.getLogger(__name__)

IDENTITY: Final = web.RequestKey("identity", Identity)
"""Key of the caller in a request."""


@contextmanager
def audited(request: web.Request, action: str, target: str) -> Iterator[dict[str, object]]:
    """Write the line when the block ends; what is put into the dict is told too (numbers and names, no data)."""
    told: dict[str, object] = {}
    outcome = "INTERNAL"
    try:
        yield told
        outcome = "OK"
    except DuckmeshError as error:
        outcome = error.code
        raise
    finally:
        who = request[IDENTITY].id if IDENTITY in request else None
        fixed = {"key_id": who, "action": action, "target": target, "outcome": outcome}
        logger.info("admin action", extra={**told, **fixed})
