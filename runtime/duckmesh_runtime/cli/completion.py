"""`duckmesh completion`: what a shell needs to complete commands and options of both programs."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, get_completion_class

from duckmesh_runtime.cli.connected import examples

PROGRAMS = ("duckmesh", "kubectl-duckmesh")


@click.command(
    epilog=examples(
        "echo 'source <(duckmesh completion bash)' >>~/.bashrc",
        "echo 'source <(duckmesh completion zsh)' >>~/.zshrc",
        "duckmesh completion fish >~/.config/fish/completions/duckmesh.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print completion for SHELL, to be read by it when it starts; for `duckmesh` and `kubectl-duckmesh`.

    `kubectl duckmesh` is completed by kubectl's own completion, which asks the program kubectl_complete-duckmesh.
    """
    shape = get_completion_class(shell)
    if shape is None:
        raise click.ClickException(f"click knows no completion for {shell}")
    for program in PROGRAMS:
        click.echo(shape(click.Group(), {}, program, complete_variable(program)).source())


def complete_tenant(
    context: click.Context, _: click.Parameter | None, incomplete: str
) -> list[CompletionItem[str]]:
    """Tenants of the cluster and namespace that the words so far choose."""
    from duckmesh_runtime.cli.cluster import Kubectl

    here = {key: value for key, value in context.params.items() if value}
    names = Kubectl.chosen_by(context.find_root().params | here).names_of_tenants()
    return [CompletionItem(name, help="Tenant") for name in names if name.startswith(incomplete)]


def complete_variable(program: str) -> str:
    """The variable by which a shell asks a program for completions."""
    return f"_{program}_COMPLETE".replace("-", "_").upper()
