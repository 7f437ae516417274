"""Notices when the platform replaces a Secret that is mounted into the operator, so that Tenants follow at once.

Kubernetes replaces the files of a mounted Secret under the running process and tells nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final

from duckmesh_operator.errors import OperatorError

logger = logging.getLogger(__name__)

LOOK_S: Final = 5.0


class SecretWatch:
    """Looks at folders of mounted Secrets.

    Args:
        folders: Folder and the values in it, by what is told of a change.
        changed: Told of each folder that changed. When it raises, it is told again at the next look.
        look_s: Seconds between two looks.
    """

    def __init__(
        self,
        folders: Mapping[tuple[str, str], tuple[Path, tuple[str, ...]]],
        changed: Callable[[str, str], Awaitable[None]],
        *,
        look_s: float = LOOK_S,
    ) -> None:
        self._folders = folders
        self._changed = changed
        self._look_s = look_s
        self._seen = {key: _mark(*place) for key, place in folders.items()}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(self._look_s)
            await self.look()

    async def look(self) -> None:
        """Look at all folders once."""
        for key, place in self._folders.items():
            mark = _mark(*place)
            if mark == self._seen[key]:
                continue
            part, name = key
            try:
                await self._changed(part, name)
            except OperatorError as error:
                logger.info("rotation not told yet", extra={part: name, "error": str(error)})
                continue
            logger.info("secret replaced", extra={part: name})
            self._seen[key] = mark


def _mark(folder: Path, names: tuple[str, ...]) -> str:
    """Changes with the values and tells none of them."""
    found = sha256()
    for name in names:
        try:
            found.update(sha256((folder / name).read_bytes()).digest())
        except OSError:
            found.update(b"missing")
    return found.hexdigest()
