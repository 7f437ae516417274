"""A slot without any wall, which shows that the tests of the walls see what gets through: `python -m tests.bare_slot`."""

from __future__ import annotations

import os

from duckmesh_runtime.sandbox import slot
from tests.open_slot import OpenEngine


class BareEngine(OpenEngine):
    """Neither locked nor in the kernel's box."""

    def _confine(self, data_url: str) -> None:
        pass


if __name__ == "__main__":
    os.chdir("/")
    slot.Engine = BareEngine  # type: ignore[misc]  # the one thing that differs
    slot.main()
