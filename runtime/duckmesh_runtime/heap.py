"""Memory that a process frees stays with it for the next use. Leaf; for processes through which answers are copied."""

from __future__ import annotations

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_KEPT_BYTES: Final = 16 * 2**20
_LARGEST_BYTES: Final = 8 * 2**20


def keep_freed() -> None:
    """Keep up to 16 MiB that were freed, in place of giving them back: a page of new memory costs a fault of its own.

    Answers come in buffers of some hundred kilobytes, which malloc would map and unmap one by one. Where the C library
    is not glibc, nothing changes. https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BYTES)
