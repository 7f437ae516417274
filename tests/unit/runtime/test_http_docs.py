"""The page of the HTTP API and the table of routes say the same."""

from __future__ import annotations

import re
from pathlib import Path

from duckmesh_runtime.web.app import ANYONE, INTERNAL, ROUTES

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "http-api.md").read_text()


def test_each_public_route_is_described_with_its_roles() -> None:
    described = {}
    for line in re.findall(r"^\| `(?:GET|POST|PATCH|DELETE) .*\|$", PAGE, re.MULTILINE):
        calls, roles = line.split("|")[1:3]
        for call in re.findall(r"`([A-Z]+ /[^`]+)`", calls):
            described[call] = set(re.findall(r"`([a-z_]+)`", roles)) or roles.strip()
    served = {
        f"{route.method} {route.path}": "any"
        if route.roles == ANYONE
        else {role.value for role in route.roles}
        for route in ROUTES
        if route.roles != INTERNAL
    }
    probes = {
        f"GET {path}": "none"
        for path in ("/v1/health", "/v1/ready", "/v1/openapi.json", "/metrics")
    }

    assert described == served | probes
