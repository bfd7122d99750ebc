"""Mixed blocks: every block of the matrix is a mixture of a few blocks that all share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import Any, ClassVar

import numpy as np

from ... import _checks
from ..._checks import Array
from ...errors import CorruptDataError
from ...metrics import Covariance, Diagonal, Frobenius
from ..base import (
    FLOAT_NAMES,
    Factors,
    Method,
    Problem,
    Size,
    check_ids,
    narrowed,
)
from ..low_rank import LowRank, LowRankFactors
from ..stored import stored_tensor
from .least_squares import conjugate_gradients

SWEEPS = 30
LEAST_GAIN = 1e-4  # of the error, for one more sweep
STEPS = 10  # of conjugate gradients within a sweep


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class MixedBlockFactors(Factors):
    """Block (i, j) of W is ``Σ_k mixture[i, j, k] · blocks[k]``; W is ``Σ_k mixture_k ⊗ blocks_k``.

    Attributes
    ----------
    mixture : array of shape (out_features / b_o, in_features / b_i, rank)
    blocks : array of shape (rank, b_o, b_i)
    """

    kind: ClassVar[str] = "mixed_block"
    trainable: ClassVar[tuple[str, ...]] = ("mixture", "blocks")

    mixture: Array
    blocks: Array

    def rows(self, ids: Any, *, n_threads: int | None = None) -> Array:
        ids = check_ids(ids, self.shape[0])
        mixture, blocks = self._wide
        place, within = np.divmod(ids.reshape(-1), max(blocks.shape[1], 1))
        inside = blocks[:, within].transpose(1, 0, 2)  # (ids, rank, b_i)
        found = narrowed(mixture[place] @ inside, self.dtype)
        return found.reshape(*ids.shape, self.shape[1])

    def _linear(self, x: Array, n_threads: int | None) -> Array:
        mixture, blocks = self._wide
        x = x.astype(_checks.result_dtype(x, mixture), copy=False)
        result: Array = self.forward(np, {"mixture": mixture, "blocks": blocks}, x)
        return result

    def forward(self, xp: Any, tensors: Mapping[str, Any], x: Any) -> Any:
        across, down, rank = self.mixture.shape[1], self.mixture.shape[0], self.blocks.shape[0]
        b_o, b_i = self.blocks.shape[1:]
        batch = x.shape[0]
        blocks = xp.reshape(tensors["blocks"], (rank * b_o, b_i))
        parts = xp.matmul(xp.reshape(x, (batch * across, b_i)), xp.transpose(blocks))
        # (batch, j, k, b_o) → (batch, b_o, j k), which the mixture sums over.
        parts = xp.transpose(xp.reshape(parts, (batch, across * rank, b_o)), (0, 2, 1))
        mixture = xp.transpose(xp.reshape(tensors["mixture"], (down, across * rank)))
        y = xp.matmul(xp.reshape(parts, (batch * b_o, across * rank)), mixture)
        y = xp.transpose(xp.reshape(y, (batch, b_o, down)), (0, 2, 1))
        return xp.reshape(y, (batch, self.shape[0]))

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Array],
        config: Mapping[str, Any],
        shape: tuple[int, int],
        dtype: np.dtype[Any],
    ) -> MixedBlockFactors:
        blocks = stored_tensor(tensors, "blocks", FLOAT_NAMES, (None, None, None))
        rank, *size = blocks.shape
        down, across = (n // max(b, 1) for n, b in zip(shape, size, strict=True))
        mixture = stored_tensor(tensors, "mixture", FLOAT_NAMES, (down, across, rank))
        whole = (down * size[0], across * size[1])
        if whole != tuple(shape):
            raise CorruptDataError(f"blocks must make up a matrix {shape}, got {whole}")
        return cls(mixture=mixture, blocks=blocks, shape=shape, dtype=dtype)

    @cached_property
    def _wide(self) -> tuple[Array, Array]:
        dtype = _checks.result_dtype(self.mixture, self.blocks)
        return self.mixture.astype(dtype, copy=False), self.blocks.astype(dtype, copy=False)


@dataclass(frozen=True, kw_only=True)
class MixedBlock(Method):
    """A few blocks that all places share: ``y_i = Σ_j Σ_k M[i, j, k] · W_k x_j``.

    Parameters
    ----------
    rank : int, optional
        Shared blocks, at least 1. More than are of use are left out.
    ratio, max_error : float, optional
        As in :class:`Method`.
    block_shape : (int, int), optional
        Rows and columns of a block, which divide those of W. Default: divisors near
        their roots, which makes M and a block about equally large.

    Raises
    ------
    TypeError, ValueError
        For settings out of range and, when a matrix is compressed, a shape that `block_shape`
        does not divide.

    Notes
    -----
    W is a sum of Kronecker products, and a low-rank matrix once every block is laid out as a row:
    under the sum of squares the error is the least there is, under an importance a local minimum,
    found as :class:`LowRank` does. An input covariance joins the blocks of a row; there M and the
    blocks take turns, by conjugate gradients, from the plain ones on. Factors have W's dtype. A
    product costs ``2 · rank · in · (b_o + out / b_i)`` operations an input. Goes through LAPACK:
    bits may depend on NumPy's threads.

    Source: C. Van Loan and N. Pitsianis, Approximation with Kronecker Products, 1993; as a layer
    A. Panigrahi et al., 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.methods import MixedBlock
    >>> M, block = np.array([[1, -1], [2, 0]]), np.arange(6).reshape(2, 3)
    >>> factors = MixedBlock(rank=1, block_shape=(2, 3)).compress(np.kron(M, block).astype(float))
    >>> factors.mixture.shape, factors.blocks.shape
    ((2, 2, 1), (1, 2, 3))
    >>> bool(factors.error(np.kron(M, block).astype(float)) < 1e-12)
    True
    """

    parameter: ClassVar[str] = "rank"
    metrics: ClassVar[frozenset[type]] = frozenset({Frobenius, Diagonal, Covariance})

    rank: int | None = None
    block_shape: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank is not None:
            _checks.integer(self.rank, "rank", 1)
        if self.block_shape is not None:
            if not isinstance(self.block_shape, tuple | list) or len(self.block_shape) != 2:
                raise ValueError(f"block_shape must be two integers, got {self.block_shape!r}")
            for size in self.block_shape:
                _checks.integer(size, "block_shape", 1)

    def _compress(self, problem: Problem) -> MixedBlockFactors:
        (rows, columns), (down, across) = self._layout(problem)

        def as_rows(array: Array) -> Array:
            blocks = array.reshape(down, rows, across, columns).transpose(0, 2, 1, 3)
            return blocks.reshape(down * across, rows * columns)

        # Sizes and errors are those of the matrix of blocks: LowRank's search is this method's.
        factors = LowRank(rank=self.rank, ratio=self.ratio, max_error=self.max_error).compress(
            as_rows(problem.W),
            importance=None if problem.importance is None else as_rows(problem.importance),
            n_threads=problem.n_threads,
        )
        assert isinstance(factors, LowRankFactors)
        B, C, dtype = factors.B, factors.C, problem.W.dtype
        if problem.input_covariance is not None:

            def from_rows(array: Array) -> Array:
                blocks = array.reshape(down, across, rows, columns).transpose(0, 2, 1, 3)
                return blocks.reshape(problem.W.shape)

            covariance = problem.input_covariance.astype(np.float64)
            B, C = _refine(
                as_rows(problem.W).astype(np.float64),
                lambda E: as_rows(from_rows(E) @ covariance),
                B.astype(np.float64),
                C.astype(np.float64),
            )
        return MixedBlockFactors(
            mixture=narrowed(B.reshape(down, across, len(C)), dtype),
            blocks=narrowed(C.reshape(len(C), rows, columns), dtype),
            shape=problem.W.shape,
            dtype=dtype,
        )

    def _search(self, problem: Problem) -> Factors:
        """Under a covariance each rank is refined before its error counts; else LowRank knows."""
        if problem.input_covariance is None:
            return self._compress(problem)
        if self.ratio is not None:
            return self._largest(self._some_levels(problem), problem)
        return super()._search(problem)

    def _size(self, problem: Problem) -> Size:
        (rows, columns), (down, across) = self._layout(problem)
        rank = min(self.rank or 1, rows * columns, down * across)
        # Less where the matrix has less rank.
        return Size(rank * (rows * columns + down * across) * problem.W.itemsize, exact=False)

    def _levels(self, problem: Problem) -> Sequence[int]:
        (rows, columns), (down, across) = self._layout(problem)
        return range(1, min(rows * columns, down * across) + 1)

    def _layout(self, problem: Problem) -> tuple[tuple[int, int], tuple[int, int]]:
        """The shape of a block, and how many there are."""
        out, inputs = problem.W.shape
        # The divisor below the root on one side, above it on the other: as many blocks as entries.
        rows, columns = _divisor(out), inputs // _divisor(inputs)
        if self.block_shape is not None:
            rows, columns = self.block_shape
        if out % rows or inputs % max(columns, 1):
            raise ValueError(
                f"block_shape must divide the shape of W, {out, inputs}, got {self.block_shape}"
            )
        return (rows, columns), (out // rows, inputs // max(columns, 1))


def _refine(W: Array, weigh: Callable[[Array], Array], B: Array, C: Array) -> tuple[Array, Array]:
    """W ≈ B C for a metric that joins the rows of W: B and C in turn, from these on."""
    last = np.inf
    for _ in range(SWEEPS):
        C = _right(weigh, W, B, C)
        B = _left(weigh, W, B, C)
        left = W - B @ C
        error = float(np.sum(left * weigh(left)))
        if error >= last * (1 - LEAST_GAIN):
            break
        last = error
    return B, C


def _left(weigh: Callable[[Array], Array], W: Array, B: Array, C: Array) -> Array:
    return conjugate_gradients(weigh, W, lambda B: B @ C, lambda E: E @ C.T, B, STEPS)


def _right(weigh: Callable[[Array], Array], W: Array, B: Array, C: Array) -> Array:
    return conjugate_gradients(weigh, W, lambda C: B @ C, lambda E: B.T @ E, C, STEPS)


def _divisor(n: int) -> int:
    """The largest divisor of n that is at most its root."""
    return next((d for d in range(isqrt(n), 1, -1) if n % d == 0), 1)
