"""Which lake the command line talks to: flags, then environment, then the file that `duckmesh dev` leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from duckmesh_runtime.cli.client import Connection

SOURCE: Final = "duckmesh dev"
DEFAULT_FILE: Final = Path("~/.config/duckmesh/connection.json")


def find_connection(url: str | None, api_key: str | None, file: Path) -> Connection:
    """The connection to use.

    Raises:
        click.UsageError: No URL or no key is known.
    """
    saved = _read(file)
    if url is None and (found := saved.get("url")):
        # The saved key goes to the saved URL only, never to one from elsewhere.
        url, api_key = found, api_key or saved.get("api_key")
    if not url:
        raise click.UsageError(
            "no lake to talk to: pass --url, set DUCKMESH_URL, or start one with `duckmesh dev`"
        )
    if not api_key:
        raise click.UsageError("no API key: pass --api-key or set DUCKMESH_API_KEY")
    return Connection(url=url, api_key=api_key)


@contextmanager
def from_here(url: str | None, api_key: str | None) -> Iterator[Connection]:
    """The way of `duckmesh`: a command's own options, then those before it, then the file.

    Raises:
        click.UsageError: As `find_connection`.
    """
    above = click.get_current_context().obj
    file: Path = above["connection_file"]
    yield find_connection(url or above["url"], api_key or above["api_key"], file)


def save_connection(file: Path, url: str, api_key: str) -> bool:
    """Leave a connection for the command line, readable by this user only; a file of other origin stays as it is."""
    if file.exists() and _read(file).get("source") != SOURCE:
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        json.dump({"source": SOURCE, "url": url, "api_key": api_key}, out)
    part.replace(file)
    return True


def _read(file: Path) -> dict[str, str]:
    try:
        found = json.loads(file.expanduser().read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
