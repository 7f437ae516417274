"""The example for Alertmanager: whom each alert reaches, and that it speaks of alerts that there are."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml

from tests.integration.test_alert_rules import CASES, rules
from tests.pages import DOCS
from tests.tools import AMTOOL, have

EXAMPLE = DOCS / "examples" / "alertmanager.yaml"


def amtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(have(AMTOOL)), *arguments], capture_output=True, text=True, check=False, timeout=100
    )


def test_alertmanager_takes_the_example() -> None:
    run = amtool("check-config", str(EXAMPLE))

    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(("severity", "receiver"), [("page", "on-call"), ("ticket", "tickets")])
def test_an_alert_goes_where_its_severity_says(severity: str, receiver: str) -> None:
    labels = (f"severity={severity}", "alertname=DuckmeshLagBreach", "tenant=shop/acme")

    run = amtool("config", "routes", "test", f"--config.file={EXAMPLE}", *labels)

    assert (run.returncode, run.stdout.strip()) == (0, receiver), run.stderr


def test_every_alert_of_the_example_exists_and_none_takes_away_itself() -> None:
    inhibitions = yaml.safe_load(EXAMPLE.read_text())["inhibit_rules"]
    for rule in inhibitions:
        source, target = (
            set(re.findall(r"Duckmesh\w+", " ".join(rule[side])))
            for side in ("source_matchers", "target_matchers")
        )
        assert target
        assert source | target <= CASES.keys()
        assert source.isdisjoint(target)


def test_no_page_is_taken_away_by_a_ticket() -> None:
    severity = {alert: rule["labels"]["severity"] for alert, rule in rules().items()}
    for rule in yaml.safe_load(EXAMPLE.read_text())["inhibit_rules"]:
        for alert in re.findall(r"Duckmesh\w+", " ".join(rule["source_matchers"])):
            assert severity[alert] == "page"


def test_inhibition_within_a_tenant_asks_for_labels_that_both_sides_have() -> None:
    for rule in yaml.safe_load(EXAMPLE.read_text())["inhibit_rules"]:
        if "equal" in rule:
            for alert in re.findall(r"Duckmesh\w+", " ".join(rule["target_matchers"])):
                assert set(rule["equal"]) <= CASES[alert].labels.keys()


def test_the_page_of_alerts_lists_all_of_them() -> None:
    listed = re.findall(
        r"^\| `(\w+)` \| (\w+) \| \[.+\]\((\S+)\) \|$", (DOCS / "alerts.md").read_text(), re.M
    )

    assert listed == [
        (
            alert,
            rule["labels"]["severity"],
            rule["annotations"]["runbook_url"].removeprefix("docs/"),
        )
        for alert, rule in rules().items()
    ]
