"""Codes that are improved by exchanging atoms, from this pass over the signals to the next."""

from __future__ import annotations

import numpy as np

from .._checks import Array
from ..kernels.sparse import CSR, spmm
from ..kernels.sparse_coding import exchange_atoms
from .code_products import ROWS_AT_ONCE


def improved(X: Array, atoms: Array, codes: CSR, earlier: CSR | None, n_threads: int | None) -> CSR:
    """Return, row by row, the better of the codes and of earlier codes, both after exchanges.

    What pursuit finds anew in each pass undoes what exchanges gained in the one before, and what
    exchanges alone find goes on from there only: both together leave 0.5 to 3 % less than either on
    LeNet's first layer.
    """
    codes = exchange_atoms(X, atoms, codes, n_threads=n_threads)
    if earlier is None:
        return codes
    other = exchange_atoms(X, atoms, earlier, n_threads=n_threads)
    better = _squares_left(X, other, atoms, n_threads) < _squares_left(X, codes, atoms, n_threads)
    return _rows_of_either(codes, other, better)


def _squares_left(X: Array, codes: CSR, atoms: Array, n_threads: int | None) -> Array:
    """Return ‖x − c D‖² of every row."""
    coded = spmm(codes, atoms, n_threads=n_threads)
    squares = np.empty(len(X))
    for first in range(0, len(X), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        left = X[rows].astype(coded.dtype, copy=False) - coded[rows]
        squares[rows] = np.einsum("ij,ij->i", left, left, dtype=np.float64)
    return squares


def _rows_of_either(one: CSR, other: CSR, from_other: Array) -> CSR:
    """Return rows of the one, or of the other where ``from_other`` says so."""
    counts = np.where(from_other, np.diff(other.indptr), np.diff(one.indptr))
    starts = np.where(from_other, other.indptr[:-1] + one.nnz, one.indptr[:-1])
    indptr = np.concatenate([[0], np.cumsum(counts)])
    # Where each nonzero of the result stands in both, laid end to end.
    at = np.repeat(starts - indptr[:-1], counts) + np.arange(indptr[-1])
    data = np.concatenate([one.data, other.data])[at]
    indices = np.concatenate([one.indices, other.indices])[at]
    return CSR._trusted(data, indices, indptr, one.shape)
