from types import ModuleType

from . import _kernels as kernels

__all__ = ["ENVIRONMENT_VARIABLE", "built_levels", "kernels", "load", "supported_levels"]

ENVIRONMENT_VARIABLE: str

def supported_levels() -> list[str]: ...
def built_levels() -> list[str]: ...
def load(level: str | None) -> ModuleType: ...
