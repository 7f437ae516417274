"""The README's calls, run as they stand there."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from tests.laptops import laptop

README = Path(__file__).parents[2] / "README.md"


def test_the_api_in_four_calls_works_as_written(folder: Path, tmp_path: Path) -> None:
    section = README.read_text().split("## The API in four calls")[1]
    found = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    assert found is not None

    with laptop(folder, tmp_path / "dev.log") as dev:
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", found[1]],
            env=dev.environment | {"URL": dev.url, "KEY": dev.key},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert run.returncode == 0, run.stderr
    created, answer, lag = _documents(run.stdout)
    assert created["name"] == "orders"
    assert answer["rows"] == [["9.90"]]
    assert lag["pending_rows"] == 0


def _documents(text: str) -> list[dict[str, object]]:
    """JSON documents one behind the other."""
    decoder, found = json.JSONDecoder(), []
    while text := text.strip():
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:]
    return found
