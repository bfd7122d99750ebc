"""Sparse matrices in compressed rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from .. import _checks
from .._arrays import as_array
from .._checks import Array
from .._core import kernels
from .._records import refuse_array
from ._output import as_batch, output
from .csr_arrays import arrays_of, check_arrays
from .runtime import thread_count


@dataclass(frozen=True, eq=False, repr=False)
class CSR:
    """A sparse matrix in compressed rows, checked once and never changed.

    Row ``i`` holds ``data[indptr[i]:indptr[i + 1]]`` in the columns
    ``indices[indptr[i]:indptr[i + 1]]``. Columns may be in any order; if one occurs twice in a row,
    its values are added. The arrays are read-only copies, so the checks stay valid and products
    need not repeat them.

    Parameters
    ----------
    data : array of shape (nnz,)
        float32 or float64.
    indices : array of shape (nnz,)
        The column of each value, int32 or int64, in [0, shape[1]).
    indptr : array of shape (shape[0] + 1,)
        Where each row begins, int32 or int64: starts at 0, never decreases, ends at nnz.
    shape : (int, int)
        Rows and columns.

    Raises
    ------
    TypeError, ValueError
        If an array has a wrong type or length, or breaks the rules above.

    Notes
    -----
    Construction costs a copy and a pass over the arrays, in parallel. ``A @ B`` is ``spmm(A, B)``;
    ``x @ A`` transposes A each time, so for many such products keep ``A.T`` and use :func:`spmm`.
    ``==`` and ``hash`` go by identity; compare ``to_dense()``. ``np.asarray`` is refused, as dense
    matrices may be large. Copies and pickles are checked and read-only, too.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> A = fastfactor.CSR(np.array([2.0, 3.0]), np.array([1, 0]), np.array([0, 1, 2]), (2, 3))
    >>> A
    CSR(shape=(2, 3), nnz=2, dtype=float64)
    >>> A.to_dense()
    array([[0., 2., 0.],
           [3., 0., 0.]])
    >>> A @ np.ones(3)
    array([2., 3.])
    """

    __array_ufunc__ = None  # so that NumPy leaves ``x @ A`` to this class

    data: Array
    indices: Array
    indptr: Array
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        shape = _checks.sparse_shape(self.shape, "shape")
        arrays = {
            name: np.array(as_array(getattr(self, name), name), order="C", copy=True)
            for name in ("data", "indices", "indptr")
        }
        check_arrays(**arrays, shape=shape, prefix="")
        kernels.check_csr(
            **arrays, rows=shape[0], cols=shape[1], name="", n_threads=thread_count(None)
        )
        self._hold(**arrays, shape=shape)

    def _hold(self, data: Array, indices: Array, indptr: Array, shape: tuple[int, int]) -> None:
        for name, array in (("data", data), ("indices", indices), ("indptr", indptr)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        object.__setattr__(self, "shape", shape)

    @classmethod
    def _trusted(cls, data: Array, indices: Array, indptr: Array, shape: tuple[int, int]) -> CSR:
        """Return a CSR of arrays that a kernel has just made, without checks or copies."""
        matrix = cls.__new__(cls)
        matrix._hold(data, indices, indptr, shape)
        return matrix

    def _with_data(self, data: Array) -> CSR:
        """Return a CSR of the same places whose products read their values from this array.

        It is not copied, so values that are trained in place are those of the next product.
        """
        return CSR._trusted(data.view(), self.indices, self.indptr, self.shape)

    @classmethod
    def from_dense(cls, W: Any) -> CSR:
        """Return a dense matrix as a CSR of its values that are not zero, NaN included.

        Parameters
        ----------
        W : array of shape (rows, columns)
            float32 and float64 are kept; float16 and bfloat16 are widened to float32.

        Returns
        -------
        CSR
            Columns ascend in each row; they are int32 if the shape allows.

        Examples
        --------
        >>> import numpy as np, fastfactor
        >>> fastfactor.CSR.from_dense(np.eye(3, dtype=np.float32))
        CSR(shape=(3, 3), nnz=3, dtype=float32)
        """
        W = _checks.float_array(W, "W", ndim=(2,))
        rows, columns = np.nonzero(W)
        indptr = np.zeros(W.shape[0] + 1, np.int64)
        np.cumsum(np.bincount(rows, minlength=W.shape[0]), out=indptr[1:])
        narrow = W.shape[1] <= np.iinfo(np.int32).max
        return cls._trusted(
            W[rows, columns].astype(_checks.result_dtype(W), copy=False),
            columns.astype(np.int32 if narrow else np.int64),
            indptr,
            (W.shape[0], W.shape[1]),
        )

    @classmethod
    def from_scipy(cls, matrix: Any) -> CSR:
        """Return a copy of a SciPy sparse matrix or array of any format.

        Parameters
        ----------
        matrix : scipy.sparse matrix or array of shape (rows, columns)
            float32 or float64. Zeros that are stored are kept.

        Returns
        -------
        CSR

        Raises
        ------
        TypeError, ValueError
            If it is not a SciPy sparse matrix, or if a CSR cannot have its dtype, shape or
            structure.

        Notes
        -----
        Formats other than CSR go through SciPy's ``tocsr``.

        Examples
        --------
        >>> import numpy as np, scipy.sparse, fastfactor
        >>> fastfactor.CSR.from_scipy(scipy.sparse.coo_array(np.eye(3)))
        CSR(shape=(3, 3), nnz=3, dtype=float64)
        """
        if not hasattr(matrix, "tocsr"):
            raise TypeError(
                f"matrix must be a SciPy sparse matrix or array, got {type(matrix).__name__}"
            )
        # Checked before tocsr, which also accepts one dimension.
        shape = _checks.sparse_shape(matrix.shape, "matrix.shape")
        found = matrix.tocsr()
        return cls(found.data, found.indices, found.indptr, shape)

    def to_dense(self, out: Any = None) -> Array:
        """Return the dense matrix; values stored for the same place are added.

        Parameters
        ----------
        out : array of shape ``shape``, optional
            Where to write the result: of the dtype of ``data``, writeable, any strides.

        Returns
        -------
        array of shape ``shape``
            ``out`` if it was given.
        """
        if out is None:
            out = np.empty(self.shape, self.dtype)
        else:
            _checks.writeable(out, "out", self.shape, self.dtype)
        out[...] = 0
        rows = np.repeat(np.arange(self.shape[0]), self._counts)
        np.add.at(out, (rows, self.indices), self.data)
        return out  # type: ignore[no-any-return]

    def to_scipy(self) -> Any:
        """Return the matrix as a SciPy array.

        Returns
        -------
        scipy.sparse.csr_array
            It shares the arrays, which stay read-only.

        Raises
        ------
        ImportError
            If SciPy is not installed.

        Notes
        -----
        If ``indices`` and ``indptr`` differ in dtype, SciPy widens the narrower one, in a copy.

        Examples
        --------
        >>> import numpy as np, fastfactor
        >>> fastfactor.CSR.from_dense(np.eye(3)).to_scipy().shape
        (3, 3)
        """
        try:
            from scipy.sparse import csr_array
        except ImportError as error:
            raise ImportError("CSR.to_scipy needs SciPy: pip install scipy") from error
        return csr_array((self.data, self.indices, self.indptr), shape=self.shape)

    @property
    def T(self) -> CSR:  # noqa: N802 (NumPy's name)
        """The transpose, another CSR; columns ascend in each row, and duplicates stay.

        It is computed each time by a counting sort, in time linear in nnz, rows and columns, on one
        thread.

        Examples
        --------
        >>> import numpy as np, fastfactor
        >>> fastfactor.CSR.from_dense(np.array([[1.0, 0.0, 2.0]])).T.to_dense()
        array([[1.],
               [0.],
               [2.]])
        """
        rows, columns = self.shape
        narrow = rows <= np.iinfo(np.int32).max
        row_of = np.repeat(np.arange(rows, dtype=np.int32 if narrow else np.int64), self._counts)
        order = _counting_sort(self.indices, columns)
        indptr = np.zeros(columns + 1, np.int64)
        np.cumsum(np.bincount(self.indices, minlength=columns), out=indptr[1:])
        return CSR._trusted(self.data[order], row_of[order], indptr, (columns, rows))

    def __matmul__(self, B: Any) -> Array:
        """Return ``spmm(self, B)``."""
        return spmm(self, B)

    def __rmatmul__(self, x: Any) -> Array:
        """Return ``x @ self`` by :func:`spmm` of the transpose: (..., rows) → (..., columns)."""
        x = _checks.inputs(x, self.shape[0])
        return spmm(self.T, as_batch(x).T).T.reshape(*x.shape[:-1], self.shape[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NoReturn:
        refuse_array(self, "to_dense()")

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the values."""
        return self.data.dtype

    @property
    def nnz(self) -> int:
        """The number of stored values."""
        return int(self.data.size)

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return self.data.nbytes + self.indices.nbytes + self.indptr.nbytes

    @property
    def _counts(self) -> Array:
        """The number of values in each row."""
        return np.diff(self.indptr)

    def __repr__(self) -> str:
        return f"CSR(shape={self.shape}, nnz={self.nnz}, dtype={self.dtype})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles are made through the constructor: checked again, read-only again.
        return CSR, (self.data, self.indices, self.indptr, self.shape)


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
        Where to write the result: of its dtype and memory order, writeable, without overlap with A
        or B.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    array of shape (m,) or (m, b)
        ``out`` if it was given. float64 if A or B is, else float32. In Fortran order if B is, and
        is not in C order too; else in C order.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or order, and if A's structure contradicts itself. Nothing is
        written then.

    Notes
    -----
    2 · nnz · b operations. Products follow IEEE 754: NaN and infinity in an operand spread as they
    would in a loop over the stored values; what is not stored is not multiplied. Besides operands
    and result, a packed copy of as many columns of B as fit into 32 MB takes memory (at least 64
    bytes per row of B). The same bits for any number of threads: rows are cut into pieces of a
    fixed number of nonzeros, and the partial sums of a longer row are added in order.

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
    result = output(out, result_shape, dtype, operands, fortran=fortran)
    kernels.spmm(
        data,
        indices,
        indptr,
        rows=shape[0],
        cols=shape[1],
        dense=B if B.ndim == 2 else B[:, np.newaxis],
        out=result if result.ndim == 2 else result[:, np.newaxis],
        trusted=type(A) is CSR,
        n_threads=thread_count(n_threads),
    )
    return result


def spmm_product(A: CSR) -> Callable[[Array, int], Array]:
    """Return a function that computes ``x @ A.T`` for one matrix in float32.

    Parameters
    ----------
    A : CSR
        Its values are read in each call where they are.

    Returns
    -------
    callable
        Takes x, a float32 array of shape (batch, k), and a number of threads. It does not check
        them, which takes a third of the time of a small product by :func:`spmm`.
    """
    rows, columns = A.shape

    def product(x: Array, n_threads: int) -> Array:
        result = np.empty((len(x), rows), np.float32)
        kernels.spmm(
            A.data,
            A.indices,
            A.indptr,
            rows=rows,
            cols=columns,
            dense=x.T,
            out=result.T,
            trusted=True,
            n_threads=n_threads,
        )
        return result

    return product


def _counting_sort(keys: Array, n_keys: int) -> Array:
    """Return the order that sorts keys in [0, n_keys) stably, in linear time.

    It sorts by digits of 16 bits, the lowest first: NumPy sorts those by counting, and wider keys
    by comparing.
    """
    order = np.argsort(keys.astype(np.uint16), kind="stable")  # the cast keeps the low bits
    for shift in range(16, max(n_keys - 1, 0).bit_length(), 16):
        digits = (keys[order] >> shift).astype(np.uint16)
        order = order[np.argsort(digits, kind="stable")]
    return order


def _csr_arrays(A: Any) -> tuple[Array, Array, Array, tuple[int, int]]:
    if type(A) is CSR:
        return A.data, A.indices, A.indptr, A.shape
    return arrays_of(A)
