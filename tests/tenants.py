"""Factories for the operator's tests: a Tenant, the operator's configuration, both together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from duckmesh_operator.model import Tenant, parse_tenant
from duckmesh_operator.settings import (
    Caps,
    CatalogConfig,
    Egress,
    Profile,
    Settings,
    StoreConfig,
)
from duckmesh_operator.specs.context import Context, build_context

UID = "01234567-89ab-4cde-8f01-23456789abcd"


def tenant_object(spec: dict[str, Any] | None = None, **meta: Any) -> dict[str, Any]:
    """A Tenant as the API server holds it."""
    return {
        "apiVersion": "duckmesh.io/v1alpha1",
        "kind": "Tenant",
        "metadata": {
            "name": "acme",
            "namespace": "team",
            "uid": UID,
            "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            **meta,
        },
        "spec": spec or {},
    }


def make_tenant(spec: dict[str, Any] | None = None, **meta: Any) -> Tenant:
    return parse_tenant(tenant_object(spec, **meta))


def make_settings(secrets: Path = Path("/etc/duckmesh"), **more: Any) -> Settings:
    defaults: dict[str, Any] = {
        "namespace": "duckmesh-system",
        "runtime_image": "localhost/duckmesh-runtime:0.1.0",
        "sandbox_image": "localhost/duckmesh-sandbox:0.1.0",
        "runtime_version": "0.1.0",
        "allowed_labels": ("team.example/cost",),
        "catalogs": {
            "default": CatalogConfig(
                name="default",
                secret_dir=secrets / "catalog",
                admin_secret="duckmesh-catalog-default",
                egress=Egress(cidrs=("10.1.0.0/16",)),
            )
        },
        "stores": {
            "default": StoreConfig(
                name="default",
                bucket="lakes",
                endpoint="http://s3.example:8333",
                secret_dir=secrets / "store",
                secret="duckmesh-store-default",
                egress=Egress(peers=({"podSelector": {"matchLabels": {"app": "s3"}}},)),
            )
        },
        "profiles": {
            "default": Profile(
                name="default",
                ingest=Caps(cpu="2", memory="2Gi"),
                query=Caps(cpu="2", memory="2Gi"),
                digest="p1",
            )
        },
    }
    return Settings(**(defaults | more))


def make_context(spec: dict[str, Any] | None = None, **settings: Any) -> Context:
    return build_context(
        make_tenant(spec), make_settings(**settings), pinned_version="", postgres_ports=(5432,)
    )
