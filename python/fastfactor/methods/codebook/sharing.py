"""The cells that a matrix is cut into: the weights of a cell share a table of vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..._checks import Array

ENTRIES_AT_ONCE = 1 << 22  # in a piece of rows with their own tables; limits memory for labels


class Coded(NamedTuple):
    """Tables of vectors, and codes that are indices into them."""

    tables: Array
    codes: Array


@dataclass(frozen=True)
class Sharing:
    """Which weights share a table: all rows or each row, all columns (group_size 0) or groups.

    The weights that share a table are a cell. The last group of columns may be narrower.
    """

    shape: tuple[int, int]
    vector_dim: int
    by_row: bool
    group_size: int

    @property
    def n_groups(self) -> int:
        return -(-self.shape[1] // self.group_size) if self.group_size else 1

    def table_shape(self, n_codebooks: int, n_vectors: int) -> tuple[int, ...]:
        """Return the stored shape of the tables.

        It has axes for codebooks, rows and groups only where each has its own table.
        """
        books = (n_codebooks,) if n_codebooks > 1 else ()
        rows = (self.shape[0],) if self.by_row else ()
        groups = (self.n_groups,) if self.group_size else ()
        return (*books, *rows, *groups, n_vectors, self.vector_dim)

    def places(self, codes: Array, n_vectors: int) -> Array:
        """Return the index of each code's vector among the vectors of all tables, end to end.

        Codes and indices have the shape (n_codebooks, rows, vectors).
        """
        n_codebooks, rows, vectors = codes.shape
        group: Any = 0
        if self.group_size:
            group = np.arange(vectors) * self.vector_dim // self.group_size
        row: Any = np.arange(rows)[:, None] * self.n_groups if self.by_row else 0
        n_tables = (rows if self.by_row else 1) * self.n_groups
        book = np.arange(n_codebooks)[:, None, None] * n_tables
        places: Array = (book + row + group) * n_vectors + codes
        return places

    def pieces(self) -> Iterator[Piece]:
        """Yield the matrix in pieces, each of whole cells of one width."""
        columns = self.shape[1]
        width = self.group_size or columns
        in_full_groups = columns - columns % width if width else 0
        # `cells` returns a view of groups of one vector, and of groups within a row. Other groups
        # have to be copied, so they are taken one at a time.
        all_at_once = self.by_row or width == self.vector_dim
        step = max(in_full_groups if all_at_once else width, 1)
        for rows in self._row_spans():
            for left in range(0, in_full_groups, step):
                yield Piece(self, rows, slice(left, left + step), width)
            if in_full_groups < columns:
                yield Piece(self, rows, slice(in_full_groups, columns), columns - in_full_groups)

    def _row_spans(self) -> Iterator[slice]:
        rows, columns = self.shape
        step = max(ENTRIES_AT_ONCE // max(columns, 1), 1) if self.by_row else max(rows, 1)
        for first in range(0, rows, step):
            yield slice(first, min(first + step, rows))


@dataclass(frozen=True)
class Piece:
    """Some rows and columns of a matrix, cut into cells of ``cell_width`` columns."""

    sharing: Sharing
    rows: slice
    columns: slice
    cell_width: int

    @property
    def height(self) -> int:
        return int(self.rows.stop - self.rows.start)

    @property
    def n_groups(self) -> int:
        return int(self.columns.stop - self.columns.start) // self.cell_width

    @property
    def vectors_per_row(self) -> int:
        """The number of vectors in one row of a cell."""
        return self.cell_width // self.sharing.vector_dim

    def cells(self, matrix: Array) -> Array:
        """Return the vectors of each cell, (cells, vectors, vector_dim); a view where possible."""
        part = matrix[self.rows, self.columns]
        d, each = self.sharing.vector_dim, self.vectors_per_row
        if self.sharing.by_row:
            return part.reshape(self.height * self.n_groups, each, d)
        by_group = part.reshape(self.height, self.n_groups, each, d).swapaxes(0, 1)
        return by_group.reshape(self.n_groups, self.height * each, d)

    def put_tables(self, found: Array, tables: Array) -> None:
        """Write tables of the cells (n_codebooks, cells, K, d) where they belong.

        ``tables`` has the shape (n_codebooks, rows with tables of their own or 1, groups, K, d).
        """
        sharing = self.sharing
        rows = self.rows if sharing.by_row else slice(0, 1)
        first = self.columns.start // sharing.group_size if sharing.group_size else 0
        target = tables[:, rows, first : first + self.n_groups]
        target[...] = found.reshape(target.shape)

    def put_codes(self, found: Array, codes: Array) -> None:
        """Write codes of the cells (n_codebooks, cells, vectors) where they belong.

        ``codes`` has the shape (n_codebooks, rows, vectors).
        """
        each = self.vectors_per_row
        if not self.sharing.by_row:
            found = found.reshape(len(found), self.n_groups, self.height, each).swapaxes(1, 2)
        left = self.columns.start // self.sharing.vector_dim
        target = codes[:, self.rows, left : left + self.n_groups * each]
        target[...] = found.reshape(target.shape)
