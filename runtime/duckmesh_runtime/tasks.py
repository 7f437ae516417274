"""How a task in the background ends. Leaf module."""

from __future__ import annotations

import asyncio
from typing import Final

AGAIN_S: Final = 5.0
"""More than what a task takes to tidy up."""


async def end(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end.

    More than once: when what it tidies up fails, say the ROLLBACK on a connection that broke, that error takes the place
    of the cancellation, and a loop which survives errors goes on.

    Raises:
        Exception: What it ended with, if not by cancellation.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=AGAIN_S)
    if not task.cancelled():
        task.result()
