"""What every client command shares: how it gets its connection, how it ends, how it may print."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, Protocol

import click

if TYPE_CHECKING:
    from duckmesh_runtime.cli.client import Connection

REFUSED: Final = 1
UNAVAILABLE: Final = 3
INTERRUPTED: Final = 130

Command = Callable[..., Any]

LISTING: Final = click.option(
    "--output",
    type=click.Choice(["table", "json", "csv", "arrow"]),
    default="table",
    help="`json` is the API's answer as it is, `arrow` a stream of the listed rows.",
)
ANSWER: Final = click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    help="`json` is for programs: one object.",
)
NAMESPACE: Final = click.option("-n", "--namespace", help="Of the Tenant; default: the context's.")


def examples(*lines: str) -> str:
    """Command lines as the last part of a command's help, as they are."""
    return "\n".join(
        ["\b", "Examples:" if len(lines) > 1 else "Example:", *(f"  {one}" for one in lines)]
    )


class Way(Protocol):
    """How a program finds its lake; `obj["way"]` of the root context, `obj["program"]` is what people call it by."""

    def __call__(self, url: str | None, api_key: str | None) -> AbstractContextManager[Connection]:
        """The lake, reachable as long as this is open; `url` and `api_key` are options of the command."""
        ...


def connected(command: Callable[..., Coroutine[Any, Any, None]]) -> Command:
    """Give a command its client, the connection options, and one way to end on errors."""

    @click.option("--url", help="Base URL of the lake's API (DUCKMESH_URL).")
    @click.option("--api-key", help="API key, dmk_... (DUCKMESH_API_KEY).")
    @wraps(command)
    def run(url: str | None, api_key: str | None, **options: Any) -> None:
        root: dict[str, Any] = click.get_current_context().obj
        way: Way = root["way"]
        with way(url, api_key) as connection:
            code = _exit_code(connection, command, options, root["program"])
        sys.exit(code)

    return run


def _exit_code(
    connection: Connection,
    command: Callable[..., Coroutine[Any, Any, None]],
    options: dict[str, Any],
    program: str,
) -> int:
    from duckmesh_runtime.cli.client import ApiError, Client
    from duckmesh_runtime.cli.show import say, show_error

    def away(error: ApiError, left_s: float) -> None:
        say(f"{error.message}; trying again for {left_s:.0f} seconds, Ctrl-C ends it")

    async def with_client() -> None:
        async with Client(connection, away=away) as client:
            await command(client, **options)

    try:
        asyncio.run(with_client())
    except ApiError as error:
        show_error(error, command.__name__, program)
        return UNAVAILABLE if error.retryable else REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone (`| head`): nothing more to say, also not at exit.
        sys.stdout = None
        return 0
    return 0


class Listing(click.Group):
    """A group that lists when no command of it is named: `tables` is `tables list`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `list` in front of nothing, and of options that are not for help."""
        named = args and (not args[0].startswith("-") or args[0] in ctx.help_option_names)
        if not named and not ctx.resilient_parsing:
            args = ["list", *args]
        return super().parse_args(ctx, args)
