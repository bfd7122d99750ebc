"""Build information of the compiled kernels, and the number of threads of a call."""

from __future__ import annotations

from .. import _checks, _core
from .._core import kernels


def thread_count(n_threads: int | None) -> int:
    """Return the number of threads for a call.

    ``None`` means OMP_NUM_THREADS, threadpoolctl's limit, or the cores that this process may use.
    """
    if n_threads is None:
        return int(kernels.default_threads())
    return _checks.integer(n_threads, "n_threads", 1, 1024)


def build_info() -> dict[str, str]:
    """Return the level, the threads and the compiler of the kernels that were loaded."""
    build = kernels.build_info()
    return {
        "level": build["level"],
        "levels supported": ", ".join(_core.supported_levels()),
        "threads": str(kernels.default_threads()),
        "threading": build["threading"],
        "compiler": build["compiler"],
        "eigen": build["eigen"],
    }
