"""What the type checker says about code that uses the client: results have their types, and mistakes are found."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

RIGHT = """
    from collections.abc import Iterator
    from typing import Any, assert_type

    import polars as pl

    from duckmesh import AsyncClient, Batches, Client, Column, Receipt, Result, Snapshot, Visible


    def rows() -> Iterator[dict[str, int]]:
        yield {"id": 1}


    def use(client: Client, frame: pl.DataFrame) -> None:
        receipt = client.ingest("events", [{"id": 1, "kind": None}], op="insert", wait=True)
        assert_type(receipt, Receipt)
        client.ingest("events", frame)
        client.ingest("events", rows())
        assert_type(receipt.visible_snapshot_id, int | None)
        result = client.query("SELECT 1", [1, "x"], at_least=receipt)
        assert_type(result, Result)
        assert_type(result.rows(), list[dict[str, Any]])
        assert_type(result.polars(), pl.DataFrame)
        client.query("SELECT 1", at_least=result)
        client.query("SELECT 1", at_least=receipt.token)
        client.query("SELECT 1", at_least=client.tables.drop("events"))
        with client.stream("SELECT 1") as batches:
            assert_type(batches, Batches)
        assert_type(client.wait_visible(receipt), Visible)
        assert_type(client.snapshots.get(1), Snapshot)
        client.tables.create("events", {"id": "BIGINT"})
        client.tables.create("events", [Column(name="id", type="BIGINT")])


    async def use_async(client: AsyncClient) -> None:
        receipt = await client.ingest("events", [{"id": 1}])
        assert_type(receipt, Receipt)
        assert_type(await client.query("SELECT 1", at_least=receipt), Result)
        async with client.stream("SELECT 1") as batches:
            async for batch in batches:
                print(batch.num_rows)
"""

WRONG = """
    from duckmesh import AsyncClient, Client


    def misuse(client: Client, asynchronous: AsyncClient) -> None:
        client.ingest("events", [1, 2])  # type: ignore[list-item]
        client.ingest("events", [{"id": 1}], op="replace")  # type: ignore[arg-type]
        client.query("SELECT 1", at_least=7)  # type: ignore[arg-type]
        client.query("SELECT 1", snapshot_time="2026-01-31")  # type: ignore[arg-type]
        client.ingest("events", [{"id": 1}], True)  # type: ignore[call-arg, arg-type]
        asynchronous.query("SELECT 1").rows()  # type: ignore[attr-defined]
"""


@pytest.mark.timeout(300)
def test_a_strict_checker_knows_results_and_finds_mistakes(tmp_path: Path) -> None:
    for name, text in (("right.py", RIGHT), ("wrong.py", WRONG)):
        (tmp_path / name).write_text(textwrap.dedent(text))

    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--config-file",
            "pyproject.toml",
            tmp_path / "right.py",
            tmp_path / "wrong.py",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert run.returncode == 0, (
        run.stdout + run.stderr
    )  # a mistake that is not found is an unused ignore
