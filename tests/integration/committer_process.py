"""A committer in a process of its own, for tests that kill and stop it; `tests.lakes.committer_process` starts it.

With a failpoint it kills itself there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.failpoints import Failpoint
from tests.lakes import committer_of, store_of
from tests.services import Lake


async def main(text: str) -> None:
    values = json.loads(text)
    nowhere = Path("/dev/null")
    lake = Lake(
        name=values["name"],
        tenant="",
        tenant_uid="",
        catalog_dsn="",
        admin_dir=nowhere,
        writer_dir=Path(values["writer_dir"]),
        maintenance_dir=nowhere,
        reader_dir=nowhere,
        store=store_of(values["store"]),
    )
    with pytest.MonkeyPatch.context() as patch:
        if values["die"]:
            when, statement = values["die"]
            Failpoint(statement, when, lambda: os.kill(os.getpid(), signal.SIGKILL)).plant(patch)
        async with committer_of(lake, holder=values["holder"]) as committer:
            await committer.run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main(sys.argv[1]))
