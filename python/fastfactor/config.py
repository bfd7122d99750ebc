"""What this installation is made of."""

from __future__ import annotations

import platform

import numpy as np

from . import _core


def show_config() -> dict[str, str]:
    """Print, and return, what matters in a report: level, threads, compiler and versions.

    Returns
    -------
    dict of str to str
        What was printed, line by line.

    Examples
    --------
    >>> import fastfactor
    >>> fastfactor.show_config()["numpy"] == np.__version__  # doctest: +ELLIPSIS
    fastfactor ...
    True
    """
    config = configuration()
    width = max(map(len, config))
    for key, value in config.items():
        print(f"{key:<{width}}  {value}")
    return config


def configuration() -> dict[str, str]:
    """What `show_config` prints."""
    from . import __version__

    build = _core.kernels.build_info()
    return {
        "fastfactor": __version__,
        "level": build["level"],
        "levels supported": ", ".join(_core.supported_levels()),
        "threads": str(_core.kernels.default_threads()),
        "threading": build["threading"],
        "compiler": build["compiler"],
        "eigen": build["eigen"],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
    }
