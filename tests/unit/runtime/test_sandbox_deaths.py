"""How the death of a slot is told, and where the kernel says that it had to kill."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from duckmesh_runtime.sandbox.deaths import OomKills, failure_of_death

EVENTS = "low 0\nhigh 0\nmax 7\noom 1\noom_kill {}\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


def write(root: Path, file: str, text: str) -> None:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text)


@pytest.mark.parametrize(
    ("group", "file", "text"),
    [
        ("0::/\n", "sys/fs/cgroup/memory.events", EVENTS),
        ("0::/pod/sandbox\n", "sys/fs/cgroup/pod/sandbox/memory.events", EVENTS),
        ("0::/../other\n", "sys/fs/cgroup/memory.events", EVENTS),
        ("4:memory:/pod\n0::/\n", "sys/fs/cgroup/memory/pod/memory.oom_control", CONTROL),
        ("4:memory:/host/pod\n", "sys/fs/cgroup/memory/memory.oom_control", CONTROL),
    ],
    ids=["own", "group", "foreign", "version 1", "version 1 in a container"],
)
def test_each_kill_of_the_kernel_is_told_once(
    tmp_path: Path, group: str, file: str, text: str
) -> None:
    write(tmp_path, "proc/self/cgroup", group)
    write(tmp_path, file, text.format(3))
    kills = OomKills(tmp_path)
    write(tmp_path, file, text.format(5))

    assert [kills.one_more() for _ in range(3)] == [True, True, False]


def test_a_kernel_that_does_not_say_has_killed_nobody(tmp_path: Path) -> None:
    assert not OomKills(tmp_path).one_more()


@pytest.mark.parametrize(
    ("status", "words", "killed", "code"),
    [
        (-signal.SIGKILL, "", True, "QUERY_MEMORY"),
        (-signal.SIGKILL, "", False, "QUERY_CRASHED"),
        (-signal.SIGSEGV, "", True, "QUERY_CRASHED"),
        (
            -signal.SIGABRT,
            "terminate called after throwing an instance of 'std::bad_alloc'",
            False,
            "QUERY_MEMORY",
        ),
        (1, "Traceback ...\nMemoryError\n", False, "QUERY_MEMORY"),
        (-signal.SIGABRT, "free(): invalid pointer", False, "QUERY_CRASHED"),
    ],
)
def test_a_death_has_its_code(
    tmp_path: Path, status: int, words: str, killed: bool, code: str
) -> None:
    file = "sys/fs/cgroup/memory.events"
    write(tmp_path, file, EVENTS.format(0))
    kills = OomKills(tmp_path)
    write(tmp_path, file, EVENTS.format(int(killed)))

    assert failure_of_death(status, words, kills).code == code
