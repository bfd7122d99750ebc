"""Every kernel at the ends of its types: what it finds in data · 2^e is what it finds in the data.

Scaling by a power of two is exact, so the same labels, places and codes must come out, wherever
they can be represented.
"""

from __future__ import annotations

import fastfactor
import ml_dtypes
import numpy as np
import pytest
from fastfactor import CSR, PackedCodes, SparseCodes
from fastfactor.kernels.balancing import _balanced_assign

# (dtype, e): integers up to 8 in magnitude times 2^e are exact, down to the least denormal number
# and up to the largest power of two.
EXTREMES = [
    (np.float64, -1074),
    (np.float64, -1030),
    (np.float64, 1020),
    (np.float32, -149),
    (np.float32, -130),
    (np.float32, 124),
    (np.float16, -24),
    (np.float16, 12),
    (ml_dtypes.bfloat16, -133),
    (ml_dtypes.bfloat16, 124),
]
SQUARES = {np.float64: 500}  # rows whose squared norm is infinite in float64 are refused
extremes = pytest.mark.parametrize(("dtype", "e"), EXTREMES)


def integers(rng, shape):
    return rng.integers(-8, 9, shape).astype(np.float64)


def scaled(values, e, dtype):
    """Return values · 2^e as dtype, exactly."""
    result = np.ldexp(np.asarray(values, np.float64), e).astype(dtype)
    np.testing.assert_array_equal(np.ldexp(result.astype(np.float64), -e), values)
    return result


def unscaled(values, e):
    return np.ldexp(np.asarray(values, np.float64), -e)


def clusters(rng, n=200, n_features=3):
    """Four groups that no rounding of their means can mix."""
    corners = np.array([[-7.0, -7, 0], [7, -7, 1], [-7, 7, -1], [7, 7, 0]])[:, :n_features]
    return np.repeat(corners, n // 4, axis=0) + rng.integers(-1, 2, (n, n_features))


def outcome(call, dtype, e):
    """Return what a call returns; None if k-means must refuse the data, which it does by name."""
    if e <= SQUARES.get(dtype, 1000):
        return call()
    with pytest.raises(ValueError, match="X must have a finite squared norm"):
        call()
    return None


# --- clustering


@extremes
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("n_features", [1, 2, 3])
def test_kmeans(rng, dtype, e, balanced, n_features):
    X = clusters(rng, n_features=n_features)
    n_clusters = 2 if n_features == 1 else 4
    init = X[:: 200 // n_clusters]
    plain = fastfactor.kmeans(X, n_clusters, init=init, balanced=balanced)
    found = outcome(
        lambda: fastfactor.kmeans(
            scaled(X, e, dtype), n_clusters, init=scaled(init, e, dtype), balanced=balanced
        ),
        dtype,
        e,
    )
    if found is None:
        return
    np.testing.assert_array_equal(found.labels, plain.labels)
    np.testing.assert_allclose(unscaled(found.centroids, e), plain.centroids, atol=0.5, rtol=1e-6)
    assert np.isfinite(found.inertia)


@extremes
@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_kmeans_from_random_starts(rng, dtype, e, init):
    X = clusters(rng)
    found = outcome(
        lambda: fastfactor.kmeans(scaled(X, e, dtype), 4, init=init, n_init=8), dtype, e
    )
    if found is None:
        return
    assert len({tuple(np.unique(part)) for part in np.split(found.labels, 4)}) == 4
    assert np.isfinite(found.centroids.astype(np.float64)).all()


@extremes
@pytest.mark.parametrize(("n_features", "n_clusters"), [(1, 5), (3, 7), (8, 100), (24, 80)])
def test_assign(rng, dtype, e, n_features, n_clusters):
    X, centroids = integers(rng, (300, n_features)), integers(rng, (n_clusters, n_features))
    squares = ((X[:, None] - centroids) ** 2).sum(axis=2)
    found = outcome(
        lambda: fastfactor.assign(scaled(X, e, dtype), scaled(centroids, e, dtype)), dtype, e
    )
    if found is None:
        return
    labels, distances = found
    np.testing.assert_array_equal(labels, squares.argmin(axis=1))
    with np.errstate(over="ignore", under="ignore"):
        expected = np.ldexp(squares.min(axis=1), 2 * e).astype(distances.dtype)
    np.testing.assert_allclose(distances, expected, rtol=1e-6)


@pytest.mark.parametrize("weight", [5e-324, 1e-200, 1e200, 1e305])
def test_kmeans_with_extreme_weights(rng, weight):
    X = clusters(rng)
    share = rng.integers(1, 4, len(X))
    plain = fastfactor.kmeans(X, 4, init=X[::50], sample_weight=share)
    found = fastfactor.kmeans(X, 4, init=X[::50], sample_weight=weight * share)
    np.testing.assert_array_equal(found.labels, plain.labels)
    np.testing.assert_allclose(found.centroids, plain.centroids, atol=1e-12)
    np.testing.assert_allclose(found.inertia, plain.inertia * weight, rtol=1e-6)
    seeded = fastfactor.kmeans(X, 4, sample_weight=weight * share, n_init=4)
    np.testing.assert_allclose(seeded.inertia, plain.inertia * weight, rtol=1e-6)


@extremes
def test_balanced_assignment(rng, dtype, e):
    X, centroids = integers(rng, (90, 2)), integers(rng, (7, 2))
    plain = _balanced_assign(X, centroids)
    found = _balanced_assign(scaled(X, e, dtype), scaled(centroids, e, dtype))
    np.testing.assert_array_equal(found.labels, plain.labels)
    assert not np.isnan([found.cost, found.gap, *found.prices]).any()


def test_balanced_clusters_of_the_least_numbers():
    X = np.array([[0], [1], [2], [3]]) * 5e-324
    found = fastfactor.kmeans(X, 2, balanced=True, init="linear")
    np.testing.assert_array_equal(found.labels, [0, 0, 1, 1])


@extremes
@pytest.mark.parametrize("method", ["exact", "lloyd"])
def test_kmeans1d(rng, dtype, e, method):
    x = clusters(rng, n_features=1)[:, 0]
    plain = fastfactor.kmeans1d(x, 2, method=method)
    found = fastfactor.kmeans1d(scaled(x, e, dtype), 2, method=method)
    np.testing.assert_array_equal(found.labels, plain.labels)
    np.testing.assert_allclose(unscaled(found.centroids, e), plain.centroids, atol=0.5, rtol=1e-6)
    assert not np.isnan(found.inertia)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", ["exact", "lloyd"])
def test_kmeans1d_of_the_largest_numbers(dtype, method):
    most = np.finfo(dtype).max
    for n in range(1, 40):
        x = np.full(n + 1, most, dtype)
        x[0] = -most
        x[n // 2] = np.nextafter(most, dtype(0))
        found = fastfactor.kmeans1d(x, 2, method=method)
        assert np.isfinite(found.centroids).all()
        assert not np.isnan(found.inertia)


# --- sparse codes


@extremes
@pytest.mark.parametrize("options", [{}, {"criterion": "ols"}, {"hashed": True}])
@pytest.mark.parametrize("both", [False, True])
def test_pursuits(rng, dtype, e, options, both):
    X, atoms = integers(rng, (40, 12)), integers(rng, (30, 12))
    options = dict(options)
    code = fastfactor.hashed_omp if options.pop("hashed", False) else fastfactor.omp
    wide = np.float64 if dtype is np.float64 else np.float32
    plain = code(X.astype(wide), atoms.astype(wide), n_nonzero_coefs=3, **options)
    if both and e > SQUARES.get(dtype, 1000):
        with pytest.raises(ValueError, match="dictionary must have a finite squared norm"):
            code(scaled(X, e, dtype), scaled(atoms, e, dtype), n_nonzero_coefs=3, **options)
        return
    if both:
        found = code(scaled(X, e, dtype), scaled(atoms, e, dtype), n_nonzero_coefs=3, **options)
        shift = 0
    else:
        found = code(scaled(X, e, dtype), atoms.astype(dtype), n_nonzero_coefs=3, **options)
        shift = e
    np.testing.assert_array_equal(found.indices, plain.indices)
    least = np.ldexp(float(np.finfo(found.dtype).smallest_subnormal), -shift)
    np.testing.assert_allclose(
        unscaled(found.data, shift), plain.data.astype(np.float64), rtol=1e-5, atol=least
    )
    better = fastfactor.exchange_atoms(
        scaled(X, e, dtype), scaled(atoms, e, dtype) if both else atoms.astype(dtype), found
    )
    assert np.isfinite(better.data).all()


def test_atoms_of_very_different_lengths():
    atoms = np.array([[1e20, 0], [0, 1e-20]], np.float32)
    codes = fastfactor.omp(np.ones((1, 2), np.float32), atoms, n_nonzero_coefs=2)
    np.testing.assert_allclose(codes.to_dense(), [[1e-20, 1e20]], rtol=1e-6)


def test_codes_outside_the_range_of_their_dtype_are_refused():
    X = np.full((1, 2), 1e20, np.float32)
    atoms = np.eye(2, dtype=np.float32) * np.float32(1e-20)
    for code in (fastfactor.omp, fastfactor.hashed_omp):
        with pytest.raises(ValueError, match="X must have codes within the range of float32"):
            code(X, atoms, n_nonzero_coefs=2)


@pytest.mark.parametrize("e", [-140, 120])
def test_dictionary_learning(rng, e):
    X = integers(rng, (60, 6)).astype(np.float32)
    plain = fastfactor.learn_dictionary(X, 8, n_nonzero_coefs=2, max_iter=2)
    found = fastfactor.learn_dictionary(scaled(X, e, np.float32), 8, n_nonzero_coefs=2, max_iter=2)
    np.testing.assert_allclose(found.error, plain.error, rtol=1e-4)


# --- products and selections


@extremes
def test_spmm(rng, dtype, e):
    wide = np.float64 if dtype is np.float64 else np.float32
    dense = integers(rng, (20, 9)) * (rng.random((20, 9)) < 0.1)
    x = np.eye(9)
    found = fastfactor.spmm(CSR.from_dense(scaled(dense, e, wide)), x.astype(wide))
    np.testing.assert_array_equal(unscaled(found, e), dense)


@pytest.mark.parametrize(("dtype", "e"), [pair for pair in EXTREMES if pair[0] is not np.float64])
def test_codebook_products(rng, dtype, e):
    table, codes = integers(rng, 16), rng.integers(0, 16, (20, 40))
    packed = PackedCodes.pack(codes.astype(np.uint8), 4)
    book = scaled(table, e, dtype)
    found = fastfactor.codebook_rows(packed, book.reshape(16, 1), np.arange(20))
    np.testing.assert_array_equal(unscaled(found, e), table[codes])
    product = fastfactor.codebook_matmul(np.eye(40, dtype=np.float32), packed, book.reshape(16, 1))
    np.testing.assert_array_equal(unscaled(product, e), table[codes].T)


@pytest.mark.parametrize(("dtype", "e"), [pair for pair in EXTREMES if pair[0] is not np.float64])
def test_sparse_codebook_products(rng, dtype, e):
    table = np.array([0.0, 1, -2, 3, 8])
    labels = rng.integers(0, 5, (20, 40)) * (rng.random((20, 40)) < 0.3)
    sparse = SparseCodes.from_labels(labels, scaled(table, e, dtype))
    found = fastfactor.sparse_codebook_matmul(np.eye(40, dtype=np.float32), sparse)
    np.testing.assert_array_equal(unscaled(found, e), table[labels].T)


@extremes
def test_selections(rng, dtype, e):
    W = integers(rng, (16, 32))
    for options in ({}, {"scope": "row"}, {"block_shape": (2, 4), "pool": "max"}):
        mask = fastfactor.prune_mask(scaled(W, e, dtype), 0.5, **options)
        np.testing.assert_array_equal(mask, fastfactor.prune_mask(W, 0.5, **options))
    mask = fastfactor.nm_sparsity_mask(scaled(W, e, dtype), 2, 4)
    np.testing.assert_array_equal(mask, fastfactor.nm_sparsity_mask(W, 2, 4))
    threshold = fastfactor.magnitude_threshold(scaled(W, e, dtype), 0.5)
    assert unscaled(threshold, e) == fastfactor.magnitude_threshold(W, 0.5)


@extremes
@pytest.mark.parametrize("pool", ["square", "mean"])
def test_selections_of_blocks(rng, dtype, e, pool):
    W = 8 * integers(rng, (16, 32)) if e < 0 else integers(rng, (16, 32))  # so are means of eight
    options = {"block_shape": (2, 4), "pool": pool}
    mask = fastfactor.prune_mask(scaled(W, e, dtype), 0.5, **options)
    np.testing.assert_array_equal(mask, fastfactor.prune_mask(W, 0.5, **options))
