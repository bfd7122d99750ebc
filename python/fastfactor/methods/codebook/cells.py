"""Tables and codes of a matrix, for every cell of it that has tables of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import _checks
from ..._checks import Array
from ...kernels.clustering import KMeansResult, assign, kmeans
from ...kernels.scalar_clustering import kmeans1d
from ...metrics import scaled
from .sums import find_sums
from .weights import find_weighted, weighted_means

ENTRIES_AT_ONCE = 1 << 22  # of rows with tables of their own: bounds the labels in memory


@dataclass(frozen=True)
class Sharing:
    """Who shares a table: all or each row, all columns (group_size 0) or groups of them."""

    shape: tuple[int, int]
    vector_dim: int
    by_row: bool
    group_size: int

    @property
    def n_groups(self) -> int:
        return -(-self.shape[1] // self.group_size) if self.group_size else 1

    def table_shape(self, n_codebooks: int, n_vectors: int) -> tuple[int, ...]:
        books = (n_codebooks,) if n_codebooks > 1 else ()
        rows = (self.shape[0],) if self.by_row else ()
        groups = (self.n_groups,) if self.group_size else ()
        return (*books, *rows, *groups, n_vectors, self.vector_dim)

    def places(self, codes: Array, n_vectors: int) -> Array:
        """Of codes (n_codebooks, rows, vectors): which vector, all tables laid end to end."""
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
        """The matrix in pieces of whole cells of one size, as large as is convenient."""
        rows, columns = self.shape
        size = self.group_size or columns
        whole = columns - columns % size if size else 0
        if self.by_row:
            step = max(ENTRIES_AT_ONCE // max(columns, 1), 1)
            spans = [(first, min(first + step, rows)) for first in range(0, rows, step)]
        else:
            spans = [(0, rows)]
        # Groups of one vector are cells of the matrix as it lies; wider ones are copied, one by
        # one, unless each row is cut by itself.
        strip = max(whole if self.by_row or size == self.vector_dim else size, 1)
        for first, last in spans:
            for left in range(0, whole, strip):
                yield Piece(slice(first, last), slice(left, left + strip), size)
            if whole < columns:
                yield Piece(slice(first, last), slice(whole, columns), columns - whole)


@dataclass(frozen=True)
class Piece:
    """Some rows and columns, cut into cells of ``size`` columns."""

    rows: slice
    columns: slice
    size: int


@dataclass(frozen=True, kw_only=True)
class Coding:
    """What is wanted of tables and codes."""

    sharing: Sharing
    n_bits: int
    n_codebooks: int
    balanced: bool
    dtype: np.dtype[Any]
    n_init: int
    seed: int
    n_threads: int | None


def find_codes(W: Array, importance: Array | None, coding: Coding) -> tuple[Array, Array]:
    """The tables, in their stored shape, and codes of shape (n_codebooks, rows, vectors a row)."""
    sharing = coding.sharing
    rows, columns = sharing.shape
    n_vectors = 2**coding.n_bits
    lead = (rows if sharing.by_row else 1, sharing.n_groups)
    tables = np.zeros((coding.n_codebooks, *lead, n_vectors, sharing.vector_dim), coding.dtype)
    codes = np.zeros((coding.n_codebooks, rows, columns // sharing.vector_dim), np.uint8)
    for piece in sharing.pieces() if W.size else ():
        samples = _cells(W, piece, sharing)
        weights = None if importance is None else _cells(importance, piece, sharing)
        found, labels = _find(samples, weights, coding)
        _checks.finite(found, "codebook")
        groups = _groups(piece, sharing)
        height = piece.rows.stop - piece.rows.start
        at = (slice(None), piece.rows if sharing.by_row else slice(0, 1), groups)
        tables[at] = found.reshape(tables[at].shape)
        width = (piece.columns.stop - piece.columns.start) // sharing.vector_dim
        if not sharing.by_row:
            each = piece.size // sharing.vector_dim
            labels = labels.reshape(coding.n_codebooks, -1, height, each).swapaxes(1, 2)
        start = piece.columns.start // sharing.vector_dim
        codes[:, piece.rows, start : start + width] = labels.reshape(-1, height, width)
    return tables.reshape(sharing.table_shape(coding.n_codebooks, n_vectors)), codes


def _groups(piece: Piece, sharing: Sharing) -> slice:
    if not sharing.group_size:
        return slice(0, 1)
    first = piece.columns.start // sharing.group_size
    return slice(first, first + -(-(piece.columns.stop - piece.columns.start) // piece.size))


def _cells(matrix: Array, piece: Piece, sharing: Sharing) -> Array:
    """(cells, vectors, vector_dim), a view where strides allow."""
    part = matrix[piece.rows, piece.columns]
    height, width = part.shape
    per_row, each = width // piece.size, piece.size // sharing.vector_dim
    if sharing.by_row:
        return part.reshape(height * per_row, each, sharing.vector_dim)
    by_group = part.reshape(height, per_row, each, sharing.vector_dim).swapaxes(0, 1)
    return by_group.reshape(per_row, height * each, sharing.vector_dim)


def _find(samples: Array, weights: Array | None, coding: Coding) -> tuple[Array, Array]:
    """Tables (n_codebooks, cells, K, d) of the wanted dtype and codes (n_codebooks, cells, n)."""
    n_vectors = 2**coding.n_bits
    if weights is not None:
        # Where nothing matters everything does alike, so that there is an optimum.
        idle = weights.max(axis=(1, 2)) == 0
        if idle.any():
            weights = np.where(idle[:, None, None], np.ones((), weights.dtype), weights)
    if coding.n_codebooks > 1:
        return find_sums(
            samples,
            weights,
            n_codebooks=coding.n_codebooks,
            n_vectors=n_vectors,
            dtype=coding.dtype,
            seed=coding.seed,
            n_threads=coding.n_threads,
        )
    if samples.shape[2] == 1 and not coding.balanced:
        narrow = coding.dtype.name if coding.dtype.itemsize == 2 else None
        best = kmeans1d(
            samples[:, :, 0],
            n_vectors,
            sample_weight=None if weights is None else weights[:, :, 0],
            centroid_dtype=narrow,
            n_threads=coding.n_threads,
        )
        return best.centroids[None].astype(coding.dtype), best.labels[None]
    if weights is not None and samples.shape[2] > 1 and not coding.balanced:
        return find_weighted(
            samples,
            weights,
            n_vectors,
            coding.dtype,
            n_init=coding.n_init,
            random_state=coding.seed,
            n_threads=coding.n_threads,
        )
    best = kmeans(
        samples,
        n_vectors,
        n_init=coding.n_init,
        balanced=coding.balanced,
        random_state=coding.seed,
        n_threads=coding.n_threads,
    )
    if weights is not None:
        return _find_balanced(samples, weights, best, coding)
    table = best.centroids.astype(coding.dtype)
    if coding.balanced or table.dtype == best.centroids.dtype:
        return table[None], best.labels[None]
    return table[None], assign(samples, table, n_threads=coding.n_threads)[0][None]


def _find_balanced(
    samples: Array, weights: Array, plain: KMeansResult, coding: Coding
) -> tuple[Array, Array]:
    """Balanced codes whose means are weighted: what costs least, plain k-means' own among it."""
    weights = np.stack([scaled(each) for each in weights])
    starts = [plain]
    if samples.shape[2] == 1:  # one weight a vector is all that balancing knows
        starts.append(
            kmeans(
                samples,
                2**coding.n_bits,
                sample_weight=weights[:, :, 0],
                n_init=coding.n_init,
                balanced=True,
                random_state=coding.seed,
                n_threads=coding.n_threads,
            )
        )
    tables, codes = plain.centroids.astype(coding.dtype), plain.labels.copy()
    for cell, a in enumerate(weights):
        x = samples[cell].astype(np.float64)
        least = float(np.sum(a * np.square(x - tables[cell, codes[cell]].astype(np.float64))))
        for start in starts:
            labels = start.labels[cell]
            table = weighted_means(x, a, labels, start.centroids[cell]).astype(coding.dtype)
            cost = float(np.sum(a * np.square(x - table[labels].astype(np.float64))))
            if cost < least:
                least, tables[cell], codes[cell] = cost, table, labels
    return tables[None], codes[None]
