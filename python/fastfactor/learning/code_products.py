"""The products CᵀC of sparse codes with themselves, which a refit of the atoms needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .._checks import Array
from ..kernels.sparse import CSR, spmm

# Up to this many atoms CᵀC is held as a matrix (128 MB); for more atoms the codes are held.
MOST_DENSE = 4096
FORGOTTEN = 1e-4  # a batch of codes is dropped when its weight falls to this
ROWS_AT_ONCE = 1 << 16


class DenseGram:
    """The Gram matrix CᵀC of codes, stored as n_atoms² numbers; earlier codes count less."""

    def __init__(self, n_atoms: int) -> None:
        self.matrix = np.zeros((n_atoms, n_atoms))

    def add(self, codes: CSR, of_atoms: CSR, forgetting: float) -> None:
        """Multiply the matrix by ``forgetting``, then add CᵀC of the codes; ``of_atoms`` is Cᵀ."""
        self.matrix = forgetting * self.matrix + gram_of_codes(codes)

    def diagonal(self) -> Array:
        """Return the diagonal of CᵀC: the sum of squares of each atom's codes."""
        return self.matrix.diagonal()

    def operator(self, ridge: float, n_threads: int) -> Callable[[Array], Array]:
        """Return a function that multiplies by CᵀC + ridge · I."""
        matrix = full(self.matrix + ridge * np.eye(len(self.matrix)))
        return lambda atoms: spmm(matrix, atoms, n_threads=n_threads)

    def rescale(self, factors: Array) -> None:
        """Multiply the codes of each atom by its factor."""
        self.matrix *= factors[:, None] * factors

    def forget(self, atoms: Array) -> None:
        """Set the codes of these atoms to zero."""
        self.matrix[atoms], self.matrix[:, atoms] = 0, 0


@dataclass(frozen=True)
class _Batch:
    """The codes of one batch, and what later steps multiply them by."""

    codes: CSR
    of_atoms: CSR  # the transpose
    squares: Array  # the diagonal of CᵀC
    scale: Array  # a factor of each atom's codes
    weight: float  # a factor of all products of these codes


class SparseGram:
    """The Gram matrix of :class:`DenseGram`, kept as the codes themselves.

    Memory and time grow with the number of codes instead of n_atoms², which suits large
    dictionaries.
    """

    def __init__(self, n_atoms: int) -> None:
        self.n_atoms = n_atoms
        self.batches: list[_Batch] = []

    def add(self, codes: CSR, of_atoms: CSR, forgetting: float) -> None:
        faded = (replace(batch, weight=forgetting * batch.weight) for batch in self.batches)
        self.batches = [batch for batch in faded if batch.weight > FORGOTTEN]
        squares = np.bincount(codes.indices, codes.data.astype(np.float64) ** 2, self.n_atoms)
        self.batches.append(_Batch(codes, of_atoms, squares, np.ones(self.n_atoms), 1.0))

    def diagonal(self) -> Array:
        total = np.zeros(self.n_atoms)
        for batch in self.batches:
            total += batch.weight * batch.scale**2 * batch.squares
        return total

    def operator(self, ridge: float, n_threads: int) -> Callable[[Array], Array]:
        def product(atoms: Array) -> Array:
            total = ridge * atoms
            for batch in self.batches:
                scale = batch.scale[:, None]
                approximation = spmm(batch.codes, scale * atoms, n_threads=n_threads)
                found = spmm(batch.of_atoms, approximation, n_threads=n_threads)
                total += batch.weight * scale * found
            return total

        return product

    def rescale(self, factors: Array) -> None:
        for batch in self.batches:
            batch.scale[:] *= factors

    def forget(self, atoms: Array) -> None:
        for batch in self.batches:
            batch.scale[atoms] = 0


def gram_of_codes(codes: CSR) -> Array:
    """Return CᵀC in float64, summed over the pairs of coefficients in each row."""
    n_atoms = codes.shape[1]
    total = np.zeros(n_atoms * n_atoms)
    indptr = codes.indptr
    for first in range(0, codes.shape[0], ROWS_AT_ONCE):
        last = min(first + ROWS_AT_ONCE, codes.shape[0])
        at = slice(int(indptr[first]), int(indptr[last]))
        counts = np.diff(indptr[first : last + 1])
        columns, values = codes.indices[at].astype(np.int64), codes.data[at].astype(np.float64)
        row_of = np.repeat(np.arange(len(counts)), counts)
        cells, terms = [columns * (n_atoms + 1)], [values * values]
        for apart in range(1, int(counts.max(initial=0))):
            pairs = np.flatnonzero(row_of[apart:] == row_of[:-apart])
            cells.append(columns[pairs] * n_atoms + columns[pairs + apart])
            terms.append(values[pairs] * values[pairs + apart])
        total += np.bincount(np.concatenate(cells), np.concatenate(terms), n_atoms * n_atoms)
    upper = total.reshape(n_atoms, n_atoms)
    return upper + np.triu(upper, 1).T


def full(matrix: Array) -> CSR:
    """Return a dense matrix as CSR, so that `spmm` can multiply by it on this package's threads."""
    rows, columns = matrix.shape
    indices = np.tile(np.arange(columns, dtype=np.int32), rows)
    indptr = np.arange(rows + 1, dtype=np.int64) * columns
    return CSR._trusted(matrix.reshape(-1), indices, indptr, (rows, columns))
