"""Which value each kept place of a pruned matrix has, and its products in other array libraries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..._checks import Array
from ..forward import (
    ArrayNamespace,
    constant,
    gathered_product,
    length,
    n_inputs,
    transpose,
    with_zero,
)

# Reading a number of x for a product takes this many times as long as reading one to fill a dense
# matrix and multiply by it: 13 to 22 ns against 6, by PyTorch with gradients, 10,000 × 650, a core.
GATHER_COST = 4


@dataclass(frozen=True, eq=False)
class ValueNumbers:
    """For each kept place the number of its value among values that are trained.

    Dropped places get a zero of their own, because training may change a table's zero.

    Attributes
    ----------
    places : int64 array
        The kept places in C order, ascending.
    numbers : array of int
        The number of the value at each of these places, less than ``n_values``.
    n_values : int
    shape : (int, int)
        Rows and columns of the matrix.
    """

    places: Array
    numbers: Array
    n_values: int
    shape: tuple[int, int]

    def product(self, xp: ArrayNamespace, values: Any, x: Any) -> Any:
        """Return the product of x (..., in) with the matrix: (..., out)."""
        batch, most = n_inputs(x), int(self._counts.max(initial=0))
        if batch is not None and GATHER_COST * batch * most <= self.shape[1]:
            numbers, columns = (constant(xp, table, x) for table in self._by_row)
            return gathered_product(xp, _numbered(xp, values, numbers), columns, x)
        W = _numbered(xp, values, constant(xp, self._dense, x))
        return xp.matmul(x, transpose(xp, W))

    def rows(self, xp: ArrayNamespace, values: Any, ids: Any) -> Any:
        """Return the rows of the matrix with these ids (n,)."""
        return _numbered(xp, values, xp.take(constant(xp, self._dense, values), ids, axis=0))

    @cached_property
    def _dense(self) -> Array:
        """The number of the value at every place; ``n_values`` where it is dropped."""
        dense = np.full(self.shape, self.n_values, np.int64)
        dense.reshape(-1)[self.places] = self.numbers
        return dense

    @cached_property
    def _counts(self) -> Array:
        """The number of kept places in each row."""
        ends = np.searchsorted(self.places, np.arange(self.shape[0] + 1) * self.shape[1])
        return np.diff(ends)

    @cached_property
    def _by_row(self) -> tuple[Array, Array]:
        """The numbers of each row's values, and their columns; shorter rows end in zeros."""
        rows, columns = np.divmod(self.places, max(self.shape[1], 1))
        counts = self._counts
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        size = (self.shape[0], int(counts.max(initial=0)))
        by_row = np.full(size, self.n_values, np.int64), np.zeros(size, np.int64)
        by_row[0][rows, within] = self.numbers
        by_row[1][rows, within] = columns
        return by_row


def _numbered(xp: ArrayNamespace, values: Any, numbers: Any) -> Any:
    """Return the matrix of ``values[numbers]``, where the number after the last one gives zero."""
    rows, columns = numbers.shape
    flat = xp.reshape(numbers, (length(rows, columns),))
    return xp.reshape(xp.take(with_zero(xp, values), flat, axis=0), (length(rows), columns))
