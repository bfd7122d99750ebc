"""Products with matrices stored as codes into codebooks, without building the matrix."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from .. import _checks
from .._checks import Array
from .._core import kernels
from ._output import as_batch, output
from .packing import PackedCodes
from .runtime import thread_count

MAX_CODE_BITS = 8  # of the codes that products accept


def codebook_matmul(
    x: Any,
    packed: PackedCodes,
    codebook: Any,
    *,
    group_size: int | None = None,
    out: Any = None,
    n_threads: int | None = None,
) -> Array:
    """Multiply by a matrix stored as codes into a codebook: ``x @ W.T``, without building W.

    Parameters
    ----------
    x : array of shape (..., in_features)
        float16, bfloat16, float32 or float64, any strides.
    packed : PackedCodes
        Of shape (out_features, in_features), with codes of up to 8 bits.
    codebook : array of shape ([n_codebooks,] [out_features,] [n_groups,] 2**n_bits, vector_dim)
        float16, bfloat16 or float32. One table (2**n_bits, vector_dim) for the whole matrix or one
        for each row; with ``group_size`` one for each group of columns or for each row and group.
        If ``packed.n_codebooks`` is more than 1, an axis of that length comes first, and the
        vectors that the codes of a place name are added.
    group_size : int, optional
        Columns that share a table, a multiple of ``packed.vector_dim``; the last group may be
        shorter.
    out : float32 array of shape (..., out_features), optional
        Where to write the result: C-contiguous and writeable, without overlap with ``x`` or the
        codebook.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    float32 array of shape (..., out_features)
        ``out`` if it was given.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape. Nothing is written then.

    Notes
    -----
    ``|y − Wx| ≤ 1e-5 · Σ|w x|``. With several codebooks this sum has a term for each of their
    vectors, because they may cancel in w. Sums are in float32, those of long rows in float64; a
    float64 ``x`` is rounded to float32 first. Products follow IEEE 754. The same bits for any
    number of threads.

    Codes are read as they are stored: the only extra memory is ``x`` in float32 and tables of a few
    hundred kilobytes per thread. One ``x`` against scalar codes costs little more than reading the
    codes. Against vectors that all rows share, the products of ``x``'s pieces with every code
    vector are computed once, in at most 1 MB, and then added (H. Jégou, M. Douze, C. Schmid,
    Product Quantization for Nearest Neighbor Search, 2011). Larger batches decode a few rows at a
    time, into registers or cache.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> packed = fastfactor.PackedCodes.pack(np.array([[0, 1, 3], [2, 2, 0]]), 2)
    >>> codebook = np.array([[0], [1], [-1], [0.5]], np.float32)
    >>> fastfactor.codebook_matmul(np.array([1, 10, 100], np.float32), packed, codebook)
    array([ 60., -11.], dtype=float32)
    """
    packed, table, group_size = _codebook(packed, codebook, group_size)
    x = _checks.inputs(x, packed.shape[1])
    shape = (*x.shape[:-1], packed.shape[0])
    result = output(out, shape, np.dtype(np.float32), {"x": x, "codebook": table})
    _multiply(as_batch(x), packed, table, group_size, as_batch(result), thread_count(n_threads))
    return result


def codebook_product(
    packed: PackedCodes, codebook: Any, *, group_size: int | None = None
) -> Callable[[Array, int], Array]:
    """Return `codebook_matmul` for one matrix, whose codes and codebook are checked now.

    A call then takes half of the time that `codebook_matmul` takes with small matrices.

    Parameters
    ----------
    packed : PackedCodes
        As in :func:`codebook_matmul`.
    codebook : array
        As in :func:`codebook_matmul`. In C order, it is read in each call where it is.
    group_size : int, optional
        As in :func:`codebook_matmul`.

    Returns
    -------
    callable
        Takes x, a float array of shape (batch, in_features), and a number of threads. It does not
        check them.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape.
    """
    packed, table, group_size = _codebook(packed, codebook, group_size)

    def product(x: Array, n_threads: int) -> Array:
        result = np.empty((len(x), packed.shape[0]), np.float32)
        _multiply(x, packed, table, group_size, result, n_threads)
        return result

    return product


def _multiply(
    x: Array, packed: PackedCodes, table: Array, group_size: int, out: Array, n_threads: int
) -> None:
    if out.size == 0:
        return
    kernels.codebook_matmul(
        x,
        packed.data,
        packed.n_bits,
        rows=packed.shape[0],
        cols=packed.shape[1] // packed.vector_dim,
        codebook=table,
        group_size=group_size,
        out=out,
        n_threads=n_threads,
    )


def codebook_rows(
    packed: PackedCodes,
    codebook: Any,
    ids: Any,
    *,
    group_size: int | None = None,
    n_threads: int | None = None,
) -> Array:
    r"""Return rows of a matrix stored as codes into a codebook, such as an embedding table.

    Parameters
    ----------
    packed : PackedCodes
        As in :func:`codebook_matmul`.
    codebook : array of shape ([n_codebooks,] [out_features,] [n_groups,] 2**n_bits, vector_dim)
        As in :func:`codebook_matmul`.
    ids : array of int, or None
        Which rows to return, in any shape; None for all of them, in order.
    group_size : int, optional
        As in :func:`codebook_matmul`.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    float32 array of shape (\*ids.shape, in_features), or of packed.shape
        The vectors that the codes name, side by side.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape.
    IndexError
        If an id is not in [0, out_features).

    Notes
    -----
    Linear in the size of the result. The vectors of several codebooks are added in the order of the
    codebooks, in float32. The same bits for any number of threads.

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
        ids = _checks.integers(ids, "ids")
        shape = (*ids.shape, packed.shape[1])
        flat = _checks.as_int64(ids, "ids", packed.shape[0], IndexError).reshape(-1)
    if ids is None and prod(shape) == 0:
        return np.empty(shape, np.float32)  # whatever the number of rows
    rows = _look_up(packed, table, group_size, flat, thread_count(n_threads))
    return rows.reshape(shape)


def codebook_look_up(
    packed: PackedCodes, codebook: Any, *, group_size: int | None = None
) -> Callable[[Array, int], Array]:
    """Return `codebook_rows` for one matrix, whose codes and codebook are checked now.

    Parameters
    ----------
    packed : PackedCodes
        As in :func:`codebook_rows`.
    codebook : array
        As in :func:`codebook_rows`. In C order, it is read in each call where it is.
    group_size : int, optional
        As in :func:`codebook_rows`.

    Returns
    -------
    callable
        Takes ids, an int64 array of any shape, and a number of threads, which it does not check. It
        refuses ids outside [0, out_features) by an IndexError.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape.
    """
    packed, table, group_size = _codebook(packed, codebook, group_size)

    def look_up(ids: Array, n_threads: int) -> Array:
        rows = _look_up(packed, table, group_size, ids, n_threads)
        return rows.reshape(*ids.shape, packed.shape[1])

    return look_up


def _look_up(
    packed: PackedCodes, table: Array, group_size: int, ids: Array | None, n_threads: int
) -> Array:
    """Return rows as (n, in_features)."""
    return kernels.codebook_rows(
        packed.data,
        packed.n_bits,
        rows=packed.shape[0],
        cols=packed.shape[1] // packed.vector_dim,
        codebook=table,
        group_size=group_size,
        ids=ids,
        n_threads=n_threads,
    )


def _codebook(packed: Any, codebook: Any, group_size: int | None) -> tuple[PackedCodes, Array, int]:
    """Return the codebook as (books, rows, groups, K, vector_dim); shared axes have length 1."""
    if not isinstance(packed, PackedCodes):
        raise TypeError(f"packed must be a PackedCodes, got {type(packed).__name__}")
    if packed.n_bits > MAX_CODE_BITS:
        raise ValueError(
            f"packed must have codes of up to {MAX_CODE_BITS} bits for products, got "
            f"{packed.n_bits}"
        )
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
