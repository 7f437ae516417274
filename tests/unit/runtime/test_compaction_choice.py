"""`domain.compaction`: what there is to compact, and which slice comes first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from duckmesh_runtime.domain.compaction import (
    Bounds,
    Group,
    Holed,
    LakeFiles,
    Merge,
    Rewrite,
    TableTotals,
    debt,
    next_slice,
)

KB, MB = 2**10, 2**20
BOUNDS = Bounds(limits=(MB, 16 * MB, 128 * MB), files=64, size=8 * MB, saves=1, past=0)


def group(
    files: int, each: int, *, table: str = "t", tier: int = 0, bounds: Bounds = BOUNDS
) -> Group:
    """So many files of one size, and the head that a slice takes of them."""
    head = min(files, bounds.files, max(2, bounds.size // each))
    return Group(
        table=table, tier=tier, files=files, size=files * each, head=head, head_size=head * each
    )


def holed(size: int, ratio: float, table: str = "t") -> Holed:
    return Holed(table=table, size=size, rows=1000, deleted=round(1000 * ratio))


def test_few_files_are_merged_as_a_whole() -> None:
    found = LakeFiles(groups=[group(16, 10 * KB)])

    assert next_slice(found, BOUNDS) == Merge(
        table="t", at_least=0, below=MB, up_to=160 * KB, outputs=1, files=16, size=160 * KB
    )


def test_a_backlog_is_merged_head_by_head() -> None:
    found = LakeFiles(groups=[group(10_000, 10 * KB)])

    assert next_slice(found, BOUNDS) == Merge(
        table="t", at_least=0, below=MB, up_to=640 * KB, outputs=1, files=64, size=640 * KB
    )


def test_bytes_bound_a_slice_too() -> None:
    merge = next_slice(LakeFiles(groups=[group(40, 4 * MB, tier=1)]), BOUNDS)

    assert isinstance(merge, Merge)
    assert (merge.at_least, merge.below, merge.up_to, merge.files) == (MB, 16 * MB, 8 * MB, 2)


def test_no_partition_can_make_a_slice_larger_than_the_head_of_the_smallest_backlog() -> None:
    found = LakeFiles(groups=[group(200, KB), group(200, 50 * KB), group(3, 20 * KB)])

    merge = next_slice(found, BOUNDS)

    assert isinstance(merge, Merge)
    assert merge.up_to == 64 * KB


def test_many_small_partitions_share_a_slice() -> None:
    merge = next_slice(LakeFiles(groups=[group(4, KB) for _ in range(40)]), BOUNDS)

    assert isinstance(merge, Merge)
    assert (merge.outputs, merge.files, merge.saves) == (16, 64, 48)


def test_what_saves_most_for_what_it_reads_comes_first() -> None:
    found = LakeFiles(
        groups=[
            group(20, 4 * MB, table="large", tier=1),
            group(16, 10 * KB, table="hot"),
            group(2, 10 * KB, table="cold"),
        ]
    )
    order = []
    while piece := next_slice(found, BOUNDS, but=order):
        order.append(piece)

    assert [piece.table for piece in order] == ["hot", "cold", "large"]


@pytest.mark.parametrize(
    ("bounds", "wanted"),
    [
        (BOUNDS, True),
        (replace(BOUNDS, saves=15), True),
        (replace(BOUNDS, saves=16), False),
        (replace(BOUNDS, highest=0), True),
    ],
)
def test_a_slice_has_to_save_enough(bounds: Bounds, wanted: bool) -> None:
    found = LakeFiles(groups=[group(16, KB)])

    assert (next_slice(found, bounds) is not None) == wanted


def test_higher_classes_are_left_to_others() -> None:
    found = LakeFiles(groups=[group(16, 20 * MB, tier=2)])

    assert next_slice(found, replace(BOUNDS, highest=1)) is None
    assert next_slice(found, BOUNDS) is not None


def test_nothing_is_done_while_a_restore_is_under_way() -> None:
    assert next_slice(LakeFiles(groups=[group(99, KB)], held=True), BOUNDS) is None


def test_files_with_many_deleted_rows_are_rewritten_the_worst_first() -> None:
    files = [holed(3 * MB, 0.9), holed(3 * MB, 0.6), holed(3 * MB, 0.5)]

    assert next_slice(LakeFiles(holed=files), BOUNDS) == Rewrite(
        table="t", ratio=0.6, files=2, size=6 * MB, saves=2
    )


def test_a_large_file_is_for_those_who_may_take_longer() -> None:
    found = LakeFiles(holed=[holed(300 * MB, 0.5)])

    assert next_slice(found, BOUNDS) is None
    assert next_slice(found, replace(BOUNDS, past=1)) == Rewrite(
        table="t", ratio=0.5, files=1, size=300 * MB, saves=1
    )


def test_a_rewrite_takes_all_files_of_a_share_or_none() -> None:
    worst = Holed(table="t", files=65, size=65 * KB, rows=1000, deleted=900)
    found = LakeFiles(holed=[worst, holed(KB, 0.5), holed(KB, 0.5, "u")])
    everything = Rewrite(table="t", ratio=0.9, files=65, size=65 * KB, saves=65)

    beside = next_slice(found, BOUNDS)
    called = next_slice(LakeFiles(holed=[worst]), replace(BOUNDS, past=1))

    assert (beside and beside.table, called) == ("u", None)
    assert next_slice(LakeFiles(holed=[worst]), replace(BOUNDS, past=None)) == everything
    assert debt(found, BOUNDS).files == 67


def test_the_files_of_a_share_are_bounded_together_with_those_of_larger_ones() -> None:
    many = Holed(table="t", files=40, size=40 * KB, rows=4000, deleted=2000)
    found = LakeFiles(holed=[replace(many, deleted=3000), many])

    assert next_slice(found, BOUNDS) == Rewrite(
        table="t", ratio=0.75, files=40, size=40 * KB, saves=40
    )


def test_small_files_with_few_deleted_rows_are_rewritten_since_they_cannot_be_merged() -> None:
    small = [holed(10 * KB, (21 - place) / 1000) for place in range(20)]
    found = LakeFiles(holed=[*small, holed(300 * MB, 0.001)])

    assert next_slice(found, replace(BOUNDS, saves=15)) == Rewrite(
        table="t", ratio=0.002, files=20, size=200 * KB, saves=19
    )


def test_few_deleted_rows_in_large_files_are_left() -> None:
    found = LakeFiles(holed=[holed(2 * MB, 0.19), holed(300 * MB, 0.1)])

    assert next_slice(found, replace(BOUNDS, past=1)) is None
    assert debt(found, BOUNDS).files == 0


def test_debt_is_what_a_run_over_all_would_save() -> None:
    found = LakeFiles(
        tables=[
            TableTotals(table="t", files=30, rows=1000, deleted=100),
            TableTotals(table="u", files=9, rows=100, deleted=50),
            TableTotals(table="empty", files=0, rows=0, deleted=0),
        ],
        groups=[group(20, KB), group(10, 60 * MB, tier=2)],
        holed=[holed(MB, 0.5, "u"), holed(2 * MB, 0.1), holed(KB, 0.1), holed(KB, 0.1)],
    )

    owed = debt(found, BOUNDS)

    assert owed.files == 19 + (10 - 5) + 1 + 1
    assert owed.size == 20 * KB + 600 * MB + MB + KB
    assert (owed.most_files, owed.deleted_ratio) == (30, 0.5)


def test_nothing_is_owed_by_an_empty_lake() -> None:
    assert next_slice(LakeFiles(), BOUNDS) is None
    assert (debt(LakeFiles()).files, debt(LakeFiles()).deleted_ratio) == (0, 0.0)
