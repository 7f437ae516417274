"""The libraries that only some calls need, imported when they are."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

__all__ = ["has_pyarrow", "need_pandas", "need_polars", "need_pyarrow"]


def has_pyarrow() -> bool:
    """Whether Arrow can be spoken."""
    return find_spec("pyarrow") is not None


def need_pyarrow() -> Any:
    """The module, with its stream format.

    Raises:
        ImportError: It is not installed.
    """
    _need("pyarrow.ipc", "pyarrow")
    return _need("pyarrow", "pyarrow")


def need_pandas() -> Any:
    """The module.

    Raises:
        ImportError: It is not installed.
    """
    return _need("pandas", "pandas")


def need_polars() -> Any:
    """The module.

    Raises:
        ImportError: It is not installed.
    """
    return _need("polars", "polars")


def _need(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        message = f"this needs {extra}: pip install 'duckmesh[{extra}]'"
        raise ImportError(message, name=extra) from error
