"""`make bench`: the figures of docs/benchmarks.md, as a Markdown table: `python -m tests.bench [name ...] [--short]`.

A name is a scenario or a group of them (`writes`, `reads`, `maintenance`). Starts its own Postgres, S3 and processes on
this machine; figures are reported, never judged. `cluster` measures what needs Kubernetes, on the cluster of `make demo`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from tests.bench import (
    bulk,
    cluster,
    compaction,
    crowd,
    many_files,
    memory,
    reads,
    small,
    tpch,
    upserts,
    waiting,
)
from tests.bench.figures import Figure, machine, table
from tests.bench.mode import Mode
from tests.bench.stack import Stack, running_stack

Scenario = Callable[[Stack, Mode], Sequence[Figure]]

GROUPS: dict[str, dict[str, Scenario]] = {
    "writes": {
        "latency": small.latency,
        "posts": small.posts,
        "arrow": bulk.arrow,
        "ndjson": bulk.ndjson,
        "upsert": upserts.upsert,
        "waiters": waiting.waiters,
        "memory": memory.memory,
    },
    "reads": {
        "point": reads.point,
        "point-busy": reads.point_busy,
        "arrow-out": reads.arrow_out,
        "tpch": tpch.tpch,
        "first-query": many_files.first_query,
        "clients": crowd.clients,
        "freeze": many_files.freeze,
    },
    "maintenance": {"compaction": compaction.compaction},
}
SCENARIOS = {name: scenario for group in GROUPS.values() for name, scenario in group.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    groups = "; ".join(f"{name}: {', '.join(group)}" for name, group in GROUPS.items())
    parser.add_argument("names", nargs="*", metavar="name", help=f"{groups}; cluster")
    parser.add_argument("--short", action="store_true", help="small sizes: is the harness well?")
    parser.add_argument("--rounds", type=int, help="repetitions (3; 1 when short)")
    parser.add_argument("--minutes", type=float, help="of memory (30), of compaction (5)")
    args = parser.parse_args()
    if args.names == ["cluster"]:
        cluster.main()
        return 0
    if unknown := [name for name in args.names if name not in SCENARIOS | GROUPS]:
        parser.error(f"no such scenario: {', '.join(unknown)}")
    rounds = args.rounds or (1 if args.short else 3)
    mode = Mode(short=args.short, rounds=rounds, minutes=args.minutes)
    return _run(_chosen(args.names or list(GROUPS)), mode)


def _chosen(names: Sequence[str]) -> list[str]:
    """Scenarios of the names; a group stands for those of its own that are named beside it, or else for all."""
    found: list[str] = []
    for name in names:
        if name not in GROUPS:
            found.append(name)
        elif not any(other in GROUPS[name] for other in names):
            found += GROUPS[name]
    return found


def _run(names: Sequence[str], mode: Mode) -> int:
    """Measure; a scenario that fails is said and does not hide the others."""
    where, failed = machine(), 0
    figures: list[Figure] = []
    with running_stack() as stack:
        for name in names:
            started = time.monotonic()
            try:
                figures += SCENARIOS[name](stack, mode)
            except Exception as error:
                failed += 1
                figures.append(Figure(what=name, goal="", ours=f"not measured: {error!r}"))
            print(
                f"[bench] {name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True
            )
    kind = "short run, not figures to quote" if mode.short else f"{mode.rounds} rounds, medians"
    print(
        f"{where}; Postgres (fsync on), SeaweedFS, load client and all processes on it; {kind}.\n"
    )
    print(table(figures))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
