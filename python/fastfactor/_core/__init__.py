"""The compiled kernels, in the best build that this processor runs.

Each instruction-set level is a module: ``_v2``, ``_v3`` (AVX2, FMA), ``_v4`` (AVX-512) and
``_v4_vnni`` (with VNNI's 8-bit dot products and VBMI's byte permutes) on x86-64, ``_baseline``
elsewhere. An install from source builds the best level of its processor, a release all of them. The
environment variable ``FASTFACTOR_LEVEL`` overrides the choice.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
from types import ModuleType

from . import _detect

ENVIRONMENT_VARIABLE = "FASTFACTOR_LEVEL"
BUILD_ALL = "build all levels: pip install . -C cmake.define.FASTFACTOR_LEVELS=all"


def supported_levels() -> list[str]:
    """Return the levels that this processor runs, best first."""
    return _detect.supported_levels()


def built_levels() -> list[str]:
    """Return the levels that this installation was built for, best first."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if module.name != "_detect"]
    return sorted((name.removeprefix("_") for name in names), reverse=True)


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
        f"fastfactor was built for {_listed(built_levels())}, but this processor runs "
        f"{_listed(supported)}: install it again on this machine, or {BUILD_ALL}"
    )


def _module(level: str) -> ModuleType:
    try:
        return importlib.import_module(f"{__name__}._{level}")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"fastfactor was built for {_listed(built_levels())}, not for {level}: {BUILD_ALL}"
        ) from error


def _listed(levels: list[str]) -> str:
    return ", ".join(levels) or "no level"


kernels = load(os.environ.get(ENVIRONMENT_VARIABLE))
