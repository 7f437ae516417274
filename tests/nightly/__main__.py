"""`make nightly`: long runs that print figures and fail on what must never be: rows lost or doubled, unbounded growth.

`python -m tests.nightly [name ...] [--minutes N]`. Never fails on a timing.
"""

from __future__ import annotations

import argparse
import sys

from tests.bench.figures import machine
from tests.bench.stack import running_stack
from tests.nightly import compaction
from tests.nightly.deletion import deletion
from tests.nightly.hour import hour
from tests.nightly.kills import kills
from tests.nightly.mixed import mixed
from tests.nightly.operator_faults import operator_faults
from tests.nightly.steady import steady

RUNS = {
    "steady": (steady, 60.0),
    "kills": (kills, 15.0),
    "mixed": (mixed, 5.0),
    "operator": (operator_faults, 30.0),
    "deletion": (deletion, 5.0),
    "compact-hour": (hour, 60.0),
    "compact-beside": (compaction.beside, 15.0),
    "compact-kills": (compaction.kills, 15.0),
    "compact-stops": (compaction.stops, 5.0),
    "compact-backlog": (compaction.backlog, 5.0),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(RUNS))
    parser.add_argument(
        "--minutes",
        type=float,
        help="of each run (steady and compact-hour 60, kills 15; the others do all they have whatever it takes)",
    )
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in RUNS]:
        parser.error(f"no such run: {', '.join(unknown)}")
    print(machine(), flush=True)
    found: list[str] = []
    for name in args.names or RUNS:
        run, usual = RUNS[name]
        with running_stack() as stack:
            problems = run(stack, args.minutes or usual)
        found += [f"{name}: {problem}" for problem in problems]
        sys.stdout.flush()
    for problem in found:
        print(f"VIOLATED {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
