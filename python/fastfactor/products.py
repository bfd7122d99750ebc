"""Products with compressed matrices: inference without rebuilding the matrix."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _checks
from ._checks import Array
from ._core import kernels
from .packing import PackedCodes
from .sparse import CSR, check_arrays, sparse_shape
from .sparse_codes import SparseCodes


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
    operands = {"B": B, "A.data": data, "A.indices": indices, "A.indptr": indptr}
    result = _output(out, result_shape, dtype, operands, fortran=fortran)
    kernels.spmm(
        data,
        indices,
        indptr,
        rows=shape[0],
        cols=shape[1],
        dense=B if B.ndim == 2 else B[:, np.newaxis],
        out=result if result.ndim == 2 else result[:, np.newaxis],
        trusted=type(A) is CSR,
        n_threads=_checks.threads(n_threads),
    )
    return result


def codebook_matmul(
    x: Any,
    packed: PackedCodes,
    codebook: Any,
    *,
    group_size: int | None = None,
    out: Any = None,
    n_threads: int | None = None,
) -> Array:
    """Multiply by a matrix that is stored as codes into a codebook: ``x @ W.T``, W never built.

    Parameters
    ----------
    x : array of shape (in_features,) or (batch, in_features)
        float16, bfloat16, float32 or float64, any strides.
    packed : PackedCodes
        Of shape (out_features, in_features).
    codebook : array of shape ([n_codebooks,] [out_features,] [n_groups,] 2**n_bits, vector_dim)
        float16, bfloat16 or float32. One table (K, vector_dim) for the whole matrix; one for each
        row; with ``group_size`` one for each group of columns, or for each row and group, rows
        first. An axis of ``packed.n_codebooks`` comes before all where that is more than 1: the
        vectors that a place's codes name are then added.
    group_size : int, optional
        Columns that share a table, a multiple of ``packed.vector_dim``; the last group may be
        shorter.
    out : float32 array of shape (out_features,) or (batch, out_features), optional
        Where to write the result: C-contiguous, writeable, apart from ``x`` and the codebook.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    float32 array of shape (out_features,) or (batch, out_features)
        ``out`` where it was given.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape. Nothing has been written then.

    Notes
    -----
    ``|y − Wx| ≤ 1e-5 · Σ|w x|``, where of several codebooks each vector counts by itself: they may
    cancel in w. Sums in float32, of long rows in float64; what is float64 is rounded to float32
    first. Products follow IEEE 754. The same bits for any number of threads.
    Codes are used as they are stored, so no second layout takes memory: besides ``x`` in
    float32 there are tables of a few hundred kilobytes a thread. One ``x`` against scalar codes
    costs little more than reading the codes; against vectors that all rows share, the products of
    ``x``'s pieces with every code vector are made once, in at most 1 MB, and then added (H. Jégou,
    M. Douze, C. Schmid, Product Quantization for Nearest Neighbor Search, 2011). Larger batches
    decode a few rows at a time, into registers or cache.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> packed = fastfactor.PackedCodes.pack(np.array([[0, 1, 3], [2, 2, 0]]), 2)
    >>> codebook = np.array([[0], [1], [-1], [0.5]], np.float32)
    >>> fastfactor.codebook_matmul(np.array([1, 10, 100], np.float32), packed, codebook)
    array([ 60., -11.], dtype=float32)
    """
    x = _checks.float_array(x, "x", ndim=(1, 2))
    packed, table, group_size = _codebook(packed, codebook, group_size)
    if x.shape[-1] != packed.shape[1]:
        raise ValueError(
            f"x must have as many columns as packed stands for, {packed.shape[1]}, "
            f"got shape {x.shape}"
        )
    shape = (*x.shape[:-1], packed.shape[0])
    result = _output(out, shape, np.dtype(np.float32), {"x": x, "codebook": table})
    kernels.codebook_matmul(
        x if x.ndim == 2 else x[np.newaxis],
        packed.data,
        packed.n_bits,
        rows=packed.shape[0],
        cols=packed.shape[1] // packed.vector_dim,
        codebook=table,
        group_size=group_size,
        out=result if result.ndim == 2 else result[np.newaxis],
        n_threads=_checks.threads(n_threads),
    )
    return result


def codebook_rows(
    packed: PackedCodes,
    codebook: Any,
    ids: Any,
    *,
    group_size: int | None = None,
    n_threads: int | None = None,
) -> Array:
    """Rows of a matrix that is stored as codes into a codebook: an embedding's look-up.

    Parameters
    ----------
    packed, codebook, group_size
        As in :func:`codebook_matmul`.
    ids : array of integers, or None
        Which rows, any shape; None for all of them, in order.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    float32 array of shape (\\*ids.shape, in_features), or of packed.shape

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape.
    IndexError
        Where an id is not in [0, out_features).

    Notes
    -----
    Linear in the size of the result. Of several codebooks the vectors are added in their order, in
    float32. The same bits for any number of threads.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> packed = fastfactor.PackedCodes.pack(np.array([[0, 1], [1, 1]]), 1, vector_dim=2)
    >>> codebook = np.array([[1, 2], [3, 4]], np.float32)
    >>> fastfactor.codebook_rows(packed, codebook, [0])
    array([[1., 2., 3., 4.]], dtype=float32)
    """
    packed, table, group_size = _codebook(packed, codebook, group_size)
    if ids is None:
        shape, flat = packed.shape, None
    else:
        ids = np.asarray(ids)
        if ids.size == 0:
            ids = ids.astype(np.int64)
        if ids.dtype.kind not in "iu":
            raise TypeError(f"ids must be integers, got {ids.dtype}")
        shape, flat = (*ids.shape, packed.shape[1]), ids.astype(np.int64).reshape(-1)
    rows = kernels.codebook_rows(
        packed.data,
        packed.n_bits,
        rows=packed.shape[0],
        cols=packed.shape[1] // packed.vector_dim,
        codebook=table,
        group_size=group_size,
        ids=flat,
        n_threads=_checks.threads(n_threads),
    )
    return rows.reshape(shape)


def sparse_codebook_matmul(
    sparse_codes: SparseCodes, x: Any, *, out: Any = None, n_threads: int | None = None
) -> Array:
    """Multiply by a pruned matrix with shared weights: ``x @ W.T``, which is W x, W never built.

    Parameters
    ----------
    sparse_codes : SparseCodes
        Of shape (out_features, in_features).
    x : array of shape (in_features,) or (batch, in_features)
        float16, bfloat16, float32 or float64, any strides.
    out : float32 array of shape (out_features,) or (batch, out_features), optional
        Where to write the result: C-contiguous, writeable, apart from ``x``.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    float32 array of shape (out_features,) or (batch, out_features)
        ``out`` where it was given.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape. Nothing has been written then.

    Notes
    -----
    ``|y − Wx| ≤ 1e-5 · Σ|w x|``: sums in float32, of long rows in float64; what is float64 is
    rounded to float32 first. NaN and infinity in ``x`` spread as IEEE 754 says; what is coded as
    zero is not multiplied. The same bits for any number of threads.
    Work and memory traffic go by ``sparse_codes.execution_nbytes``; threads take 256 rows at a
    time. One input, and up to 6 with
    AVX-512 VBMI, are looked up by position a tile at a time; of more, up to 32 at a time are laid
    side by side first, a copy in float32.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> codebook = np.array([0, 0.5, -2], np.float32)
    >>> W = fastfactor.SparseCodes.from_labels([[0, 1, 0, 0], [0, 0, 2, 1]], codebook)
    >>> fastfactor.sparse_codebook_matmul(W, np.array([1, 2, 3, 4], np.float32))
    array([ 1., -4.], dtype=float32)
    """
    if not isinstance(sparse_codes, SparseCodes):
        raise TypeError(f"sparse_codes must be a SparseCodes, got {type(sparse_codes).__name__}")
    x = _checks.float_array(x, "x", ndim=(1, 2))
    if x.shape[-1] != sparse_codes.shape[1]:
        raise ValueError(
            f"x must have as many columns as sparse_codes stands for, {sparse_codes.shape[1]}, "
            f"got shape {x.shape}"
        )
    shape = (*x.shape[:-1], sparse_codes.shape[0])
    result = _output(out, shape, np.dtype(np.float32), {"x": x})
    kernels.sparse_codebook_matmul(
        x if x.ndim == 2 else x[np.newaxis],
        *sparse_codes._execution,
        out=result if result.ndim == 2 else result[np.newaxis],
        n_threads=_checks.threads(n_threads),
    )
    return result


def _codebook(packed: Any, codebook: Any, group_size: int | None) -> tuple[PackedCodes, Array, int]:
    """The codebook as (books, rows, groups, K, vector_dim), with rows or groups 1 if shared."""
    if not isinstance(packed, PackedCodes):
        raise TypeError(f"packed must be a PackedCodes, got {type(packed).__name__}")
    n_books, (rows, columns) = packed.n_codebooks, packed.shape
    extra = int(n_books > 1)
    ranks = tuple(range(2 + extra, 5 + extra))
    table = _checks.float_array(codebook, "codebook", ndim=ranks)
    if table.dtype == np.float64:
        raise TypeError("codebook must have dtype float16, bfloat16 or float32, got float64")
    lead = table.shape[extra:-2]
    if group_size is None:
        if len(lead) > 1:
            raise ValueError(f"group_size must be given for a codebook of shape {table.shape}")
        groups: tuple[int, ...] = ()
        size = max(columns, packed.vector_dim)
    else:
        size = _checks.integer(group_size, "group_size", 1)
        if size % packed.vector_dim:
            raise ValueError(
                f"group_size must be a multiple of vector_dim, {packed.vector_dim}, got {size}"
            )
        groups = (max(-(-columns // size), 1),)
    by_row = len(lead) > len(groups)
    expected = (
        *((n_books,) if extra else ()),
        *((rows,) if by_row else ()),
        *groups,
        2**packed.n_bits,
        packed.vector_dim,
    )
    if table.shape != expected:
        raise ValueError(
            f"codebook must have shape {expected} for {packed!r} and group_size {group_size}, "
            f"got {table.shape}"
        )
    full = (n_books, rows if by_row else 1, *(groups or (1,)), *expected[-2:])
    return packed, np.ascontiguousarray(table).reshape(full), size


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


def _output(
    out: Any,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    operands: dict[str, Array],
    *,
    fortran: bool = False,
) -> Array:
    """A new array, or the one that was given if a result may be written there."""
    if out is None:
        return np.empty(shape, dtype, order="F" if fortran else "C")
    _checks.writeable(out, "out", shape, dtype)
    array: Array = out
    _check_layout(array, fortran)
    _check_apart(array, operands)
    return array


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
