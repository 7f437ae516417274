"""What a client is made with, and what it needs that may not be installed."""

from __future__ import annotations

import importlib
from typing import Any

import httpx
import pytest

from duckmesh import Client, Invalid, api, extras
from duckmesh.bodies import pieces
from tests.unit.client.conftest import KEY, URL, Service


def test_the_environment_names_the_lake_and_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUCKMESH_URL", f"{URL}/lake/")
    monkeypatch.setenv("DUCKMESH_API_KEY", f"{KEY}\n")
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((str(request.url), request.headers["Authorization"]))
        return httpx.Response(200, json={"tables": []})

    with Client(transport=httpx.MockTransport(answer)) as client:
        client.tables.list()

    assert seen == [(f"{URL}/lake/v1/tables", f"Bearer {KEY}")]


@pytest.mark.parametrize(
    ("url", "key", "said"),
    [
        (None, KEY, "DUCKMESH_URL"),
        (URL, None, "DUCKMESH_API_KEY"),
        ("lake.test:8080", KEY, "want one like"),
        ("ftp://lake.test", KEY, "want one like"),
        ("http://lake.test:port", KEY, "want one like"),
        (URL, "schlüssel", "dmk_"),
        (URL, "dmk_a\nb", "dmk_"),
    ],
    ids=range(7),
)
def test_what_cannot_be_a_lake_is_refused(url: str | None, key: str | None, said: str) -> None:
    with pytest.raises(Invalid, match=said) as caught:
        Client(url, key)

    assert key is None or key not in str(caught.value)


@pytest.mark.parametrize("library", ["pyarrow", "pandas", "polars"])
def test_a_library_that_is_missing_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(extras, "import_module", missing)

    with pytest.raises(ImportError, match=rf"pip install 'duckmesh\[{library}\]'"):
        getattr(extras, f"need_{library}")()


def test_without_pyarrow_rows_go_in_and_come_out(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "has_pyarrow", lambda: False)
    monkeypatch.setattr(extras, "import_module", lambda name: importlib.import_module(f"no_{name}"))
    said = {
        "columns": [{"name": "price", "type": "DECIMAL(9,2)"}],
        "rows": [["9.90"], [None]],
        "snapshot_id": 7,
        "snapshot_time": "2026-01-31T12:00:00Z",
        "max_visibility_token": "v1_seen",
        "lag_ms": 3,
        "truncated": False,
        "stats": {},
    }
    service.answers = [httpx.Response(200, json=said)]

    result = service.run(lambda client: client.query("SELECT price FROM t"))

    assert service.requests[0].headers["Accept"] == "application/json"
    assert [str(row["price"]) for row in result.rows()] == ["9.90", "None"]
    assert (result.token, result.lag_ms, len(result), result.truncated) == ("v1_seen", 3, 2, False)
    assert next(pieces([{"id": 1}], whole=False)).rows == 1
    with pytest.raises(ImportError, match="duckmesh"):
        result.arrow()
