"""How pages are held to what commands print."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages import matches, steps, terminal


@pytest.mark.parametrize(
    ("shown", "printed", "fine"),
    [
        pytest.param("a b", " a   b \n\n", True, id="spaces and empty lines"),
        pytest.param("a", "a\nb", False, id="a line more"),
        pytest.param("a\nb", "a", False, id="a line less"),
        pytest.param("a\n...", "a", True, id="any lines: none"),
        pytest.param("a\n...\nd", "a\nb\nc\nd", True, id="any lines: some"),
        pytest.param("a\n...\nd", "a\nb\nc", False, id="any lines, then a certain one"),
        pytest.param('{"a": ..., "b": 1}', '{"a": [2], "b": 1}', True, id="within a line"),
        pytest.param('{"a": ..., "b": 1}', '{"a": [2], "b": 12}', False, id="another number"),
        pytest.param("a+b (c)", "a+b (c)", True, id="no pattern"),
        pytest.param("-----+---", "---+--------", True, id="lines of tables"),
        pytest.param("", "", True, id="nothing"),
        pytest.param("", "a", False, id="something where nothing is shown"),
    ],
)
def test_a_page_shows_the_whole_output(shown: str, printed: str, fine: bool) -> None:
    assert matches(shown, printed) is fine


PAGE = """# Page
## One
```console
$ export A=1
$ cat <<END
> x
> END
x
```
```
$ not run
```
## Two
```console
$ false
```
"""


def test_commands_are_taken_by_heading_and_keep_what_they_set(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)

    found = steps(page, "One")

    assert [(s.place, s.command, s.shown) for s in found] == [
        ("page.md:4", "export A=1", ""),
        ("page.md:5", "cat <<END\nx\nEND", "x"),
    ]
    with terminal(tmp_path, {}) as shell:
        shell.follow(found)
        assert shell.run("echo $A; exit_code() { return 3; }; exit_code") == (3, "1\n")
        with pytest.raises(AssertionError, match=r"page\.md:15: false\nexit code 1"):
            shell.follow(steps(page, "Two"))
    with pytest.raises(AssertionError, match=r"no heading \['Three'\]"):
        steps(page, "Three")
