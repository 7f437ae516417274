"""The operator's client against a real API server: the same promises that the fake keeps."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from duckmesh_operator import kube as client
from duckmesh_operator.kube import KubeApi
from tests.contract.kube_suite import KubeSuite
from tests.e2e.product import Kube


@pytest.fixture(scope="module")
def namespace(kube: Kube) -> Iterator[str]:
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    kube.kubectl("create", "namespace", name)
    yield name
    kube.kubectl("delete", "namespace", name, "--wait=false")


class TestReal(KubeSuite):
    @pytest.fixture
    async def api(self, kube: Kube) -> AsyncIterator[KubeApi]:
        async with client.connect(kube.kubeconfig) as api:
            yield api
