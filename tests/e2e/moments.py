"""When this run of the tests began, and spans that say nothing about the operator's rights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final


def now() -> str:
    """The time as the audit log writes it; sorts as text."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


STARTED: Final = now()
_EXCUSED: Final[list[tuple[str, str]]] = []


@contextmanager
def other_roles() -> Iterator[None]:
    """While roles of another release are in place, operator and rights do not fit each other."""
    began = now()
    try:
        yield
    finally:
        _EXCUSED.append((began, now()))


def counts(moment: str) -> bool:
    """Whether what was asked at that time tells about the rights of this release."""
    return moment >= STARTED and not any(began <= moment <= ended for began, ended in _EXCUSED)
