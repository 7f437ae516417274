from __future__ import annotations

import resource

import pytest

from duckmesh_runtime import wiring

NO_LIMIT = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param((1_024, 1_048_576), (65_536, 1_048_576), id="a shell's limit"),
        pytest.param((1_024, NO_LIMIT), (65_536, NO_LIMIT), id="no hard limit"),
        pytest.param((1_024, 4_096), (4_096, 4_096), id="as far as it may"),
        pytest.param((100_000, 1_048_576), None, id="enough"),
        pytest.param((NO_LIMIT, NO_LIMIT), None, id="no limit at all"),
    ],
)
def test_open_files_are_raised_as_far_as_needed(
    monkeypatch: pytest.MonkeyPatch, before: tuple[int, int], after: tuple[int, int] | None
) -> None:
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: before)
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: found.append(limits))

    wiring._allow_connections()

    assert found == ([after] if after else [])
