"""The chart's files as text, for checks that need no helm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "charts" / "duckmesh"
TEMPLATES = CHART / "templates"
#: The operator's rights: where it serves Tenants, in its own namespace, and there for the canary too.
RIGHTS = ("tenants", "home", "canary")

#: Group, resource, verb.
Right = tuple[str, str, str]


def read(file: str) -> str:
    """Source of one template."""
    return (TEMPLATES / file).read_text(encoding="utf-8")


def rights(scope: str) -> set[Right]:
    """The operator's rights of one scope."""
    return rights_of(yaml.safe_load((CHART / "rbac" / f"{scope}.yaml").read_text(encoding="utf-8")))


def rights_of(rules: list[dict[str, Any]]) -> set[Right]:
    """All that the rules of a Role allow."""
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
