"""The Python client knows every code of the service, by the family that the service's status puts it in."""

from __future__ import annotations

import pytest

import duckmesh
from duckmesh.errors import FAMILIES
from duckmesh_runtime.errors import CATALOGUE

STATUSES = {
    duckmesh.Unauthorized: {401, 403},
    duckmesh.NotFound: {404, 410},
    duckmesh.Conflict: {409, 403},
    duckmesh.Limited: {429},
    duckmesh.NotVisible: {503, 504},
    duckmesh.Unavailable: {500, 503},
    duckmesh.Failed: {500, 504, 507},
    duckmesh.Corrupt: {500},
    duckmesh.Invalid: {400, 403, 413, 415},
}


def test_the_client_knows_every_code_and_no_other() -> None:
    assert set(FAMILIES) == set(CATALOGUE)


@pytest.mark.parametrize("code", CATALOGUE)
def test_a_codes_family_goes_with_its_status(code: str) -> None:
    assert CATALOGUE[code].status in STATUSES[FAMILIES[code]]
