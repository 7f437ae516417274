"""A Compactor's Job as its pod starts it."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import pytest

from tests.direct import lake_writer
from tests.lakes import LakeView
from tests.services import Lake

RUN = {
    "id": "run-1",
    "targetFileSize": 128 * 2**20,
    "tiers": [2**20, 16 * 2**20],
    "maxBytesPerRun": 2**32,
    "keepForS": 3600,
    "keepLast": 5,
    "orphans": "Report",
    "orphansOlderThanS": 86_400,
    "integrity": "Cheap",
}


async def _job(lake: Lake, run: object) -> tuple[int, str]:
    env = {
        "PATH": os.environ["PATH"],
        "DUCKMESH_TENANT": lake.tenant,
        "DUCKMESH_LAKE": lake.name,
        "DUCKMESH_DATA_URL": lake.store.url,
        "DUCKMESH_S3_ENDPOINT": lake.store.endpoint,
        "DUCKMESH_STORE_DIR": str(lake.store.secret_dir or ""),
        "DUCKMESH_MAINTENANCE_DIR": str(lake.maintenance_dir),
        "DUCKMESH_POD_NAME": "job",
        "DUCKMESH_RUN": json.dumps(run),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "duckmesh_runtime", "compact"),
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


async def test_the_job_merges_checks_and_reports(lake: Lake) -> None:
    writer = await lake_writer(lake)
    writer.commit("CREATE TABLE lake.t (id BIGINT)")
    for number in range(6):
        writer.commit(f"INSERT INTO lake.t VALUES ({number})")
    writer.connection.close()

    code, said = await _job(lake, RUN)

    assert code == 0, said
    view = LakeView(lake)
    query = "SELECT * FROM duckmesh.maintenance_report WHERE lake = $1"
    row = (await view.fetch(query, lake.name))[0]
    run = json.loads(row["run"])
    assert (run["id"], run["result"], run["filesIn"], run["filesOut"]) == (
        "run-1",
        "Succeeded",
        6,
        1,
    )
    assert json.loads(row["integrity"])["state"] == "Healthy"
    assert json.loads(row["orphans"])["files"] == 0
    assert view.ids("t") == list(range(6))


@pytest.mark.parametrize("run", [{**RUN, "more": 1}, {"id": "a"}])
async def test_a_bad_run_is_refused_before_anything_is_done(lake: Lake, run: object) -> None:
    code, said = await _job(lake, run)

    assert code == 2
    assert "DUCKMESH_RUN" in said
