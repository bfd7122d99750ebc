"""What the kernels must give, in the obvious NumPy: float64 throughout, one row at a time."""

from __future__ import annotations

import numpy as np


def omp_path(x, dictionary, n_nonzero_coefs, *, tol=None, criterion="correlation"):
    """The atoms of one row in the order in which they are taken, and their coefficients.

    Scores within 1e-11 of each other count as equal, and the lowest index wins.
    """
    x, dictionary = np.asarray(x, np.float64), np.asarray(dictionary, np.float64)
    chosen, coefficients, residual = [], np.zeros(0), x
    while len(chosen) < min(n_nonzero_coefs, *dictionary.shape):
        if tol is not None and residual @ residual <= tol:
            break
        if residual @ residual <= 1e-26 * (x @ x):
            break
        scores = ols_scores(residual, dictionary, chosen)
        if criterion == "correlation":
            scores = np.abs(dictionary @ residual)
        atom = int(np.argmax(scores >= scores.max() * (1 - 1e-11)))
        if depends(dictionary, chosen, atom):
            break
        chosen.append(atom)
        coefficients, residual = least_squares(x, dictionary, chosen)
    return chosen, coefficients


def omp_codes(X, dictionary, n_nonzero_coefs, *, tol=None, criterion="correlation"):
    """`omp_path` of every row, dense: (n_samples, n_atoms)."""
    codes = np.zeros((len(X), len(dictionary)))
    for row, x in zip(codes, X, strict=True):
        atoms, coefficients = omp_path(x, dictionary, n_nonzero_coefs, tol=tol, criterion=criterion)
        row[atoms] = coefficients
    return codes


def least_squares(x, dictionary, atoms):
    """Coefficients of the atoms and what is left of x."""
    chosen = np.asarray(dictionary, np.float64)[list(atoms)]
    coefficients = np.linalg.lstsq(chosen.T, np.asarray(x, np.float64), rcond=None)[0]
    return coefficients, x - coefficients @ chosen


def outside_span(dictionary, chosen):
    """The part of each atom that is orthogonal to those chosen."""
    dictionary = np.asarray(dictionary, np.float64)
    if not len(chosen):
        return dictionary
    basis = np.linalg.qr(dictionary[list(chosen)].T)[0]
    return dictionary - (dictionary @ basis) @ basis.T


def ols_scores(residual, dictionary, chosen):
    """By how much each atom lowers the squared error, fitted together with those chosen."""
    outside = outside_span(dictionary, chosen)
    norms = np.einsum("ij,ij->i", outside, outside)
    full = np.einsum("ij,ij->i", dictionary, dictionary)
    usable = norms > 1e-12 * full
    return np.where(usable, (outside @ residual) ** 2 / np.where(usable, norms, 1), 0)


def depends(dictionary, chosen, atom):
    """Whether an atom lies in the span of those chosen (a zero atom always does)."""
    outside = outside_span(dictionary, chosen)[atom]
    return outside @ outside <= 1e-12 * (dictionary[atom] @ dictionary[atom])


def squared_distances(X, centroids):
    """(n, k), from differences."""
    X, centroids = np.asarray(X, np.float64), np.asarray(centroids, np.float64)
    distances = np.empty((len(X), len(centroids)))
    for j, centroid in enumerate(centroids):
        distances[:, j] = ((X - centroid) ** 2).sum(axis=1)
    return distances


def nearest(X, centroids):
    """Labels (of equals the lowest index) and squared distances."""
    distances = squared_distances(X, centroids)
    labels = distances.argmin(axis=1)
    return labels, distances[np.arange(len(labels)), labels]


def label_excess(X, centroids, labels, epsilon):
    """How far labels are from nearest: squared distance in excess / 8 ε (‖x‖ + ‖c‖)², worst row.

    Up to 1 is what `kmeans` documents. ‖c‖ is the longer of the centroid named and the nearest.
    """
    X, centroids = np.asarray(X, np.float64), np.asarray(centroids, np.float64)
    if not len(X):
        return 0.0
    centre = X.mean(axis=0)
    distances = squared_distances(X - centre, centroids - centre)
    rows = np.arange(len(X))
    best = distances.argmin(axis=1)
    norms = np.linalg.norm(centroids - centre, axis=1)
    reach = np.linalg.norm(X - centre, axis=1) + np.maximum(norms[best], norms[labels])
    excess = distances[rows, labels] - distances[rows, best]
    return float(np.max(excess / np.where(excess > 0, 8 * epsilon * reach**2, 1)))


def lloyd_update(X, labels, centroids, weights=None):
    """Means of the labelled rows; empty clusters are refilled as `kmeans` documents."""
    X, centroids = np.asarray(X, np.float64), np.array(centroids, np.float64)
    weights = np.ones(len(X)) if weights is None else np.asarray(weights, np.float64)
    labels = refill(X, labels, centroids, weights)
    for j in range(len(centroids)):
        mine = (labels == j) & (weights > 0)
        if mine.any():
            centroids[j] = np.average(X[mine], axis=0, weights=weights[mine])
    return centroids


def refill(X, labels, centroids, weights):
    """Each empty cluster, lowest first, takes the farthest row whose cluster keeps another."""
    labels = np.array(labels)
    distances = ((X - centroids[labels]) ** 2).sum(axis=1)
    original = labels.copy()
    for j in range(len(centroids)):
        if (weights[labels == j] > 0).any():
            continue
        counts = np.bincount(labels[weights > 0], minlength=len(centroids))
        free = (weights > 0) & (counts[labels] > 1) & (distances > 0) & (labels == original)
        if not free.any():
            break
        labels[np.argmax(np.where(free, distances, -1))] = j
    return labels


def lloyd(X, centroids, n_iter, weights=None):
    """Centroids and labels after so many iterations, none of them cut short."""
    for _ in range(n_iter):
        centroids = lloyd_update(X, nearest(X, centroids)[0], centroids, weights)
    return centroids, nearest(X, centroids)[0]


def inertia(X, centroids, labels, weights=None):
    """Σ w ‖x − c‖²"""
    X, centroids = np.asarray(X, np.float64), np.asarray(centroids, np.float64)
    distances = ((X - centroids[labels]) ** 2).sum(axis=1)
    return float(distances.sum() if weights is None else distances @ weights)


def init_linear(values, n_clusters):
    """Even between the least and the largest value; one cluster: half-way."""
    low, high = np.min(values), np.max(values)
    if n_clusters == 1:
        return np.array([[(low + high) / 2]])
    return np.linspace(low, high, n_clusters)[:, None]


def init_density(values, n_clusters, weights=None):
    """The (j + ½)/K quantiles: the first value with more than that share of the weight up to it."""
    order = np.argsort(values, kind="stable")
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    up_to = np.cumsum(weights[order])
    targets = up_to[-1] * (np.arange(n_clusters) + 0.5) / n_clusters
    at = np.minimum(np.searchsorted(up_to, targets, side="right"), len(values) - 1)
    return np.asarray(values, np.float64)[order][at][:, None]


def plus_plus_probability(X, draws, weights=None):
    """How likely plain k-means++ is to draw these rows in this order."""
    weights = np.ones(len(X)) if weights is None else np.asarray(weights, np.float64)
    distances, probability = np.ones(len(X)), 1.0
    for step, i in enumerate(draws):
        mass = weights * distances
        probability *= mass[i] / mass.sum()
        to_drawn = ((X - X[i]) ** 2).sum(axis=1)
        distances = to_drawn if step == 0 else np.minimum(distances, to_drawn)
    return probability


def plus_plus(X, n_clusters, rng):
    """Rows drawn by plain k-means++."""
    draws, distances = [], np.ones(len(X))
    for step in range(n_clusters):
        draws.append(int(rng.choice(len(X), p=distances / distances.sum())))
        to_drawn = ((X - X[draws[-1]]) ** 2).sum(axis=1)
        distances = to_drawn if step == 0 else np.minimum(distances, to_drawn)
    return X[draws]


def csr_to_dense(data, indices, indptr, shape):
    """Row by row, value by value."""
    dense = np.zeros(shape, data.dtype)
    for i in range(shape[0]):
        for p in range(indptr[i], indptr[i + 1]):
            dense[i, indices[p]] += data[p]
    return dense


def spmm(data, indices, indptr, shape, B):
    """Σ over the stored values only, in float64; NaN and infinity spread as IEEE 754 says."""
    B = np.asarray(B, np.float64)
    out = np.zeros((shape[0], *B.shape[1:]))
    with np.errstate(invalid="ignore", over="ignore"):
        for i in range(shape[0]):
            for p in range(indptr[i], indptr[i + 1]):
                out[i] += np.float64(data[p]) * B[indices[p]]
    return out


def prune(W, sparsity, *, scope="global", block_shape=None, pool="square"):
    """What is kept, by a stable sort of all magnitudes, and the least magnitude among it."""
    if scope == "row":
        masks, thresholds = zip(*(prune(row, sparsity) for row in W), strict=True)
        return np.array(masks), np.array(thresholds, W.dtype)
    if block_shape is not None:
        kept, threshold = prune(block_scores(W, block_shape, pool), sparsity)
        mask = kept.repeat(block_shape[0], axis=0).repeat(block_shape[1], axis=1)
        return mask[: W.shape[0], : W.shape[1]], threshold
    magnitudes = np.abs(np.asarray(W, np.float64)).ravel()
    n_kept = magnitudes.size - round(sparsity * magnitudes.size)
    kept = np.argsort(-magnitudes, kind="stable")[:n_kept]
    mask = np.zeros(magnitudes.size, bool)
    mask[kept] = True
    return mask.reshape(W.shape), W.dtype.type(magnitudes[kept[-1]] if n_kept else np.inf)


def block_scores(W, block, pool):
    """Root mean square, largest or mean magnitude of each block; those at the ends are smaller."""
    magnitudes = np.abs(np.asarray(W, np.float64))
    starts = [np.arange(0, n, step) for n, step in zip(W.shape, block, strict=True)]

    def over_blocks(function, values):
        return function.reduceat(function.reduceat(values, starts[0], axis=0), starts[1], axis=1)

    if pool == "max":
        return over_blocks(np.maximum, magnitudes)
    sizes = over_blocks(np.add, np.ones(W.shape))
    if pool == "mean":
        return over_blocks(np.add, magnitudes) / sizes
    return np.sqrt(over_blocks(np.add, magnitudes**2) / sizes)


def nm_sparsity(W, n, m):
    """The n largest of every m, of equal ones the first."""
    magnitudes = np.abs(np.asarray(W, np.float64)).reshape(-1, m)
    order = np.argsort(-magnitudes, axis=1, kind="stable")
    mask = np.zeros(magnitudes.shape, bool)
    np.put_along_axis(mask, order[:, :n], True, axis=1)
    return mask.reshape(W.shape)
