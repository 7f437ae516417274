"""The pages hold together: links and anchors lead somewhere, named commands and tests exist, every page is found."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from duckmesh_runtime.__main__ import main
from tests.pages import DOCS, ROOT

PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(DOCS.rglob("*.md")),
    *sorted(ROOT.glob("tests/**/README.md")),
]
CHECKLIST = DOCS / "PENETRATION_TEST_CHECKLIST.md"
_LINK = re.compile(r"\[[^\]\[]*\]\(([^)\s]+)\)")


def test_every_link_and_anchor_leads_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in _links(page)
        if not _leads_somewhere(page, target)
    ]

    assert broken == []


def test_every_page_is_found_in_two_hops_from_the_readme() -> None:
    first = _reached({ROOT / "README.md"})
    second = _reached(first)

    assert [str(page) for page in DOCS.rglob("*.md") if page not in first | second] == []


def test_named_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        (page.name, found[1])
        for page in PAGES
        for found in re.finditer(r"(?:^|`)make ([a-z][a-z0-9-]*)", page.read_text(), re.MULTILINE)
    }

    assert {found for found in named if found[1] not in targets} == set()


def test_named_commands_and_options_of_duckmesh_exist() -> None:
    said = [(page, line) for page in PAGES for line in _command_lines(page)]

    assert said
    assert [f"{page.name}: {line}" for page, line in said if not _exists(line.split())] == []


@pytest.mark.parametrize(
    ("line", "exists"),
    [
        ("lag -w", True),
        ("snapshots pin 4 --name audit", True),
        ("snapshots polish 4", False),
        ("query --nonsense", False),
        ("polish", False),
    ],
)
def test_a_command_that_is_not_there_is_noticed(line: str, exists: bool) -> None:
    assert _exists(line.split()) is exists


def test_each_line_of_the_checklist_names_tests_that_exist_or_why_it_is_open() -> None:
    rows = [line.split("|") for line in CHECKLIST.read_text().splitlines() if line.startswith("|")]
    lines = [
        row for row in rows if row[1].strip() not in ("case", "must hold") and "---" not in row[1]
    ]
    tests = _tests()

    assert [row for row in lines if not re.search(r"`test_|`make |open: \w", row[-2])] == []
    named = {name for row in lines for name in re.findall(r"`(test_\w+)`", row[-2])}
    assert named - tests == set()
    targets = {name for row in lines for name in re.findall(r"`make (\S+)`", row[-2])}
    known = re.findall(r"^([a-z][a-z0-9-]*):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets - set(known) == set()


def test_the_checklist_has_every_case() -> None:
    first = {
        line.split("|")[1].strip() for line in CHECKLIST.read_text().splitlines() if "|" in line
    }
    cases = {name for cell in first for name in _cases(cell)}

    wanted = {"S": 15, "A": 24, "K": 14, "F": 44, "O": 18}
    assert {f"{kind}{n:02}" for kind, most in wanted.items() for n in range(1, most + 1)} <= cases


def test_runbooks_have_their_parts() -> None:
    parts = ["Meaning", "Impact", "Diagnosis", "Mitigation", "Verification", "Escalation"]
    for page in (DOCS / "runbooks").glob("*.md"):
        if page.name != "README.md":
            headings = re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE)
            assert [name for name in headings if name in parts] == parts, page.name


def _cases(cell: str) -> Iterator[str]:
    if span := re.fullmatch(r"([A-Z])(\d\d) to \1(\d\d)", cell):
        yield from (f"{span[1]}{n:02}" for n in range(int(span[2]), int(span[3]) + 1))
    else:
        yield from re.findall(r"\b[A-Z]\d\d\b", cell)


@cache
def _tests() -> frozenset[str]:
    texts = (path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    return frozenset(name for text in texts for name in re.findall(r"def (test_\w+)\(", text))


def _links(page: Path) -> list[str]:
    """Targets within the repository."""
    found = _LINK.findall(_without_code(page.read_text()))
    return [target for target in found if "://" not in target and not target.startswith("mailto:")]


def _without_code(text: str) -> str:
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", lambda found: found[0].replace("[", "").replace("]", ""), text)


def _leads_somewhere(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    there = (page.parent / path).resolve() if path else page
    if not there.exists():
        return False
    return not anchor or (there.suffix == ".md" and anchor in _anchors(there))


@cache
def _anchors(page: Path) -> frozenset[str]:
    """As GitHub makes them of headings."""
    found: list[str] = []
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        before = sum(name == plain or name.startswith(f"{plain}-") for name in found)
        found.append(f"{plain}-{before}" if plain in found else plain)
    return frozenset(found)


def _reached(pages: set[Path]) -> set[Path]:
    found = {(page.parent / t.partition("#")[0]).resolve() for page in pages for t in _links(page)}
    folders = {page / "README.md" for page in found if page.is_dir()}
    return {page for page in found | folders if page.suffix == ".md" and page.exists()}


def _command_lines(page: Path) -> Iterator[str]:
    """What follows `duckmesh` where a page shows a command: in code of a line, and in blocks."""
    text = page.read_text()
    for found in re.finditer(r"`duckmesh ([^`\n]+)`", text):
        yield found[1]
    for block in re.finditer(
        r"^```(?!json|yaml|python|text)\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE
    ):
        for found in re.finditer(r"(?:^|[$(|] ?)duckmesh ([a-z][^|)\n]*)", block[1], re.MULTILINE):
            yield found[1]


def _exists(words: list[str]) -> bool:
    command: click.Command = main
    options = {name for parameter in main.params for name in parameter.opts}
    for word in words:
        if isinstance(command, click.Group) and not word.startswith("-"):
            if word not in command.commands:
                return command is not main and command.invoke_without_command
            command = command.commands[word]
            options |= {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
            options |= {"-h", "--help"}
        elif word.startswith("-") and len(word) > 1 and word.partition("=")[0] not in options:
            return False
    return command is not main
