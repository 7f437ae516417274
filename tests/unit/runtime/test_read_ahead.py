"""What is fetched ahead: the files behind those that a scan asks for one after the other, and no others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from duckmesh_runtime.domain.read_ahead import MOST_BYTES, MOST_FILES, ReadAhead

LARGEST = 1_000
FILES = {f"main/t/{number:03}.parquet": 100 for number in range(200)}
NAMES = list(FILES)


def following(files: dict[str, int] = FILES) -> ReadAhead:
    """Follows the catalog, and has seen that files are read from the store."""
    ahead = ReadAhead(LARGEST)
    ahead.follow(files)
    ahead.asked("main/elsewhere/0.parquet", missed=True)
    return ahead


def ask(ahead: ReadAhead, names: Iterable[str]) -> list[list[str]]:
    """What each question makes it fetch."""
    return [[path for path, _ in ahead.asked(name, missed=True)] for name in names]


def scan(ahead: ReadAhead, names: Sequence[str]) -> tuple[list[str], int]:
    """What is fetched ahead while these are asked for, and how many of them were not there."""
    fetched: list[str] = []
    missed = 0
    for name in names:
        missed += name not in fetched
        fetched += [path for path, _ in ahead.asked(name, missed=name not in fetched)]
    return fetched, missed


def test_a_scan_waits_for_its_first_files_only() -> None:
    fetched, missed = scan(following(), NAMES)

    assert fetched == NAMES[2:]
    assert missed == 2


def test_no_file_is_fetched_twice_or_too_early() -> None:
    ahead = following()
    far = 0
    for place, name in enumerate(NAMES):
        fetched = [path for path, _ in ahead.asked(name, missed=False)]
        far = max([far, *(NAMES.index(path) for path in fetched)])
        assert far <= place + MOST_FILES


def test_threads_that_open_files_at_once_are_one_scan() -> None:
    swapped = [name for pair in zip(NAMES[1::2], NAMES[::2], strict=True) for name in pair]

    fetched, missed = scan(following(), swapped)

    assert sorted(fetched) == fetched
    assert len(set(fetched)) == len(fetched)
    assert missed <= 4


def test_a_filter_that_leaves_a_few_out_is_followed() -> None:
    asked = NAMES[::3]

    fetched, missed = scan(following(), asked)

    assert set(asked[2:]) <= set(fetched)
    assert missed == 2


def test_who_jumps_gets_what_was_asked_for_only() -> None:
    assert ask(following(), NAMES[::10]) == [[] for _ in NAMES[::10]]
    assert ask(following(), reversed(NAMES)) == [[] for _ in NAMES]


def test_one_file_asked_for_again_is_no_scan() -> None:
    assert ask(following(), [NAMES[7]] * 5) == [[]] * 5


def test_a_second_scan_begins_anew() -> None:
    ahead = following()
    scan(ahead, NAMES[:50])

    fetched, _ = scan(ahead, NAMES[:50])

    assert fetched[0] == NAMES[2]
    assert set(NAMES[2:50]) <= set(fetched)


def test_one_new_file_in_a_catalog_is_no_scan() -> None:
    ahead = ReadAhead(LARGEST)
    for number in range(5):
        ahead.follow(FILES | {f"main/t/new-{number}.parquet": 100})
        assert ask(ahead, [f"main/t/new-{number}.parquet"]) == [[]]


def test_tables_are_followed_apart_partitioned_ones_as_well() -> None:
    files = {
        f"main/{table}/day={number}/x.parquet": 10 for number in range(20) for table in ("a", "b")
    }
    of_a = [name for name in files if "/a/" in name]

    fetched, _ = scan(following(files), of_a)

    assert fetched == of_a[2:]


def test_large_files_are_passed_over() -> None:
    files = {name: (LARGEST + place % 2) for place, name in enumerate(NAMES[:40])}

    fetched, _ = scan(following(files), NAMES[:40:2])

    assert fetched == NAMES[4:40:2]


def test_what_is_ahead_is_bounded_in_bytes() -> None:
    size = MOST_BYTES // 3
    files = dict.fromkeys(NAMES, size)
    ahead = ReadAhead(size)
    ahead.follow(files)

    for name in NAMES:
        assert sum(bytes_ for _, bytes_ in ahead.asked(name, missed=True)) <= MOST_BYTES


def test_a_file_of_another_catalog_is_not_followed() -> None:
    ahead = following()

    assert ask(ahead, ["main/gone/0.parquet", "main/gone/1.parquet"]) == [[], []]
