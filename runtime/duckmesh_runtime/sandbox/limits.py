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
# Stacks and arenas that threads map without using them (measured 2026-02: 10 MiB; 64 leaves room for a malloc arena).
_UNUSED_BYTES: Final = 64 * 2**20


def die_with_parent(parent: int) -> None:
    """Be killed when the supervisor ends, however it ends; exits at once when it has ended already."""
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_PDEATHSIG, signal.SIGKILL), (_PR_SET_NO_NEW_PRIVS, 1)):
        if libc.prctl(option, int(value), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl {option}")
    if os.getppid() != parent:
        os._exit(0)


def limit_process(memory_bytes: int) -> None:
    """Bound address space, open files and cores, and forbid writing files; cannot be undone by this process.

    Libraries map more than a gigabyte that they hardly use, so the bound is `memory_bytes` past what is mapped now:
    call it when the engine is warm.
    """
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    space = mapped + memory_bytes + _UNUSED_BYTES
    for what, value in (
        (resource.RLIMIT_AS, space),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
    ):
        hard = resource.getrlimit(what)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, value))
