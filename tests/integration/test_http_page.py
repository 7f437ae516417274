"""The ingest calls of docs/http-api.md, run as they stand there."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.laptops import laptop

PAGE = Path(__file__).parents[2] / "docs" / "http-api.md"


def block(section: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE.read_text().split(section)[1], re.DOTALL)
    assert found is not None
    return found[1]


def test_the_calls_of_the_page_work_as_written(folder: Path, tmp_path: Path) -> None:
    with laptop(folder, tmp_path / "dev.log") as dev:
        table = json.loads(block("## Tables", "json"))
        records = json.loads(block("## Ingest", "json"))
        assert dev.call("POST", "/v1/tables", table)[0] == 201
        status, answer = dev.call("POST", "/v1/ingest/events", records)
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block("### Bulk bodies", "bash")],
            env=dev.environment | {"URL": dev.url, "KEY": dev.key},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        rows = "SELECT id, kind, seen_at IS NOT NULL FROM events ORDER BY id"
        last = run.stdout.rsplit("}{", 1)[1]
        token = json.loads("{" + last)["max_visibility_token"]
        _, found = dev.call("POST", "/v1/query", {"sql": rows, "min_visibility_token": token})

    assert (status, set(answer)) == (200, set(json.loads(block("### The answer", "json"))))
    assert run.returncode == 0, run.stderr
    assert found["rows"] == [
        [1, "click", False],
        [2, "order", True],
        [3, "click", False],
        [4, None, False],
        [17, "order", True],
    ]


def test_a_file_of_each_format_goes_in_and_once_only(folder: Path, tmp_path: Path) -> None:
    rows = pa.table({"id": range(1000), "seen": ["2026-01-31 12:00:00"] * 1000})
    paths = [tmp_path / f"events.{kind}" for kind in ("csv", "ndjson", "parquet")]
    paths[0].write_text("id,seen\n" + "".join(f"{i},2026-01-31 12:00:00\n" for i in range(1000)))
    paths[1].write_text(
        "".join(f'{{"id": {i}, "seen": "2026-01-31 12:00:00"}}\n' for i in range(1000, 2000))
    )
    pq.write_table(rows.set_column(0, "id", pa.array(range(2000, 3000))), paths[2])

    with laptop(folder, tmp_path / "dev.log") as dev:
        runs = [
            dev.cli("ingest", str(path), "--table", "events", "--create", "--wait", *more)
            for path in paths
            for more in ([], ["--output", "json"])
        ]
        _, found = dev.call(
            "POST",
            "/v1/query",
            {"sql": "SELECT count(*), count(DISTINCT id), max(seen) FROM events"},
        )

    assert [run.returncode for run in runs] == [0] * 6, [run.stderr for run in runs]
    assert [json.loads(run.stdout)["duplicates"] for run in runs[1::2]] == [1000] * 3
    assert found.get("rows") == [[3000, 3000, "2026-01-31T12:00:00Z"]], found
