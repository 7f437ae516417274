from __future__ import annotations

import re
from pathlib import Path

import pytest

from duckmesh_runtime import errors
from duckmesh_runtime.errors import CATALOGUE, DuckmeshError, Invalid

RUNTIME = Path(errors.__file__).parent


def test_a_code_outside_the_catalogue_cannot_be_raised() -> None:
    with pytest.raises(LookupError, match="MADE_UP"):
        Invalid("MADE_UP", "no such code")


@pytest.mark.parametrize("code", CATALOGUE)
def test_each_line_has_a_status_and_a_meaning(code: str) -> None:
    spec = CATALOGUE[code]

    assert re.fullmatch(r"[A-Z]+(_[A-Z]+)*", code)
    assert 400 <= spec.status < 600
    assert spec.meaning.endswith(".")


def test_too_busy_and_away_are_retryable() -> None:
    assert all(spec.retryable for spec in CATALOGUE.values() if spec.status in (429, 503))


def test_every_code_in_the_source_is_of_the_catalogue() -> None:
    raised = re.compile(
        r"\b(?:DuckmeshError|Invalid|Unauthorized|NotFound|Conflict|Limited|Unavailable|Failed|Corrupt)"
        r'\(\s*"([A-Z_]+)"'
    )
    found = {code for path in RUNTIME.rglob("*.py") for code in raised.findall(path.read_text())}

    assert found
    assert found <= set(CATALOGUE)


def test_an_error_carries_data_for_machines_and_text_for_people() -> None:
    error = Invalid("RATE_LIMITED", "slow down", context={"limit": 5}, retry_after_s=1.5)

    assert isinstance(error, DuckmeshError)
    assert (str(error), error.context, error.retry_after_s) == ("slow down", {"limit": 5}, 1.5)
    assert error.spec is CATALOGUE["RATE_LIMITED"]


def test_the_reference_page_has_the_whole_catalogue() -> None:
    page = (RUNTIME.parents[1] / "docs" / "http-api.md").read_text()
    lines = [
        f"| `{code}` | {spec.status} | {'yes' if spec.retryable else 'no'} | {spec.meaning} |"
        for code, spec in CATALOGUE.items()
    ]

    assert page.partition("## Errors")[2].splitlines()[-len(lines) :] == lines
