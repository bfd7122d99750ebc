"""Matrices whose values, or their squares, are near the end of what a dtype holds."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from fastfactor.methods import (
    BlockDiagonal,
    BlockProjection,
    Codebook,
    LowRank,
    MixedBlock,
    Prune,
    Simhash,
)
from fastfactor.methods.narrow import narrowed

METHODS = (
    BlockDiagonal(n_blocks=2),
    BlockProjection(reduction=2, block_in=5, block_out=5),
    BlockProjection(reduction=2, block_in=5, block_out=5, learned=True),
    LowRank(rank=2),
    Simhash(n_hashes=33),
    Simhash(n_hashes=33, axis=1),
    Simhash(n_hashes=33, scale="norm"),
)


def matrix(rng, dtype, largest):
    W = rng.standard_normal((12, 10))
    return (W / np.abs(W).max() * largest).astype(dtype)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("largest", [1e200, 1e-200])
def test_squares_out_of_range_change_nothing(rng, method, largest):
    W = matrix(rng, np.float64, 1.0)
    power = 2.0 ** np.round(np.log2(largest))
    plain, far = method.compress(W), method.compress(W * power)
    np.testing.assert_array_equal(far.to_dense(), plain.to_dense() * power)
    assert far.error(W * power) == plain.error(W)


@pytest.mark.parametrize("method", [LowRank(rank=2), MixedBlock(rank=2)])
@pytest.mark.parametrize("power", [2.0**-1000, 2.0**200])
def test_the_unit_of_an_importance_changes_nothing(rng, method, power):
    W, importance = matrix(rng, np.float64, 1.0), rng.random((12, 10))
    plain = method.compress(W, importance=importance)
    far = method.compress(W, importance=importance * power)
    np.testing.assert_array_equal(far.to_dense(), plain.to_dense())
    assert method.compress(np.zeros_like(W), importance=importance * power).error(W) == 1


def test_the_error_of_tiny_weights_is_not_zero(rng):
    W = matrix(rng, np.float64, 1e-300)
    assert Prune(sparsity=1).compress(W).error(W) == 1


@pytest.mark.parametrize("method", [*METHODS[:-1], MixedBlock(rank=2)])
@pytest.mark.parametrize("given", [None, "importance", "input_covariance"])
def test_float16_near_its_largest_stays_finite(rng, method, given):
    W = matrix(rng, np.float16, 65000)
    x = rng.standard_normal((10, 1))
    metrics = {"importance": 10.0 ** rng.uniform(-30, 30, W.shape), "input_covariance": x @ x.T}
    factors = method.compress(W, **({given: metrics[given]} if given else {}))
    assert all(np.isfinite(tensor).all() for tensor in factors.tensors().values())
    assert np.isfinite(factors.to_dense()).all()
    assert np.isfinite(factors.error(W))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_hashes_of_large_weights_are_those_of_small_ones(rng, dtype):
    W = matrix(rng, np.float32, 1.0).astype(dtype)
    plain, far = (Simhash(n_hashes=40).compress(V) for V in (W, W * dtype(2.0**127)))
    np.testing.assert_array_equal(far.signs, plain.signs)
    np.testing.assert_array_equal(far.scale, plain.scale * dtype(2.0**127))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("vector_dim", [1, 2])
def test_codes_for_outputs_of_large_weights(rng, dtype, vector_dim):
    W = matrix(rng, dtype, 0.99 * np.finfo(dtype).max)
    x = rng.standard_normal((10, 1))
    method = Codebook(n_bits=2, vector_dim=vector_dim, granularity="row")
    for covariance in (x @ x.T, np.eye(10) + x @ x.T):
        error = method.compress(W, input_covariance=covariance).error(
            W, input_covariance=covariance
        )
        assert error <= method.compress(W).error(W, input_covariance=covariance)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_what_is_out_of_range_becomes_the_largest(dtype):
    largest = float(ml_dtypes.finfo(dtype).max)
    wide = np.array([1e300, -1e300, 2.5, largest, 0])
    result = narrowed(wide, np.dtype(dtype))
    assert result.dtype == dtype
    assert result.astype(np.float64).tolist() == [largest, -largest, 2.5, largest, 0]
