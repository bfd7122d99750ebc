"""Mixed blocks: every block of the matrix is a linear combination of a few shared blocks."""

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
from ...metrics import Covariance, Diagonal, Frobenius, exponent_of
from ..base import Method
from ..factors import FLOAT_NAMES, Factors, check_ids
from ..forward import NUMPY, ArrayNamespace, constant, length, transpose, with_lead
from ..least_squares import solve_least_squares
from ..low_rank import LowRank, LowRankFactors
from ..narrow import as_factors, narrowed
from ..search import Problem, Size
from ..stored import stored_tensor

SWEEPS = 30
LEAST_GAIN = 1e-4  # the relative gain in error that justifies another sweep
STEPS = 10  # of conjugate gradients within a sweep


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class MixedBlockFactors(Factors):
    """A matrix whose block (i, j) is ``Σ_k mixture[i, j, k] · blocks[k]``.

    The whole matrix is ``Σ_k mixture[:, :, k] ⊗ blocks[k]``.

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
        lead = x.shape[:-1]
        batch = length(*lead)
        blocks = xp.reshape(tensors["blocks"], (rank * b_o, b_i))
        parts = xp.matmul(xp.reshape(x, (length(*lead, across), b_i)), transpose(xp, blocks))
        # (batch, j, k, b_o) → (batch, b_o, j k), so that the mixture sums over j and k at once.
        parts = xp.permute_dims(xp.reshape(parts, (batch, across * rank, b_o)), (0, 2, 1))
        mixture = transpose(xp, xp.reshape(tensors["mixture"], (down, across * rank)))
        y = xp.matmul(xp.reshape(parts, (length(*lead, b_o), across * rank)), mixture)
        y = xp.permute_dims(xp.reshape(y, (batch, b_o, down)), (0, 2, 1))
        return with_lead(xp, xp.reshape(y, (batch, self.shape[0])), lead)

    def _forward_rows(self, xp: ArrayNamespace, tensors: Mapping[str, Any], ids: Any) -> Any:
        mixture, blocks = tensors["mixture"], tensors["blocks"]
        place, within = (
            xp.take(constant(xp, table, blocks), ids, axis=0) for table in self._row_tables
        )
        inside = xp.take(xp.permute_dims(blocks, (1, 0, 2)), within, axis=0)  # (ids, rank, b_i)
        rows = xp.matmul(xp.take(mixture, place, axis=0), inside)
        return xp.reshape(rows, (length(*ids.shape), self.shape[1]))

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
            raise CorruptDataError(f"blocks must tile a matrix of shape {shape}, got {whole}")
        return cls(mixture=mixture, blocks=blocks, shape=shape, dtype=dtype)

    @cached_property
    def _row_tables(self) -> tuple[Array, Array]:
        """For each row of W the row of blocks that it is in, and its place within a block."""
        place, within = np.divmod(np.arange(self.shape[0]), max(self.blocks.shape[1], 1))
        return place, within

    @cached_property
    def _wide(self) -> tuple[Array, Array]:
        """Mixture and blocks in the dtype in which products are computed."""
        dtype = _checks.result_dtype(self.mixture, self.blocks)
        return self.mixture.astype(dtype, copy=False), self.blocks.astype(dtype, copy=False)


@dataclass(frozen=True, kw_only=True)
class MixedBlock(Method):
    """Linear combinations of a few shared blocks: ``y_i = Σ_j Σ_k M[i, j, k] · W_k x_j``.

    Parameters
    ----------
    rank : int, optional
        The number of shared blocks, at least 1. It is lowered if fewer blocks give W exactly.
    ratio, max_error : float, optional
        As in :class:`Method`.
    block_shape : (int, int), optional
        Rows and columns of a block, which divide those of W. Default: divisors near the square
        roots of W's sides, which make M[:, :, k] and a block about equally large.

    Raises
    ------
    TypeError, ValueError
        For settings out of range and, when a matrix is compressed, a shape that `block_shape`
        does not divide.

    Notes
    -----
    The approximation is a sum of Kronecker products. It is a low-rank matrix once every block is
    laid out as a row, and is found as :class:`LowRank` finds one: the least error under the sum of
    squares, a local minimum under an importance. Under an input covariance, which couples the
    blocks of a row, conjugate gradients then fit M and the blocks in turns, starting from the
    factors for the sum of squares. Factors have W's dtype. A product takes
    ``2 · rank · in · (b_o + out / b_i)`` operations an input. The method uses LAPACK, so bits may
    depend on NumPy's threads.

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

    def _tries_plain(self, problem: Problem) -> bool:
        return problem.input_covariance is not None  # LowRank tries it under an importance

    def _search(self, problem: Problem) -> Factors:
        if problem.input_covariance is None:
            # Sizes and errors equal those of the matrix with a block in each row, so LowRank can
            # search for this goal.
            return self._factors(problem, LowRank(ratio=self.ratio, max_error=self.max_error))
        if self.ratio is not None:
            return self._largest_planned(problem)._best(problem)
        return super()._search(problem)

    def _least_nbytes(self, problem: Problem) -> int:
        return self._size(problem).nbytes

    def _size(self, problem: Problem) -> Size:
        n_blocks, block_size = self._layout(problem).matrix_shape
        rank = min(self.rank or 1, n_blocks, block_size)
        # The size is smaller if the matrix with a block in each row has a lower rank.
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
            exponent = exponent_of(W)
            half = exponent // 2
            rows = np.ldexp(layout.as_rows(W).astype(np.float64), -exponent)
            B = np.ldexp(B.astype(np.float64), -half)
            C = np.ldexp(C.astype(np.float64), half - exponent)
            B, C = _refine(rows, problem.input_covariance, layout, B, C)
            B, C = as_factors(B, W.dtype, half), as_factors(C, W.dtype, exponent - half)
        rank = len(C)
        return MixedBlockFactors(
            mixture=B.reshape(layout.down, layout.across, rank),
            blocks=C.reshape(rank, layout.height, layout.width),
            shape=W.shape,
            dtype=W.dtype,
        )

    def _layout(self, problem: Problem) -> _Layout:
        """Return how W is cut into blocks, or refuse blocks that do not divide it."""
        out, inputs = problem.W.shape
        if self.block_shape is not None:
            height, width = self.block_shape
        else:
            # A divisor below the root for one side and above it for the other, so that there are
            # about as many blocks as entries in a block.
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
        """The shape of the matrix that has a block in each row."""
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
    rows: Array, input_covariance: Array, layout: _Layout, B: Array, C: Array
) -> tuple[Array, Array]:
    """Improve B and C in turns, where B C approximates rows: W with a block in each row.

    The error is trace(E Σ Eᵀ) of the whole matrix, which couples the blocks of a row of W.
    """
    covariance = input_covariance.astype(np.float64)

    def weigh(E: Array) -> Array:
        """Return half the gradient of the error, E Σ; both have a block in each row."""
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
    """Return a better B in W ≈ B C."""
    return solve_least_squares(weigh, W, lambda B: B @ C, lambda E: E @ C.T, B, STEPS)


def _refit_right(weigh: Callable[[Array], Array], W: Array, B: Array, C: Array) -> Array:
    """Return a better C in W ≈ B C."""
    return solve_least_squares(weigh, W, lambda C: B @ C, lambda E: B.T @ E, C, STEPS)


def _divisor(n: int) -> int:
    """Return the largest divisor of n that is at most √n."""
    return next((d for d in range(isqrt(n), 1, -1) if n % d == 0), 1)
