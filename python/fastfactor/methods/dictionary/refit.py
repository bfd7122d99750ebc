"""Fits of the values and atoms of a coded matrix under any metric; each value keeps its atom."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..._checks import Array
from ...kernels.sparse import CSR, spmm
from ...metrics import Diagonal
from ..least_squares import conjugate_gradients
from ..search import Problem

ROUNDS = 3
STEPS = 12  # of conjugate gradients
CONVERGED = 1e-12  # the squared residual, over the square of the right side, at which they end
NONZEROS_AT_ONCE = 1 << 16
RIDGE = 1e-6  # relative; keeps the roots of weights that are zero away from zero

Operator = Callable[[Array], Array]


def whitening(problem: Problem, block_size: int) -> tuple[Array, Array, Array]:
    """Return a scale for each block (n, 1), and L (block_size, block_size) with its inverse.

    The sum of squares of ``scale · x · L`` approximates the metric of blocks x, with one L for all
    blocks. It is exact for an importance that is a factor for each block times one for each
    column of a block, and for a covariance if a block is a row.
    """
    n = problem.W.size // block_size
    if problem.importance is not None:
        weights = problem.importance.astype(np.float64).reshape(n, block_size)
        mean = float(weights.mean())
        by_block = weights.mean(axis=1, keepdims=True) / mean + RIDGE
        by_column = weights.mean(axis=0) / mean + RIDGE
        roots = np.sqrt(by_column)
        return np.sqrt(by_block), np.diag(roots), np.diag(1 / roots)
    if problem.input_covariance is None:
        return np.ones((n, 1)), np.eye(block_size), np.eye(block_size)
    wide = problem.input_covariance.astype(np.float64)
    count = len(wide) // block_size
    blocks = wide.reshape(count, block_size, count, block_size)
    values, vectors = np.linalg.eigh(np.einsum("ijik->jk", blocks) / count)
    top = max(float(values[-1]), 1e-300)
    roots = np.sqrt(np.maximum(values, RIDGE * top))
    return np.ones((n, 1)), (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def refit_values(problem: Problem, codes: CSR, dictionary: Array) -> CSR:
    """Return the codes with the values of least error for this dictionary."""
    weigh, target = _metric(problem, dictionary.shape[1])
    row_of = np.repeat(np.arange(codes.shape[0]), np.diff(codes.indptr))

    def against_atoms(left: Array) -> Array:
        result = np.empty(codes.nnz)
        for first in range(0, codes.nnz, NONZEROS_AT_ONCE):
            at = slice(first, first + NONZEROS_AT_ONCE)
            result[at] = np.einsum("ij,ij->i", left[row_of[at]], dictionary[codes.indices[at]])
        return result

    def normal(values: Array) -> Array:
        coded = spmm(_with(codes, values), dictionary, n_threads=problem.n_threads)
        return against_atoms(weigh(coded))

    values = codes.data.astype(np.float64)
    return _with(codes, _descend(normal, against_atoms(weigh(target)), values))


def refit(problem: Problem, codes: CSR, dictionary: Array) -> tuple[CSR, Array]:
    """Fit values and atoms in turns, and return both."""
    weigh, target = _metric(problem, dictionary.shape[1])
    weighed = weigh(target)
    for _ in range(ROUNDS):
        codes = refit_values(problem, codes, dictionary)
        of_atoms = codes.T

        def normal(atoms: Array, codes: CSR = codes, of_atoms: CSR = of_atoms) -> Array:
            coded = spmm(codes, atoms, n_threads=problem.n_threads)
            return spmm(of_atoms, weigh(coded), n_threads=problem.n_threads)

        wanted = spmm(of_atoms, weighed, n_threads=problem.n_threads)
        dictionary = _descend(normal, wanted, dictionary)
    return codes, dictionary


def _metric(problem: Problem, block_size: int) -> tuple[Operator, Array]:
    """Return half the gradient of the metric's square as a function of blocks, and W as blocks.

    Both are float64. Weights are divided by their mean, so that their squares stay in range.
    """
    shape, metric = problem.W.shape, problem.metric
    target = problem.W.astype(np.float64).reshape(-1, block_size)
    if isinstance(metric, Diagonal):
        weights = metric.importance.astype(np.float64).reshape(-1, block_size)
        weights /= weights.mean()
        return lambda blocks: blocks * weights, target
    assert problem.input_covariance is not None
    covariance = problem.input_covariance.astype(np.float64)
    covariance /= max(float(covariance.diagonal().mean()), 1e-300)
    return lambda blocks: (blocks.reshape(shape) @ covariance).reshape(-1, block_size), target


def _descend(normal: Operator, wanted: Array, start: Array) -> Array:
    """Return a better x in ``normal(x) = wanted`` than ``start``; no step raises the error."""
    enough = CONVERGED * float(np.sum(wanted * wanted))
    return conjugate_gradients(normal, wanted - normal(start), start, steps=STEPS, enough=enough)


def _with(codes: CSR, values: Array) -> CSR:
    """Return the codes with other values."""
    return CSR(values, codes.indices, codes.indptr, codes.shape)
