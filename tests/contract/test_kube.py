"""The API server in memory keeps the promises that the real one keeps (tests/e2e/test_kube_api.py)."""

from __future__ import annotations

import pytest

from tests.contract.kube_suite import KubeSuite
from tests.fakes.kube import FakeApi


class TestFake(KubeSuite):
    @pytest.fixture
    def api(self) -> FakeApi:
        return FakeApi()

    @pytest.fixture
    def namespace(self) -> str:
        return "suite"
