"""The runbooks' commands with kubectl, run as somebody on call runs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.product import Tenant
from tests.pages import DOCS, Terminal, steps, terminal

RUNBOOKS = DOCS / "runbooks"


class OnCall:
    """A shell of somebody who looks at a Tenant; `NS` and `TENANT` are its names."""

    def __init__(self, shell: Terminal, tenant: Tenant) -> None:
        self._shell = shell
        self._tenant = tenant

    def follow(self, page: str, *headings: str) -> None:
        """Run the commands with kubectl below these headings until they show what the page does."""
        tenant = self._tenant
        here = {
            "NS=shop TENANT=acme": f"NS={tenant.namespace} TENANT={tenant.name}",
            "acme": tenant.name,
        }
        opening = page == "README.md"
        todo = [step for step in steps(RUNBOOKS / page, *headings) if opening or step.of_cluster]
        self._shell.follow(todo, instead=here, within_s=60)


@contextmanager
def on_call(tenant: Tenant, folder: Path) -> Iterator[OnCall]:
    """A shell in this folder."""
    known = {**tenant.kube.env(), "NS": tenant.namespace, "TENANT": tenant.name}
    with terminal(folder, known, bin_dir=tenant.kube.bin_dir) as shell:
        yield OnCall(shell, tenant)
