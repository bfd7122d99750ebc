"""Pruning: keep the weights that matter most, and put zeros elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ... import _checks
from ..._checks import Array
from ...kernels.packing import packed_nbytes
from ...kernels.selection import (
    check_nm,
    checked_block,
    integer_pair,
    n_dropped,
    nm_sparsity_mask,
    prune_mask,
)
from ...kernels.sparse import CSR, spmm, spmm_product
from ...metrics import Diagonal, Frobenius, exponent_of
from ..base import Method
from ..factors import Config, Factors, Tensors, check_ids
from ..forward import ArrayNamespace
from ..search import Problem, Size
from ..stored import stored_tensor
from .kept_places import KeptPlaces, kept_csr, kept_rows
from .value_numbers import ValueNumbers

MAX_LEVELS = 1 << 16


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class PruneFactors(Factors):
    """The weights that are kept, and their places.

    Attributes
    ----------
    values : array of shape (n_kept,)
        The kept weights in C order, in W's dtype.
    kept : KeptPlaces
        Their places, stored as the tensor ``positions``.
    """

    kind: ClassVar[str] = "prune"
    trainable: ClassVar[tuple[str, ...]] = ("values",)

    values: Array
    kept: KeptPlaces

    @classmethod
    def from_mask(cls, W: Array, mask: Array, block: tuple[int, int] | None) -> PruneFactors:
        """Return the weights that a mask keeps.

        Parameters
        ----------
        W : array of shape (out_features, in_features)
            The weights.
        mask : bool array of W's shape
            True for kept weights.
        block : (int, int) or None
            Rows and columns of blocks that are kept or dropped as a whole; None for single weights.

        Returns
        -------
        PruneFactors
            With values in W's dtype.
        """
        kept = KeptPlaces.from_mask(mask, block or (1, 1))
        return cls(values=W[mask], kept=kept, shape=(W.shape[0], W.shape[1]), dtype=W.dtype)

    def rows(self, ids: Any, *, n_threads: int | None = None) -> Array:
        ids = check_ids(ids, self.shape[0])
        return kept_rows(self._places, self.values, ids, self.shape, self.dtype)

    def _linear(self, x: Array, n_threads: int | None) -> Array:
        return spmm(self._matrix, x.T, n_threads=n_threads).T

    def _prepared_linear(self) -> Callable[[Array, int], Array]:
        return spmm_product(self._matrix)

    def forward(self, xp: ArrayNamespace, tensors: Mapping[str, Any], x: Any) -> Any:
        return self._numbers.product(xp, tensors["values"], x)

    def _forward_rows(self, xp: ArrayNamespace, tensors: Mapping[str, Any], ids: Any) -> Any:
        return self._numbers.rows(xp, tensors["values"], ids)

    def tensors(self) -> Tensors:
        return {"values": self.values, **self.kept.tensors()}

    def config(self) -> Config:
        return self.kept.config()

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Array],
        config: Mapping[str, Any],
        shape: tuple[int, int],
        dtype: np.dtype[Any],
    ) -> PruneFactors:
        kept = KeptPlaces.from_tensors(tensors, config, shape)
        values = stored_tensor(tensors, "values", (dtype.name,), (kept.n_kept(),))
        return cls(values=values, kept=kept, shape=shape, dtype=dtype)

    @cached_property
    def _places(self) -> Array:
        return self.kept.places()

    @cached_property
    def _matrix(self) -> CSR:
        return kept_csr(self._places, self.values, self.shape)

    @cached_property
    def _numbers(self) -> ValueNumbers:
        n = self.values.size
        return ValueNumbers(self._places, np.arange(n), n, self.shape)


@dataclass(frozen=True, kw_only=True)
class Prune(Method):
    """Pruning: keep the weights of largest magnitude, or of largest importance · w².

    Parameters
    ----------
    sparsity : float, optional
        The share of weights to drop, in [0, 1].
    std_multiple : float, optional
        An alternative to ``sparsity``: drop weights of magnitude below ``std_multiple`` times the
        standard deviation of W, or of their row with ``scope="row"``. Under an importance
        both are taken of ``√importance · w``.
    nm_sparsity : (int, int), optional
        An alternative to ``sparsity``: (n, m) keeps the n weights of largest magnitude in every m
        neighbours of a row; m divides the columns of W.
    scope : {"global", "row"}
        Which weights are ranked together: all of them, or those of each row.
    block_shape : (int, int), optional
        Rows and columns of blocks that are ranked, and kept or dropped, as a whole. Their places
        take fewer bytes than those of single weights.
    pool : {"square", "max", "mean"}
        The score of a block, as in :func:`fastfactor.prune_mask`: its mean square, which gives
        the least error, or its largest or its mean magnitude.
    ratio, max_error : float, optional
        As in :class:`Method`, by ``sparsity``: ``max_error`` keeps the fewest weights (weights of
        each row, or blocks) and ``ratio`` the most, to within 1/65536 of all.

    Raises
    ------
    TypeError, ValueError
        For settings out of range or that exclude each other and, when a matrix is compressed, for
        columns that m does not divide and for an input covariance.

    Notes
    -----
    With ``scope="global"`` and without blocks the error is the least for this number of weights,
    under the sum of squares and under an importance. Kept weights do not change. A file also
    holds a bit for each weight (or block), or the gaps between the kept ones in 2 to 16 bits each,
    whichever is smaller: at 90 % zeros about half a bit for each weight of W. Products use
    :func:`fastfactor.spmm`. The first one makes a :class:`fastfactor.CSR` of 8 bytes for each kept
    weight, 12 in float64.

    The cost is linear in the size of W; ``max_error`` also sorts the error that each weight adds if
    dropped, in float64, and ``ratio`` bisects. The same bits for any number of threads.

    Source: S. Han, J. Pool, J. Tran, W. Dally, Learning both weights and connections for efficient
    neural networks, 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.methods import Prune
    >>> W = np.array([[0.1, -3.0, 0.5, 2.0], [4.0, 0.2, -0.3, 1.0]], np.float32)
    >>> factors = Prune(sparsity=0.5).compress(W)
    >>> factors.to_dense()
    array([[ 0., -3.,  0.,  2.],
           [ 4.,  0.,  0.,  1.]], dtype=float32)
    >>> factors.nbytes
    17
    """

    parameter: ClassVar[str] = "sparsity"
    alternatives: ClassVar[tuple[str, ...]] = ("std_multiple", "nm_sparsity")
    metrics: ClassVar[frozenset[type]] = frozenset({Frobenius, Diagonal})
    otherwise: ClassVar[str] = (
        "give importance, in every row the diagonal of the covariance, which is minimised"
    )

    sparsity: float | None = None
    std_multiple: float | None = None
    nm_sparsity: tuple[int, int] | None = None
    scope: str = "global"
    block_shape: tuple[int, int] | None = None
    pool: str = "square"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sparsity is not None:
            share = _checks.nonnegative(self.sparsity, "sparsity")
            if share > 1:
                raise ValueError(f"sparsity must be in [0, 1], got {self.sparsity!r}")
        checked_block(self.scope, self.block_shape, self.pool)
        for name in ("std_multiple", "nm_sparsity"):
            if getattr(self, name) is not None and self.block_shape is not None:
                raise ValueError(
                    f"block_shape must be None where {name} is given, got {self.block_shape!r}"
                )
        if self.std_multiple is not None:
            _checks.nonnegative(self.std_multiple, "std_multiple", finite=True)
        if self.nm_sparsity is not None:
            n, m = integer_pair(self.nm_sparsity, "nm_sparsity")
            _checks.integer(n, "nm_sparsity[0]", 1, m)
            if self.scope != "global":
                raise ValueError(
                    f"scope must be 'global' where nm_sparsity is given, got {self.scope!r}"
                )

    def _compress(self, problem: Problem) -> Factors:
        return PruneFactors.from_mask(problem.W, self.mask_of(problem), self.block_shape)

    def _tries_plain(self, problem: Problem) -> bool:
        return self.block_shape is not None  # single weights of least error are found

    def mask_of(self, problem: Problem) -> Array:
        """Return which weights are kept; ratio and max_error must be None.

        Parameters
        ----------
        problem : Problem
            The matrix, and the importance by which weights are ranked if it has one.

        Returns
        -------
        bool array of W's shape
            True for kept weights.
        """
        scores = problem.W
        if problem.importance is not None:
            scores = _weighted(problem.W, problem.importance)
        if self.std_multiple is not None:
            return _above(scores, self.std_multiple, by_row=self.scope == "row")
        if self.nm_sparsity is not None:
            return nm_sparsity_mask(scores, *self.nm_sparsity, n_threads=problem.n_threads)
        assert self.sparsity is not None
        return prune_mask(
            scores,
            self.sparsity,
            scope=self.scope,
            block_shape=self.block_shape,
            pool=self.pool,
            n_threads=problem.n_threads,
        )

    def _levels(self, problem: Problem) -> Sequence[float]:
        rows, columns = problem.W.shape
        if self.scope == "row":
            return _Sparsities(columns if rows else 0)
        height, width = self.block_shape or (1, 1)
        return _Sparsities(-(-rows // height) * -(-columns // width))

    def _least_nbytes(self, problem: Problem) -> int:
        n_kept, positions = self._fewest(problem)
        return n_kept * problem.W.itemsize + positions

    def _fewest(self, problem: Problem) -> tuple[int, int]:
        """Return the fewest weights that are kept, and the fewest bytes of their positions."""
        (rows, columns), (height, width) = problem.W.shape, self.block_shape or (1, 1)
        if self.scope == "row":
            return rows, min(packed_nbytes(rows, 2), packed_nbytes(rows * columns, 1))
        return (rows % height or min(height, rows)) * (columns % width or min(width, columns)), 1

    def _size(self, problem: Problem) -> Size | None:
        most = self._most(problem)
        return most and Size(most[0] * problem.W.itemsize + most[1], exact=False)

    def _most(self, problem: Problem) -> tuple[int, int] | None:
        """Return the most weights that are kept, and the most bytes that their positions take."""
        (rows, columns), (height, width) = problem.W.shape, self.block_shape or (1, 1)
        n_blocks = -(-rows // height) * -(-columns // width)
        if self.nm_sparsity is not None:
            check_nm(problem.W.shape, self.nm_sparsity[1])
            n_kept = problem.W.size // self.nm_sparsity[1] * self.nm_sparsity[0]
        elif self.sparsity is None:
            return None
        elif self.scope == "row":
            n_kept = rows * (columns - n_dropped(self.sparsity, columns))
        else:
            n_kept = n_blocks - n_dropped(self.sparsity, n_blocks)
        positions = KeptPlaces.most_nbytes(n_kept, n_blocks)
        return min(n_kept * height * width, problem.W.size), positions

    def _search(self, problem: Problem) -> Factors:
        if self.max_error is None:
            return super()._search(problem)
        self._checked_levels(problem)  # refuses an empty matrix
        goal, lost = self._goal(problem), self._lost(problem)
        n, step = len(lost), 1
        may_go = np.searchsorted(lost, goal.limit * float(lost[-1]), side="right")
        kept = max(n - int(may_go), 1)
        while True:
            factors = self._at(1 - kept / n)._best(problem)
            if kept == n or goal.allows(goal.measure(factors)):
                return factors
            # `_lost` may rank near ties and round sums in another order, so a few more weights
            # may be needed.
            kept, step = min(kept + step, n), 2 * step

    def _lost(self, problem: Problem) -> Array:
        """Return the squared errors of dropping the 1, 2, … lowest ranked weights or blocks.

        With ``scope="row"`` this many weights of every row are dropped.
        """
        costs = np.ldexp(problem.W.astype(np.float64), -exponent_of(problem.W))
        costs *= costs
        if problem.importance is not None:
            costs *= problem.importance
        block = self.block_shape
        if block is None:
            costs = costs.reshape(len(costs) if self.scope == "row" else 1, -1)
            costs.sort(axis=1)
            lost: Array = np.cumsum(costs, axis=1, out=costs).sum(axis=0)
            return lost
        if self.pool == "max":
            scores = _of_blocks(costs, block, np.maximum)
        else:
            scores = _of_blocks(costs if self.pool == "square" else np.sqrt(costs), block, np.add)
            scores /= _of_blocks(np.broadcast_to(1.0, costs.shape), block, np.add)
        order = np.argsort(scores, axis=None)
        return np.cumsum(_of_blocks(costs, block, np.add).reshape(-1)[order])


class _Sparsities(Sequence[float]):
    """The sparsities that keep 1, 2, … n of n weights, in at most ``MAX_LEVELS`` steps."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return min(self.n, MAX_LEVELS)

    def __getitem__(self, index: Any) -> Any:
        kept = -(-(index + 1) * self.n // len(self))
        return 1 - kept / self.n


def _weighted(W: Array, importance: Array) -> Array:
    """Return √importance · w, which ranks weights as importance · w² does, but cannot overflow."""
    dtype = _checks.result_dtype(W, importance)
    scores = np.sqrt(importance, dtype=dtype)
    top = scores.max(initial=0)
    scores /= top if top > 0 else 1
    scores *= W.astype(dtype, copy=False)
    return scores


def _of_blocks(array: Array, block: tuple[int, int], pool: np.ufunc) -> Array:
    """Return the sums or maxima of the blocks of a matrix; those at its edges may be smaller."""
    for axis in (0, 1):
        array = pool.reduceat(array, np.arange(0, array.shape[axis], block[axis]), axis=axis)
    return array


def _above(scores: Array, std_multiple: float, *, by_row: bool) -> Array:
    """Return a mask of scores whose magnitude is at least ``std_multiple`` standard deviations."""
    wide = np.ldexp(scores.astype(np.float64), -exponent_of(scores))
    if wide.size == 0:
        return np.zeros(scores.shape, np.bool_)
    deviation = wide.std(axis=1, keepdims=True) if by_row else wide.std()
    above: Array = np.abs(wide) >= std_multiple * deviation
    return above
