"""A slot whose engine does not lock itself, for tests of the kernel's box: `python -m tests.open_slot`."""

from __future__ import annotations

import os

from duckmesh_runtime.sandbox import engine, slot


class OpenEngine(engine.Engine):
    """No setting is made, nothing is forbidden; only the kernel's bounds remain."""

    def _lock(self, data_url: str) -> None:
        if not self._locked:
            self._confine(data_url)
            self._root.execute("SET allow_persistent_secrets = false")
            self._root.execute("FROM duckdb_secrets()")
            self._locked = True


if __name__ == "__main__":
    os.chdir("/")
    slot.Engine = OpenEngine  # type: ignore[misc]  # the one thing that differs
    slot.main()
