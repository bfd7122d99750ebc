"""Nearest-centroid problems where a search that bounds, rounds or skips would go wrong first."""

from __future__ import annotations


def midway(rng, n, k, d):
    """Rows half-way between two centroids, give or take a few ulps."""
    centroids = rng.standard_normal((k, d))
    middle = centroids[rng.integers(k, size=(n, 2))].mean(axis=1)
    return middle * (1 + 1e-7 * rng.standard_normal((n, 1))), centroids


def one_centroid_far_out(rng, n, k, d):
    """What scales by the largest centroid sees the others as one."""
    centroids = rng.standard_normal((k, d))
    centroids[k // 2] *= 1e4
    return rng.standard_normal((n, d)), centroids


def few_rows_far_out(rng, n, k, d):
    X = rng.standard_normal((n, d))
    X[:: max(n // 5, 1)] *= 1e4
    return X, rng.standard_normal((k, d))


def crowded_centroids(rng, n, k, d):
    """Centroids much nearer to each other than to any row."""
    return rng.standard_normal((n, d)), 1 + 1e-3 * rng.standard_normal((k, d))


def few_distinct_centroids(rng, n, k, d):
    distinct = rng.standard_normal((max(k // 7, 1), d))
    return rng.standard_normal((n, d)), distinct[rng.integers(len(distinct), size=k)]


def uneven_columns(rng, n, k, d):
    scales = 10.0 ** rng.uniform(-4, 4, d)
    return rng.standard_normal((n, d)) * scales, rng.standard_normal((k, d)) * scales


def bits(rng, n, k, d):
    """Zeros and ones: nothing but exact ties."""
    return rng.integers(0, 2, (n, d)), rng.integers(0, 2, (k, d))


def rows_on_centroids(rng, n, k, d):
    centroids = rng.standard_normal((k, d))
    return centroids[rng.integers(k, size=n)], centroids


def far_from_the_origin(rng, n, k, d):
    return 1e5 + rng.standard_normal((n, d)), 1e5 + rng.standard_normal((k, d))


def far_from_the_centroids(rng, n, k, d):
    """The differences between centroids are lost in the distance to them."""
    return 1e3 + rng.standard_normal((n, d)), rng.standard_normal((k, d))


def mostly_zeros(rng, n, k, d):
    X, centroids = rng.standard_normal((n, d)), rng.standard_normal((k, d))
    X[rng.random((n, d)) < 0.9] = 0
    centroids[rng.random((k, d)) < 0.9] = 0
    return X, centroids


HARD = [
    midway,
    one_centroid_far_out,
    few_rows_far_out,
    crowded_centroids,
    few_distinct_centroids,
    uneven_columns,
    bits,
    rows_on_centroids,
    far_from_the_origin,
    far_from_the_centroids,
    mostly_zeros,
]
SHAPES = [
    (200, 1, 3),
    (301, 31, 1),
    (250, 33, 17),
    (150, 257, 64),
    (97, 700, 5),
    (40, 300, 131),
    (300, 90, 8),
    (2100, 70, 15),
]
