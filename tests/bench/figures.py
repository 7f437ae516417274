"""What a measurement says: quantiles, one line of the table, the machine it ran on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import duckdb
import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table; each cell is text.

    Attributes:
        what: What was measured, with its load.
        goal: What it should be; empty for a peer's own figure.
        ours: Median of the rounds.
        peers: The same work done by others in the same run.
        notes: How it was measured; what else was seen.
    """

    what: str
    goal: str
    ours: str
    peers: str = ""
    notes: str = ""


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and max, rounded to 0.1; empty for fewer than two values."""
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    marks = {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(values)}
    return {name: round(value, 1) for name, value in marks.items()}


def median_of(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each quantile over the rounds."""
    names = [name for name in ("p50", "p95", "p99", "max") if all(name in r for r in rounds)]
    return {name: round(statistics.median(r[name] for r in rounds), 1) for name in names}


def show(marks: Mapping[str, float], unit: str = "ms") -> str:
    """Quantiles in one cell."""
    if not marks:
        return "too few values"
    return ", ".join(f"{name} {value:,.1f}" for name, value in marks.items()) + f" {unit}"


def table(figures: Sequence[Figure]) -> str:
    """The figures as a Markdown table."""
    lines = ["| | goal | duckmesh | peers, same run | notes |", "|---|---|---|---|---|"]
    lines += [f"| {f.what} | {f.goal} | {f.ours} | {f.peers} | {f.notes} |" for f in figures]
    return "\n".join(lines)


def machine() -> str:
    """Date, processors, memory, versions, and how busy the machine was before."""
    with open("/proc/cpuinfo", encoding="utf-8") as cpus:
        models = [line.split(":")[1].strip() for line in cpus if line.startswith("model name")]
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{datetime.now(UTC):%Y-%m-%d}: {len(models)} x {models[0] if models else platform.machine()}, "
        f"{memory:.0f} GiB, load {os.getloadavg()[0]:.1f} at the start; Linux {platform.release()}, "
        f"Python {platform.python_version()}, DuckDB {duckdb.__version__}"
    )


@dataclass
class Used:
    """Processor time of a span by name, in cores."""

    cores: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.2f}" for name, value in self.cores.items()) + " cores"


@contextmanager
def cpu_used(roots: Mapping[str, int]) -> Iterator[Used]:
    """Measure what processes and their descendants use while the block runs."""
    used = Used()
    before = {name: cpu_seconds(pid) for name, pid in roots.items()}
    started = time.monotonic()
    yield used
    wall = time.monotonic() - started
    used.cores = {name: (cpu_seconds(pid) - before[name]) / wall for name, pid in roots.items()}


def cpu_seconds(pid: int) -> float:
    """Processor time of a process, its ended and its running descendants."""
    root = psutil.Process(pid)
    times = root.cpu_times()
    total: float = times.user + times.system + times.children_user + times.children_system
    for child in root.children(recursive=True):
        try:
            mine = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += mine.user + mine.system
    return total


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process in MiB: all that is resident, and its own part, which cannot be dropped and read again from files."""

    resident: float
    own: float


def memory_of(pid: int) -> Memory:
    """As the kernel counts it now."""
    with open(f"/proc/{pid}/status", encoding="ascii") as lines:
        found = dict(line.split(":", 1) for line in lines)
    resident, files = (int(found[name].split()[0]) / 1024 for name in ("VmRSS", "RssFile"))
    return Memory(resident, resident - files)
