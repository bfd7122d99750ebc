"""The configuration of this installation, as bug reports need it."""

from __future__ import annotations

import platform

import numpy as np

from ._version import __version__
from .kernels.runtime import build_info


def show_config() -> dict[str, str]:
    """Print and return what a bug report needs: level, threads, compiler and versions.

    Returns
    -------
    dict of str to str
        Name and value of each printed line.

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
    """Return what `show_config` prints."""
    return {
        "fastfactor": __version__,
        **build_info(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
    }
