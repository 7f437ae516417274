"""The tutorial and the how-to pages, every command in the order in which a reader types them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.laptops import laptop
from tests.pages import DOCS, steps, terminal

PAGES = [
    "tutorial.md",
    *(
        f"how-to/{name}.md"
        for name in ("ingest-formats", "consistency", "time-travel", "integrity")
    ),
]
OF_CLUSTERS = {
    f"how-to/{name}.md"
    for name in (
        "compaction",
        "compactor",
        "delete-and-restore-tenants",
        "rotate-credentials",
        "scale-and-upgrade",
    )
}
"""What they tell is done by tests/e2e, with commands of its own."""


@pytest.mark.timeout(300)  # forty commands, each a process that takes half a second of CPU
def test_the_pages_work_as_written(folder: Path, tmp_path: Path) -> None:
    with (
        laptop(folder, tmp_path / "dev.log") as dev,
        terminal(tmp_path, dev.environment) as shell,
    ):
        here = {"http://127.0.0.1:8080": dev.url, "/tmp/duckmesh-tour": str(folder)}
        for page in PAGES:
            shell.follow(steps(DOCS / page), instead=here)


def test_there_is_no_other_page_of_this_kind() -> None:
    found = {f"how-to/{path.name}" for path in (DOCS / "how-to").glob("*.md")}

    assert found == set(PAGES) - {"tutorial.md"} | OF_CLUSTERS
