"""A thread in which removing a file does nothing, promised to the kernel by itself (seccomp). Needs no privilege.

What wants to remove a file is told that it did. An error instead would reach callers who expect none and hide what they
had to say. https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Sequence
from typing import Final

# By machine: its name in linux/audit.h, and the numbers of unlink (not everywhere) and unlinkat.
_MACHINES: Final = {
    "x86_64": (0xC000003E, (87, 263)),
    "aarch64": (0xC00000B7, (35,)),
}

_GET_SECCOMP: Final = 21
_SECCOMP: Final = 22
_NO_NEW_PRIVS: Final = 38
_FILTER: Final = 2

# linux/filter.h: load a word of what is called, go on when it is equal, answer.
_LOAD: Final = 0x20
_EQUAL: Final = 0x15
_ANSWER: Final = 0x06
_NUMBER_AT: Final = 0
_MACHINE_AT: Final = 4
_ALLOW: Final = 0x7FFF0000
_DONE: Final = 0x00050000  # "error" 0: nothing is done, and the caller takes it for a success


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


_libc: Final = ctypes.CDLL(None, use_errno=True)


def supported() -> bool:
    """Whether this kind of machine is known, and its kernel has filters of system calls."""
    return platform.machine() in _MACHINES and _libc.prctl(_GET_SECCOMP, 0, 0, 0, 0) >= 0


def keep_files() -> None:
    """Take from the calling thread, for good, the power to remove files; it will not notice. Where it is `supported`.

    Raises:
        OSError: The kernel refuses: the thread is as it was.
    """
    steps = _steps(*_MACHINES[platform.machine()])
    program = _Program(len(steps), b"".join(steps))
    _control(_NO_NEW_PRIVS, 1, 0)
    _control(_SECCOMP, _FILTER, ctypes.byref(program))


def _control(option: int, *arguments: object) -> None:
    if _libc.prctl(option, *arguments, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, f"prctl {option}: {os.strerror(code)}")


def _steps(machine: int, calls: Sequence[int]) -> Sequence[bytes]:
    """The filter: everything is allowed but `calls` of this machine."""
    asks = [_step(_EQUAL, call, if_equal=len(calls) - place) for place, call in enumerate(calls)]
    return [
        _step(_LOAD, _MACHINE_AT),
        _step(_EQUAL, machine, otherwise=len(calls) + 1),
        _step(_LOAD, _NUMBER_AT),
        *asks,
        _step(_ANSWER, _ALLOW),
        _step(_ANSWER, _DONE),
    ]


def _step(code: int, value: int, *, if_equal: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_equal, otherwise, value)
