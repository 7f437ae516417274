"""Write the second part of docs/cli.md from the commands themselves; `make manifests` runs it, tests/unit compares."""  # noqa: INP001 - a script

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from duckmesh_runtime.__main__ import main
from duckmesh_runtime.cli.kubectl import plugin

PAGE = Path(__file__).resolve().parents[1] / "cli.md"
MARK = "<!-- From here on: written by `make manifests` from the commands themselves. -->\n"
_EVERYWHERE = ("--url", "--api-key", "--help")


def build_page(page: str) -> str:
    """The page with its second part anew."""
    head, mark, _ = page.partition(MARK)
    if not mark:
        raise ValueError(f"{PAGE.name} has lost its mark")
    adopt = _command("kubectl duckmesh adopt", plugin.commands["adopt"])
    upgrade = _command("kubectl duckmesh upgrade", plugin.commands["upgrade"])
    parts = [*_command("duckmesh", main), *_options_of_kubectl(), *adopt, *upgrade]
    return head + MARK + "\n" + "\n".join(parts).rstrip() + "\n"


def commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, by the words that call them."""
    yield name, command
    if isinstance(command, click.Group):
        for below, found in sorted(command.commands.items()):
            if not found.hidden:
                yield from commands(f"{name} {below}", found)


def examples(command: click.Command) -> list[str]:
    """The lines of a command's examples."""
    lines = (command.epilog or "").splitlines()
    return [line.strip() for line in lines[2:]]


def _command(name: str, root: click.Command) -> Iterator[str]:
    for words, command in commands(name, root):
        context = click.Context(command, info_name=words)
        yield f"### {words}\n"
        if not isinstance(command, click.Group):
            yield f"`{words} {' '.join(command.collect_usage_pieces(context))}`\n"
        yield _text(command)
        if isinstance(command, click.Group) and command is not root:
            yield f"Commands: {', '.join(f'`{below}`' for below in sorted(command.commands))}.\n"
        yield from _options(command, context)
        if lines := examples(command):
            yield "\n".join(["```", *lines, "```"]) + "\n"


def _options_of_kubectl() -> Iterator[str]:
    yield "### kubectl duckmesh\n"
    yield "`kubectl duckmesh [OPTIONS] [TENANT] COMMAND [ARGS]...`\n"
    yield _text(plugin)
    yield from _options(plugin, click.Context(plugin))
    yield "\n".join(["```", *examples(plugin), "```"]) + "\n"


def _text(command: click.Command) -> str:
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs) + "\n"


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    records = [
        record
        for option in command.get_params(context)
        if isinstance(option, click.Option) and not set(option.opts) & set(_EVERYWHERE)
        if (record := option.get_help_record(context)) is not None
    ]
    if command is main:
        records = [
            record for option in command.params if (record := option.get_help_record(context))
        ]
    if records:
        rows = [f"| `{_cell(name)}` | {_cell(text)} |" for name, text in records]
        yield "\n".join(["| option | |", "|---|---|", *rows]) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(build_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
