"""The obvious answers to k-means of scalars: all O(n²) intervals, in float64, no cleverness."""

from __future__ import annotations

import itertools

import numpy as np


def interval_costs(x, weights, places=None):
    """c[i, j]: what x[i:j], sorted, costs with its mean, or with the best of the given places."""
    n = len(x)
    costs = np.full((n + 1, n + 1), np.inf)
    np.fill_diagonal(costs, 0)
    for i in range(n):
        part, w = x[i:] - x[i], weights[i:]
        if places is not None:
            squares = w[:, None] * (x[i:, None] - places) ** 2
            costs[i, i + 1 :] = np.cumsum(squares, axis=0).min(axis=1)
            continue
        squares = np.cumsum(w * part**2)
        costs[i, i + 1 :] = np.maximum(0, squares - np.cumsum(w * part) ** 2 / np.cumsum(w))
    return costs


def least_inertia(x, n_clusters, weights=None, fixed=(), places=None):
    """The optimum, by dynamic programming over sorted values and numbers of clusters."""
    return float(least_inertias(x, n_clusters, weights, fixed, places)[n_clusters])


def least_inertias(x, most_clusters, weights=None, fixed=(), places=None):
    """The optimum for every number of clusters up to the most: an array by that number."""
    x = np.asarray(x, np.float64)
    order = np.argsort(x, kind="stable")
    weights = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    order = order[weights[order] > 0]  # what weighs nothing costs nothing
    x, weights = x[order], weights[order]
    free = interval_costs(x, weights, places)
    best = np.full(len(x) + 1, np.inf)
    best[0] = 0
    stay = None
    if len(fixed):
        served = weights * ((x[:, None] - np.asarray(fixed, np.float64)) ** 2).min(axis=1)
        stay = np.full(free.shape, np.inf)
        for i in range(len(x) + 1):
            stay[i, i:] = np.concatenate([[0.0], np.cumsum(served[i:])])
        best = (best[:, None] + stay).min(axis=0)
    found = np.full(most_clusters + 1, np.inf)
    found[len(fixed)] = best[-1]
    for k in range(len(fixed) + 1, most_clusters + 1):
        longer = (best[:, None] + free).min(axis=0)
        if stay is not None:
            longer = (longer[:, None] + stay).min(axis=0)
        best = np.minimum(best, longer)
        found[k] = best[-1]
    return found


def least_inertia_of_all(x, n_clusters):
    """The optimum over every labelling of a handful of values."""
    x, least = np.asarray(x, np.float64), np.inf
    for labels in itertools.product(range(n_clusters), repeat=len(x)):
        labels = np.array(labels)
        means = [x[labels == c].mean() if (labels == c).any() else 0 for c in range(n_clusters)]
        least = min(least, ((x - np.array(means)[labels]) ** 2).sum())
    return float(least)


def lloyd(x, centroids, weights=None, fixed=(), most=1000):
    """Centroids, labels and the number of iterations until no label changes."""
    x, fixed = np.asarray(x, np.float64), list(fixed)
    weights = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    pairs = sorted([(c, False) for c in centroids] + [(c, True) for c in fixed])
    places, stays = np.array([p for p, _ in pairs], np.float64), [s for _, s in pairs]
    labels = None
    for done in range(most):
        now = np.abs(x[:, None] - places).argmin(axis=1)
        if labels is not None and (now == labels).all():
            return places, labels, done
        labels = now
        for c, stay in enumerate(stays):
            mine = labels == c
            if not stay and weights[mine].sum() > 0:
                places[c] = np.average(x[mine], weights=weights[mine])
    return places, labels, most


def representable(centroid_dtype, x):
    """Every centroid of the type that could serve x (float16 and bfloat16: 65,536 patterns)."""
    if centroid_dtype == "int8":
        dtype = np.float64 if x.dtype == np.float64 else np.float32
        scale = np.abs(x).max().astype(dtype) / dtype(127)
        return (np.arange(-127, 128).astype(dtype) * scale).astype(np.float64)
    import ml_dtypes

    dtype = np.float16 if centroid_dtype == "float16" else ml_dtypes.bfloat16
    with np.errstate(invalid="ignore"):
        values = np.arange(65536, dtype=np.uint16).view(dtype).astype(np.float64)
    values = np.unique(values[np.isfinite(values)])
    low, high = np.searchsorted(values, [x.min(), x.max()])
    return values[max(low - 1, 0) : high + 2]
