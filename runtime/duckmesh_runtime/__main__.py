"""The command `duckmesh`: processes and Jobs of a cluster (`serve`, `sandbox`, `migrate` ...), a laptop (`dev`), the client.

Reads the environment once and hands settings down. Every body imports what it needs, so that `--help` and the client
commands do not load an engine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from duckmesh_runtime.cli.commands import COMMANDS
from duckmesh_runtime.cli.connected import examples
from duckmesh_runtime.errors import SettingsError

if TYPE_CHECKING:
    from duckmesh_runtime.cli.client import Connection
    from duckmesh_runtime.settings import Settings

BAD_SETTINGS = 2


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "duckmesh dev",
        "duckmesh ingest flights.parquet --create",
        'duckmesh query "SELECT carrier, count(*) FROM flights GROUP BY 1"',
        "duckmesh lag -w",
    ),
)
@click.option("--url", envvar="DUCKMESH_URL", help="Base URL of the lake's API (DUCKMESH_URL).")
@click.option("--api-key", envvar="DUCKMESH_API_KEY", help="API key (DUCKMESH_API_KEY).")
@click.option(
    "--connection",
    "connection_file",
    envvar="DUCKMESH_CONNECTION",
    type=click.Path(path_type=Path),
    default=Path("~/.config/duckmesh/connection.json"),
    help="File with URL and key, as `duckmesh dev` leaves it.",
)
@click.version_option(package_name="duckmesh-runtime")
@click.pass_context
def main(
    context: click.Context, url: str | None, api_key: str | None, connection_file: Path
) -> None:
    """A small lakehouse per tenant: rows in by HTTP, SQL out a moment later."""
    context.obj = {
        "way": _way,
        "job": _compact_job if os.environ.get("DUCKMESH_RUN") else None,
        "program": "duckmesh",
        "url": url,
        "api_key": api_key,
        "connection_file": connection_file.expanduser(),
    }


def _way(url: str | None, api_key: str | None) -> AbstractContextManager[Connection]:
    from duckmesh_runtime.cli.connection import from_here

    return from_here(url, api_key)


def _compact_job() -> None:
    """What `compact` is in a Compactor's Job."""
    from duckmesh_runtime.settings import compact_from_env
    from duckmesh_runtime.wiring import run_compact

    with _refusing_bad_settings():
        settings = compact_from_env(os.environ)
        _log("compact", settings.tenant, "json", "info")
        sys.exit(run_compact(settings))


@main.group(epilog=examples("duckmesh serve ingest"))
def serve() -> None:
    """Run a process of a Tenant; its settings are variables DUCKMESH_..., which the operator sets."""


@serve.command("ingest", epilog=examples("duckmesh serve ingest"))
def serve_ingest() -> None:
    """Take rows, commit them, front the API."""
    from duckmesh_runtime.wiring import serve_ingest as run

    _serve("ingest", run)


@serve.command("query", epilog=examples("duckmesh serve query"))
def serve_query() -> None:
    """Answer statements through the sandbox."""
    from duckmesh_runtime.wiring import serve_query as run

    _serve("query", run)


@main.command(epilog=examples("duckmesh sandbox"))
def sandbox() -> None:
    """Run statements in killable processes; holds no credential."""
    from duckmesh_runtime.sandbox.server import run

    with _refusing_bad_settings():
        sys.exit(run(os.environ))


@main.command(epilog=examples("duckmesh migrate"))
def migrate() -> None:
    """Make or renew a lake's schemas; needs the catalog's admin credential."""
    from duckmesh_runtime.settings import migrate_from_env
    from duckmesh_runtime.wiring import run_migrate

    with _refusing_bad_settings():
        settings = migrate_from_env(os.environ)
        _log("migrate", settings.tenant, "json", "info")
        sys.exit(run_migrate(settings))


@main.command(epilog=examples("duckmesh purge"))
def purge() -> None:
    """Remove a lake, rows and files, for good; needs the catalog's admin credential and the store's key."""
    from duckmesh_runtime.settings import purge_from_env
    from duckmesh_runtime.wiring import run_purge

    with _refusing_bad_settings():
        settings = purge_from_env(os.environ)
        _log("purge", settings.tenant, "json", "info")
        sys.exit(run_purge(settings))


@main.command(epilog=examples("duckmesh dev", "duckmesh dev --dir ./lake --port 0"))
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="All data, kept over restarts; default ~/.local/share/duckmesh (root: /var/lib/duckmesh).",
)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, help="0 picks a free one.")
@click.pass_context
def dev(context: click.Context, folder: Path | None, port: int) -> None:
    """Run a lakehouse on this machine: embedded Postgres, local files, all roles."""
    from duckmesh_runtime.dev.laptop import default_folder, run

    _log("dev", "laptop", "text", "warning")
    with _refusing_bad_settings():
        sys.exit(
            run(
                (folder or default_folder()).expanduser().resolve(),
                port=port,
                connection_file=context.obj["connection_file"],
            )
        )


def _serve(service: str, run: Callable[[Settings], int]) -> None:
    from duckmesh_runtime.settings import from_env

    with _refusing_bad_settings():
        settings = from_env(os.environ)
        _log(service, settings.tenant, settings.log_format, settings.log_level)
        sys.exit(run(settings))


def _log(service: str, tenant: str, log_format: str, level: str) -> None:
    from duckmesh_runtime import log

    log.configure(log_format=log_format, level=level, service=service, tenant=tenant)


@contextmanager
def _refusing_bad_settings() -> Iterator[None]:
    try:
        yield
    except SettingsError as error:
        click.echo(error, err=True)
        sys.exit(BAD_SETTINGS)


for command in COMMANDS:
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="duckmesh")
