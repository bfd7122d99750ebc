"""What an operator is told of a weight's factors: text, and one tensor of what does not train."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import torch

from .. import _checks
from .._arrays import Array
from ..methods.factors import Factors

ALIGNMENT = 8  # of each array in the tensor of bytes
# Kinds that need only the shapes of the trained tensors with which they were made. All others, also
# those of users, get these numbers too: those with shared weights see by them which entries are
# fillers.
NEED_NO_NUMBERS = frozenset(
    {
        "block_diagonal",
        "block_projection",
        "codebook",
        "dictionary",
        "entropy_coded",
        "low_rank",
        "mixed_block",
        "prune",
        "random_projection",
        "simhash",
    }
)


@dataclass(frozen=True)
class Description:
    """Everything about factors but numbers.

    Attributes
    ----------
    kind : str
    config : mapping
    shape : (int, int)
    dtype : str
    trained : tuple of str
        The tensors that are given one by one, in this order.
    fixed : tuple of (str, str, tuple of int)
        Name, dtype and shape of the arrays whose bytes are the last tensor, one after another.
    """

    kind: str
    config: Mapping[str, Any]
    shape: tuple[int, int]
    dtype: str
    trained: tuple[str, ...]
    fixed: tuple[tuple[str, str, tuple[int, ...]], ...]


def describe(factors: Factors, trained: tuple[str, ...]) -> tuple[str, torch.Tensor]:
    """Return the description of factors as text, and the bytes of what does not train.

    Parameters
    ----------
    factors : Factors
        Of any kind.
    trained : tuple of str
        The names of the tensors that operators are given.

    Returns
    -------
    text, bytes : str, uint8 tensor of shape (n,)
        On the CPU.
    """
    leave_out = trained if factors.kind in NEED_NO_NUMBERS else ()
    arrays = {n: array for n, array in factors.tensors().items() if n not in leave_out}
    told = {
        "kind": factors.kind,
        "config": factors.config(),
        "shape": factors.shape,
        "dtype": _checks.name_of(factors.dtype),
        "trained": trained,
        "fixed": [[n, _checks.name_of(a.dtype), a.shape] for n, a in arrays.items()],
    }
    text = json.dumps(told, separators=(",", ":"))
    parts = [np.zeros(0, np.uint8)]
    for array in arrays.values():
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        parts += [data, np.zeros(-data.size % ALIGNMENT, np.uint8)]
    return text, torch.from_numpy(np.concatenate(parts))


@lru_cache(maxsize=1024)
def read_description(text: str) -> Description:
    """Return what a text from `describe` says."""
    told = json.loads(text)
    rows, columns = told["shape"]
    return Description(
        kind=told["kind"],
        config=told["config"],
        shape=(rows, columns),
        dtype=told["dtype"],
        trained=tuple(told["trained"]),
        fixed=tuple((name, dtype, tuple(shape)) for name, dtype, shape in told["fixed"]),
    )


def fixed_arrays(description: Description, data: torch.Tensor) -> dict[str, Array]:
    """Return the arrays of a tensor of bytes from `describe`, as views.

    Raises
    ------
    ValueError
        If it has another number of bytes.
    """
    flat = data.detach().contiguous().numpy()
    dtypes = [_checks.dtype_named(dtype) for _, dtype, _ in description.fixed]
    sizes = [
        prod(shape) * dtype.itemsize
        for (_, _, shape), dtype in zip(description.fixed, dtypes, strict=True)
    ]
    total = sum(size + -size % ALIGNMENT for size in sizes)
    if total != flat.size:
        raise ValueError(f"the last of tensors must have {total} bytes, got {flat.size}")
    found, begin = {}, 0
    for (name, _, shape), dtype, size in zip(description.fixed, dtypes, sizes, strict=True):
        found[name] = flat[begin : begin + size].view(dtype).reshape(shape)
        begin += size + -size % ALIGNMENT
    return found
