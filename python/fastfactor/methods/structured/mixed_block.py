"""Mixed blocks: every block of the matrix is a mixture of a few blocks that all share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ... import _checks
from ..._checks import Array
from ...errors import CorruptDataError
from ...metrics import Covariance, Diagonal, Frobenius
from ..base import Method
from ..factors import FLOAT_NAMES, Factors, check_ids, narrowed
from ..forward import NUMPY, ArrayNamespace, transpose
from ..least_squares import solve_least_squares
from ..low_rank import LowRank, LowRankFactors
from ..search import Problem, Size
from ..stored import stored_tensor

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
        result: Array = self.forward(NUMPY, {"mixture": mixture, "blocks": blocks}, x)
        return result

    def forward(self, xp: ArrayNamespace, tensors: Mapping[str, Any], x: Any) -> Any:
        across, down, rank = self.mixture.shape[1], self.mixture.shape[0], self.blocks.shape[0]
        b_o, b_i = self.blocks.shape[1:]
        batch = x.shape[0]
        blocks = xp.reshape(tensors["blocks"], (rank * b_o, b_i))
        parts = xp.matmul(xp.reshape(x, (batch * across, b_i)), transpose(xp, blocks))
        # (batch, j, k, b_o) → (batch, b_o, j k), which the mixture sums over.
        parts = xp.permute_dims(xp.reshape(parts, (batch, across * rank, b_o)), (0, 2, 1))
        mixture = transpose(xp, xp.reshape(tensors["mixture"], (down, across * rank)))
        y = xp.matmul(xp.reshape(parts, (batch * b_o, across * rank)), mixture)
        y = xp.permute_dims(xp.reshape(y, (batch, b_o, down)), (0, 2, 1))
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
        return self._factors(problem, LowRank(rank=self.rank))

    def _search(self, problem: Problem) -> Factors:
        if problem.input_covariance is None:
            # Sizes and errors are those of the matrix of blocks: LowRank's search serves.
            return self._factors(problem, LowRank(ratio=self.ratio, max_error=self.max_error))
        if self.ratio is not None:
            return self._largest_planned(problem)._compress(problem)
        return super()._search(problem)

    def _size(self, problem: Problem) -> Size:
        n_blocks, block_size = self._layout(problem).matrix_shape
        rank = min(self.rank or 1, n_blocks, block_size)
        # Less where the matrix of blocks has less rank.
        return Size(rank * (n_blocks + block_size) * problem.W.itemsize, exact=False)

    def _levels(self, problem: Problem) -> Sequence[int]:
        return range(1, min(self._layout(problem).matrix_shape) + 1)

    def _factors(self, problem: Problem, low_rank: LowRank) -> MixedBlockFactors:
        """Return the factors that LowRank finds for the matrix that has a block in each row.

        That matrix is B C: row (i, j) of B is ``mixture[i, j]`` and row k of C is ``blocks[k]``.
        """
        layout = self._layout(problem)
        W, importance = problem.W, problem.importance
        plain = low_rank.compress(
            layout.as_rows(W),
            importance=None if importance is None else layout.as_rows(importance),
            n_threads=problem.n_threads,
        )
        assert isinstance(plain, LowRankFactors)
        B, C = plain.B, plain.C
        if problem.input_covariance is not None:
            B, C = _refine(W, problem.input_covariance, layout, B, C)
        rank = len(C)
        return MixedBlockFactors(
            mixture=narrowed(B.reshape(layout.down, layout.across, rank), W.dtype),
            blocks=narrowed(C.reshape(rank, layout.height, layout.width), W.dtype),
            shape=W.shape,
            dtype=W.dtype,
        )

    def _layout(self, problem: Problem) -> _Layout:
        out, inputs = problem.W.shape
        if self.block_shape is not None:
            height, width = self.block_shape
        else:
            # The divisor below the root on one side and above it on the other: as many blocks as
            # entries in a block.
            height, width = _divisor(out), inputs // _divisor(inputs)
        if out % height or inputs % max(width, 1):
            raise ValueError(
                f"block_shape must divide the shape of W, {out, inputs}, got {self.block_shape}"
            )
        return _Layout(out // height, inputs // max(width, 1), height, width)


class _Layout(NamedTuple):
    """A matrix as ``down`` by ``across`` blocks of ``height`` by ``width``."""

    down: int
    across: int
    height: int
    width: int

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Of the matrix that has a block in each row."""
        return self.down * self.across, self.height * self.width

    def as_rows(self, matrix: Array) -> Array:
        """Return the matrix that has a block in each row."""
        blocks = matrix.reshape(self.down, self.height, self.across, self.width)
        return blocks.transpose(0, 2, 1, 3).reshape(self.matrix_shape)

    def from_rows(self, rows: Array) -> Array:
        """Return the matrix whose blocks are these rows."""
        blocks = rows.reshape(self.down, self.across, self.height, self.width)
        return blocks.transpose(0, 2, 1, 3).reshape(
            self.down * self.height, self.across * self.width
        )


def _refine(
    W: Array, input_covariance: Array, layout: _Layout, B: Array, C: Array
) -> tuple[Array, Array]:
    """Improve B C ≈ (W with a block in each row) for the outputs, B and C in turn.

    The error is trace(E Σ Eᵀ) of the whole matrix, which joins the blocks of a row.
    """
    covariance = input_covariance.astype(np.float64)
    rows, B, C = layout.as_rows(W).astype(np.float64), B.astype(np.float64), C.astype(np.float64)

    def weigh(E: Array) -> Array:
        """Return E Σ, both with a block in each row: half the gradient of the error."""
        return layout.as_rows(layout.from_rows(E) @ covariance)

    last = np.inf
    for _ in range(SWEEPS):
        C = _refit_right(weigh, rows, B, C)
        B = _refit_left(weigh, rows, B, C)
        E = rows - B @ C
        error = float(np.sum(E * weigh(E)))
        if error >= last * (1 - LEAST_GAIN):
            break
        last = error
    return B, C


def _refit_left(weigh: Callable[[Array], Array], W: Array, B: Array, C: Array) -> Array:
    return solve_least_squares(weigh, W, lambda B: B @ C, lambda E: E @ C.T, B, STEPS)


def _refit_right(weigh: Callable[[Array], Array], W: Array, B: Array, C: Array) -> Array:
    return solve_least_squares(weigh, W, lambda C: B @ C, lambda E: B.T @ E, C, STEPS)


def _divisor(n: int) -> int:
    """Return the largest divisor of n that is at most its root."""
    return next((d for d in range(isqrt(n), 1, -1) if n % d == 0), 1)
