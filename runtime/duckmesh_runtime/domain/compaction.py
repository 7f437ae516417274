"""What there is to compact in a lake, and which slice of it comes first. Pure.

Files of one size class of a table are merged with each other, so that a row is written once per class and not once per
merge. A slice is one transaction: bounded in bytes and in files, since its memory and its time grow with both. The
engine takes the oldest files of any group it finds; what bounds a slice therefore holds for each group of the class.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

TARGET_BYTES: Final = 128 * 2**20
TIERS: Final = (1 * 2**20, 16 * 2**20)
DELETED_RATIO: Final = 0.2
"""Share of deleted rows from which a file is worth rewriting."""

_COMMIT_COSTS: Final = 256 * 2**10
"""A slice without a byte costs about as much as this many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Live files of a table that can become one: of one size class, partition and schema, without deleted rows.

    Attributes:
        table: Its name.
        tier: The size class: place of the first limit that is above their sizes.
        files: How many, two at least.
        size: Their bytes.
        head: How many of the oldest make a slice.
        head_size: The bytes of these.
    """

    table: str
    tier: int
    files: int
    size: int
    head: int
    head_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Holed:
    """Live files of a table with the same share of deleted rows, all of them small enough for the lowest class or none.

    Attributes:
        table: Name of their table.
        files: How many.
        size: Their bytes.
        rows: With the deleted ones.
        deleted: Deleted rows.
    """

    table: str
    files: int = 1
    size: int
    rows: int
    deleted: int

    @property
    def ratio(self) -> float:
        """Share of its rows that are deleted."""
        return self.deleted / self.rows if self.rows else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TableTotals:
    """A table's live files in all."""

    table: str
    files: int
    rows: int
    deleted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LakeFiles:
    """The live files of a lake, as far as compaction needs to know.

    Attributes:
        tables: Each table with files.
        groups: What can be merged.
        holed: The files with deleted rows, those with the largest share first: all of a table down to some share.
        held: Whether compaction has to wait: a restore is under way, which it would undo again and again.
    """

    tables: Sequence[TableTotals] = ()
    groups: Sequence[Group] = ()
    holed: Sequence[Holed] = ()
    held: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How far compaction goes.

    Attributes:
        limits: Sizes in bytes, ascending: below each is a class, and what is not below the last is finished.
        highest: The last class that is merged; None for all. Debt is of all classes.
        files: Most input files of a slice.
        size: Most input bytes of a slice, but that one merge may reach past it by a file.
        saves: Files that a slice must save at least.
        deleted_ratio: Share of deleted rows from which a file is rewritten.
        past: Most files that are rewritten at once though they are past `size` or `files`, for DuckLake tells files apart by
            their share of deleted rows only; None for any number. What may not be done is left for those who may take longer.
    """

    limits: tuple[int, ...] = (*TIERS, TARGET_BYTES)
    highest: int | None = None
    files: int = 256
    size: int = TARGET_BYTES
    saves: int = 1
    deleted_ratio: float = DELETED_RATIO
    past: int | None = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """A slice: merge the oldest files of a class.

    Attributes:
        table: Its name.
        at_least: Smallest size of a file.
        below: Sizes are below it.
        up_to: Bytes at which a merged file takes no further one.
        outputs: Most files to make.
        files: Input files, about.
        size: Input bytes, about.
    """

    table: str
    at_least: int
    below: int
    up_to: int
    outputs: int
    files: int
    size: int

    @property
    def saves(self) -> int:
        """Files fewer afterwards, about."""
        return self.files - self.outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """A slice: write files again without their deleted rows, into one per partition.

    Attributes:
        table: Its name.
        ratio: Share of deleted rows from which a file is taken.
        files: Input files.
        size: Input bytes.
        saves: Files that are fewer afterwards or have no deleted rows any more.
    """

    table: str
    ratio: float
    files: int
    size: int
    saves: int


Slice = Merge | Rewrite


@dataclass(frozen=True, slots=True, kw_only=True)
class Debt:
    """What compaction would do if it went all the way.

    Attributes:
        files: Files that it would save.
        size: Bytes that it would read.
        most_files: Live files of the table with most.
        deleted_ratio: Share of deleted rows in the table where it is largest.
    """

    files: int = 0
    size: int = 0
    most_files: int = 0
    deleted_ratio: float = 0.0


def next_slice(found: LakeFiles, bounds: Bounds, *, but: Iterable[Slice] = ()) -> Slice | None:
    """The most useful slice: the one that saves most files for what it reads.

    Args:
        found: Of the lake; its groups are of `bounds`.
        bounds: How far to go.
        but: Slices that came to nothing: their tables' classes, or rewrites, are left out.
    """
    if found.held:
        return None
    left_out = list(but)
    slices = [
        each
        for each in _slices(found, bounds)
        if not any(same_place(each, other) for other in left_out)
    ]
    return max(slices, key=_worth, default=None)


def same_place(one: Slice, other: Slice) -> bool:
    """Whether both merge the same class of a table, or both rewrite files of it."""
    return _place(one) == _place(other)


def debt(found: LakeFiles, bounds: Bounds | None = None) -> Debt:
    """See `Debt`; `bounds` are those that the groups were found with."""
    bounds = bounds or Bounds()
    worth = [each for each in found.holed if each.ratio >= bounds.deleted_ratio]
    small, small_size = _small(found.holed, bounds)
    return Debt(
        files=sum(_saved(group, bounds) for group in found.groups) + _files(worth) + small,
        size=sum(group.size for group in found.groups) + _size(worth) + small_size,
        most_files=max((table.files for table in found.tables), default=0),
        deleted_ratio=max(
            (table.deleted / table.rows for table in found.tables if table.rows), default=0.0
        ),
    )


def _slices(found: LakeFiles, bounds: Bounds) -> Sequence[Slice]:
    slices: list[Slice] = []
    ordered = sorted(found.groups, key=lambda group: (group.table, group.tier))
    for (table, tier), groups in groupby(ordered, lambda group: (group.table, group.tier)):
        if bounds.highest is not None and tier > bounds.highest:
            continue
        merge = _merge(table, tier, list(groups), bounds)
        if merge.saves >= bounds.saves:
            slices.append(merge)
    for table, holed in groupby(
        sorted(found.holed, key=lambda each: (each.table, -each.ratio)), lambda each: each.table
    ):
        rewrite = _rewrite(table, list(holed), bounds)
        if rewrite is not None and rewrite.saves >= bounds.saves:
            slices.append(rewrite)
    return slices


def _merge(table: str, tier: int, groups: Sequence[Group], bounds: Bounds) -> Merge:
    """A merge of which no group can be larger than a slice.

    Groups that fit are merged as a whole. As soon as one does not, its head is the measure: the engine stops adding files
    at so many bytes, and passes over files that are as large.
    """
    heads = [group.head_size for group in groups if group.head < group.files]
    up_to = min(heads) if heads else max(group.size for group in groups)
    largest = max(group.head for group in groups)
    outputs = max(1, min(len(groups), bounds.files // largest, bounds.size // up_to))
    taken = sorted(groups, key=lambda group: group.head, reverse=True)[:outputs]
    return Merge(
        table=table,
        at_least=bounds.limits[tier - 1] if tier else 0,
        below=bounds.limits[tier],
        up_to=up_to,
        outputs=outputs,
        files=sum(group.head for group in taken),
        size=sum(group.head_size for group in taken),
    )


def _rewrite(table: str, holed: Sequence[Holed], bounds: Bounds) -> Rewrite | None:
    """The files with the largest share of deleted rows, as many as fit; None when none of them is worth it.

    A file below the share is worth it too while it is small: files with deleted rows cannot be merged.
    """
    taken: list[Holed] = []
    worth = 0
    best: Rewrite | None = None
    for ratio, same in groupby(holed, lambda each: each.ratio):
        taken += same
        files, size = _files(taken), _size(taken)
        if files > bounds.files or size > bounds.size:
            may = best is None and (bounds.past is None or files <= bounds.past)
            if not may or ratio < bounds.deleted_ratio:
                break
        small, _ = _small(taken, bounds)
        full = _files(each for each in taken if each.ratio >= bounds.deleted_ratio)
        if full + small > worth:
            worth = full + small
            best = Rewrite(table=table, ratio=ratio, files=files, size=size, saves=worth)
    return best


def _small(holed: Iterable[Holed], bounds: Bounds) -> tuple[int, int]:
    """Files of the tables, and their bytes, that would be merged but for their few deleted rows; one a table is no burden."""
    few = [
        each
        for each in holed
        if each.size < each.files * bounds.limits[0] and each.ratio < bounds.deleted_ratio
    ]
    files = size = 0
    for _, same in groupby(sorted(few, key=lambda each: each.table), lambda each: each.table):
        mine = list(same)
        some = _files(mine)
        files += some - 1
        size += _size(mine) * (some - 1) // some
    return files, size


def _files(holed: Iterable[Holed]) -> int:
    return sum(each.files for each in holed)


def _size(holed: Iterable[Holed]) -> int:
    return sum(each.size for each in holed)


def _saved(group: Group, bounds: Bounds) -> int:
    return group.files - max(1, -(-group.size // bounds.limits[-1]))


def _worth(each: Slice) -> float:
    return each.saves / (each.size + _COMMIT_COSTS)


def _place(each: Slice) -> tuple[str, int | None]:
    return (each.table, each.below if isinstance(each, Merge) else None)
