"""A platform team installs the chart, an application team sends real rows and reads the same rows back."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e import flights
from tests.e2e.api import Api
from tests.e2e.demo import same
from tests.e2e.product import Tenant, duckmesh, wait_for


def test_real_rows_in_the_same_rows_out_and_lag_back_to_zero(
    tenant: Tenant, tmp_path: Path
) -> None:
    data = flights.write_parquet(tmp_path / "flights.parquet")

    tenant.apply()
    tenant.wait("Ready")
    with tenant.door() as url:
        sent = duckmesh(
            url,
            tenant.admin_key(),
            "ingest",
            str(data),
            "--table",
            "flights",
            "--create",
            "--output",
            "json",
        )
        assert sent.returncode == 0, sent.stderr
        token = json.loads(sent.stdout)["token"]
        answer = Api(url, tenant.admin_key()).ok(
            "POST",
            "/v1/query",
            {"sql": flights.SQL, "min_visibility_token": token, "consistency_timeout_ms": 30_000},
        )

    assert same(answer["rows"], flights.expected())
    assert answer["lag_ms"] >= 0
    # Status is refreshed each 60 s while commits happen, at once only when lag moves.
    status = wait_for(
        "lag and snapshot in status",
        lambda: (
            (s := tenant.read()["status"])["ingest"]["lag"] == "0s"
            and s["snapshot"]["id"] >= answer["snapshot_id"]
            and s
        ),
        90,
        interval_s=1,
    )
    assert status["ingest"]["pendingRows"] == 0
    assert "0s" in tenant.row()


def test_a_second_run_of_the_same_file_adds_nothing(tenant: Tenant, tmp_path: Path) -> None:
    small = tmp_path / "few.csv"
    small.write_text("id,name\n1,one\n2,two\n")
    tenant.apply()
    tenant.wait("Ready")

    with tenant.door() as url:
        key = tenant.admin_key()
        first = duckmesh(
            url, key, "ingest", str(small), "--table", "few", "--create", "--output", "json"
        )
        second = duckmesh(
            url, key, "ingest", str(small), "--table", "few", "--create", "--output", "json"
        )
        assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
        token = json.loads(second.stdout)["token"]
        rows = Api(url, key).rows("SELECT id, name FROM few ORDER BY id", token)

    assert rows == [[1, "one"], [2, "two"]]
    assert json.loads(first.stdout)["token"] == token
