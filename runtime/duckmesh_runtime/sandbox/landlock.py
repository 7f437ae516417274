"""Landlock: what a process may still open and connect to, promised to the kernel by the process itself.

It is the box around the engine that does not rest on the engine: files of a few folders may be read, one TCP port of
this machine may be connected to, nothing may be written, and no process outside may be signalled. Needs no privilege.
A kernel without Landlock leaves these bounds to the container (docs/architecture.md).
https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# The same numbers on every architecture.
_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_VERSION_FLAG: Final = 1
_RULE_PATH: Final = 1
_RULE_PORT: Final = 2

_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_CONNECT_TCP: Final = 1 << 1
# By version of the interface: all rights on files, on TCP, and on what lies outside of the process that it knows.
_FILE_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 4: 15}
_FILE_RIGHTS_NEWEST: Final = 16
_NET_FROM: Final = 4
_NET_RIGHTS: Final = 0b11
_SCOPE_FROM: Final = 6
_SCOPES: Final = 0b11

_libc: Final = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """Version of the kernel's interface; 0 when it has none or it is switched off."""
    found: int = _libc.syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)
    return max(0, found)


def confine(*, readable: Sequence[Path], port: int) -> int:
    """Bound the calling thread and all threads and processes it starts from now on, for good.

    Threads that run already stay free: call it before the engine starts its own, or let it start them anew.
    `no_new_privs` must be set before.

    Args:
        readable: Folders below which files may be read.
        port: The only TCP port that may be connected to (from version 4 on).

    Returns:
        The version of the interface; 0 means that nothing is bound.

    Raises:
        OSError: The kernel has Landlock and refuses.
    """
    found = version()
    if not found:
        return 0
    ruleset = _create(found)
    try:
        for folder in readable:
            _allow_reading(ruleset, folder)
        if found >= _NET_FROM:
            _call(_ADD_RULE, ruleset, _RULE_PORT, struct.pack("=QQ", _CONNECT_TCP, port), 0)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return found


def _create(found: int) -> int:
    rights = [(1 << _FILE_RIGHTS.get(found, _FILE_RIGHTS_NEWEST)) - 1]
    if found >= _NET_FROM:
        rights.append(_NET_RIGHTS)
    if found >= _SCOPE_FROM:
        rights.append(_SCOPES)
    attributes = struct.pack(f"={len(rights)}Q", *rights)
    return _call(_CREATE_RULESET, attributes, len(attributes), 0)


def _allow_reading(ruleset: int, folder: Path) -> None:
    handle = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", _READ_FILE | _READ_DIR, handle)
        _call(_ADD_RULE, ruleset, _RULE_PATH, rule, 0)
    finally:
        os.close(handle)


def _call(number: int, *arguments: int | bytes) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"landlock call {number}: {os.strerror(code)}")
    return result
