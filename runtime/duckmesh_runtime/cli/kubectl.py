"""`kubectl duckmesh`: the client commands on a Tenant of a cluster. The only module that runs kubectl.

Whatever way the kubeconfig logs in works, since kubectl does it: the admin key comes from the Tenant's Secret, the API
through `kubectl port-forward` to a port of loopback. The key is handed to nobody but that port.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn

import click

from duckmesh_runtime.cli.adopt import adopt
from duckmesh_runtime.cli.commands import COMMANDS
from duckmesh_runtime.cli.completion import complete_tenant, complete_variable
from duckmesh_runtime.cli.connected import NAMESPACE, UNAVAILABLE, examples
from duckmesh_runtime.cli.upgrade import upgrade

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from duckmesh_runtime.cli.client import Connection
    from duckmesh_runtime.cli.cluster import Kubectl

_NAME: Final = "kubectl-duckmesh"
_CALLED: Final = "kubectl duckmesh"
_NO_FILES: Final = (
    4  # ShellCompDirective of kubectl's completion: https://pkg.go.dev/github.com/spf13/cobra
)
_DEFAULT: Final = 0


class Plugin(click.Group):
    """A group whose first word is the Tenant, where no option names it and it is no command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Take the Tenant off, then find the command."""
        if ctx.params.get("tenant") is None and args[0] not in self.commands:
            ctx.params["tenant"], args = args[0], args[1:]
        if ctx.resilient_parsing and not args:
            return None, None, []
        if not args or args[0] in ctx.help_option_names:
            click.echo(ctx.get_help())
            ctx.exit(0 if args else 2)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Tenants and commands, or what follows."""
        found = super().shell_complete(ctx, incomplete)
        if ctx.params.get("tenant") is None and not incomplete.startswith("-"):
            found += complete_tenant(ctx, None, incomplete)
        return found


@click.group(
    cls=Plugin,
    context_settings={"help_option_names": ["-h", "--help"]},
    options_metavar="[OPTIONS] [TENANT]",
    epilog=examples(
        'kubectl duckmesh -n team-a shop query "SHOW TABLES"',
        "kubectl duckmesh -n team-a shop lag -w",
        "kubectl duckmesh --context prod -n team-a shop ingest events.parquet --create",
        "kubectl duckmesh -n team-a status",
    ),
)
@NAMESPACE
@click.option("--context", "kube_context", help="Of the kubeconfig; default: its current one.")
@click.option("--kubeconfig", help="File; default: as of kubectl.")
@click.option("--tenant", help="Name of the Tenant, for one that is called like a command.")
@click.version_option(package_name="duckmesh-runtime", prog_name=_CALLED)
@click.pass_context
def plugin(context: click.Context, /, tenant: str | None, **_: str | None) -> None:
    """Work with the lake of a Tenant, under the admin key that the operator made for it.

    TENANT can be left out where the namespace has only one. It takes the rights to get Tenants, Secrets, Services and
    Pods of the namespace, and to create pods/portforward.
    """
    from duckmesh_runtime.cli.cluster import Kubectl

    kubectl = Kubectl.chosen_by(context.params)
    program = [_CALLED, *kubectl.options, *([tenant] if tenant else [])]

    @contextmanager
    def way(url: str | None, api_key: str | None) -> Iterator[Connection]:
        if url is not None:
            raise click.UsageError("--url: the cluster knows it; use `duckmesh` for another one")
        with _into(kubectl, tenant, api_key) as connection:
            yield connection

    context.obj = {"way": way, "program": " ".join(program), "kubectl": kubectl}


for _command in (*COMMANDS, adopt, upgrade):
    plugin.add_command(_command)


@contextmanager
def _into(kubectl: Kubectl, tenant: str | None, api_key: str | None) -> Iterator[Connection]:
    """A connection to a Tenant's API for as long as this is open."""
    from duckmesh_runtime.cli.client import Connection
    from duckmesh_runtime.cli.show import waiting

    with waiting("connecting"):
        found = kubectl.find_tenant(tenant)
        if found.suspended:
            raise Unavailable(
                f"Tenant {found} is suspended: it has no pods until spec.suspend is false"
            )
        key = api_key or kubectl.admin_key(found)
        forward = kubectl.forward(found)
    with forward as url:
        yield Connection(url=url, api_key=key)


class Unavailable(click.ClickException):
    """The lake cannot be reached now."""

    exit_code = UNAVAILABLE


def main() -> None:
    """The program `kubectl-duckmesh`."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    plugin.main(prog_name=_CALLED, complete_var=complete_variable(_NAME))


def _end(number: int, _: FrameType | None) -> NoReturn:
    """Leave by the way that ends kubectl too."""
    sys.exit(128 + number)


def complete() -> None:
    """The program `kubectl_complete-duckmesh`, which kubectl asks: a line for each completion, then what else to offer."""
    from click.shell_completion import ShellComplete

    *words, incomplete = sys.argv[1:] or [""]
    shell = ShellComplete(plugin, {}, _CALLED, complete_variable(_NAME))
    found = shell.get_completions(words, incomplete)
    for item in found:
        if item.type == "plain":
            click.echo(f"{item.value}\t{item.help}" if item.help else item.value)
    click.echo(f":{_NO_FILES if all(item.type == 'plain' for item in found) else _DEFAULT}")
