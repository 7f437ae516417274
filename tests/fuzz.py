"""How hard property tests try: a little in every run, much more in a nightly one."""

from __future__ import annotations

import os


def examples(usual: int) -> int:
    """Examples of a property: `usual`, times what DUCKMESH_FUZZ says."""
    return usual * _times()


def at_length() -> bool:
    """Whether this is a long run, which looks for examples that no run has tried."""
    return _times() > 1


def _times() -> int:
    return int(os.environ.get("DUCKMESH_FUZZ", "1"))
