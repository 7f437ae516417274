"""`kubectl duckmesh upgrade`: which Tenants it moves, how many at a time, and where it stops."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click import ClickException
from click.testing import CliRunner, Result

from duckmesh_runtime.cli.kubectl import plugin
from duckmesh_runtime.cli.upgrade import MANAGER, State, Step, plan, roll, state_of

KUBECTL = Path(__file__).resolve().parents[2] / "fakes" / "kubectl"
Manifest = dict[str, Any]


def tenant(
    name: str = "shop",
    *,
    at: str = "0.1.0",
    target: str = "",
    spec: Manifest | None = None,
    manager: str = "",
    **conditions: tuple[str, str],
) -> Manifest:
    """A Tenant; `conditions` are pairs of status and reason."""
    fields = {"f:spec": {"f:version": {}}}
    states = {"Ready": ("True", "AllReady"), "Progressing": ("False", "Settled")} | conditions
    return {
        "apiVersion": "duckmesh.io/v1alpha1",
        "kind": "Tenant",
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": f"uid-{name}",
            "generation": 1,
            "managedFields": [{"manager": manager, "fieldsV1": fields}] if manager else [],
        },
        "spec": spec or {},
        "status": {
            "observedGeneration": 1,
            "version": {"current": at, "target": target or at},
            "conditions": [
                {"type": kind, "status": status, "reason": reason, "message": f"{reason} it is"}
                for kind, (status, reason) in states.items()
            ],
        },
    }


@pytest.mark.parametrize(
    ("item", "step", "why"),
    [
        pytest.param(tenant(), Step.MOVE, "", id="older"),
        pytest.param(tenant(at="0.3.0"), Step.MOVE, "", id="newer"),
        pytest.param(tenant(at="0.2.0"), Step.NONE, "", id="there"),
        pytest.param(tenant(target="0.2.0"), Step.WAIT, "", id="on-its-way"),
        pytest.param(tenant(spec={"version": "0.2.0"}), Step.WAIT, "", id="asked-for"),
        pytest.param(tenant(spec={"paused": True}), Step.LEAVE, "spec.paused", id="paused"),
        pytest.param(
            tenant(Stalled=("True", "PrefixInUse")), Step.LEAVE, "PrefixInUse it is", id="stalled"
        ),
        pytest.param(
            tenant(at="0.2.0", Stalled=("True", "PrefixInUse")),
            *(Step.LEAVE, "PrefixInUse it is"),
            id="there-and-stalled",
        ),
        pytest.param(
            tenant(target="0.3.0", Stalled=("True", "RolloutStuck")), Step.MOVE, "", id="stuck"
        ),
        pytest.param(tenant(manager="argocd"), Step.LEAVE, "kept by argocd", id="gitops"),
        pytest.param(tenant(manager=MANAGER), Step.MOVE, "", id="our-own-field"),
    ],
)
def test_what_to_do_with_a_tenant(item: Manifest, step: Step, why: str) -> None:
    (task,) = plan([item], "0.2.0", force=False)

    assert task.step is step
    assert why in task.why


def test_a_stall_that_a_newer_spec_may_have_cured_holds_nothing_up() -> None:
    item = tenant(Stalled=("True", "PrefixInUse"))
    item["metadata"]["generation"] = 2

    assert plan([item], "0.2.0", force=False)[0].step is Step.MOVE


def test_a_kept_version_is_taken_over_by_force() -> None:
    assert plan([tenant(manager="argocd")], "0.2.0", force=True)[0].step is Step.MOVE


@pytest.mark.parametrize(
    ("item", "state", "why"),
    [
        pytest.param(tenant(at="0.2.0"), State.DONE, "", id="ready"),
        pytest.param(
            tenant(at="0.2.0", Ready=("False", "Suspended")), State.DONE, "", id="suspended"
        ),
        pytest.param(
            tenant(at="", target="0.2.0", Ready=("False", "Suspended")),
            *(State.DONE, ""),
            id="suspended-without-a-lake",
        ),
        pytest.param(
            tenant(target="0.1.0", Ready=("False", "Suspended")),
            *(State.WAITING, "Suspended: Suspended it is"),
            id="suspended-at-another-version",
        ),
        pytest.param(
            tenant(at="0.2.0", Ready=("False", "NoCommitter")),
            State.WAITING,
            "NoCommitter: NoCommitter it is",
            id="not-ready",
        ),
        pytest.param(
            tenant(target="0.2.0", Progressing=("True", "RollingOut")),
            State.WAITING,
            "RollingOut: RollingOut it is",
            id="old-pods-are-ready",
        ),
        pytest.param(
            tenant(target="0.2.0", Progressing=("False", "RolloutStuck")),
            State.FAILED,
            "RolloutStuck: RolloutStuck it is",
            id="stuck",
        ),
        pytest.param(
            tenant(
                target="0.2.0",
                Progressing=("False", "RolloutStuck"),
                Stalled=("True", "RolloutStuck"),
            ),
            State.FAILED,
            "RolloutStuck: RolloutStuck it is",
            id="stuck-and-stalled",
        ),
        pytest.param(
            tenant(Stalled=("True", "Invalid")),
            State.FAILED,
            "Invalid: Invalid it is",
            id="refused",
        ),
    ],
)
def test_where_a_tenant_is(item: Manifest, state: State, why: str) -> None:
    assert state_of(item, "0.2.0") == (state, why)


def test_a_status_of_before_the_change_says_nothing() -> None:
    item = tenant(at="0.2.0")
    item["metadata"]["generation"] = 2

    assert state_of(item, "0.2.0")[0] is State.WAITING


class Fleet:
    """Tenants that need some looks to become ready; the clock moves by the pauses."""

    def __init__(self, *names: str, broken: str = "", looks: int = 2) -> None:
        self.items = [tenant(name) for name in names]
        self.now = 0.0
        self.said: list[str] = []
        self.moved: list[str] = []
        self.most = 0
        self._broken = broken
        self.silent = 0
        self.refused = ""
        self._left: dict[str, int] = {}
        self._looks = looks

    def read(self, namespace: str, name: str) -> Manifest:
        assert namespace == "team"
        if self.silent:
            self.silent -= 1
            raise ClickException("kubectl get failed")
        self._left[name] -= 1
        if name == self._broken:
            return tenant(name, target="0.2.0", Progressing=("False", "RolloutStuck"))
        if self._left[name] > 0:
            return tenant(name, target="0.2.0", Progressing=("True", "RollingOut"))
        return tenant(name, at="0.2.0")

    def set_version(self, item: Manifest, version: str) -> None:
        assert version == "0.2.0"
        name = item["metadata"]["name"]
        if name == self.refused:
            raise ClickException("kubectl apply failed")
        self.moved.append(name)
        self._left[name] = self._looks
        self.most = max(self.most, sum(left > 0 for left in self._left.values()))

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def roll(self, max_parallel: int) -> tuple[list[str], list[str]]:
        return roll(
            plan(self.items, "0.2.0", force=False),
            self,
            "0.2.0",
            max_parallel=max_parallel,
            timeout_s=60,
            say=self.said.append,
            clock=lambda: self.now,
            pause=self.pause,
        )


@pytest.mark.parametrize("max_parallel", [1, 2, 9])
def test_as_many_as_asked_for_are_under_way(max_parallel: int) -> None:
    fleet = Fleet("a", "b", "c", "d")

    assert fleet.roll(max_parallel) == ([], [])
    assert fleet.moved == ["a", "b", "c", "d"]
    assert fleet.most == min(max_parallel, 4)
    assert fleet.said[0] == "team/a: 0.1.0 -> 0.2.0"
    assert fleet.said.count("team/d: ready at 0.2.0") == 1


def test_it_stops_at_the_first_that_fails() -> None:
    fleet = Fleet("a", "b", "c", "d", broken="b")

    assert fleet.roll(2) == (["team/b"], ["team/c", "team/d"])
    assert fleet.moved == ["a", "b"]
    assert "team/a: ready at 0.2.0" in fleet.said  # what was under way is seen to its end
    assert "team/b: failed: RolloutStuck: RolloutStuck it is" in fleet.said


def test_one_that_takes_too_long_has_failed() -> None:
    fleet = Fleet("a", "b", looks=10_000)

    assert fleet.roll(1) == (["team/a"], ["team/b"])
    assert fleet.said[-1].startswith("team/a: failed: not ready after 60 s; RollingOut")


def test_an_api_server_that_is_away_for_some_looks_ends_nothing() -> None:
    fleet = Fleet("a", "b")
    fleet.silent = 5

    assert fleet.roll(2) == ([], [])
    assert {"team/a: ready at 0.2.0", "team/b: ready at 0.2.0"} <= set(fleet.said)


def test_an_api_server_that_stays_away_ends_it_with_names() -> None:
    fleet = Fleet("a", "b")
    fleet.silent = 10_000

    assert fleet.roll(1) == (["team/a"], ["team/b"])
    assert fleet.said[-1] == "team/a: failed: not ready after 60 s; kubectl get failed"


def test_one_that_cannot_be_written_is_named_and_the_others_are_seen_to_their_end() -> None:
    fleet = Fleet("a", "b", "c")
    fleet.refused = "b"

    assert fleet.roll(2) == (["team/b"], ["team/c"])
    assert "team/b: failed: kubectl apply failed" in fleet.said
    assert fleet.said[-1] == "team/a: ready at 0.2.0"


# -------------------------------------------------------------------- the command


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what kubectl answers."""
    (tmp_path / "kubectl").symlink_to(KUBECTL)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("FAKE_KUBECTL", str(tmp_path))
    return tmp_path


@pytest.fixture
def run(answers: Path) -> Callable[..., Result]:
    return lambda *args: CliRunner().invoke(plugin, ["-n", "team", *args])


def write(answers: Path, name: str, answer: object) -> None:
    (answers / f"{name}.json").write_text(json.dumps(answer))


@pytest.mark.parametrize("args", [("upgrade", "shop"), ("shop", "upgrade")])
def test_a_named_tenant_is_moved_under_a_field_manager_of_its_own(
    answers: Path, run: Callable[..., Result], args: tuple[str, ...]
) -> None:
    # On its way by now: the fake cannot change its answer when it is written to.
    write(answers, "get-tenants.duckmesh.io-shop", tenant(at="0.2.0", target="0.1.0"))
    write(answers, "apply", {})

    done = run(*args, "--to", "0.2.0")

    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [
        "team/shop: 0.1.0 -> 0.2.0",
        "team/shop: ready at 0.2.0",
    ]
    (call,) = [one for one in (answers / "calls").read_text().splitlines() if " apply " in one]
    assert f"--server-side --force-conflicts --field-manager={MANAGER} -f -" in call


def test_the_operators_version_is_the_default_and_a_dry_run_writes_nothing(
    answers: Path, run: Callable[..., Result]
) -> None:
    config = 'runtimeImage: x:1\nruntimeVersion: "0.2.0"\n'
    write(answers, "get-configmaps", {"items": [{"data": {"operator.yaml": config}}]})
    items = [tenant("b"), tenant("a", at="0.2.0"), tenant("c", manager="argocd")]
    write(answers, "get-tenants.duckmesh.io", {"items": items})

    done = run("upgrade", "-A", "-l", "tier=test", "--dry-run")

    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[:2] == ["team/a: is at 0.2.0", "team/b: 0.1.0 -> 0.2.0 (dry run)"]
    assert lines[2].startswith("team/c: left at 0.1.0: spec.version is kept by argocd")
    calls = (answers / "calls").read_text()
    assert "apply" not in calls
    assert "--all-namespaces --selector=tier=test" in calls


@pytest.mark.parametrize("args", [("shop",), ("--all",)])
def test_the_namespace_can_follow_the_command(
    answers: Path, run: Callable[..., Result], args: tuple[str, ...]
) -> None:
    write(answers, "get-tenants.duckmesh.io-shop", tenant(at="0.2.0"))
    write(answers, "get-tenants.duckmesh.io", {"items": [tenant(at="0.2.0")]})

    done = run("upgrade", *args, "-n", "other", "--to", "0.2.0")

    assert done.exit_code == 0, done.output
    (call,) = (answers / "calls").read_text().splitlines()
    assert call.index("--namespace=team") < call.index("--namespace=other"), "the last one counts"


def test_what_was_left_alone_is_no_success(answers: Path, run: Callable[..., Result]) -> None:
    items = [tenant(spec={"paused": True})]
    write(answers, "get-tenants.duckmesh.io", {"items": items})

    done = run("upgrade", "--all", "--to", "0.2.0")

    assert done.exit_code == 1
    assert "1 of 1 Tenants were left as they are" in done.output


@pytest.mark.parametrize(
    ("args", "named"),
    [
        pytest.param(["upgrade"], "name Tenants", id="nothing"),
        pytest.param(["upgrade", "a", "--all"], "name Tenants", id="both"),
        pytest.param(["upgrade", "a", "-A"], "--all-namespaces", id="name-everywhere"),
        pytest.param(["upgrade", "--all", "-A", "-n", "a"], "--namespace or", id="two-places"),
        pytest.param(["upgrade", "a", "--to", "latest"], "such as 0.2.0", id="version"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(
    run: Callable[..., Result], args: list[str], named: str
) -> None:
    done = run(*args)

    assert done.exit_code == 2
    assert named in done.output


def test_several_operators_need_a_version(answers: Path, run: Callable[..., Result]) -> None:
    maps = [{"data": {"operator.yaml": f'runtimeVersion: "0.{n}.0"'}} for n in (1, 2)]
    write(answers, "get-configmaps", {"items": maps})
    write(answers, "get-tenants.duckmesh.io-a", tenant("a"))

    done = run("upgrade", "a")

    assert done.exit_code == 1
    assert "--to" in done.output
