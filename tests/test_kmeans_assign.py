"""assign: any size, groups, dtypes, and data where rounding decides."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import oracle
import pytest
from fastfactor import assign, kmeans
from kmeans_checks import FLOATS, SIZES, assert_consistent
from problems import HARD, SHAPES, bits, few_distinct_centroids, rows_on_centroids


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n_clusters", [*SIZES, 1000])
def test_assign_any_number_of_clusters(rng, dtype, n_clusters):
    X = rng.standard_normal((90, 9)).astype(dtype)
    centroids = rng.standard_normal((n_clusters, 9)).astype(dtype)
    labels, distances = assign(X, centroids)
    assert labels.dtype == np.int32
    assert distances.dtype == dtype
    assert oracle.label_excess(X, centroids, labels, np.finfo(dtype).eps) <= 1
    np.testing.assert_array_equal(labels, oracle.nearest(X, centroids)[0])
    expected = oracle.squared_distances(X, centroids)[np.arange(90), labels]
    np.testing.assert_allclose(distances, expected, rtol=2 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n_features", [*SIZES, 255, 256, 257, 784])
def test_assign_any_number_of_features(rng, dtype, n_features):
    X = rng.standard_normal((50, n_features)).astype(dtype)
    centroids = rng.standard_normal((21, n_features)).astype(dtype)
    labels, distances = assign(X, centroids)
    assert oracle.label_excess(X, centroids, labels, np.finfo(dtype).eps) <= 1
    expected = oracle.squared_distances(X, centroids)[np.arange(50), labels]
    np.testing.assert_allclose(distances, expected, rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n_samples", [0, *SIZES, 769, 4095, 4097])
def test_assign_any_number_of_rows(rng, dtype, n_samples):
    X = rng.standard_normal((n_samples, 4)).astype(dtype)
    centroids = rng.standard_normal((19, 4)).astype(dtype)
    labels, distances = assign(X, centroids)
    assert labels.shape == distances.shape == (n_samples,)
    np.testing.assert_array_equal(labels, oracle.nearest(X, centroids)[0])


@pytest.mark.parametrize("n_samples", [1, 31, 33, 70_001])
@pytest.mark.parametrize("n_clusters", [3, 64, 640])
@pytest.mark.parametrize("n_features", [*range(1, 19)])
def test_assign_every_short_row(rng, n_features, n_clusters, n_samples):
    """Short rows have loops of their own; small problems are laid out once for all iterations."""
    stored = rng.standard_normal((n_features, n_samples)).astype(np.float16)
    centroids = rng.standard_normal((n_clusters, n_features)).astype(np.float32)
    X = stored.T.astype(np.float32)
    labels, distances = assign(X, centroids)
    sure = slice(None) if n_samples < 100 else slice(n_samples - 500, None)
    assert oracle.label_excess(X[sure], centroids, labels[sure], np.finfo(np.float32).eps) <= 1
    if n_samples < 100:
        np.testing.assert_array_equal(assign(stored.T, centroids)[0], labels)
        np.testing.assert_array_equal(assign(X[::-1], centroids)[0], labels[::-1])
        np.testing.assert_array_equal(assign(np.asfortranarray(X), centroids)[1], distances)


def test_assign_groups(rng):
    X = rng.standard_normal((5, 80, 3)).astype(np.float32)
    centroids = rng.standard_normal((5, 12, 3)).astype(np.float32)
    labels, distances = assign(X, centroids)
    shared_labels, shared_distances = assign(X, centroids[0])
    assert labels.shape == distances.shape == shared_labels.shape == (5, 80)
    for g in range(5):
        for mine, alone in [
            ((labels[g], distances[g]), assign(X[g], centroids[g])),
            ((shared_labels[g], shared_distances[g]), assign(X[g], centroids[0])),
        ]:
            np.testing.assert_array_equal(mine[0], alone[0])
            np.testing.assert_array_equal(mine[1], alone[1])


def test_assign_computes_in_float64_where_either_operand_is(rng):
    X = rng.standard_normal((40, 3)).astype(np.float32)
    centroids = rng.standard_normal((6, 3))
    distances = assign(X, centroids)[1]
    assert distances.dtype == np.float64
    np.testing.assert_allclose(distances, oracle.nearest(X, centroids)[1], rtol=1e-13)
    assert assign(X.astype(np.float64), centroids.astype(np.float32))[1].dtype == np.float64
    assert assign(X, centroids.astype(np.float32))[1].dtype == np.float32


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("problem", HARD)
def test_labels_are_within_the_documented_bound_on_hard_data(rng, problem, shape, dtype):
    X, centroids = (array.astype(dtype) for array in problem(rng, *shape))
    labels, distances = assign(X, centroids)
    assert oracle.label_excess(X, centroids, labels, np.finfo(dtype).eps) <= 1
    own = ((X.astype(np.float64) - centroids[labels]) ** 2).sum(axis=1)
    np.testing.assert_allclose(distances, own, rtol=8 * np.finfo(dtype).eps)
    if problem in (bits, few_distinct_centroids, rows_on_centroids):
        # Equal distances are equal in any precision: the first of the duplicates is named.
        first = [np.flatnonzero((centroids == centroids[j]).all(axis=1))[0] for j in labels]
        np.testing.assert_array_equal(labels, first)
    if problem in (bits, rows_on_centroids):
        np.testing.assert_array_equal(labels, oracle.nearest(X, centroids)[0])


@pytest.mark.parametrize("shape", SHAPES[2:])
@pytest.mark.parametrize("problem", HARD)
def test_every_iteration_is_within_the_documented_bound_on_hard_data(rng, problem, shape):
    """Later iterations start from the labels of the one before."""
    X, start = (array.astype(np.float32) for array in problem(rng, *shape))
    for max_iter in (1, 2, 3):
        result = kmeans(X, len(start), init=start, max_iter=max_iter, tol=0)
        assert_consistent(result, X, len(start))
        labels = assign(X, result.centroids)[0]
        eps = np.finfo(np.float32).eps
        assert oracle.label_excess(X, result.centroids, labels, eps) <= 1


def test_the_bound_can_be_missed(rng):
    """The measure above tells a wrong label from rounding."""
    X = rng.standard_normal((100, 4)).astype(np.float32)
    centroids = rng.standard_normal((9, 4)).astype(np.float32)
    second = np.argsort(oracle.squared_distances(X, centroids), axis=1)[:, 1]
    assert oracle.label_excess(X, centroids, second, np.finfo(np.float32).eps) > 1e3


# --- two scales in one array


def two_scales(rng, n_features, dtype, ratio, n=400):
    """A group near zero, and one of the same width far away."""
    near = rng.random((n // 2, n_features))
    far = ratio + rng.random((n - n // 2, n_features))
    return np.concatenate([near, far]).astype(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n_clusters", [10, 100, 300])
@pytest.mark.parametrize("n_features", [1, 2, 7, 12, 30, 70])
@pytest.mark.parametrize("digits", [0.5, 0.8])
def test_two_scales_in_one_array(rng, dtype, n_clusters, n_features, digits):
    ratio = np.finfo(dtype).eps ** -digits
    X = two_scales(rng, n_features, dtype, ratio, 60)
    centroids = two_scales(rng, n_features, dtype, ratio, n_clusters)
    labels, distances = assign(X, centroids)
    many = np.concatenate([X, X[:1].repeat(3000, axis=0), X[-1:].repeat(3000, axis=0)])
    expected = np.concatenate([labels, labels[:1].repeat(3000), labels[-1:].repeat(3000)])
    np.testing.assert_array_equal(assign(many, centroids)[0], expected)
    exact = ((X[:, None].astype(np.longdouble) - centroids) ** 2).sum(axis=2)
    np.testing.assert_array_equal(labels, exact.argmin(axis=1))
    np.testing.assert_allclose(distances, exact.min(axis=1).astype(dtype), rtol=1e-6)


def test_a_point_and_a_far_group():
    X = np.concatenate([[0], np.linspace(1e6, 1e6 + 1, 200)]).astype(np.float32)[:, None]
    centroids = np.array([[0], [1e6 + 0.125], [1e6 + 0.5], [1e6 + 0.9375]], np.float32)
    exact = (X.astype(np.float64) - centroids[:, 0].astype(np.float64)) ** 2
    np.testing.assert_array_equal(assign(X, centroids)[0], exact.argmin(axis=1))


@pytest.mark.parametrize("n_features", [1, 3])
def test_kmeans_of_two_scales(rng, n_features):
    X = two_scales(rng, n_features, np.float32, 1e5)
    start = X[::20]
    found = kmeans(X, 20, init=start)
    np.testing.assert_array_equal(found.labels, oracle.nearest(X, found.centroids)[0])
    wide = kmeans(X.astype(np.float64), 20, init=start)
    assert found.inertia < 1.05 * wide.inertia  # the far centroids are multiples of 1/128


def test_equal_centroids_among_close_ones(rng):
    X = two_scales(rng, 2, np.float32, 1e6)
    centroids = X[rng.integers(0, 400, 150) // 8 * 8]
    np.testing.assert_array_equal(assign(X, centroids)[0], oracle.nearest(X, centroids)[0])


def one_column(rng, kind, k, ends):
    """Centroids and values of a kind that rounding could get wrong."""
    tiny, eps = float(ends.smallest_subnormal), float(ends.eps)
    small, large = ends.minexp + 60, ends.maxexp // 2 - 10
    return {
        "normal": lambda n: rng.standard_normal(n),
        "halves": lambda n: rng.integers(-12, 13, n) / (2 if n == 50 else 1),
        "denormal": lambda n: rng.integers(-9, 10, n) * tiny,
        "next to one": lambda n: 1 + rng.integers(0, 20, n) * eps,
        "all magnitudes": lambda n: np.ldexp(rng.standard_normal(n), rng.integers(small, large, n)),
        "least beside large": lambda n: rng.choice([tiny, -tiny, 0, 0.5, -0.5, 1, -1, 2, -2], n),
        "two scales": lambda n: np.where(rng.random(n) < 0.1, 0, 1e6) + rng.random(n),
    }[kind]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n_clusters", [1, 2, 3, 5, 16, 65, 150])
@pytest.mark.parametrize(
    "kind",
    [
        *("normal", "halves", "denormal", "next to one", "all magnitudes"),
        *("least beside large", "two scales"),
    ],
)
def test_one_column_is_exact(rng, kind, n_clusters, dtype):
    """As if computed without rounding, ties the lowest index; any layout and equal centroids."""
    make = one_column(rng, kind, n_clusters, np.finfo(dtype))
    centroids, X = make(n_clusters).astype(dtype), make(50).astype(dtype)
    exact = [Fraction(float(c)) for c in centroids]
    expected = []
    for x in X:
        distances = [abs(Fraction(float(x)) - c) for c in exact]
        expected.append(distances.index(min(distances)))
    strided = np.repeat(X, 3).reshape(50, 3)[:, 1:2]
    for rows in (X[:, None], strided, X[::-1, None][::-1]):
        np.testing.assert_array_equal(assign(rows, centroids[:, None])[0], expected)
    many = np.tile(X, 401)[:, None]  # more than is laid out once
    np.testing.assert_array_equal(assign(many, centroids[:, None])[0], np.tile(expected, 401))
