"""How a slot died, as the caller of its statement is told: for want of memory, or in another way."""

from __future__ import annotations

import contextlib
import re
import signal
from pathlib import Path
from typing import Final

from duckmesh_runtime.domain import wire
from duckmesh_runtime.sandbox.failures import MEMORY

_ROOT: Final = Path("/")
_COUNT: Final = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_MEMORY_GROUP: Final = re.compile(r"^\d+:(memory)?:/(.*)$", re.MULTILINE)
# What C++ and Python say with their last breath when an allocation fails where nobody can catch that.
_NO_MEMORY: Final = re.compile(r"bad_alloc|MemoryError|[Cc]annot allocate memory")


class OomKills:
    """The processes of this container that the kernel kills for want of memory, each told once.

    https://docs.kernel.org/admin-guide/cgroup-v2.html (memory.events), and memory.oom_control of version 1.

    Args:
        root: Of the file system.
    """

    def __init__(self, root: Path = _ROOT) -> None:
        self._root = root
        self._told = self._count()

    def one_more(self) -> bool:
        """Whether there was one that was not told yet; never when the kernel does not say."""
        if self._count() <= self._told:
            return False
        self._told += 1
        return True

    def _count(self) -> int:
        for file in _counters(self._root):
            with contextlib.suppress(OSError):
                if found := _COUNT.search(file.read_text()):
                    return int(found[1])
        return 0


def failure_of_death(status: int, words: str, kills: OomKills) -> wire.Failure:
    """The ERROR message for a slot that ended in the middle of a statement.

    Args:
        status: Of its process, negative for a signal.
        words: The end of what it wrote to its standard error.
        kills: Of the container.
    """
    if _NO_MEMORY.search(words) or (status == -signal.SIGKILL and kills.one_more()):
        return wire.Failure(code="QUERY_MEMORY", message=MEMORY)
    return wire.Failure(
        code="QUERY_CRASHED", message="the process that ran the query ended; it was replaced"
    )


def _counters(root: Path) -> list[Path]:
    """Where the counter may stand: in the process's own group, or in what a container sees as the top."""
    groups = ""
    with contextlib.suppress(OSError):
        groups = (root / "proc/self/cgroup").read_text()
    top = root / "sys/fs/cgroup"
    folders = [
        (top / "memory" if version_1 else top) / path
        for version_1, path in _MEMORY_GROUP.findall(groups)
    ]
    names = ("memory.events", "memory.oom_control")
    return [folder / name for folder in (*folders, top, top / "memory") for name in names]
