"""Products with compressed matrices: inference without rebuilding the matrix."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _checks
from ._checks import Array
from ._core import kernels
from .sparse import CSR, check_arrays, sparse_shape


def spmm(A: Any, B: Any, *, out: Any = None, n_threads: int | None = None) -> Array:
    """Multiply a sparse matrix by a dense vector or matrix: ``A @ B``.

    Parameters
    ----------
    A : CSR, or any object with ``data``, ``indices``, ``indptr`` and ``shape``, of shape (m, k)
        float32 or float64 values, int32 or int64 indices; SciPy's ``csr_array`` and ``csr_matrix``
        are such objects. A :class:`CSR` was checked when it was made; the structure of any other
        is checked at each call, a pass over ``indptr`` and ``indices``.
    B : array of shape (k,) or (k, b)
        float16, bfloat16, float32 or float64, any strides.
    out : array of shape (m,) or (m, b), optional
        Where to write the result: of its dtype and memory order, writeable, apart from A and B.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    array of shape (m,) or (m, b)
        ``out`` where it was given. float64 if A or B is, else float32. In Fortran order where B is
        and is not in C order too, else in C order.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or order, and where A's structure contradicts itself. Nothing has
        been written then.

    Notes
    -----
    2 · nnz · b operations. Products follow IEEE 754: NaN and infinity in an operand spread as they
    would in a loop over the stored values; what is not stored is not multiplied. Beside operands
    and result, memory is a packed copy of as many columns of B as fit 32 MB (64 bytes a row of B
    at least). The same bits for any number of threads: rows are cut into pieces of a fixed number
    of nonzeros, and the partial sums of a row longer than that are added in order.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> A = fastfactor.CSR.from_dense(np.array([[0, 2, 0], [1, 0, 3]], np.float32))
    >>> fastfactor.spmm(A, np.array([1, 10, 100], np.float32))
    array([ 20., 301.], dtype=float32)
    """
    data, indices, indptr, shape = _csr_arrays(A)
    B = _checks.float_array(B, "B", ndim=(1, 2))
    if B.shape[0] != shape[1]:
        raise ValueError(
            f"B must have as many rows as A has columns, {shape[1]}, got shape {B.shape}"
        )
    dtype = np.dtype(_checks.result_dtype(data, B))
    fortran = bool(B.flags.f_contiguous and not B.flags.c_contiguous)
    result_shape = (shape[0], *B.shape[1:])
    if out is None:
        out = np.empty(result_shape, dtype, order="F" if fortran else "C")
    else:
        _checks.writeable(out, "out", result_shape, dtype)
        _check_layout(out, fortran)
        _check_apart(out, {"B": B, "A.data": data, "A.indices": indices, "A.indptr": indptr})
    kernels.spmm(
        data,
        indices,
        indptr,
        rows=shape[0],
        cols=shape[1],
        dense=B if B.ndim == 2 else B[:, np.newaxis],
        out=out if out.ndim == 2 else out[:, np.newaxis],
        trusted=type(A) is CSR,
        n_threads=_checks.threads(n_threads),
    )
    return out  # type: ignore[no-any-return]


def _csr_arrays(A: Any) -> tuple[Array, Array, Array, tuple[int, int]]:
    if type(A) is CSR:
        return A.data, A.indices, A.indptr, A.shape
    kind = type(A).__name__
    storage = getattr(A, "format", "csr")
    if storage != "csr":
        raise TypeError(f"A must be in CSR format, got {kind} in format {storage!r}")
    try:
        arrays = (A.data, A.indices, A.indptr)
        shape = A.shape
    except AttributeError as error:
        raise TypeError(
            "A must be a CSR or an object with data, indices, indptr and shape, "
            f"got {kind} without {error.name}"
        ) from None
    for name, array in zip(("data", "indices", "indptr"), arrays, strict=True):
        if not isinstance(array, np.ndarray):
            raise TypeError(f"A.{name} must be a NumPy array, got {type(array).__name__}")
    shape = sparse_shape(shape, "A.shape")
    check_arrays(*arrays, shape=shape, prefix="A.")
    return *arrays, shape


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
