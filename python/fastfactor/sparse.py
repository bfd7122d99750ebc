"""Sparse matrices in compressed rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _checks
from ._checks import Array
from ._core import kernels


@dataclass(frozen=True, eq=False, repr=False)
class CSR:
    """A sparse matrix in compressed rows, checked once and never changed.

    Row ``i`` holds ``data[indptr[i]:indptr[i + 1]]`` in the columns
    ``indices[indptr[i]:indptr[i + 1]]``. Columns may stand in any order; where one comes twice in a
    row its values add up. The arrays are copies and read-only, so that what was checked stays true
    and products need not look again.

    Parameters
    ----------
    data : array of shape (nnz,)
        float32 or float64.
    indices : array of shape (nnz,)
        The column of each value, int32 or int64, in [0, shape[1]).
    indptr : array of shape (shape[0] + 1,)
        Where each row begins, int32 or int64: from 0, never falling, to nnz.
    shape : (int, int)
        Rows and columns.

    Raises
    ------
    TypeError, ValueError
        Where an array has a wrong type or length, or breaks the rules above.

    Notes
    -----
    Making one costs a copy and a pass over the arrays, in parallel.

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

    data: Array
    indices: Array
    indptr: Array
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        shape = sparse_shape(self.shape, "shape")
        arrays = {
            name: np.array(getattr(self, name), order="C", copy=True)
            for name in ("data", "indices", "indptr")
        }
        check_arrays(**arrays, shape=shape, prefix="")
        kernels.check_csr(
            **arrays, rows=shape[0], cols=shape[1], name="", n_threads=_checks.threads(None)
        )
        self._hold(**arrays, shape=shape)

    def _hold(self, data: Array, indices: Array, indptr: Array, shape: tuple[int, int]) -> None:
        for name, array in (("data", data), ("indices", indices), ("indptr", indptr)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        object.__setattr__(self, "shape", shape)

    @classmethod
    def _trusted(cls, data: Array, indices: Array, indptr: Array, shape: tuple[int, int]) -> CSR:
        """Arrays that a kernel has just made: right by construction, not checked, not copied."""
        matrix = cls.__new__(cls)
        matrix._hold(data, indices, indptr, shape)
        return matrix

    @classmethod
    def from_dense(cls, W: Any) -> CSR:
        """The values of ``W`` that are not zero; NaN is kept, and so is float32 or float64.

        Parameters
        ----------
        W : array of shape (rows, columns)
            float16 and bfloat16 are widened to float32.

        Returns
        -------
        CSR
            Columns ascending in each row, int32 where the shape allows.

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

    def to_dense(self, out: Any = None) -> Array:
        """The matrix with its zeros, duplicates added up.

        Parameters
        ----------
        out : array of shape ``shape``, optional
            Where to write it; any strides, dtype of ``data``, writeable.

        Returns
        -------
        array of shape ``shape``
            ``out`` where it was given.
        """
        if out is None:
            out = np.empty(self.shape, self.dtype)
        else:
            _checks.writeable(out, "out", self.shape, self.dtype)
        out[...] = 0
        rows = np.repeat(np.arange(self.shape[0]), np.diff(self.indptr))
        np.add.at(out, (rows, self.indices), self.data)
        return out  # type: ignore[no-any-return]

    def to_scipy(self) -> Any:
        """The same matrix as ``scipy.sparse.csr_array``, on the same read-only arrays.

        Where ``indices`` and ``indptr`` differ in dtype, SciPy widens the narrower one, a copy.

        Raises
        ------
        ImportError
            Where SciPy is not installed.
        """
        try:
            from scipy.sparse import csr_array
        except ImportError as error:
            raise ImportError("CSR.to_scipy needs SciPy: pip install scipy") from error
        return csr_array((self.data, self.indices, self.indptr), shape=self.shape)

    def __matmul__(self, B: Any) -> Array:
        """``spmm(self, B)``."""
        from .products import spmm

        return spmm(self, B)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the values."""
        return self.data.dtype

    @property
    def nnz(self) -> int:
        """How many values are stored."""
        return int(self.data.size)

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return self.data.nbytes + self.indices.nbytes + self.indptr.nbytes

    def __repr__(self) -> str:
        return f"CSR(shape={self.shape}, nnz={self.nnz}, dtype={self.dtype})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles are made through the constructor: checked again, read-only again.
        return CSR, (self.data, self.indices, self.indptr, self.shape)


def sparse_shape(shape: Any, name: str) -> tuple[int, int]:
    """Two sizes, as Python integers."""
    try:
        sizes = tuple(shape)
    except TypeError:
        raise TypeError(f"{name} must be a pair of integers, got {shape!r}") from None
    if len(sizes) != 2:
        raise ValueError(f"{name} must be a pair of integers, got {shape!r}")
    rows, columns = (
        _checks.integer(size, f"{name}[{i}]", 0, 2**63 - 2) for i, size in enumerate(sizes)
    )
    return rows, columns


def check_arrays(
    data: Array, indices: Array, indptr: Array, shape: tuple[int, int], prefix: str
) -> None:
    """Types and lengths of CSR arrays: what can be said of them without reading them."""
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
