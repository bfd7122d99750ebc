"""The least-squares problems of block projections: fits of the projections and of their core.

All arrays are float64. A projection M of one side has shape (groups, block, reduced), with one
group that all blocks share or one for each of them; M̄ is the block-diagonal matrix that applies it
to every block. D has shape (groups, block_out, reduced_out) here, like B, so ``W ≈ D̄ C B̄ᵀ``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..._checks import Array
from ...metrics import Frobenius, scaled
from ..forward import NUMPY, ArrayNamespace, length
from ..least_squares import solve_least_squares
from ..search import Problem

SWEEPS = 30
MIN_GAIN = 1e-4  # the relative gain in error or energy that justifies another sweep
SIDE_STEPS = 10  # of conjugate gradients within a sweep
STEPS = 200


def fit_core(W: Array, problem: Problem, B: Array, D: Array) -> Array:
    """Return the best C between given projections: C = D̄⁺ W Σ B̄ (B̄ᵀ Σ B̄)⁺.

    Σ is the identity without an input covariance. Under an importance this C is only the start.
    """
    out, inputs = W.shape
    if problem.input_covariance is not None:
        covariance = problem.input_covariance.astype(np.float64)
        weighted = project_blocks(NUMPY, covariance, B)
        normal = project_blocks(NUMPY, weighted.T, B)
        right = np.linalg.lstsq(normal, (W @ weighted).T, rcond=None)[0]
    else:
        right = project_blocks(NUMPY, W, _inverse(B, inputs)).T
    C: Array = project_blocks(NUMPY, right, _inverse(D, out)).T
    if problem.importance is None:
        return C
    return solve_least_squares(
        _weigher(problem),
        W,
        lambda C: _dense(B, C, D, W.shape),
        lambda E: project_blocks(NUMPY, project_blocks(NUMPY, E, B).T, D).T,
        C,
        STEPS,
    )


def fit_projections(
    W: Array,
    problem: Problem,
    blocks: tuple[int, int],
    reduced: tuple[int, int],
    shared: bool,
) -> tuple[Array, Array]:
    """Return B and D, with orthonormal columns.

    Orthogonal iteration pads a shorter last block with zeros, so it is not optimal if that block
    shares its projection; nor is it under an importance or a covariance. In these cases it only
    gives the start, and conjugate gradients follow.
    """
    last, turned = 0.0, W
    for _ in range(SWEEPS):
        B, _ = _leading_directions(turned, blocks[1], reduced[1], shared)
        D, energy = _leading_directions(
            project_blocks(NUMPY, W, B).T, blocks[0], reduced[0], shared
        )
        if energy <= last * (1 + MIN_GAIN):
            break
        last, turned = energy, project_blocks(NUMPY, W.T, D).T
    short = shared and (W.shape[0] % blocks[0] or W.shape[1] % blocks[1])
    if isinstance(problem.metric, Frobenius) and not short:
        return B, D
    weigh = _weigher(problem)
    C = fit_core(W, problem, B, D)
    last = problem.metric.squares(W - _dense(B, C, D, W.shape), 0)
    for _ in range(SWEEPS):
        left = project_blocks(NUMPY, C.T, transpose_blocks(D))[:, : len(W)].T
        B = _fit_side(weigh, W, left, B)
        right = project_blocks(NUMPY, C, transpose_blocks(B))[:, : W.shape[1]].T
        D = _fit_side(lambda E: weigh(E.T).T, W.T, right, D)
        B, D = np.linalg.qr(B)[0], np.linalg.qr(D)[0]
        C = fit_core(W, problem, B, D)
        error = problem.metric.squares(W - _dense(B, C, D, W.shape), 0)
        if error >= last * (1 - MIN_GAIN):
            break
        last = error
    return B, D


def project_blocks(xp: ArrayNamespace, x: Any, M: Any) -> Any:
    """Multiply each block of x by its projection: (batch, columns) → (batch, n · r).

    M has shape (1 or n, b, r). The n blocks have b columns, the last one padded with zeros.
    """
    (batch, columns), (groups, b, r) = x.shape, M.shape
    n = -(-columns // b)
    if n * b > columns:
        x = xp.concat([x, xp.zeros_like(x[:, : n * b - columns])], axis=1)
    rows = length(batch)
    if groups == 1:
        parts = xp.matmul(xp.reshape(x, (length(batch, n), b)), xp.reshape(M, (b, r)))
        return xp.reshape(parts, (rows, n * r))
    parts = xp.matmul(xp.permute_dims(xp.reshape(x, (rows, n, b)), (1, 0, 2)), M)
    return xp.reshape(xp.permute_dims(parts, (1, 0, 2)), (rows, n * r))


def transpose_blocks(M: Array) -> Array:
    """Return the transpose of each projection."""
    return M.transpose(0, 2, 1)


def _leading_directions(T: Array, block: int, reduced: int, shared: bool) -> tuple[Array, float]:
    """Return the directions in which blocks of T's columns have most energy, and that energy."""
    n = -(-T.shape[1] // block)
    parts = _blocks(T, n, block)
    grams = parts.transpose(1, 2, 0) @ parts.transpose(1, 0, 2)
    if shared:
        grams = grams.sum(axis=0, keepdims=True)
    values, vectors = np.linalg.eigh(grams)
    return vectors[:, :, : -reduced - 1 : -1], float(values[:, -reduced:].sum())


def _fit_side(weigh: Callable[[Array], Array], W: Array, left: Array, start: Array) -> Array:
    """Return a better projection M in ``W ≈ left · M̄ᵀ`` than ``start``."""
    block, reduced = start.shape[1:]
    n = -(-W.shape[1] // block)
    parts = left.reshape(len(left), n, reduced).transpose(1, 0, 2)

    def adjoint(E: Array) -> Array:
        found = _blocks(E, n, block).transpose(1, 2, 0) @ parts
        return found.sum(axis=0, keepdims=True) if len(start) == 1 else found

    def apply(M: Array) -> Array:
        product: Array = project_blocks(NUMPY, left, transpose_blocks(M))
        return product[:, : W.shape[1]]

    return solve_least_squares(weigh, W, apply, adjoint, start, SIDE_STEPS)


def _weigher(problem: Problem) -> Callable[[Array], Array]:
    """Return a function that computes half the gradient of the metric's square at an error E."""
    if problem.importance is not None:
        importance = scaled(problem.importance)
        return lambda E: importance * E
    if problem.input_covariance is not None:
        covariance = problem.input_covariance.astype(np.float64)
        return lambda E: E @ covariance
    return lambda E: E


def _dense(B: Array, C: Array, D: Array, shape: tuple[int, int]) -> Array:
    """Return D̄ C B̄ᵀ."""
    right = project_blocks(NUMPY, C, transpose_blocks(B))[:, : shape[1]]
    result: Array = project_blocks(NUMPY, right.T, transpose_blocks(D))[:, : shape[0]].T
    return result


def _inverse(M: Array, length: int) -> Array:
    """Return M⁺ᵀ for each block; for a shorter last block only of the rows of M that it uses."""
    _, block, reduced = M.shape
    n = -(-length // block)
    if n * block > length:
        M = np.broadcast_to(M, (n, block, reduced)).copy()
        M[-1, length - n * block :] = 0
    return transpose_blocks(np.linalg.pinv(M))


def _blocks(T: Array, n: int, block: int) -> Array:
    """Return T as (rows, n, block), padded with zeros after the last column."""
    padded = np.zeros((len(T), n * block))
    padded[:, : T.shape[1]] = T
    return padded.reshape(len(T), n, block)
