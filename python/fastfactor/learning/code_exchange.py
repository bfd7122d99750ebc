"""Codes that exchanges of atoms improve, from one pass over the signals to the next."""

from __future__ import annotations

import numpy as np

from .._checks import Array
from ..kernels.pursuits import exchanged
from ..kernels.sparse import CSR, spmm
from .code_products import ROWS_AT_ONCE


def improved(X: Array, atoms: Array, codes: CSR, earlier: CSR | None, n_threads: int | None) -> CSR:
    """Exchange atoms in the codes and in the earlier codes, and return the better of each row.

    A new pursuit in each pass loses what exchanges gained in the pass before. Exchanges alone
    never leave the neighbourhood of the codes that they started from. Taking the better of both
    leaves 0.5 to 3 % less error than either on LeNet's first layer.
    """
    codes, _ = exchanged(X, atoms, codes, n_threads=n_threads)
    if earlier is None:
        return codes
    other, _ = exchanged(X, atoms, earlier, n_threads=n_threads)
    better = _squares_left(X, other, atoms, n_threads) < _squares_left(X, codes, atoms, n_threads)
    return _rows_of_either(codes, other, better)


def _squares_left(X: Array, codes: CSR, atoms: Array, n_threads: int | None) -> Array:
    """Return ‖x − c D‖² for every row x of X and its code c."""
    coded = spmm(codes, atoms, n_threads=n_threads)
    squares = np.empty(len(X))
    for first in range(0, len(X), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        left = X[rows].astype(coded.dtype, copy=False) - coded[rows]
        squares[rows] = np.einsum("ij,ij->i", left, left, dtype=np.float64)
    return squares


def _rows_of_either(one: CSR, other: CSR, from_other: Array) -> CSR:
    """Return a CSR with the rows of ``one``, and of ``other`` where ``from_other`` is True."""
    counts = np.where(from_other, np.diff(other.indptr), np.diff(one.indptr))
    starts = np.where(from_other, other.indptr[:-1] + one.nnz, one.indptr[:-1])
    indptr = np.concatenate([[0], np.cumsum(counts)])
    # The position of each nonzero of the result in the arrays of both, one after the other.
    at = np.repeat(starts - indptr[:-1], counts) + np.arange(indptr[-1])
    data = np.concatenate([one.data, other.data])[at]
    indices = np.concatenate([one.indices, other.indices])[at]
    return CSR._trusted(data, indices, indptr, one.shape)
