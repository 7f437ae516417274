"""Whether a lake's files are what its catalog says: what is compared with what, and how it is told. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from duckmesh_runtime.domain.parquet_pages import BrokenFile, footer_rows

LONGEST_MESSAGE: Final = 500
LONGEST_FOOTER: Final = 64 * 2**20
"""Of a file that claims a longer one the footer counts as broken."""

_TRAILER: Final = 8
_MAGIC: Final = b"PAR1"
_MOST_TABLES: Final = 5


class Mode(StrEnum):
    """How much is looked at."""

    CHEAP = "cheap"  # presence and size by a listing, row counts by the catalog
    DEEP = "deep"  # and the footer of each Parquet file


class Fault(StrEnum):
    """What is wrong with a file."""

    MISSING = "missing"
    SIZE = "size"  # it has not the recorded size
    FOOTER = "footer"  # its footer cannot be read
    ROWS = "rows"  # its footer counts other rows than the catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class LakeFile:
    """A file that the catalog names.

    Attributes:
        path: Relative to the lake's data path, or absolute.
        size: Recorded bytes.
        rows: Recorded rows; of a delete file how many it names.
        footer: Recorded bytes of its footer; None when the catalog does not say.
        parquet: Whether it is one.
    """

    path: str
    size: int
    rows: int
    footer: int | None
    parquet: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """What a faulty file takes with it.

    Attributes:
        path: The file.
        table: Whose rows.
        rows: That cannot be read without it.
        snapshots: That are kept and read it.
        live: Whether the newest is one of them.
    """

    path: str
    table: str
    rows: int
    snapshots: int
    live: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A table of which the catalog counts other rows than were committed; None: it is unknown there."""

    table: str
    catalog: int | None
    ledger: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegrityReport:
    """What a check found.

    Attributes:
        checked_at: Database time at its end.
        mode: How much was looked at.
        files: Data and delete files that kept snapshots name.
        faults: Of them, by path; what each takes with it is in `hits`.
        hits: In the order of the paths.
        differences: Tables whose rows do not add up.
    """

    checked_at: datetime
    mode: Mode
    files: int
    faults: Mapping[str, Fault]
    hits: Sequence[Hit] = ()
    differences: Sequence[Difference] = ()

    @property
    def is_healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults and not self.differences

    @property
    def state(self) -> str:
        """`Healthy` or `Damaged`."""
        return "Healthy" if self.is_healthy else "Damaged"

    @property
    def missing(self) -> int:
        """Files that are not there."""
        return sum(fault is Fault.MISSING for fault in self.faults.values())

    @property
    def damaged(self) -> int:
        """Files that are there and not what the catalog says."""
        return len(self.faults) - self.missing

    @property
    def message(self) -> str:
        """Which tables, how many files, rows and snapshots; at most `LONGEST_MESSAGE` characters."""
        if self.is_healthy:
            return f"{self.files} files are as the catalog says"
        parts = [*_tables_hit(self.hits, self.faults), *map(_differs, self.differences)]
        shown = parts[:_MOST_TABLES]
        if len(parts) > len(shown):
            shown.append(f"and {len(parts) - len(shown)} more")
        return "; ".join(shown)[:LONGEST_MESSAGE]

    def to_json(self) -> dict[str, object]:
        """As the catalog keeps it (migration 0009)."""
        return {
            "checkedAt": self.checked_at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            "mode": self.mode.value,
            "state": self.state,
            "files": self.files,
            "missing": self.missing,
            "damaged": self.damaged,
            "message": self.message,
        }


def footer_length(tail: bytes) -> int:
    """Bytes of the footer by a file's last 8 bytes.

    Raises:
        BrokenFile: They are no end of a Parquet file.
    """
    length = int.from_bytes(tail[-_TRAILER:-4], "little")
    if len(tail) < _TRAILER or tail[-4:] != _MAGIC or not 0 < length <= LONGEST_FOOTER:
        raise BrokenFile
    return length


def judge_footer(file: LakeFile, tail: bytes) -> Fault | None:
    """What the end of a file says against it.

    Args:
        file: As the catalog has it.
        tail: Its last bytes, footer and trailer whole.
    """
    try:
        rows = footer_rows(tail[-(footer_length(tail) + _TRAILER) : -_TRAILER])
    except (BrokenFile, RecursionError):
        return Fault.FOOTER
    return None if rows == file.rows else Fault.ROWS


def _tables_hit(hits: Iterable[Hit], faults: Mapping[str, Fault]) -> Sequence[str]:
    """One text a table, the one with most rows first."""
    by_table: dict[str, list[Hit]] = {}
    for hit in hits:
        by_table.setdefault(hit.table, []).append(hit)
    most_first = sorted(by_table.items(), key=lambda each: (-_rows(each[1]), each[0]))
    return [_table_hit(table, found, faults) for table, found in most_first]


def _table_hit(table: str, hits: Sequence[Hit], faults: Mapping[str, Fault]) -> str:
    missing = sum(faults[hit.path] is Fault.MISSING for hit in hits)
    damaged = len(hits) - missing
    counts = [f"{missing} missing"] * bool(missing) + [f"{damaged} damaged"] * bool(damaged)
    live = "" if any(hit.live for hit in hits) else ", none of them the newest"
    return (
        f"table {table}: {' and '.join(counts)} of its files, with {_rows(hits)} rows, "
        f"in {max(hit.snapshots for hit in hits)} or more snapshots{live}"
    )


def _rows(hits: Iterable[Hit]) -> int:
    return sum(hit.rows for hit in hits)


def _differs(each: Difference) -> str:
    if each.ledger is None:
        return f"table {each.table}: the catalog has it, but no commit made it"
    if each.catalog is None:
        return f"table {each.table}: the catalog does not have it, but {each.ledger} rows were committed"
    return (
        f"table {each.table}: the catalog counts {each.catalog} rows, {each.ledger} were committed"
    )
