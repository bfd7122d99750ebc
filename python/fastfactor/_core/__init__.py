"""The compiled kernels, in the best build that this processor runs.

Each instruction-set level is a module: ``_v2``, ``_v3`` (AVX2, FMA), ``_v4`` (AVX-512) and
``_v4_vnni`` (with VNNI's 8-bit dot products and VBMI's byte permutes) on x86-64, ``_baseline``
elsewhere. The environment variable ``FASTFACTOR_LEVEL`` overrides the choice.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType

from . import _detect

ENVIRONMENT_VARIABLE = "FASTFACTOR_LEVEL"


def supported_levels() -> list[str]:
    """Return the levels that this processor runs, best first."""
    return _detect.supported_levels()


def load(level: str | None) -> ModuleType:
    """Import the kernels of a level or, if none is named, of the best that was built and runs."""
    supported = supported_levels()
    if level:
        if level not in supported:
            raise ImportError(
                f"{ENVIRONMENT_VARIABLE} must be a level that this processor runs, "
                f"one of {', '.join(supported)}, got {level!r}"
            )
        return _module(level)
    for candidate in supported:
        if importlib.util.find_spec(f"{__name__}._{candidate}"):
            return _module(candidate)
    raise ImportError(
        f"fastfactor has no kernels for this processor (it runs {', '.join(supported) or 'none'})"
    )


def _module(level: str) -> ModuleType:
    try:
        return importlib.import_module(f"{__name__}._{level}")
    except ModuleNotFoundError as error:
        raise ImportError(f"fastfactor was built without the level {level!r}") from error


kernels = load(os.environ.get(ENVIRONMENT_VARIABLE))
