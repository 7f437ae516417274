"""The commands of the documentation, run as a person would type them, and held to what the page shows.

A fenced block `console` has commands behind `$ `, further lines of one behind `> `, and below each the whole of what it
prints. `...` stands for anything, alone in a line for any lines or none; spaces, the width of a table's lines and empty
lines do not count. A block `python` is a program, and a block `text` behind it what that prints.
"""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from duckmesh_runtime.dev.postgres import _binary

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command of a page.

    Attributes:
        place: Page and line, for people.
        command: For a shell.
        shown: What the page says it prints; empty when it says nothing.
    """

    place: str
    command: str
    shown: str

    @property
    def of_cluster(self) -> bool:
        """Whether it needs a cluster."""
        return re.search(r"\b(kubectl|helm)\b", self.command) is not None


def steps(page: Path, *headings: str) -> list[Step]:
    """The commands below these headings, in the page's order; all without headings."""
    missing = [name for name in headings if f"# {name}\n" not in page.read_text()]
    assert not missing, f"{page.name} has no heading {missing}"
    found: list[Step] = []
    for heading, language, block in _blocks(page):
        if headings and heading not in headings:
            continue
        if language == "console":
            found += _commands(page, block)
        elif language == "python":
            found.append(_program(page, block))
        elif language == "text":
            found[-1] = replace(found[-1], shown="\n".join(line for _, line in block))
    return found


def _blocks(page: Path) -> Iterator[tuple[str, str, list[tuple[int, str]]]]:
    """Heading, language and numbered lines of each fenced block."""
    heading, language, block = "", "", None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if block is not None:
            if line.strip() == "```":
                yield heading, language, block
                block = None
            else:
                block.append((number, line))
        elif line.startswith("```"):
            language, block = line[3:].strip(), list[tuple[int, str]]()
        elif line.startswith("#"):
            heading = line.lstrip("#").strip()


def _program(page: Path, block: Sequence[tuple[int, str]]) -> Step:
    lines = ["python3 - <<'END'", *(line for _, line in block), "END"]
    return Step(place=f"{page.name}:{block[0][0]}", command="\n".join(lines), shown="")


def _commands(page: Path, block: Sequence[tuple[int, str]]) -> Iterator[Step]:
    parts: list[tuple[int, list[str], list[str]]] = []
    for number, line in block:
        if line.startswith("$ "):
            parts.append((number, [line[2:]], []))
        elif line.startswith("> ") and parts and not parts[-1][2]:
            parts[-1][1].append(line[2:])
        else:
            assert parts, f"{page.name}:{number}: a console block begins with a command"
            parts[-1][2].append(line)
    for number, command, shown in parts:
        yield Step(
            place=f"{page.name}:{number}", command="\n".join(command), shown="\n".join(shown)
        )


def matches(shown: str, printed: str) -> bool:
    """Whether the output is what the page shows."""
    pattern = re.escape(_plain(shown))
    pattern = re.sub(r"\\\n\\\.\\\.\\\.(?=\\\n|$)", r"(?:\n.*?)?", pattern)
    pattern = pattern.replace(re.escape("..."), ".*?")
    return re.fullmatch(pattern, _plain(printed), re.DOTALL) is not None


def _plain(text: str) -> str:
    lines = (re.sub(r"[ \t]+", " ", line).strip() for line in text.splitlines())
    return "\n".join(re.sub(r"([-─━])\1+", r"\1\1", line) for line in lines if line)


class Terminal:
    """A shell that keeps what commands set, as a person's does. Ends with `close`."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._file = folder / "command.sh"
        self._shell = subprocess.Popen(
            ["bash", "--norc", "-o", "pipefail"],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._selector = selectors.DefaultSelector()
        assert self._shell.stdout is not None
        self._selector.register(self._shell.stdout, selectors.EVENT_READ)
        self._number = 0

    def follow(
        self, todo: Sequence[Step], *, instead: Mapping[str, str] | None = None, within_s: float = 0
    ) -> list[str]:
        """Run steps in order and hold each to its page; returns what they printed.

        Args:
            todo: The steps.
            instead: Texts of commands and pages, and what stands for them here.
            within_s: So long a step that only looks is repeated until it shows what the page says.
        """
        assert todo, "there is nothing to run"
        return [self._step(step, instead or {}, within_s) for step in todo]

    def run(self, command: str, *, timeout_s: float = 60) -> tuple[int, str]:
        """Exit code and output of one command."""
        self._number += 1
        end = f"--- end of command {self._number}: "
        self._file.write_text(command + "\n")
        assert self._shell.stdin is not None
        line = f". {self._file} </dev/null; printf '\\n%s%s\\n' '{end}' $?\n"
        self._shell.stdin.write(line.encode())
        self._shell.stdin.flush()
        printed, deadline = b"", time.monotonic() + timeout_s
        while (found := re.search(rf"\n{re.escape(end)}(\d+)\n".encode(), printed)) is None:
            ready = self._selector.select(max(0, deadline - time.monotonic()))
            chunk = os.read(self._shell.stdout.fileno(), 65536) if ready else b""  # type: ignore[union-attr]  # a pipe
            assert chunk, f"no end of {command!r} in {timeout_s:.0f} s: {printed.decode()}"
            printed += chunk
        return int(found[1]), printed[: found.start()].decode()

    def close(self) -> None:
        """End the shell."""
        self._selector.close()
        for pipe in (self._shell.stdin, self._shell.stdout):
            if pipe is not None:
                pipe.close()
        self._shell.wait(10)

    def _step(self, step: Step, instead: Mapping[str, str], within_s: float) -> str:
        command, shown = step.command, step.shown
        for theirs, ours in instead.items():
            command, shown = command.replace(theirs, ours), shown.replace(theirs, ours)
        deadline = time.monotonic() + within_s
        while True:
            code, printed = self.run(command)
            fine = matches(shown, printed) and (code == 0 or shown != "")
            if fine or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        assert fine, f"{step.place}: {command}\nexit code {code}, printed\n{printed}\nnot\n{shown}"
        return printed


@contextmanager
def terminal(
    folder: Path, environment: Mapping[str, str], *, bin_dir: Path | None = None
) -> Iterator[Terminal]:
    """A terminal with the product's commands and those of Postgres, and further ones of `bin_dir`."""
    product = [Path(sys.executable).parent, Path(_binary("psql")).parent]
    path = [str(found) for found in (*product, bin_dir) if found] + [os.environ["PATH"]]
    shell = Terminal(
        folder,
        {"HOME": str(folder), "COLUMNS": "120", **environment, "PATH": ":".join(path)},
    )
    try:
        yield shell
    finally:
        shell.close()
