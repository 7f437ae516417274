"""Kubernetes quantities and Go durations as whole numbers, and back as the API server spells them. Pure; leaf module.

The spelling matters: the API server stores `1000m` as `1`, and a manifest that says it otherwise would differ for ever.
"""

from __future__ import annotations

import re
from typing import Final

_BINARY: Final = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_DECIMAL: Final = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BYTES: Final = re.compile(r"^([0-9]{1,19})(k|M|G|T|Ki|Mi|Gi|Ti)?$")
_MILLI: Final = re.compile(r"^([0-9]{1,9})m$")
_CORES: Final = re.compile(r"^([0-9]{1,6})(?:\.([0-9]{1,3}))?$")
_DURATION: Final = re.compile(r"^(?:[0-9]{1,9}(?:ms|s|m|h)){1,4}$")
_PART: Final = re.compile(r"([0-9]+)(ms|s|m|h)")
_UNIT_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}


def parse_cpu(value: object) -> int:
    """CPU in thousandths of a core.

    Raises:
        ValueError: Not a CPU quantity such as 250m, 2 or 1.5.
    """
    text = _as_text(value)
    if found := _MILLI.match(text):
        return int(found[1])
    if found := _CORES.match(text):
        return int(found[1]) * 1000 + int((found[2] or "").ljust(3, "0"))
    raise ValueError(f"{text!r} is not a CPU quantity such as 250m or 2")


def parse_bytes(value: object) -> int:
    """Bytes.

    Raises:
        ValueError: Not a quantity such as 64Mi, 1G or 4096.
    """
    text = _as_text(value)
    found = _BYTES.match(text)
    if not found:
        raise ValueError(f"{text!r} is not a quantity of bytes such as 64Mi")
    unit = found[2] or ""
    return int(found[1]) * (_BINARY | _DECIMAL).get(unit, 1)


def parse_duration(value: object) -> int:
    """Milliseconds.

    Raises:
        ValueError: Not a duration such as 200ms, 5s or 1h30m.
    """
    text = _as_text(value)
    if not _DURATION.match(text):
        raise ValueError(f"{text!r} is not a duration such as 200ms, 5s or 1h30m")
    return sum(int(number) * _UNIT_MS[unit] for number, unit in _PART.findall(text))


def format_cpu(millis: int) -> str:
    """Thousandths of a core in the API server's spelling."""
    return str(millis // 1000) if millis % 1000 == 0 else f"{millis}m"


def format_bytes(size: int) -> str:
    """Bytes in the API server's spelling: binary units where they divide, else decimal ones."""
    units = _BINARY if size % 1024 == 0 else _DECIMAL
    for unit, factor in reversed(units.items()):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def _as_text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{value!r} is neither a text nor a number")
    return str(value)
