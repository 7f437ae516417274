"""What the kernel lets a slot do, set by the slot itself before it sees a statement."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_OPEN_FILES: Final = 256
CORES: Final = len(os.sched_getaffinity(0))
LEAST_BYTES: Final = 64 * 2**20
"""Room for statements in any slot, however little it may have: with less, not even DuckDB's buffers fit."""


def die_with_parent(parent: int) -> None:
    """Be killed when the supervisor ends, however it ends; exits at once when it has ended already."""
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_PDEATHSIG, signal.SIGKILL), (_PR_SET_NO_NEW_PRIVS, 1)):
        if libc.prctl(option, int(value), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl {option}")
    if os.getppid() != parent:
        os._exit(0)


def memory_of(process: int | str) -> tuple[int, int]:
    """Bytes that a process has mapped, and bytes that it holds for itself; its id, or `self`."""
    statm = Path(f"/proc/{process}/statm").read_text()
    mapped, resident, shared = (int(n) * resource.getpagesize() for n in statm.split()[:3])
    return mapped, resident - shared


def limit_process(memory_bytes: int) -> int:
    """Bound memory, open files and cores, and forbid writing files; cannot be undone by this process.

    Memory is bounded as address space, the only bound of one process that needs no privilege. Libraries map more than
    a gigabyte that they hardly use, so what is mapped now does not count, but what is used of it does: call it when
    the engine is warm.

    Args:
        memory_bytes: What the process may use in all, libraries' shared pages aside.

    Returns:
        What is left of it for statements.
    """
    mapped, own = memory_of("self")
    left = max(LEAST_BYTES, memory_bytes - own)
    for what, value in (
        (resource.RLIMIT_AS, mapped + left),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
    ):
        hard = resource.getrlimit(what)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (bound, bound))
    return left
