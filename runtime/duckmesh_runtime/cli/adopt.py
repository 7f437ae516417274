"""`kubectl duckmesh adopt`: hand the data of a Tenant that is gone to a new one of the same namespace and name.

The word is a ConfigMap in the operator's own namespace, where tenants have no rights: nothing in a Tenant itself, which
a tenant writes, can ask for it. It names the new Tenant's uid, so that it is good for this very object and once only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from duckmesh_runtime.cli.completion import complete_tenant
from duckmesh_runtime.cli.connected import NAMESPACE, UNAVAILABLE, examples

if TYPE_CHECKING:
    from duckmesh_runtime.cli.cluster import Kubectl

OWNED: Final = "DataOwned"
_PREFIX: Final = "duckmesh-adopt"
Manifest = dict[str, Any]


class NotYet(click.ClickException):
    """The operator has not done it in time."""

    exit_code = UNAVAILABLE


def build_word(tenant: Manifest, operator_namespace: str) -> Manifest:
    """What the operator looks for; it removes it when it has done it."""
    meta = tenant["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"{_PREFIX}.{meta['namespace']}.{meta['name']}",
            "namespace": operator_namespace,
            "labels": {
                "app.kubernetes.io/managed-by": "duckmesh-operator",
                "duckmesh.io/tenant": meta["name"],
                "duckmesh.io/tenant-namespace": meta["namespace"],
            },
        },
        "data": {"uid": meta["uid"]},
    }


def spec_valid(tenant: Manifest) -> Manifest:
    """The condition SpecValid; empty before the operator came to it."""
    conditions = tenant.get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == "SpecValid"), {})


@click.command(
    epilog=examples(
        "kubectl duckmesh adopt shop --namespace team-a",
        "kubectl duckmesh -n team-a adopt shop --operator-namespace lakes",
    )
)
@click.argument("name", metavar="TENANT", required=False, shell_complete=complete_tenant)
@NAMESPACE
@click.option(
    "--operator-namespace",
    default="duckmesh-system",
    show_default=True,
    help="Where the operator runs.",
)
@click.option(
    "--timeout",
    type=click.IntRange(1, 3_600),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="For the operator to do it.",
)
@click.pass_context
def adopt(
    context: click.Context,
    *,
    name: str | None,
    namespace: str | None,
    operator_namespace: str,
    timeout: int,
) -> None:
    """Hand the data that an earlier Tenant of this name left behind to the one that is there now.

    For the platform team: it takes the rights to get Tenants, and to get and create ConfigMaps in the operator's namespace.
    Rows, tokens, idempotency keys and snapshots stay as they are; API keys are the new Tenant's own.
    """
    kubectl: Kubectl = context.obj["kubectl"]
    name = name or context.find_root().params.get("tenant")
    if name is None:
        raise click.UsageError("name the Tenant that shall have the data")
    tenant = kubectl.tenant(name, namespace)
    full_name = f"{tenant['metadata']['namespace']}/{name}"
    if tenant.get("spec", {}).get("paused"):
        raise click.ClickException(f"Tenant {full_name} is paused: set spec.paused to false first")
    found = spec_valid(tenant)
    if found.get("reason") != OWNED:
        told = f"{found.get('reason')}: {found.get('message')}" if found else "not reported yet"
        raise click.ClickException(f"no data waits for Tenant {full_name} (SpecValid is {told})")
    kubectl.apply(build_word(tenant, operator_namespace))
    if not kubectl.wait_for_condition(tenant, "SpecValid", timeout_s=timeout):
        raise NotYet(
            "the operator did not hand the data over yet: "
            f"{spec_valid(kubectl.tenant(name, namespace)).get('message')} It still may; see whether "
            f"--operator-namespace={operator_namespace} is where it runs"
        )
    click.echo(f"Tenant {full_name} has the data of the one before it")
