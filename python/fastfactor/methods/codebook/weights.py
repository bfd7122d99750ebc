"""k-means of vectors in which every coordinate of every vector has its own weight."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..._checks import Array
from ...kernels.clustering import kmeans
from ...metrics import scaled

SCORES_AT_ONCE = 1 << 22
MAX_ITER = 100
MIN_GAIN = 1e-4  # the iterations stop when the cost falls by a smaller fraction
MIN_WEIGHT = 1e-12  # relative to the largest, since k-means needs a positive weight


def find_weighted(
    samples: Array,
    weights: Array,
    n_vectors: int,
    dtype: np.dtype[Any],
    **options: Any,
) -> tuple[Array, Array]:
    """Return tables (cells, K, d) and codes (cells, n) with a small Σ a (x − c)², weights a.

    The start is plain k-means or k-means with each vector's mean weight, whichever costs less. The
    result is no worse than plain k-means. The options are those of `kmeans`.
    """
    starts = [
        kmeans(samples, n_vectors, **options).centroids,
        kmeans(samples, n_vectors, sample_weight=_mean_weights(weights), **options).centroids,
    ]
    n_cells, n = samples.shape[:2]
    tables = np.empty((n_cells, n_vectors, samples.shape[2]), dtype)
    codes = np.empty((n_cells, n), np.int32)
    for cell in range(n_cells):
        x, a = samples[cell].astype(np.float64), scaled(weights[cell])
        begun = [(cost_of(x, a, start[cell]), i) for i, start in enumerate(starts)]
        table = _lloyd(x, a, starts[min(begun)[1]][cell].astype(np.float64))
        # The tables are compared as stored: rounding may undo the gain over plain k-means.
        candidates = [table.astype(dtype), starts[0][cell].astype(dtype)]
        costs = [cost_of(x, a, candidate) for candidate in candidates]
        tables[cell] = candidates[int(costs[1] < costs[0])]
        codes[cell] = nearest(x, a, tables[cell])[0]
    return tables, codes


def weighted_means(x: Array, a: Array, labels: Array, table: Array) -> Array:
    """Return each label's weighted means by coordinate; the table's values if weights are zero."""
    means = table.astype(np.float64)
    for d in range(x.shape[1]):
        weight = np.bincount(labels, a[:, d], len(table))
        moment = np.bincount(labels, a[:, d] * x[:, d], len(table))
        np.divide(moment, weight, out=means[:, d], where=weight > 0)
    return means


def nearest(x: Array, a: Array | None, table: Array) -> tuple[Array, Array]:
    """Return labels (n,) with the least Σ_d a (x − c)², and those costs in float64.

    Σ a (x − c)² = Σ a x² − 2 (a x)·c + a·c²: two matrix products, and Σ a x² is the same for all c.
    """
    table = table.astype(np.float64)
    labels = np.empty(len(x), np.int32)
    costs = np.empty(len(x))
    block = max(SCORES_AT_ONCE // len(table), 1)
    minus_twice, squared = -2 * table.T, np.square(table.T)
    for first in range(0, len(x), block):
        part = slice(first, first + block)
        weights = np.ones(x[part].shape) if a is None else a[part]
        scores = (weights * x[part]) @ minus_twice
        scores += weights @ squared
        labels[part] = scores.argmin(axis=1)
        gaps = x[part] - table[labels[part]]
        costs[part] = np.einsum("ij,ij,ij->i", weights, gaps, gaps)
    return labels, costs


def cost_of(x: Array, a: Array, table: Array) -> float:
    return float(nearest(x, a, table)[1].sum())


def _mean_weights(weights: Array) -> Array:
    means = weights.mean(axis=2, dtype=np.float64)
    top = means.max(axis=1, keepdims=True)
    result: Array = means / np.where(top > 0, top, 1) + MIN_WEIGHT
    return result


def _lloyd(x: Array, a: Array, table: Array) -> Array:
    last = np.inf
    for _ in range(MAX_ITER):
        labels, costs = nearest(x, a, table)
        total = float(costs.sum())
        if total >= last * (1 - MIN_GAIN):
            break
        last = total
        table = weighted_means(x, a, labels, table)
    return table
