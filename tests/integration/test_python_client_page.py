"""The examples of docs/python-client.md and of the client's docstrings, run as they stand there."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from duckmesh import AsyncClient, Client
from duckmesh_runtime.dev.processes import free_port
from tests.laptops import Laptop, laptop

PAGE = Path(__file__).parents[2] / "docs" / "python-client.md"
URL, KEY = "http://127.0.0.1:8080", "dmk_..."


@pytest.fixture(scope="module")
def dev(services_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    log = tmp_path_factory.mktemp("dev") / "dev.log"
    with laptop(services_dir / f"page-{free_port()}", log) as found:
        yield found


def test_the_examples_of_the_page_give_what_it_says(dev: Laptop) -> None:
    names: dict[str, Any] = {}
    checked = 0

    try:
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            source = block.replace(URL, dev.url).replace(KEY, dev.key)
            checked += _run(source, names)
    finally:
        names["client"].close()

    assert checked >= 15


def _run(source: str, names: dict[str, Any]) -> int:
    """Run a block; compares each `expression  # -> value`, and tells how many there were."""
    lines = source.splitlines()
    checked = 0
    for statement in ast.parse(source).body:
        text = ast.get_source_segment(source, statement) or ""
        said = re.search(r"  # -> (.*)$", lines[(statement.end_lineno or 1) - 1])
        if said:
            assert repr(_value(text, names)) == said[1], text
            checked += 1
        else:
            exec(compile(ast.Module([statement], []), str(PAGE), "exec"), names)  # noqa: S102 - our own page
    return checked


@pytest.mark.parametrize("of", [Client, AsyncClient, Client.stream], ids=lambda of: of.__qualname__)
async def test_the_examples_of_a_docstring_give_what_they_say(dev: Laptop, of: object) -> None:
    with Client(dev.url, dev.key) as client:
        if "events" in [table.name for table in client.tables.list()]:
            client.tables.drop("events")
        made = client.tables.create("events", {"id": "BIGINT", "kind": "VARCHAR"})
        client.query(
            "SELECT count(*) FROM events", at_least=made
        )  # from here on all queries see it
        names: dict[str, Any] = {"client": client, "AsyncClient": AsyncClient}
        await _examples(inspect.getdoc(of) or "", dev, names)
        if isinstance(names["client"], Client):
            names["client"].close()


async def _examples(text: str, dev: Laptop, names: dict[str, Any]) -> None:
    """Run the `>>>` of a docstring, and compare what they say they give; `await` may stand anywhere."""
    examples = doctest.DocTestParser().get_examples(text)
    assert examples
    for example in examples:
        source = example.source.replace(URL, dev.url).replace(KEY, dev.key)
        if example.want:
            assert repr(_value(source, names)) == example.want.strip()
            continue
        code = compile(source, "docstring", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if inspect.iscoroutine(found := _value(code, names)):
            await found


def _value(code: str | CodeType, names: dict[str, Any]) -> Any:
    return eval(code, names)  # noqa: S307 - our own page
