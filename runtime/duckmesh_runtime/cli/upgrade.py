"""`kubectl duckmesh upgrade`: move Tenants to a version of the runtime, a few at a time.

It writes `spec.version` by server-side apply under a name of its own, and only where nobody else keeps that field: what
a GitOps tool holds is changed at its source. The plan is pure; `roll` carries it out.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol

import click

from duckmesh_runtime.cli.completion import complete_tenant
from duckmesh_runtime.cli.connected import NAMESPACE, examples

if TYPE_CHECKING:
    from duckmesh_runtime.cli.cluster import Kubectl

#: Field manager under which `spec.version` is set.
MANAGER: Final = "duckmesh-upgrade"
_VERSION: Final = re.compile(r"^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$")
_LOOK_S: Final = 1.0
#: Another version may be the way out of these.
_FAILED: Final = ("RolloutStuck", "MigrationFailed")
Manifest = dict[str, Any]


class Step(StrEnum):
    """What is to be done with a Tenant."""

    MOVE = "move"
    WAIT = "wait"  # it is on its way already
    NONE = "none"
    LEAVE = "leave"  # not ours to move


class State(StrEnum):
    """Where a Tenant is on its way."""

    DONE = "done"
    WAITING = "waiting"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One Tenant of a run.

    Attributes:
        item: The Tenant as read.
        step: What to do.
        why: For `LEAVE`: what stands against it.
    """

    item: Manifest
    step: Step
    why: str = ""

    @property
    def name(self) -> str:
        """Namespace and name."""
        meta = self.item["metadata"]
        return f"{meta['namespace']}/{meta['name']}"

    @property
    def at(self) -> str:
        """The version it is at, or on its way to."""
        return version_of(self.item) or "nothing"


class Tenants(Protocol):
    """The Tenants of a cluster.

    Raises:
        click.ClickException: It was not possible.
    """

    def read(self, namespace: str, name: str) -> Manifest:
        """One Tenant."""

    def set_version(self, item: Manifest, version: str) -> None:
        """Have `spec.version`, whoever had it."""


def plan(items: Sequence[Manifest], version: str, *, force: bool) -> list[Task]:
    """What to do with each, by namespace and name.

    Args:
        items: Tenants with their `managedFields`.
        version: Where they shall be.
        force: Also where another field manager holds `spec.version`.
    """
    tasks = [_task(item, version, force=force) for item in items]
    return sorted(tasks, key=lambda one: one.name)


def version_of(item: Manifest) -> str:
    """What the Tenant asks for, else what it was made with."""
    asked = item.get("spec", {}).get("version")
    return str(asked or item.get("status", {}).get("version", {}).get("target", ""))


def state_of(item: Manifest, version: str) -> tuple[State, str]:
    """Where a Tenant is, and why; only what the operator says about the newest spec counts."""
    if not _is_seen(item):
        return State.WAITING, "the operator has not seen the change"
    ready, progressing, stalled = (
        _condition(item, kind) for kind in ("Ready", "Progressing", "Stalled")
    )
    if stalled.get("status") == "True":
        return State.FAILED, _say(stalled)
    if progressing.get("reason") in _FAILED:
        return State.FAILED, _say(progressing)
    at = item.get("status", {}).get("version", {})
    # What is suspended runs nothing: it will start at the version that is asked for.
    if ready.get("reason") == "Suspended" and at.get("target") == version:
        return State.DONE, ""
    if ready.get("status") == "True" and at.get("current") == version:
        return State.DONE, ""
    return State.WAITING, _say(progressing if ready.get("status") == "True" else ready)


def roll(
    tasks: Sequence[Task],
    tenants: Tenants,
    version: str,
    *,
    max_parallel: int,
    timeout_s: float,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> tuple[list[str], list[str]]:
    """Move them, `max_parallel` at a time; begin no more once one has failed.

    Returns:
        The names of those that failed, and of those that were not begun.
    """
    waiting = [one for one in tasks if one.step in (Step.MOVE, Step.WAIT)]
    running: dict[str, tuple[Task, float]] = {}
    failed: list[str] = []
    while running or (waiting and not failed):
        while waiting and not failed and len(running) < max_parallel:
            task = waiting.pop(0)
            if task.step is Step.MOVE:
                try:
                    tenants.set_version(task.item, version)
                except click.ClickException as error:
                    failed.append(task.name)
                    say(f"{task.name}: failed: {error.format_message()}")
                    continue
                say(f"{task.name}: {task.at} -> {version}")
            running[task.name] = task, clock()
        for name, (task, begun) in list(running.items()):
            state, why = _look(task, tenants, version)
            if state is State.WAITING and clock() - begun > timeout_s:
                state, why = State.FAILED, f"not ready after {timeout_s:.0f} s; {why}"
            if state is State.WAITING:
                continue
            del running[name]
            if state is State.DONE:
                say(f"{name}: ready at {version}")
            else:
                failed.append(name)
                say(f"{name}: failed: {why}")
        if running:
            pause(_LOOK_S)
    return failed, [one.name for one in waiting]


def _look(task: Task, tenants: Tenants, version: str) -> tuple[State, str]:
    meta = task.item["metadata"]
    try:
        item = tenants.read(meta["namespace"], meta["name"])
    except click.ClickException as error:  # the API server may be back at the next look
        return State.WAITING, error.format_message()
    return state_of(item, version)


def _task(item: Manifest, version: str, *, force: bool) -> Task:
    if item.get("spec", {}).get("paused"):
        return Task(item=item, step=Step.LEAVE, why="spec.paused is true")
    if "deletionTimestamp" in item["metadata"]:
        return Task(item=item, step=Step.LEAVE, why="it is being deleted")
    stalled = _condition(item, "Stalled")
    if _is_seen(item) and stalled.get("status") == "True" and stalled["reason"] not in _FAILED:
        return Task(item=item, step=Step.LEAVE, why=_say(stalled))
    if version_of(item) == version:
        done = state_of(item, version)[0] is State.DONE
        return Task(item=item, step=Step.NONE if done else Step.WAIT)
    holders = [] if force else _holders(item)
    if holders:
        why = (
            f"spec.version is kept by {' and '.join(holders)}: change it where that takes it from, or take it over with "
            "--force"
        )
        return Task(item=item, step=Step.LEAVE, why=why)
    return Task(item=item, step=Step.MOVE)


def _holders(item: Manifest) -> list[str]:
    """Field managers but ours that have `spec.version`."""
    return sorted(
        {
            one.get("manager", "someone")
            for one in item["metadata"].get("managedFields", [])
            if one.get("manager") != MANAGER
            and "f:version" in one.get("fieldsV1", {}).get("f:spec", {})
        }
    )


def _is_seen(item: Manifest) -> bool:
    """Whether the status is about the newest spec."""
    seen: int = item.get("status", {}).get("observedGeneration", 0)
    generation: int = item["metadata"]["generation"]
    return seen >= generation


def _condition(item: Manifest, kind: str) -> Mapping[str, str]:
    """A condition of the Tenant; empty when there is none."""
    conditions = item.get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == kind), {})


def _say(condition: Mapping[str, str]) -> str:
    if not condition:
        return "the operator has not reported yet"
    return f"{condition.get('reason')}: {condition.get('message')}"


def _check_version(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _VERSION.match(value):
        raise click.BadParameter("want a version such as 0.2.0")
    return value


@click.command(
    epilog=examples(
        "kubectl duckmesh -n team-a upgrade shop --to 0.2.0",
        "kubectl duckmesh upgrade -A -l tier=test",
        "kubectl duckmesh upgrade -A --all --max-parallel 5 --dry-run",
    )
)
@click.argument("names", nargs=-1, metavar="[TENANT...]", shell_complete=complete_tenant)
@NAMESPACE
@click.option("-l", "--selector", help="Tenants with these labels, as of kubectl.")
@click.option("--all", "everyone", is_flag=True, help="All Tenants of the namespace.")
@click.option("-A", "--all-namespaces", "everywhere", is_flag=True, help="In all namespaces.")
@click.option(
    "--to", "version", callback=_check_version, help="Default: what the operator gives new Tenants."
)
@click.option(
    "--max-parallel",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    help="Tenants under way at a time.",
)
@click.option(
    "--timeout",
    type=click.IntRange(1, 86_400),
    default=900,
    show_default=True,
    metavar="SECONDS",
    help="For one Tenant to be Ready at the version.",
)
@click.option("--force", is_flag=True, help="Take spec.version over from whoever keeps it.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.pass_context
def upgrade(
    context: click.Context,
    *,
    names: tuple[str, ...],
    namespace: str | None,
    selector: str | None,
    everyone: bool,
    everywhere: bool,
    version: str | None,
    max_parallel: int,
    timeout: int,
    force: bool,
    dry_run: bool,
) -> None:
    """Move Tenants to a version of the runtime, one after the other, and wait until each is Ready.

    It stops at the first that does not become so. It takes the rights to get, list and patch Tenants. Without --to it
    reads the operator's version, which takes the right to list ConfigMaps in all namespaces.
    """
    kubectl: Kubectl = context.obj["kubectl"]
    named = context.find_root().params.get("tenant")
    names = (*names, *([named] if named else []))
    if sum((bool(names), selector is not None, everyone)) != 1:
        raise click.UsageError("name Tenants, or choose them by --selector, or take --all")
    if names and everywhere:
        raise click.UsageError("--all-namespaces goes with --selector or --all")
    if namespace and everywhere:
        raise click.UsageError("take --namespace or --all-namespaces, not both")
    tasks = plan(
        kubectl.tenants(names, selector=selector, namespace=namespace, everywhere=everywhere),
        version := version or kubectl.operator_version(),
        force=force,
    )
    left = [one for one in tasks if one.step is Step.LEAVE]
    for task in tasks:
        if task.step is Step.LEAVE:
            click.echo(f"{task.name}: left at {task.at}: {task.why}")
        elif task.step is Step.NONE:
            click.echo(f"{task.name}: is at {version}")
        elif dry_run:
            click.echo(f"{task.name}: {task.at} -> {version} (dry run)")
    if dry_run:
        return
    failed, unbegun = roll(
        tasks, kubectl, version, max_parallel=max_parallel, timeout_s=timeout, say=click.echo
    )
    if failed:
        more = f" Not begun: {', '.join(unbegun)}." if unbegun else ""
        raise click.ClickException(
            f"stopped: {', '.join(failed)} did not become Ready at {version}. Move it back with --to and the version it "
            f"had.{more}"
        )
    if left:
        raise click.ClickException(f"{len(left)} of {len(tasks)} Tenants were left as they are")
