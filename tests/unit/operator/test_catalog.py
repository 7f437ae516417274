"""A sweep of a catalog: what one lake's own logins wrote never hides the other lakes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from duckmesh_operator.catalog import Catalog
from duckmesh_operator.errors import Unavailable

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
NESTED = "[" * 2000 + "]" * 2000


class Connection:
    """A database whose sweep has these rows."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def is_closed(self) -> bool:
        return False

    def terminate(self) -> None:
        pass

    async def fetch(self, _: str) -> list[dict[str, Any]]:
        for row in self.rows:
            if isinstance(row["snapshot_at"], Exception):
                raise row["snapshot_at"]
        return self.rows


def row(name: str, **more: Any) -> dict[str, Any]:
    fields = dict.fromkeys(
        (
            *("pending_rows", "oldest_pending_at", "committed_at", "snapshot_id", "snapshot_at"),
            *("files", "small_files", "bytes", "committer", "committer_alive", "error"),
        )
    )
    known = {"lake": f"lake_{name}", "tenant": f"team/{name}", "tenant_uid": name, "now": NOW}
    return fields | known | {"token": 1} | more


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "control-dsn").write_text("postgresql://control@db/duckmesh")

    def build(*rows: dict[str, Any]) -> Catalog:
        async def connect(*_: Any, **__: Any) -> Connection:
            return Connection(list(rows))

        monkeypatch.setattr(asyncpg, "connect", connect)
        return Catalog("default", tmp_path)

    return build


@pytest.mark.parametrize("text", ["{", '"text"', "[1]", "7", NESTED, f'{{"id": {NESTED}}}'])
async def test_what_a_lake_says_in_no_known_form_is_its_own_matter(catalog: Any, text: str) -> None:
    said = {"id": "n", "tables": ["a", "b"]}
    rows = row("bad", run=text, integrity=text), row("good", run=json.dumps(said))

    bad, good = await catalog(*rows).sweep()

    assert (bad.lake, bad.run, bad.integrity, bad.deep, bad.error) == (
        "lake_bad",
        None,
        None,
        None,
        "",
    )
    assert (good.lake, good.run, good.error) == ("lake_good", said, "")


async def test_of_what_a_lake_says_only_what_is_flat_is_taken(catalog: Any) -> None:
    deep: Any = {"checkedAt": "2026-05-01T00:00:00Z", "mode": "deep"}
    nested = deep | {"state": {"a": [[["b"]]]}, "files": [[1]], "message": None}

    (found,) = await catalog(row("acme", deep=json.dumps(nested))).sweep()

    assert found.deep == deep | {"message": None}


async def test_a_row_that_cannot_be_read_is_an_error_of_its_lake(catalog: Any) -> None:
    bad, good = row("bad", run=b"\xff"), row("good")
    del bad["files"]

    found = await catalog(bad, good).sweep()

    assert [one.lake for one in found] == ["lake_bad", "lake_good"]
    assert [bool(one.error) for one in found] == [True, False]
    assert (found[0].tenant_uid, found[0].now) == ("bad", NOW)


async def test_a_time_that_does_not_exist_is_a_failed_look(catalog: Any) -> None:
    with pytest.raises(Unavailable):
        await catalog(row("bad", snapshot_at=OverflowError("date value out of range"))).sweep()
