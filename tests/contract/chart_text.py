"""The chart's templates as text, for checks that need no helm."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

TEMPLATES = Path(__file__).parents[2] / "charts" / "duckmesh" / "templates"


def read(file: str) -> str:
    """Source of one template."""
    return (TEMPLATES / file).read_text(encoding="utf-8")


def documents(file: str) -> list[dict[str, Any]]:
    """Manifests of a template that has expressions, but no conditions or loops; an expression reads as `x`."""
    text = re.sub(r"\{\{.*?\}\}", "x", read(file))
    return [document for document in yaml.safe_load_all(text) if document]
