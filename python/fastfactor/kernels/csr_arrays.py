"""What the arrays of a sparse matrix in compressed rows must be."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _checks
from .._arrays import as_array
from .._checks import Array


def check_arrays(
    data: Array, indices: Array, indptr: Array, shape: tuple[int, int], prefix: str
) -> None:
    """Check what needs no reading of CSR arrays: dtypes, layout and lengths."""
    if data.dtype not in (np.float32, np.float64) or not data.dtype.isnative:
        raise TypeError(
            f"{prefix}data must have dtype float32 or float64 in native byte order, "
            f"got {data.dtype}"
        )
    for name, array in (("indices", indices), ("indptr", indptr)):
        if array.dtype not in (np.int32, np.int64) or not array.dtype.isnative:
            raise TypeError(
                f"{prefix}{name} must have dtype int32 or int64 in native byte order, "
                f"got {array.dtype}"
            )
    for name, array in (("data", data), ("indices", indices), ("indptr", indptr)):
        if array.ndim != 1:
            raise ValueError(f"{prefix}{name} must have 1 dimension, got shape {array.shape}")
        if not (array.flags.c_contiguous and array.flags.aligned):
            raise ValueError(
                f"{prefix}{name} must be contiguous and aligned, "
                f"got strides {array.strides} at address {array.ctypes.data:#x}"
            )
    if indptr.size != shape[0] + 1:
        raise ValueError(
            f"{prefix}indptr must have one entry more than there are rows, {shape[0] + 1}, "
            f"got {indptr.size}"
        )
    if indices.size != data.size:
        raise ValueError(
            f"{prefix}indices must be as long as {prefix}data, {data.size}, got {indices.size}"
        )


def arrays_of(A: Any) -> tuple[Array, Array, Array, tuple[int, int]]:
    """Return the checked data, indices, indptr and shape of another library's CSR."""
    kind = type(A).__name__
    storage = getattr(A, "format", "csr")
    if storage != "csr":
        raise TypeError(f"A must be in CSR format, got {kind} in format {storage!r}")
    try:
        arrays = {"data": A.data, "indices": A.indices, "indptr": A.indptr}
        shape = A.shape
    except AttributeError as error:
        raise TypeError(
            "A must be a CSR or an object with data, indices, indptr and shape, "
            f"got {kind} without {error.name}"
        ) from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise TypeError(f"A.{name} must be a NumPy array, got {type(array).__name__}")
        if type(array) is not np.ndarray:
            arrays[name] = as_array(array, f"A.{name}")
    shape = _checks.sparse_shape(shape, "A.shape")
    check_arrays(**arrays, shape=shape, prefix="A.")
    return arrays["data"], arrays["indices"], arrays["indptr"], shape
