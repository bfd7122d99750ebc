"""The kernels once more, as plain NumPy that can be checked by reading it."""

from __future__ import annotations

import numpy as np


def csr_to_dense(data, indices, indptr, shape):
    """Row by row, value by value."""
    dense = np.zeros(shape, data.dtype)
    for i in range(shape[0]):
        for p in range(indptr[i], indptr[i + 1]):
            dense[i, indices[p]] += data[p]
    return dense


def spmm(data, indices, indptr, shape, B):
    """Σ over the stored values only, in float64; NaN and infinity spread as IEEE 754 says."""
    B = np.asarray(B, np.float64)
    out = np.zeros((shape[0], *B.shape[1:]))
    with np.errstate(invalid="ignore", over="ignore"):
        for i in range(shape[0]):
            for p in range(indptr[i], indptr[i + 1]):
                out[i] += np.float64(data[p]) * B[indices[p]]
    return out
