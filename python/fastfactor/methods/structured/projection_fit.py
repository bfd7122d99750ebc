"""The least-squares problems of block projections: what they are learned by, and what is between.

In float64. A projection M of one side is (groups, block, reduced), with one group that all blocks
share or one for each of them, and M̄ has it on its diagonal once for each block. D is (groups,
block_out, reduced_out) here, as B is: ``W ≈ D̄ C B̄ᵀ``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..._checks import Array
from ...metrics import Frobenius, scaled
from ..forward import NUMPY, ArrayNamespace
from ..least_squares import solve_least_squares
from ..search import Problem

SWEEPS = 30
MIN_GAIN = 1e-4  # of the error or energy, for one more sweep
SIDE_STEPS = 10  # of conjugate gradients within a sweep
STEPS = 200


def fit_core(W: Array, problem: Problem, B: Array, D: Array) -> Array:
    """The best C between given projections: C = D̄⁺ W Σ B̄ (B̄ᵀ Σ B̄)⁺."""
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
    """B and D with orthonormal columns.

    Orthogonal iteration takes what a last, shorter block lacks for zeros. Where a projection that
    others share fits that block too, and under a metric, what it finds is only the start.
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
    """``(batch, n · b) → (batch, n · r)``: blocks of x, the last filled with zeros, each times M.

    M is (1 or n, b, r).
    """
    (batch, length), (groups, b, r) = x.shape, M.shape
    n = -(-length // b)
    if n * b > length:
        x = xp.concat([x, xp.zeros_like(x[:, : n * b - length])], axis=1)
    if groups == 1:
        parts = xp.matmul(xp.reshape(x, (batch * n, b)), xp.reshape(M, (b, r)))
        return xp.reshape(parts, (batch, n * r))
    parts = xp.matmul(xp.permute_dims(xp.reshape(x, (batch, n, b)), (1, 0, 2)), M)
    return xp.reshape(xp.permute_dims(parts, (1, 0, 2)), (batch, n * r))


def transpose_blocks(M: Array) -> Array:
    """The transpose of each."""
    return M.transpose(0, 2, 1)


def _leading_directions(T: Array, block: int, reduced: int, shared: bool) -> tuple[Array, float]:
    """The directions in which blocks of T's columns have most energy, and that energy."""
    n = -(-T.shape[1] // block)
    parts = _blocks(T, n, block)
    grams = parts.transpose(1, 2, 0) @ parts.transpose(1, 0, 2)
    if shared:
        grams = grams.sum(axis=0, keepdims=True)
    values, vectors = np.linalg.eigh(grams)
    return vectors[:, :, : -reduced - 1 : -1], float(values[:, -reduced:].sum())


def _fit_side(weigh: Callable[[Array], Array], W: Array, left: Array, start: Array) -> Array:
    """A better projection M of the columns in ``W ≈ left · M̄ᵀ``."""
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
    """Half the gradient of the metric's square."""
    if problem.importance is not None:
        importance = scaled(problem.importance)
        return lambda E: importance * E
    if problem.input_covariance is not None:
        covariance = problem.input_covariance.astype(np.float64)
        return lambda E: E @ covariance
    return lambda E: E


def _dense(B: Array, C: Array, D: Array, shape: tuple[int, int]) -> Array:
    right = project_blocks(NUMPY, C, transpose_blocks(B))[:, : shape[1]]
    result: Array = project_blocks(NUMPY, right.T, transpose_blocks(D))[:, : shape[0]].T
    return result


def _inverse(M: Array, length: int) -> Array:
    """M⁺ᵀ for each block; the last sees those rows of M only that a side of this length fills."""
    _, block, reduced = M.shape
    n = -(-length // block)
    if n * block > length:
        M = np.broadcast_to(M, (n, block, reduced)).copy()
        M[-1, length - n * block :] = 0
    return transpose_blocks(np.linalg.pinv(M))


def _blocks(T: Array, n: int, block: int) -> Array:
    """(rows, n, block), zeros after the last column."""
    padded = np.zeros((len(T), n * block))
    padded[:, : T.shape[1]] = T
    return padded.reshape(len(T), n, block)
