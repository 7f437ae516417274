"""docs/cli.md and every `--help` are of the commands as they are, and their examples can be run."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import click
import pytest

from duckmesh_runtime.__main__ import main
from duckmesh_runtime.cli.kubectl import plugin

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE = (DOCS / "cli.md").read_text(encoding="utf-8")


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("commands", DOCS / "reference" / "commands.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFERENCE = load()
COMMANDS = [*REFERENCE.commands("duckmesh", main), ("kubectl duckmesh", plugin)]
BLOCKS = "\n".join(re.findall(r"```\n(.*?)```", PAGE, re.DOTALL))


def calls(lines: str) -> list[str]:
    """The calls of our programs in lines for a shell, those inside of others too."""
    inner = re.findall(r"[$<]\((.*?)\)", lines)
    outer = re.sub(r"[$<]\(.*?\)", "x", lines).splitlines()
    parts = [part.strip() for line in [*inner, *outer] for part in line.split(" | ")]
    return sorted({part for part in parts if part.startswith(("duckmesh ", "kubectl duckmesh "))})


def test_the_page_is_of_the_commands_as_they_are() -> None:
    assert REFERENCE.build_page(PAGE) == PAGE, "run `make manifests`"


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=[words for words, _ in COMMANDS])
def test_each_command_says_what_it_does_and_how(words: str, command: click.Command) -> None:
    help_text = command.get_help(click.Context(command, info_name=words))

    assert re.search(r"\n  Examples?:\n    \S", help_text)
    assert all(option.help for option in command.params if isinstance(option, click.Option)), (
        f"{words}: an option without help"
    )


@pytest.mark.parametrize("call", calls(BLOCKS))
def test_each_example_is_a_call_that_the_command_takes(call: str) -> None:
    program, root = (
        ("kubectl duckmesh", plugin) if call.startswith("kubectl") else ("duckmesh", main)
    )
    words = [w for w in shlex.split(call.removeprefix(program)) if not re.match(r"[<>]", w)]

    context = root.make_context(program, words)
    with context:
        while isinstance(context.command, click.Group) and (
            words := [*context._protected_args, *context.args]
        ):
            name, command, rest = context.command.resolve_command(context, words)
            assert command is not None
            context = command.make_context(name, rest, parent=context)
