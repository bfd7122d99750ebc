"""Block diagonal: each group of outputs depends on one group of inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ... import _checks
from ..._checks import Array
from ...errors import CorruptDataError
from ...kernels.clustering import kmeans
from ...metrics import Covariance, Diagonal, Frobenius, exponent_of, scaled
from ..base import Method
from ..factors import FLOAT_NAMES, Factors, check_ids
from ..forward import (
    NUMPY,
    ArrayNamespace,
    as_batch,
    constant,
    length,
    with_lead,
    with_zero,
    zero_product,
    zero_rows,
)
from ..narrow import as_factors
from ..search import Problem, Size
from ..stored import stored_number, stored_tensor

SWEEPS = 20
N_STARTS = 8
LABEL_DTYPES = (np.uint8, np.uint16, np.uint32)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class BlockDiagonalFactors(Factors):
    """A matrix that is zero except where row and column belong to the same group.

    Group sizes differ by at most one; the larger groups come first. Without labels, groups are
    runs of neighbours.

    Attributes
    ----------
    values : array
        The blocks, group after group, each row by row.
    row_labels, column_labels : uint8, uint16 or uint32 array, or None
        The group of each output (out_features,) and of each input (in_features,).
    n_blocks : int
    """

    kind: ClassVar[str] = "block_diagonal"
    trainable: ClassVar[tuple[str, ...]] = ("values",)

    values: Array
    row_labels: Array | None
    column_labels: Array | None
    n_blocks: int

    def rows(self, ids: Any, *, n_threads: int | None = None) -> Array:
        ids = check_ids(ids, self.shape[0])
        flat, inputs = ids.reshape(-1), self.shape[1]
        if flat.size * inputs == 0:
            return np.zeros((*ids.shape, inputs), self.dtype)
        # Padding of blocks goes to an extra column, which is cut off at the end.
        found = np.zeros((flat.size, inputs + 1), self.dtype)
        block, within = np.divmod(self._places[flat], self._blocks.shape[1])
        values = self._blocks[block, within].astype(self.dtype)
        found[np.arange(flat.size)[:, None], self._columns[block]] = values
        return found[:, :inputs].reshape(*ids.shape, inputs)

    def _linear(self, x: Array, n_threads: int | None) -> Array:
        x = x.astype(_checks.result_dtype(x, self._blocks), copy=False)
        result: Array = self._product(NUMPY, self._blocks, x)
        return result

    def forward(self, xp: ArrayNamespace, tensors: Mapping[str, Any], x: Any) -> Any:
        values, slots = tensors["values"], self._slots
        if self.values.size == 0:
            return zero_product(xp, values, x, self.shape)
        if slots.size > self.values.size:  # some blocks are padded
            slots = xp.reshape(constant(xp, slots, x), (slots.size,))
            values = xp.take(with_zero(xp, values), slots, axis=0)
        return self._product(xp, xp.reshape(values, self._slots.shape), x)

    def _forward_rows(self, xp: ArrayNamespace, tensors: Mapping[str, Any], ids: Any) -> Any:
        values = tensors["values"]
        if self.values.size == 0:
            return zero_rows(xp, values, ids, self.shape)
        begins, groups, columns = (constant(xp, table, values) for table in self._row_tables)
        begin = xp.reshape(xp.take(begins, ids, axis=0), (length(*ids.shape), 1))
        # Columns outside the group get numbers beyond the n values, and below 2 n: a zero.
        numbers = begin + xp.take(columns, xp.take(groups, ids, axis=0), axis=0)
        values = xp.concat([values, xp.zeros_like(values)], axis=0)
        rows = xp.take(values, xp.reshape(numbers, (length(*numbers.shape),)), axis=0)
        return xp.reshape(rows, (length(*ids.shape), self.shape[1]))

    def tensors(self) -> dict[str, Array]:
        labels = {"row_labels": self.row_labels, "column_labels": self.column_labels}
        return {"values": self.values} | {k: v for k, v in labels.items() if v is not None}

    def config(self) -> dict[str, Any]:
        return {"n_blocks": self.n_blocks, "permuted": int(self.row_labels is not None)}

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Array],
        config: Mapping[str, Any],
        shape: tuple[int, int],
        dtype: np.dtype[Any],
    ) -> BlockDiagonalFactors:
        n_blocks = stored_number(config, "n_blocks", 1, max(min(shape), 1))
        values = stored_tensor(tensors, "values", FLOAT_NAMES, (None,))
        if n_blocks > max(len(values), 1):
            raise CorruptDataError(
                f"'values' must have one or more in each of {n_blocks} blocks, got {len(values)}"
            )
        labels: list[Array | None] = [None, None]
        if stored_number(config, "permuted", 0, 1):
            names = tuple(np.dtype(dtype).name for dtype in LABEL_DTYPES)
            for axis, name in enumerate(("row_labels", "column_labels")):
                given = stored_tensor(tensors, name, names, (shape[axis],))
                # Labels out of range count as one more group.
                groups = np.minimum(given.astype(np.int64), n_blocks)
                sizes = np.bincount(groups, minlength=n_blocks)
                if not np.array_equal(sizes, _sizes(shape[axis], n_blocks)):
                    raise CorruptDataError(
                        f"{name} must make {n_blocks} groups whose sizes differ by at most one, "
                        f"the larger first, got sizes from {sizes.min()} to {sizes.max()}"
                    )
                labels[axis] = given
        total = int(_sizes(shape[0], n_blocks) @ _sizes(shape[1], n_blocks))
        return cls(
            values=stored_tensor(tensors, "values", FLOAT_NAMES, (total,)),
            row_labels=labels[0],
            column_labels=labels[1],
            n_blocks=n_blocks,
            shape=shape,
            dtype=dtype,
        )

    def _product(self, xp: ArrayNamespace, blocks: Any, x: Any) -> Any:
        """Return the product of x (..., in) with blocks that are padded to one size."""
        lead, (n_blocks, rows, columns) = x.shape[:-1], blocks.shape
        x = as_batch(xp, x)
        batch = length(x.shape[0])
        padded = xp.concat([x, xp.zeros_like(x[:, :1])], axis=1)
        inputs = xp.reshape(constant(xp, self._columns, x), (n_blocks * columns,))
        gathered = xp.reshape(xp.take(padded, inputs, axis=1), (batch, n_blocks, columns))
        y = xp.matmul(xp.permute_dims(gathered, (1, 0, 2)), xp.permute_dims(blocks, (0, 2, 1)))
        y = xp.reshape(xp.permute_dims(y, (1, 0, 2)), (batch, n_blocks * rows))
        return with_lead(xp, xp.take(y, constant(xp, self._places, x), axis=1), lead)

    @cached_property
    def _blocks(self) -> Array:
        """The blocks (n_blocks, rows, columns), padded with zeros to the size of the largest."""
        rows, columns = (_sizes(n, self.n_blocks) for n in self.shape)
        shape = (self.n_blocks, int(rows.max()), int(columns.max()))
        blocks = np.zeros(shape, _checks.result_dtype(self.values))
        ends = np.cumsum(rows * columns)
        for block, height, width, end in zip(blocks, rows, columns, ends, strict=True):
            part = self.values[end - height * width : end]
            block[:height, :width] = part.reshape(height, width)
        return blocks

    @cached_property
    def _slots(self) -> Array:
        """The index in `values` of each entry of the padded blocks; ``values.size`` for padding."""
        return _slots(*(_sizes(n, self.n_blocks) for n in self.shape))

    @cached_property
    def _row_tables(self) -> tuple[Array, Array, Array]:
        """For each row of W where its values begin, its group, and the columns of each group.

        For each group and column of W the last one (n_blocks, in_features) has the place among the
        values of a row, or the number of all values where the group has none.
        """
        height, inputs = self._slots.shape[1], self.shape[1]
        begins = self._slots[:, :, 0].reshape(-1)[self._places]
        columns = np.full((self.n_blocks, inputs + 1), self.values.size, np.int64)
        places = np.arange(self._columns.shape[1])
        columns[np.arange(self.n_blocks)[:, None], self._columns] = places
        return begins.astype(np.int64), self._places // height, columns[:, :inputs]

    @cached_property
    def _columns(self) -> Array:
        """The inputs of each group (n_blocks, columns), padded with in_features."""
        return _members(self.column_labels, self.shape[1], self.n_blocks)

    @cached_property
    def _places(self) -> Array:
        """The index (out_features,) of each output among the rows of the padded blocks."""
        members = _members(self.row_labels, self.shape[0], self.n_blocks).reshape(-1)
        places = np.empty(self.shape[0] + 1, np.int64)
        places[members] = np.arange(members.size)
        return places[:-1]


@dataclass(frozen=True, kw_only=True)
class BlockDiagonal(Method):
    """Diagonal blocks: each group of outputs keeps its weights for one group of inputs.

    Parameters
    ----------
    n_blocks : int, optional
        The number of groups of rows and of columns, from 1 to the smaller side of W; 1 keeps all
        of W.
    ratio, max_error : float, optional
        As in :class:`Method`.
    permute : bool
        Whether to group rows and columns such that the blocks hold much of W's energy, weighted by
        the metric. If False, groups are runs of neighbours, as published.
    random_state : int, Generator, RandomState or None
        Seed of the k-means from which the grouping starts.

    Raises
    ------
    TypeError, ValueError
        For settings out of range and, when a matrix is compressed, a side shorter than
        `n_blocks`.

    Notes
    -----
    Grouping starts from k-means of the rows' energies. It then moves columns to the group that
    holds most of their energy, then rows, and so on until that gains nothing: a local maximum, the
    best of several starts. If more rows ask for a group than it has room for, those that would lose
    most elsewhere get in. Blocks are copies of W under the sum of squares and under an importance,
    which is optimal for the groups. Under an input covariance Σ each block is the solution of
    least squares, ``W Σ_j Σ_jj⁻¹``. Values have W's dtype; labels take one byte each, or two or
    four if there are many groups. A random W keeps little more than 1 / n_blocks of its energy, so
    the method is for layers that are trained in this form, or for weights that have such groups. A
    product takes ``2 · out · in / n_blocks`` operations an input. LAPACK is used under an input
    covariance only.

    Source: the block-diagonal layer of A. Panigrahi et al., 2020; the grouping is a balanced form
    of J. Hartigan, Direct Clustering of a Data Matrix, 1972.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.methods import BlockDiagonal
    >>> W = np.kron([[0, 1], [1, 0]], np.ones((2, 3)))
    >>> factors = BlockDiagonal(n_blocks=2).compress(W)
    >>> factors.values.size, factors.row_labels.size, factors.error(W)
    (12, 4, 0.0)
    """

    parameter: ClassVar[str] = "n_blocks"
    metrics: ClassVar[frozenset[type]] = frozenset({Frobenius, Diagonal, Covariance})

    n_blocks: int | None = None
    permute: bool = True
    random_state: Any = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_blocks is not None:
            _checks.integer(self.n_blocks, "n_blocks", 1)
        _checks.boolean(self.permute, "permute")

    def _compress(self, problem: Problem) -> BlockDiagonalFactors:
        n_blocks, plain = self._count(problem), problem.plain
        groupings: list[tuple[Array | None, Array | None]] = [(None, None)]
        if self.permute and n_blocks > 1:
            # Grouping finds a local maximum; the one for plain energies may be the better of two.
            of = (problem,) if isinstance(problem.metric, Frobenius) else (problem, plain)
            groupings = [self._group(_energies(each), n_blocks, problem) for each in of]
        found = [_kept(problem, n_blocks, *groups) for groups in groupings]
        if problem.input_covariance is not None:
            # Blocks of W itself may be better than rounded ones for a covariance that is singular.
            found.append(_kept(plain, n_blocks, *groupings[-1]))
        return found[0] if len(found) == 1 else min(found, key=problem.error_of)

    def _tries_plain(self, problem: Problem) -> bool:
        return False  # `_compress` does

    def _group(self, energies: Array, n_blocks: int, problem: Problem) -> tuple[Array, Array]:
        """Return labels of rows and columns whose blocks hold as much energy as could be found."""
        lengths = np.sqrt(energies.sum(axis=1, keepdims=True))
        directions = np.sqrt(energies) / np.where(lengths > 0, lengths, 1)
        turned = np.ascontiguousarray(energies.T)  # because sums over contiguous rows are faster
        first = np.arange(len(energies)) % n_blocks
        best, most = self._ascend(energies, turned, n_blocks, first)
        for start in range(N_STARTS):
            found = kmeans(
                directions.astype(np.float32),
                n_blocks,
                max_iter=SWEEPS,
                random_state=(self.random_state + start) % 2**64,
                n_threads=problem.n_threads,
            )
            labels, kept = self._ascend(energies, turned, n_blocks, found.labels)
            if kept > most:
                best, most = labels, kept
        dtype = next(d for d in LABEL_DTYPES if n_blocks - 1 <= np.iinfo(d).max)
        return best[0].astype(dtype), best[1].astype(dtype)

    @staticmethod
    def _ascend(
        energies: Array, turned: Array, n_blocks: int, rows: Array
    ) -> tuple[tuple[Array, Array], float]:
        """Regroup columns by the rows and rows by the columns while the blocks gain energy.

        Return the labels of both, and the energy in the blocks.
        """
        row_sizes, column_sizes = (_sizes(n, n_blocks) for n in energies.shape)
        best, most = (rows, rows), -1.0
        for _ in range(SWEEPS):
            columns, _ = _assign(_by_group(energies, rows, n_blocks), column_sizes)
            rows, kept = _assign(_by_group(turned, columns, n_blocks), row_sizes)
            if kept <= most:
                break
            best, most = (rows, columns), kept
        return best, most

    def _levels(self, problem: Problem) -> Sequence[int]:
        return range(min(problem.W.shape), 0, -1)

    def _size(self, problem: Problem) -> Size:
        n_blocks = self._count(problem)
        sizes = [_sizes(n, n_blocks) for n in problem.W.shape]
        width = next(np.dtype(d).itemsize for d in LABEL_DTYPES if n_blocks - 1 <= np.iinfo(d).max)
        labels = sum(problem.W.shape) * width if self.permute and n_blocks > 1 else 0
        return Size(int(sizes[0] @ sizes[1]) * problem.W.itemsize + labels, exact=True)

    def _count(self, problem: Problem) -> int:
        """Return the number of blocks, or refuse more than W has rows or columns."""
        n_blocks, most = self.n_blocks or 1, max(min(problem.W.shape), 1)
        if n_blocks > most:
            raise ValueError(
                f"n_blocks must be at most {most} for W of shape {problem.W.shape}, got {n_blocks}"
            )
        return n_blocks


def _kept(
    problem: Problem, n_blocks: int, row_labels: Array | None, column_labels: Array | None
) -> BlockDiagonalFactors:
    """Return the factors with the blocks of least error for these groups."""
    W, covariance = problem.W, problem.input_covariance
    exponent = 0
    if covariance is not None:
        covariance, exponent = scaled(covariance), exponent_of(W)
        W = np.ldexp(W.astype(np.float64), -exponent)
    rows = _members(row_labels, W.shape[0], n_blocks)
    columns = _members(column_labels, W.shape[1], n_blocks)
    blocks = []
    for i, j in zip(rows, columns, strict=True):
        i, j = i[i < W.shape[0]], j[j < W.shape[1]]
        block = W[np.ix_(i, j)]
        if covariance is not None:
            target = covariance[j] @ W[i].T
            block = np.linalg.lstsq(covariance[np.ix_(j, j)], target, rcond=None)[0].T
        blocks.append(block.reshape(-1))
    return BlockDiagonalFactors(
        values=as_factors(np.concatenate(blocks), problem.W.dtype, exponent),
        row_labels=row_labels,
        column_labels=column_labels,
        n_blocks=n_blocks,
        shape=problem.W.shape,
        dtype=problem.W.dtype,
    )


def _energies(problem: Problem) -> Array:
    """Return what each weight adds to the error if it alone is dropped, up to a common factor."""
    energies = np.ldexp(problem.W.astype(np.float64), -exponent_of(problem.W)) ** 2
    if problem.importance is not None:
        energies *= problem.importance
    elif problem.input_covariance is not None:
        energies *= np.maximum(np.diag(problem.input_covariance), 0)
    return energies


def _by_group(energies: Array, labels: Array, n_groups: int) -> Array:
    """Return the sums (columns, n_groups) of each column over the rows of each group."""
    sums = np.empty((energies.shape[1], n_groups))
    for group in range(n_groups):
        sums[:, group] = energies[labels == group].sum(axis=0)
    return sums


def _assign(gains: Array, room: Array) -> tuple[Array, float]:
    """Return a group for each row, within the room of each group, and the sum of their gains.

    Each row asks for the best group that has room. If more rows ask for a group than it has room
    for, it takes those that would lose most in their second choice, and the others ask again.
    """
    labels = np.full(len(gains), -1)
    open_gains, room = gains.astype(np.float64), room.copy()
    waiting = np.arange(len(gains))
    while waiting.size:
        open_gains[:, room == 0] = -np.inf
        asking = open_gains[waiting]
        wanted = np.argmax(asking, axis=1)
        best = asking[np.arange(waiting.size), wanted]
        asking[np.arange(waiting.size), wanted] = -np.inf
        second = np.maximum(asking.max(axis=1), 0)
        # Sort by group, then by the loss in the second choice; ties go to the lower row.
        order = np.lexsort((waiting, -(best - second), wanted))
        ranks = np.arange(order.size) - np.searchsorted(wanted[order], wanted[order])
        taken = order[ranks < room[wanted[order]]]
        labels[waiting[taken]] = wanted[taken]
        room -= np.bincount(wanted[taken], minlength=len(room))
        waiting = waiting[labels[waiting] < 0]
    return labels, float(gains[np.arange(len(gains)), labels].sum())


def _sizes(n: int, n_groups: int) -> Array:
    """Return the sizes of n_groups groups of n in all, which differ by at most one."""
    return np.full(n_groups, n // n_groups) + (np.arange(n_groups) < n % n_groups)


def _members(labels: Array | None, n: int, n_groups: int) -> Array:
    """Return the members of each group (n_groups, largest size), ascending, padded with n."""
    sizes = _sizes(n, n_groups)
    order = np.arange(n) if labels is None else np.argsort(labels, kind="stable")
    members = np.full((n_groups, int(sizes.max())), n)
    members[np.arange(members.shape[1]) < sizes[:, None]] = order
    return members


def _slots(rows: Array, columns: Array) -> Array:
    """Return the index of each entry of the padded blocks, if blocks are laid end to end.

    Padding has the index after the last.
    """
    ends = np.cumsum(rows * columns)
    starts = ends - rows * columns
    i, j = np.arange(int(rows.max())), np.arange(int(columns.max()))
    inside = (i < rows[:, None])[:, :, None] & (j < columns[:, None])[:, None, :]
    at = starts[:, None, None] + i[:, None] * columns[:, None, None] + j
    slots: Array = np.where(inside, at, ends[-1])
    return slots.astype(np.int32) if ends[-1] < 2**31 else slots
