"""Parameters of modules of any other class, which read a rebuilt weight in their place."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .compressed_layer import CompressedLayer

_classes: dict[tuple[type[nn.Module], tuple[str, ...]], type[CompressedLayer]] = {}


def with_compressed(kind: type[nn.Module], names: tuple[str, ...]) -> type[CompressedLayer]:
    """Return a subclass whose attributes of these names are weights rebuilt in each access.

    Parameters
    ----------
    kind : type
        The class of a module.
    names : tuple of str
        Parameters of the module.

    Returns
    -------
    type
        The same one in each call, of the same name as ``kind``.
    """
    key = kind, names
    if key not in _classes:
        attributes = {name: property(_reader(name)) for name in names}
        namespace = {"__module__": kind.__module__, "__reduce_ex__": _reduce, **attributes}
        _classes[key] = type(kind.__name__, (CompressedLayer, kind), namespace)
    return _classes[key]


def _reader(name: str) -> Any:
    def read(module: CompressedLayer) -> torch.Tensor:
        return module.full(name)

    return read


def _reduce(module: CompressedLayer, protocol: int) -> Any:
    """Return how a module is pickled and copied: its class is made anew."""
    kind = type(module).__mro__[2]
    return _without_state, (kind, tuple(module.compressed)), module.__getstate__()


def _without_state(kind: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    made = with_compressed(kind, names)
    return made.__new__(made)
