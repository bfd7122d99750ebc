"""Checks of tensors and numbers from a file, which may contain anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._arrays import Array, as_array
from ..errors import CorruptDataError


def stored_tensor(
    tensors: Mapping[str, Array], name: str, dtypes: tuple[str, ...], shape: tuple[int | None, ...]
) -> Array:
    """Return a tensor of a file; refuse another dtype or shape. A length of None fits any."""
    if name not in tensors:
        raise CorruptDataError(f"tensor {name!r} is missing")
    array = as_array(tensors[name], f"tensor {name!r}")
    if array.dtype.name not in dtypes:
        raise CorruptDataError(
            f"tensor {name!r} must have dtype {' or '.join(dtypes)}, got {array.dtype}"
        )
    if array.ndim != len(shape) or any(
        wanted not in (None, got) for wanted, got in zip(shape, array.shape, strict=False)
    ):
        expected = tuple("any" if n is None else n for n in shape)
        raise CorruptDataError(f"tensor {name!r} must have shape {expected}, got {array.shape}")
    return array


def stored_number(config: Mapping[str, Any], name: str, low: int, high: int) -> int:
    """Return an integer from a file's configuration; refuse one outside [low, high]."""
    value = config.get(name)
    if type(value) is not int or not low <= value <= high:
        raise CorruptDataError(f"{name!r} must be an integer in [{low}, {high}], got {value!r}")
    return value
