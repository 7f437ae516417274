"""Which small files a scan asks for next. Pure; used by `proxy`.

A cold scan asks for the files of its table one or two at a time, in the order of the catalog, and waits for the store each
time. Who asks for one after the other will ask for those behind as well; who jumps gets what was asked for only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

MOST_FILES: Final = 32
MOST_BYTES: Final = 4 * 2**20
"""What is fetched ahead of one file at most."""

_FIRST_FILES: Final = 4
_STEP: Final = 4
"""Some threads open files at once, and a filter may leave a few out."""

_MISSES: Final = 2
"""A busy lake has one new file in each catalog: no reason to look through all of them."""


@dataclass(slots=True)
class _Table:
    """The small files of a table in their order, and how far they were asked for and fetched (places, exclusive)."""

    files: list[tuple[str, int]] = field(default_factory=list)
    asked: int = -_STEP  # nowhere yet
    fetched: int = 0
    window: int = 0


class ReadAhead:
    """What to fetch, by what was asked for.

    Args:
        largest_bytes: Larger files are not for it.
    """

    def __init__(self, largest_bytes: int) -> None:
        self._largest_bytes = largest_bytes
        self._files: Mapping[str, int] = {}
        self._places: dict[str, tuple[_Table, int]] | None = None
        self._misses = 0

    def follow(self, files: Mapping[str, int]) -> None:
        """From now on scans are of this catalog: path -> size in bytes."""
        self._files, self._places, self._misses = files, None, 0

    def asked(self, path: str, *, missed: bool) -> Sequence[tuple[str, int]]:
        """Path and size of the files to fetch now that this one was asked for.

        Args:
            path: A small file.
            missed: It was not there.
        """
        if self._places is None:
            self._misses += missed
            if self._misses < _MISSES:
                return ()
            self._places = self._sorted()
        found = self._places.get(path)
        return () if found is None else _next(*found)

    def _sorted(self) -> dict[str, tuple[_Table, int]]:
        tables: dict[str, _Table] = {}
        places = {}
        for path, size in self._files.items():
            if size <= self._largest_bytes:
                table = tables.setdefault("/".join(path.split("/", 2)[:2]), _Table())
                places[path] = table, len(table.files)
                table.files.append((path, size))
        return places


def _next(table: _Table, place: int) -> Sequence[tuple[str, int]]:
    behind = place + 1 - table.asked
    if -_STEP < behind <= 0:  # another thread was faster
        return ()
    table.asked = place + 1
    if not 0 < behind <= _STEP:
        table.fetched, table.window = place + 1, 0
        return ()
    if table.fetched - place > table.window // 2 > 0:
        return ()
    table.window = min(max(_FIRST_FILES, 2 * table.window), MOST_FILES)
    start = max(table.fetched, place + 1)
    table.fetched = start
    left = MOST_BYTES
    for _, size in table.files[start : place + 1 + table.window]:
        left -= size
        if left < 0:
            break
        table.fetched += 1
    return table.files[start : table.fetched]
