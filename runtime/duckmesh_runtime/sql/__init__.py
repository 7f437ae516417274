"""The migrations of a catalog database: `catalog/NNNN_name.sql`, in order, forward only, never edited once landed.

`adapters/migrate.py` applies them; this module only reads the files and compares.
The operator runs a migrate Job when a lake's recorded number is below its own copy of `MIGRATION`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

from duckmesh_runtime.errors import Corrupt

MIGRATION: Final[int] = 10
"""Number of the newest migration; a test holds it to the files."""

_NAME: Final = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One file.

    Attributes:
        number: Its place in the order, from 1, without gaps.
        name: File name.
        checksum: SHA-256 of its text, hex.
        text: SQL, run in one transaction.
    """

    number: int
    name: str
    checksum: str
    text: str


@cache
def migrations() -> Sequence[Migration]:
    """All migrations in order."""
    found = [_read(file.name, file.read_text("utf-8")) for file in _sql_files()]
    return tuple(sorted(found, key=lambda each: each.number))


def pending(applied: Mapping[int, str]) -> Sequence[Migration]:
    """What is to be applied on a database that has `applied` (number -> checksum).

    Numbers above ours are a newer release's and stay: two releases may run side by side.

    Raises:
        Corrupt: INTEGRITY_CHECK_FAILED when a file that was applied has been edited since.
    """
    for each in migrations():
        if applied.get(each.number, each.checksum) != each.checksum:
            raise Corrupt(
                "INTEGRITY_CHECK_FAILED",
                f"migration {each.name} differs from the one applied to this database: "
                "undo the edit and put the change into a new migration",
            )
    return tuple(each for each in migrations() if each.number not in applied)


def _sql_files() -> Sequence[Traversable]:
    folder = files(__package__).joinpath("catalog")
    return [each for each in folder.iterdir() if each.name.endswith(".sql")]


def _read(name: str, text: str) -> Migration:
    match = _NAME.fullmatch(name)
    if match is None:
        raise RuntimeError(f"{name} is not named NNNN_what.sql")
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return Migration(number=int(match[1]), name=name, checksum=checksum, text=text)
