"""Tables and codes of a matrix, found for each of its cells: the parts that share a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import _checks
from ..._checks import Array
from ...kernels.clustering import assign, kmeans
from ...kernels.scalar_clustering import kmeans1d
from .balanced import find_balanced
from .sharing import Coded, Sharing
from .sums import find_sums
from .weights import find_weighted


@dataclass(frozen=True, kw_only=True)
class CodebookSettings:
    """Settings for finding tables and codes."""

    sharing: Sharing
    n_bits: int
    n_codebooks: int
    balanced: bool
    dtype: np.dtype[Any]  # of the tables
    n_init: int
    seed: int
    n_threads: int | None

    @property
    def n_vectors(self) -> int:
        return 1 << self.n_bits


def find_codes(W: Array, importance: Array | None, settings: CodebookSettings) -> Coded:
    """Return tables in their stored shape, and codes (n_codebooks, rows, vectors of a row)."""
    sharing, n_codebooks, n_vectors = settings.sharing, settings.n_codebooks, settings.n_vectors
    rows, columns = sharing.shape
    rows_of_tables = rows if sharing.by_row else 1
    tables = np.zeros(
        (n_codebooks, rows_of_tables, sharing.n_groups, n_vectors, sharing.vector_dim),
        settings.dtype,
    )
    codes = np.zeros((n_codebooks, rows, columns // sharing.vector_dim), np.uint8)
    for piece in sharing.pieces() if W.size else ():
        weights = None if importance is None else piece.cells(importance)
        found = _find(piece.cells(W), weights, settings)
        _checks.finite(found.tables, "codebook")
        piece.put_tables(found.tables, tables)
        piece.put_codes(found.codes, codes)
    return Coded(tables.reshape(sharing.table_shape(n_codebooks, n_vectors)), codes)


def _find(samples: Array, weights: Array | None, settings: CodebookSettings) -> Coded:
    """Cluster the vectors of each cell with the algorithm that these settings need.

    For samples (cells, n, d), return tables (n_codebooks, cells, K, d) in the dtype in which they
    are stored, and codes (n_codebooks, cells, n).
    """
    if weights is not None:
        weights = _ones_where_all_zero(weights)
    if settings.n_codebooks > 1:
        return Coded(
            *find_sums(
                samples,
                weights,
                n_codebooks=settings.n_codebooks,
                n_vectors=settings.n_vectors,
                dtype=settings.dtype,
                seed=settings.seed,
                n_threads=settings.n_threads,
            )
        )
    if settings.balanced:
        tables, codes = find_balanced(
            samples, weights, settings.n_vectors, settings.dtype, **_kmeans_options(settings)
        )
    elif samples.shape[2] == 1:
        tables, codes = _find_scalars(samples, weights, settings)
    elif weights is not None:
        tables, codes = find_weighted(
            samples, weights, settings.n_vectors, settings.dtype, **_kmeans_options(settings)
        )
    else:
        tables, codes = _find_vectors(samples, settings)
    return Coded(tables[None], codes[None])


def _ones_where_all_zero(weights: Array) -> Array:
    """Return weights with ones in cells where all are zero, which would have no unique optimum."""
    idle = weights.max(axis=(1, 2)) == 0
    if not idle.any():
        return weights
    return np.where(idle[:, None, None], np.ones((), weights.dtype), weights)


def _kmeans_options(settings: CodebookSettings) -> dict[str, Any]:
    return {
        "n_init": settings.n_init,
        "random_state": settings.seed,
        "n_threads": settings.n_threads,
    }


def _find_scalars(samples: Array, weights: Array | None, settings: CodebookSettings) -> Coded:
    """Return optimal tables and codes; for tables of 16 bits, optimal among their values."""
    best = kmeans1d(
        samples[:, :, 0],
        settings.n_vectors,
        sample_weight=None if weights is None else weights[:, :, 0],
        centroid_dtype=settings.dtype.name if settings.dtype.itemsize == 2 else None,
        n_threads=settings.n_threads,
    )
    return Coded(best.centroids.astype(settings.dtype), best.labels)


def _find_vectors(samples: Array, settings: CodebookSettings) -> Coded:
    """Return the result of k-means; if its tables are rounded, codes are assigned once more."""
    best = kmeans(samples, settings.n_vectors, **_kmeans_options(settings))
    tables = best.centroids.astype(settings.dtype)
    if tables.dtype == best.centroids.dtype:
        return Coded(tables, best.labels)
    return Coded(tables, assign(samples, tables, n_threads=settings.n_threads)[0])
