"""Low rank: a product of two thin matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from .. import _checks
from .._checks import Array
from ..metrics import Covariance, Diagonal, Frobenius, exponent_of, scaled
from .base import Method
from .factors import FLOAT_NAMES, Factors, check_ids
from .forward import ArrayNamespace, transpose
from .narrow import as_factors, narrowed
from .search import Problem, Size
from .stored import stored_tensor

BLOCK_BYTES = 64 << 20
SWEEPS = 30
MIN_GAIN = 1e-4  # the sweeps stop when the error falls by a smaller fraction
RIDGE = 1e-6  # relative to the mean weight; with it, rows without weight have a solution


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class LowRankFactors(Factors):
    """A product of two thin matrices, ``W ≈ B C``.

    Attributes
    ----------
    B : array of shape (out_features, rank)
    C : array of shape (rank, in_features)
    """

    kind: ClassVar[str] = "low_rank"
    trainable: ClassVar[tuple[str, ...]] = ("B", "C")

    B: Array
    C: Array

    def rows(self, ids: Any, *, n_threads: int | None = None) -> Array:
        B, C = self._wide
        return narrowed(B[check_ids(ids, self.shape[0])] @ C, self.dtype)

    def _linear(self, x: Array, n_threads: int | None) -> Array:
        B, C = self._wide
        x = x.astype(_checks.result_dtype(x, B), copy=False)
        result: Array = (x @ C.T) @ B.T
        return result

    def forward(self, xp: ArrayNamespace, tensors: Mapping[str, Any], x: Any) -> Any:
        inner = xp.matmul(x, transpose(xp, tensors["C"]))
        return xp.matmul(inner, transpose(xp, tensors["B"]))

    def _forward_rows(self, xp: ArrayNamespace, tensors: Mapping[str, Any], ids: Any) -> Any:
        return xp.matmul(xp.take(tensors["B"], ids, axis=0), tensors["C"])

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Array],
        config: Mapping[str, Any],
        shape: tuple[int, int],
        dtype: np.dtype[Any],
    ) -> LowRankFactors:
        B = stored_tensor(tensors, "B", FLOAT_NAMES, (shape[0], None))
        C = stored_tensor(tensors, "C", FLOAT_NAMES, (B.shape[1], shape[1]))
        return cls(B=B, C=C, shape=shape, dtype=dtype)

    @cached_property
    def _wide(self) -> tuple[Array, Array]:
        dtype = _checks.result_dtype(self.B, self.C)
        return self.B.astype(dtype, copy=False), self.C.astype(dtype, copy=False)


@dataclass(frozen=True, kw_only=True)
class LowRank(Method):
    """Truncated singular value decomposition: ``W ≈ B C`` with ``B = U √S`` and ``C = √S Vᵀ``.

    Parameters
    ----------
    rank : int, optional
        Number of columns of B, at least 1. Columns beyond the rank of W are left out.
    ratio, max_error : float, optional
        As in :class:`Method`.

    Raises
    ------
    TypeError, ValueError
        For a rank that is not an integer or is less than 1.

    Notes
    -----
    Factors have W's dtype. The error is the least possible under the sum of squares (Eckart and
    Young, 1936) and under an input covariance Σ, where ``B`` spans the leading left singular
    vectors of ``W Σ^½``. Under an importance, alternating least squares finds a local minimum,
    starting from the plain factors or from better ones; each sweep costs ``2 · out · in · rank²``
    operations. Everything goes through NumPy's BLAS and LAPACK, in float64 and with their own
    threads, so bits may depend on the number of threads. Ctrl-C waits for the LAPACK call that is
    under way, which takes seconds for matrices of some thousand rows and columns.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.methods import LowRank
    >>> W = np.outer([1, 2, 3], [1, 0, -1, 2]).astype(np.float32)
    >>> factors = LowRank(rank=1).compress(W)
    >>> factors.nbytes, bool(factors.error(W) < 1e-12)
    (28, True)
    """

    parameter: ClassVar[str] = "rank"
    metrics: ClassVar[frozenset[type]] = frozenset({Frobenius, Diagonal, Covariance})

    rank: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank is not None:
            _checks.integer(self.rank, "rank", 1)

    def _compress(self, problem: Problem) -> LowRankFactors:
        return _factors(_Spectrum(problem), problem, self.rank or 1)

    def _tries_plain(self, problem: Problem) -> bool:
        return problem.importance is not None  # the least error under a covariance is found

    def _levels(self, problem: Problem) -> Sequence[int]:
        return range(1, min(problem.W.shape) + 1)

    def _least_nbytes(self, problem: Problem) -> int:
        return self._size(problem).nbytes

    def _size(self, problem: Problem) -> Size:
        rank = min(self.rank or 1, *problem.W.shape)
        # A matrix of lower rank takes less.
        return Size(rank * sum(problem.W.shape) * problem.W.itemsize, exact=False)

    def _search(self, problem: Problem) -> Factors:
        if self.ratio is not None:
            return self._largest_planned(problem)._best(problem)
        ranks, goal = self._checked_levels(problem), self._goal(problem)
        if problem.importance is not None:
            return self._bisect(ranks, problem)
        spectrum = _Spectrum(problem)
        lost = spectrum.energy - np.cumsum(spectrum.values)
        enough = lost <= goal.limit * spectrum.energy
        rank = int(np.argmax(enough)) + 1 if enough.any() else len(ranks)
        factors = _factors(spectrum, problem, rank)
        # The singular values do not include the error of rounding to W's dtype.
        if not goal.allows(goal.measure(factors)):
            return self._bisect(ranks, problem)
        return factors


class _Spectrum:
    """The squared singular values of W Σ^½, descending, and its left singular vectors, in float64.

    Here W is scaled by 2**−exponent to lie within ±1, so that squares stay in range.
    """

    def __init__(self, problem: Problem) -> None:
        self.exponent = exponent_of(problem.W)
        self.W = np.ldexp(problem.W.astype(np.float64), -self.exponent)
        weighted = self.W
        if problem.input_covariance is not None:
            values, vectors = np.linalg.eigh(scaled(problem.input_covariance))
            weighted = self.W @ (vectors * np.sqrt(np.maximum(values, 0)))
        out, inputs = weighted.shape
        self.energy = float(np.einsum("ij,ij->", weighted, weighted))
        if problem.W.dtype == np.float64 or min(out, inputs) == 0:
            left, values, _ = np.linalg.svd(weighted, full_matrices=False)
            self.values, self.left = values**2, left
        elif out <= inputs:
            values, vectors = np.linalg.eigh(weighted @ weighted.T)
            self.values, self.left = np.maximum(values[::-1], 0), vectors[:, ::-1]
        else:
            # The Gram matrix squares the condition number; the loss is below float32's rounding.
            values, vectors = np.linalg.eigh(weighted.T @ weighted)
            self.values = np.maximum(values[::-1], 0)
            lengths = np.sqrt(self.values)
            lengths[lengths <= 1e-7 * lengths.max(initial=0)] = np.inf
            self.left = weighted @ (vectors[:, ::-1] / lengths)


def _factors(spectrum: _Spectrum, problem: Problem, rank: int) -> LowRankFactors:
    left = spectrum.left[:, :rank]
    B, C = left, left.T @ spectrum.W  # the best C for these columns, under any covariance
    if problem.importance is not None:
        B, C = _weighted(spectrum.W, scaled(problem.importance), B, C)
    sizes_b, sizes_c = np.linalg.norm(B, axis=0), np.linalg.norm(C, axis=1)
    used = (sizes_b > 0) & (sizes_c > 0)
    balance = np.sqrt(sizes_c[used] / sizes_b[used])
    dtype, half = problem.W.dtype, spectrum.exponent // 2
    return LowRankFactors(
        B=as_factors(B[:, used] * balance, dtype, half),
        C=as_factors(C[used] / balance[:, None], dtype, spectrum.exponent - half),
        shape=problem.W.shape,
        dtype=dtype,
    )


def _weighted(W: Array, importance: Array, B: Array, C: Array) -> tuple[Array, Array]:
    """Return B and C from alternating least squares on Σ a (W − B C)², until a sweep gains little.

    Start from the given factors or from those of W · a / s, whichever are better, where s is the
    separable part of a: the outer product of its row and column means over its mean. The latter
    factors ignore large weights that do not matter.
    """
    separable = np.outer(importance.mean(axis=1), importance.mean(axis=0)) / importance.mean()
    scale = np.sqrt(np.maximum(separable, RIDGE * importance.mean()))
    left, values, right = np.linalg.svd(importance / scale * W, full_matrices=False)
    # scale is an outer product, so dividing by its first row and column (normalised) undoes it.
    rows, columns = scale[:, 0] / np.sqrt(scale[0, 0]), scale[0] / np.sqrt(scale[0, 0])
    rank = B.shape[1]
    other = left[:, :rank] * values[:rank] / rows[:, None], right[:rank] / columns
    last = _weighted_error(W, importance, B, C)
    if _weighted_error(W, importance, *other) < last:
        B, C = other
    ridge = RIDGE * float(importance.mean())
    for _ in range(SWEEPS):
        C = _weighted_solve(W.T, importance.T, B, ridge).T
        B = _weighted_solve(W, importance, C.T, ridge)
        error = _weighted_error(W, importance, B, C)
        if error >= last * (1 - MIN_GAIN):
            break
        last = error
    return B, C


def _weighted_error(W: Array, importance: Array, B: Array, C: Array) -> float:
    return Diagonal(importance).squares(W - B @ C, 0)


def _weighted_solve(W: Array, importance: Array, basis: Array, ridge: float) -> Array:
    """Return the rows r[i] that minimise Σ_j a[i, j] (W[i, j] − r[i] · basis[j])²."""
    n, rank = basis.shape
    result = np.empty((len(W), rank))
    block = max(BLOCK_BYTES // max(n * rank * 8, 1), 1)
    powers = np.einsum("ij,ij->j", basis, basis) / max(n, 1)
    damping = ridge * np.where(powers > 0, powers, 1)
    for first in range(0, len(W), block):
        rows = slice(first, first + block)
        weighted = importance[rows, :, None] * basis
        normal = np.swapaxes(weighted, 1, 2) @ basis + np.diag(damping)
        target = np.einsum("ijk,ij->ik", weighted, W[rows])
        result[rows] = np.linalg.solve(normal, target[:, :, None])[:, :, 0]
    return result
