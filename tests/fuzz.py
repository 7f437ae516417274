"""How hard property tests try: a little in every run, much more in a nightly one."""

from __future__ import annotations

import os


def examples(usual: int) -> int:
    """Examples of a property: `usual`, times what DUCKMESH_FUZZ says."""
    return usual * int(os.environ.get("DUCKMESH_FUZZ", "1"))
