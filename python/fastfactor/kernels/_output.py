"""Output arrays of products, new or given by the caller, and batches of inputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import _checks
from .._checks import Array


def output(
    out: Any,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    operands: dict[str, Array],
    *,
    fortran: bool = False,
) -> Array:
    """Return a new array for a result, or ``out`` once checked that it may be written there."""
    if out is None:
        return np.empty(shape, dtype, order="F" if fortran else "C")
    _checks.writeable(out, "out", shape, dtype)
    array: Array = out
    _check_layout(array, fortran)
    _check_apart(array, operands)
    return array


def as_batch(array: Array) -> Array:
    """Return (..., n) as (batch, n): a view if the strides allow it, as in C order."""
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])


def _check_layout(out: Array, fortran: bool) -> None:
    if fortran and not out.flags.f_contiguous:
        raise ValueError(
            f"out must be Fortran-contiguous because B is, got strides {out.strides} "
            f"for shape {out.shape}"
        )
    if not fortran and not out.flags.c_contiguous:
        raise ValueError(
            f"out must be C-contiguous, got strides {out.strides} for shape {out.shape}"
        )


def _check_apart(out: Array, operands: dict[str, Array]) -> None:
    for name, operand in operands.items():
        if np.may_share_memory(out, operand):
            raise ValueError(f"out must not overlap {name}, got arrays that share memory")
