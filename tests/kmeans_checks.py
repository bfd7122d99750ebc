"""What the tests of kmeans and assign share: data, and what holds for every result."""

from __future__ import annotations

import numpy as np
import oracle
import pytest

SIZES = [1, 2, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65]
FLOATS = [np.float32, np.float64]


def blobs(rng, n_samples, n_features, n_blobs, spread=0.05):
    centres = rng.uniform(-1, 1, (n_blobs, n_features))
    return centres[rng.integers(n_blobs, size=n_samples)] + spread * rng.standard_normal(
        (n_samples, n_features)
    )


def assert_same_bits(one, other):
    for name in one._fields:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        assert np.asarray(getattr(one, name)).dtype == np.asarray(getattr(other, name)).dtype


def assert_consistent(result, X, n_clusters, weights=None):
    """What holds for every result: shapes, labels as exact as promised, inertia as defined."""
    n_samples, n_features = X.shape
    dtype = np.float64 if X.dtype == np.float64 else np.float32
    assert result.centroids.shape == (n_clusters, n_features)
    assert result.centroids.dtype == dtype
    assert result.labels.shape == (n_samples,)
    assert result.labels.dtype == np.int32
    assert np.isfinite(result.centroids).all()
    assert ((result.labels >= 0) & (result.labels < n_clusters)).all()
    assert oracle.label_excess(X, result.centroids, result.labels, np.finfo(dtype).eps) <= 1
    expected = oracle.inertia(X, result.centroids, result.labels, weights)
    assert result.inertia == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert isinstance(result.inertia, float)
    assert isinstance(result.n_iter, int)
