"""The optimum of a balanced assignment by SciPy's solvers, and a certificate by duality."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment, linprog


def squared_distances(X, centroids, sample_weight=None):
    """w_i ‖x_i − c_j‖² in float64."""
    X, centroids = np.asarray(X, np.float64), np.asarray(centroids, np.float64)
    costs = ((X[:, None, :] - centroids[None, :, :]) ** 2).sum(axis=2)
    return costs if sample_weight is None else costs * np.asarray(sample_weight)[:, None]


def balanced_cost(costs):
    """The least cost of rows in columns that each take floor(n/K) or ceil(n/K), as an assignment.

    Every column stands floor(n/K) times, to be filled, and once more, to be filled or to be taken
    by one of the dummy rows, which must not take a place of the first kind.
    """
    n, k = costs.shape
    places = np.concatenate([np.repeat(costs, n // k, axis=1), costs], axis=1)
    dummies = np.zeros((places.shape[1] - n, places.shape[1]))
    dummies[:, : k * (n // k)] = 1 + 2 * costs.sum()
    square = np.concatenate([places, dummies])
    rows, columns = linear_sum_assignment(square)
    return float(square[rows, columns].sum())


def balanced_cost_linear(costs):
    """The same as a linear programme, whose vertices are whole numbers."""
    n, k = costs.shape
    rows = np.kron(np.eye(n), np.ones((1, k)))
    columns = np.kron(np.ones((1, n)), np.eye(k))
    result = linprog(
        costs.ravel(),
        A_eq=rows,
        b_eq=np.ones(n),
        A_ub=np.concatenate([columns, -columns]),
        b_ub=np.concatenate([np.full(k, -(-n // k)), np.full(k, -(n // k))]),
        method="highs",
    )
    return float(result.fun)


def balanced_gap(costs, labels, prices):
    """Cost of labels less the dual value of prices: a bound of what a better assignment saves.

    D(p) = Σ_i min_j (c_ij + p_j) − max Σ_j r_j p_j over rooms r_j of floor or ceil, n in all.
    """
    n, k = costs.shape
    dearest = np.sort(prices)[::-1][: n % k].sum()
    dual = (costs + prices).min(axis=1).sum() - (n // k) * prices.sum() - dearest
    return float(costs[np.arange(n), labels].sum() - dual)
