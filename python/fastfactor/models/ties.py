"""Tensors that a model holds twice, such as an embedding that is also the last layer."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from .._checks import Array
from ..files.checkpoint import Checkpoint, Stored

MIN_NBYTES = 1 << 16  # smaller tensors are not worth a look
SAMPLE = 1024  # bytes of a tensor that are compared first, at each end and in between
BYTES_AT_ONCE = 1 << 22


def equal_tensors(checkpoint: Checkpoint) -> dict[str, str]:
    """Find the tensors of which every byte is that of an earlier one.

    Parameters
    ----------
    checkpoint : Checkpoint

    Returns
    -------
    dict
        By the name of each such tensor the name of the first that is equal. Only tensors of floats
        with two axes or more and at least 64 KiB are looked at.

    Notes
    -----
    Tensors of equal shapes and dtypes are told apart by checksums in the file. Where it has none,
    a few bytes of each are compared. Those that still seem equal are read twice, to be sure.
    """
    tensors = checkpoint.tensors
    large = [name for name, stored in tensors.items() if _is_large_matrix(stored)]
    groups = _grouped([large], lambda name: (tensors[name].shape, tensors[name].dtype.name))
    groups = _grouped(groups, lambda name: _summary(checkpoint, name))
    groups = _grouped(groups, lambda name: zlib.crc32(_bytes_of(checkpoint[name])))
    return {
        name: first
        for first, *others in groups
        for name in others
        if _have_equal_bytes(checkpoint[first], checkpoint[name])
    }


def tie_text(first: str) -> str:
    """Return why a tensor is not stored again."""
    return f"same as {first!r}"


def _grouped(groups: list[list[str]], key: Callable[[str], Hashable]) -> list[list[str]]:
    """Split groups by a key; return those that have two members or more."""
    split: dict[Hashable, list[str]] = {}
    for number, names in enumerate(groups):
        for name in names:
            split.setdefault((number, key(name)), []).append(name)
    return [names for names in split.values() if len(names) > 1]


def _is_large_matrix(stored: Stored) -> bool:
    return stored.is_float and len(stored.shape) > 1 and stored.nbytes >= MIN_NBYTES


def _summary(checkpoint: Checkpoint, name: str) -> Hashable:
    """Return something that is equal for equal tensors, and cheap."""
    known = checkpoint.summary(name)
    if known is not None:
        return known
    data = _bytes_of(checkpoint[name])
    parts = (data[:SAMPLE], data[:: max(data.size // SAMPLE, 1)], data[-SAMPLE:])
    return b"".join(part.tobytes() for part in parts)


def _have_equal_bytes(a: Array, b: Array) -> bool:
    one, other = _bytes_of(a), _bytes_of(b)
    return all(
        np.array_equal(one[i : i + BYTES_AT_ONCE], other[i : i + BYTES_AT_ONCE])
        for i in range(0, one.size, BYTES_AT_ONCE)
    )


def _bytes_of(array: Array) -> Any:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
