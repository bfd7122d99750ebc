"""Clusters of equal size."""

from __future__ import annotations

import numpy as np

from ..._checks import Array
from ...kernels.balancing import _balanced_assign
from ...kernels.clustering import kmeans
from .tucker import leading

MAX_ITER = 30
LEAST_GAIN = 1e-6  # relative to the cost


def assigned(costs: Array, n_threads: int | None) -> Array:
    """Return the labels of least total cost, each used equally often, for costs (items, clusters).

    The squared distance of −cost / 2 from a unit vector is the cost and what all clusters share.
    """
    points = -costs / 2
    points -= points.mean(axis=1, keepdims=True)
    found = _balanced_assign(points, np.eye(costs.shape[1]), n_threads=n_threads)
    return found.labels


def equal_means(rows: Array, n: int, seed: int, n_threads: int | None) -> Array:
    """Return labels of balanced k-means of rows."""
    found = kmeans(rows, n, balanced=True, n_init=3, random_state=seed, n_threads=n_threads)
    return found.labels


def equal_flats(rows: Array, n: int, rank: int, seed: int, n_threads: int | None) -> Array:
    """Return labels of balanced k-flats: rows near a subspace of this rank for each cluster.

    Starts from balanced k-means. The cost of a row is its squared distance from the subspace, which
    the leading singular vectors of a cluster's rows span.
    """
    labels = equal_means(rows, n, seed, n_threads)
    # Coordinates in the space of all rows, of which there are few.
    rows = np.linalg.qr(rows.T)[1].T if rows.shape[0] < rows.shape[1] else rows
    last = np.inf
    best = labels
    for _ in range(MAX_ITER):
        costs = np.stack([_distances(rows, rows[labels == k], rank) for k in range(n)], axis=1)
        cost = float(costs[np.arange(len(rows)), labels].sum())
        if cost >= last * (1 - LEAST_GAIN):
            break
        best, last = labels, cost
        labels = assigned(costs, n_threads)
    return best


def _distances(rows: Array, members: Array, rank: int) -> Array:
    """Return the squared distances of rows from the subspace that fits members best."""
    basis = leading(members.T[None], min(rank, *members.shape))[0]
    inside = rows @ basis
    total = np.einsum("ij,ij->i", rows, rows)
    result: Array = np.maximum(total - np.einsum("ij,ij->i", inside, inside), 0)
    return result


def order_of(labels: Array) -> Array:
    """Return the items cluster by cluster, in their order within each."""
    return np.argsort(labels, kind="stable")
