"""The dictionary step of dictionary learning: fit atoms to codes, and replace useless atoms."""

from __future__ import annotations

import numpy as np

from .._checks import Array
from ..kernels.sparse import CSR, spmm
from .code_products import MOST_DENSE, DenseGram, SparseGram, full
from .initial_atoms import unit_rows

SAME = 0.98  # the second of two atoms is replaced if their |cosine| exceeds this
RARE = 0.05  # an atom is replaced if it is used less than this share of the mean use
SOLVED = 1e-10  # the relative squared residual at which a fit to all signals ends
# The same for a fit to a batch, whose random noise is larger; 1e-3 raises the error on workload a
# of bench/omp.py.
SOLVED_BATCH = 1e-4
SOLVER_STEPS = 40
RIDGE = 1e-7  # times the mean of the diagonal; keeps atoms that no code uses
WELL_CODED = 1e-10  # signals whose error is below this share of the mean do not become atoms
ATOMS_AT_ONCE = 512  # atoms compared with all earlier ones at once


class DictionaryUpdate:
    """Atoms D of unit norm, and the sums over past codes C that they are fitted to.

    The sums are CᵀC and CᵀX, in which earlier batches count less. D minimises ‖X − C D‖², so
    CᵀC D = CᵀX.
    """

    def __init__(self, atoms: Array, generator: np.random.Generator, n_threads: int) -> None:
        n_atoms, n_features = atoms.shape
        self.atoms, self.generator, self.n_threads = atoms, generator, n_threads
        self.gram = DenseGram(n_atoms) if n_atoms <= MOST_DENSE else SparseGram(n_atoms)
        self.target = np.zeros((n_atoms, n_features))
        self.n_uses = np.zeros(n_atoms)

    def step(self, batch: Array, codes: CSR, forgetting: float) -> float:
        """Add a batch to the sums, fit the atoms, and replace useless ones.

        ``forgetting`` multiplies the earlier sums. Return the squared error of the codes with the
        atoms that they were found for.
        """
        squared_error = self._add(batch, codes, forgetting)
        fitted = self._solve(SOLVED_BATCH if forgetting else SOLVED)
        atoms, empty = self._normalize(fitted)
        rarely_used = self.n_uses < RARE * self.n_uses.mean()
        useless = np.flatnonzero(empty | repeated(atoms, self.n_threads) | rarely_used)
        if len(useless):
            residual = batch - spmm(codes, fitted.astype(batch.dtype), n_threads=self.n_threads)
            self._replace(atoms, useless, residual, WELL_CODED * squared_error / len(batch))
        still_empty = ~atoms.any(axis=1)
        atoms[still_empty] = self.atoms[still_empty]
        self.atoms = atoms
        return squared_error

    def _add(self, batch: Array, codes: CSR, forgetting: float) -> float:
        """Add a batch to the sums, and return the squared error of its codes."""
        codes_of_atoms = codes.T
        target = spmm(codes_of_atoms, batch, n_threads=self.n_threads).astype(np.float64)
        self.gram.add(codes, codes_of_atoms, forgetting)
        self.target = forgetting * self.target + target
        self.n_uses = forgetting * self.n_uses + np.diff(codes_of_atoms.indptr)
        # ‖x − c D‖² = ‖x‖² − c D xᵀ if c is the least-squares code of x.
        explained = float(np.einsum("ij,ij->", target, self.atoms))
        return max(sum_of_squares(batch) - explained, 0.0)

    def _solve(self, tolerance: float) -> Array:
        """Return D with (CᵀC + ridge · I) D = CᵀX + ridge · (the current atoms).

        Each column of D is solved for by its own conjugate gradients, preconditioned by the
        diagonal. The current atoms nearly solve the equations, so few steps are needed, and every
        step lowers the squared error. LAPACK would be as fast, but its idle threads and ours slow
        each other down while they wait for work: steps of 2 ms took 8 ms.
        """
        diagonal = self.gram.diagonal()
        ridge = RIDGE * max(float(diagonal.mean()), 1e-300)
        times_gram = self.gram.operator(ridge, self.n_threads)
        scale = 1 / (diagonal + ridge)
        found = self.atoms.astype(np.float64)
        residual = self.target + ridge * found - times_gram(found)
        scaled = scale[:, None] * residual
        direction = scaled.copy()
        size = np.einsum("ij,ij->j", residual, scaled)
        enough = tolerance * np.einsum("ij,i,ij->j", self.target, scale, self.target)
        for _ in range(SOLVER_STEPS):
            if (size <= enough).all():
                break
            image = times_gram(direction)
            curvature = np.einsum("ij,ij->j", direction, image)
            step = np.divide(size, curvature, out=np.zeros_like(size), where=curvature > 0)
            found += step * direction
            residual -= step * image
            scaled = scale[:, None] * residual
            last, size = size, np.einsum("ij,ij->j", residual, scaled)
            direction *= np.divide(size, last, out=np.zeros_like(size), where=last > 0)
            direction += scaled
        return found

    def _normalize(self, fitted: Array) -> tuple[Array, Array]:
        """Return the atoms scaled to unit norm and a mask of those that are zero; rescale the sums.

        The codes of an atom grow by the factor by which it shrinks, and the sums over codes with
        them.
        """
        norms = np.sqrt(np.einsum("ij,ij->i", fitted, fitted))
        empty = ~(norms > 0)
        norms[empty] = 1
        self.gram.rescale(norms)
        self.target *= norms[:, None]
        return (fitted / norms[:, None]).astype(self.atoms.dtype), empty

    def _replace(self, atoms: Array, useless: Array, residual: Array, least_error: float) -> None:
        """Replace useless atoms by the residuals of the signals with the largest error.

        Signals whose squared error is at most ``least_error`` are not used, so some useless atoms
        may stay.
        """
        errors = np.einsum("ij,ij->i", residual, residual, dtype=np.float64)
        worst = np.argsort(-errors, kind="stable")[: len(useless)]
        worst = worst[errors[worst] > least_error]
        replaced = useless[: len(worst)]
        atoms[replaced] = unit_rows(residual[worst].astype(np.float64), self.generator)
        self.gram.forget(replaced)
        self.target[replaced] = 0
        self.n_uses[replaced] = self.n_uses.sum() / len(atoms)


def repeated(atoms: Array, n_threads: int) -> Array:
    """Return a mask of the unit atoms that nearly equal an earlier one, up to the sign."""
    found = np.zeros(len(atoms), np.bool_)
    for first in range(0, len(atoms), ATOMS_AT_ONCE):
        rows = atoms[first : first + ATOMS_AT_ONCE]
        block = slice(first, first + len(rows))
        cosines = spmm(full(rows), atoms[: block.stop].T, n_threads=n_threads)
        cosines[:, block] = np.tril(cosines[:, block], -1)
        found[block] = (cosines.max(axis=1) > SAME) | (cosines.min(axis=1) < -SAME)
    return found


def sum_of_squares(X: Array) -> float:
    """Return the sum of the squares of a matrix, in float64."""
    return float(np.einsum("ij,ij->", X, X, dtype=np.float64))
