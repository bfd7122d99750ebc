"""Importing frameworks, which need not be installed."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def import_framework(module: str, wanted_by: str, framework: str) -> ModuleType:
    """Return a framework's module; say who needs it where it is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{wanted_by} needs {framework}, but {error.name} is not installed: "
            f"pip install {error.name}"
        ) from error
