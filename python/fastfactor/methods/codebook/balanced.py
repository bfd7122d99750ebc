"""Balanced codebooks: the vectors of a table are used equally often, give or take one."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..._checks import Array
from ...kernels.clustering import kmeans
from ...metrics import scaled
from .weights import weighted_means


def find_balanced(
    samples: Array, weights: Array | None, n_vectors: int, dtype: np.dtype[Any], **options: Any
) -> tuple[Array, Array]:
    """Return tables (cells, K, d) and codes (cells, n) of samples (cells, n, d).

    With weights, each cell gets whichever costs least: the unweighted result, its codes with the
    weighted means of their vectors, or, for scalars, the codes of weighted k-means with such means.
    The options are those of `kmeans`.
    """
    plain = kmeans(samples, n_vectors, balanced=True, **options)
    tables, codes = plain.centroids.astype(dtype), plain.labels
    if weights is None:
        return tables, codes
    weights = np.stack([scaled(each) for each in weights])
    starts = [plain]
    if samples.shape[2] == 1:  # balanced k-means takes only one weight for each vector
        weighted = kmeans(
            samples, n_vectors, balanced=True, sample_weight=weights[:, :, 0], **options
        )
        starts.append(weighted)
    codes = codes.copy()
    for cell, a in enumerate(weights):
        x = samples[cell].astype(np.float64)
        least = _cost(x, a, tables[cell], codes[cell])
        for start in starts:
            labels = start.labels[cell]
            table = weighted_means(x, a, labels, start.centroids[cell]).astype(dtype)
            cost = _cost(x, a, table, labels)
            if cost < least:
                least, tables[cell], codes[cell] = cost, table, labels
    return tables, codes


def _cost(x: Array, a: Array, table: Array, labels: Array) -> float:
    """Return Σ a (x − c)², where c is the table's vector for each label."""
    return float(np.sum(a * np.square(x - table[labels].astype(np.float64))))
