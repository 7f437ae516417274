"""Lines that tell a person what the cluster is doing, and how long it took."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from tests.e2e.cluster.settings import ClusterError

REMIND_S: Final = 30.0

T = TypeVar("T")


def say(text: str) -> None:
    """Write one line to standard error; standard output is for results."""
    print(f"[cluster] {text}", file=sys.stderr, flush=True)


@contextmanager
def step(doing: str, *, expect: str = "") -> Iterator[None]:
    """Announce a step, remind every 30 s that it still runs, and say how long it took."""
    say(f"{doing}{f' ({expect})' if expect else ''} ...")
    start = time.monotonic()
    done = threading.Event()
    reminder = threading.Thread(target=_remind, args=(doing, start, done), daemon=True)
    reminder.start()
    try:
        yield
    finally:
        done.set()
        reminder.join()
    say(f"{doing}: done in {time.monotonic() - start:.1f} s")


def _remind(doing: str, start: float, done: threading.Event) -> None:
    while not done.wait(REMIND_S):
        say(f"{doing}: {time.monotonic() - start:.0f} s so far")


def until(ready: Callable[[], T], *, what: str, timeout_s: float, pause_s: float = 0.1) -> T:
    """Call `ready` until it returns something true, and return that.

    Raises:
        ClusterError: it did not happen within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := ready()):
        if time.monotonic() > deadline:
            raise ClusterError(f"waited {timeout_s:.0f} s in vain: {what}")
        time.sleep(pause_s)
    return value
