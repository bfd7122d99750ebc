from __future__ import annotations

import numpy as np
import pytest
from contract import MethodContract
from fastfactor import CorruptDataError
from fastfactor.methods import LowRank, MixedBlock, MixedBlockFactors


class TestMixedBlock(MethodContract):
    METHODS = (
        MixedBlock(rank=2),
        MixedBlock(rank=5, block_shape=(3, 16)),
        MixedBlock(rank=4, block_shape=(8, 4)),
    )
    EXACT_BITS = False


def laid_out(W, rows, columns):
    """Its blocks, one a row, by a loop."""
    return np.array(
        [
            W[i : i + rows, j : j + columns].reshape(-1)
            for i in range(0, W.shape[0], rows)
            for j in range(0, W.shape[1], columns)
        ]
    )


@pytest.mark.parametrize("block_shape", [(2, 3), (6, 10), (12, 1), (1, 30)])
def test_the_error_is_the_least_there_is(rng, block_shape):
    W = rng.standard_normal((12, 30))
    singular = np.linalg.svd(laid_out(W, *block_shape), compute_uv=False)
    for rank in (1, 2):
        factors = MixedBlock(rank=rank, block_shape=block_shape).compress(W)
        best = np.sum(singular[rank:] ** 2) / np.sum(singular**2)
        assert factors.error(W) == pytest.approx(best, rel=1e-9, abs=1e-12)


def test_it_is_the_published_sum(rng):
    W = rng.standard_normal((12, 30))
    factors = MixedBlock(rank=3, block_shape=(4, 5)).compress(W)
    M, blocks = factors.mixture, factors.blocks
    dense = sum(np.kron(M[:, :, k], blocks[k]) for k in range(3))
    np.testing.assert_allclose(factors.to_dense(), dense, rtol=1e-12, atol=1e-12)
    x = rng.standard_normal(30)
    y = [
        sum(M[i, j, k] * blocks[k] @ x[5 * j : 5 * j + 5] for j in range(6) for k in range(3))
        for i in range(3)
    ]
    np.testing.assert_allclose(factors.linear(x), np.concatenate(y), rtol=1e-12, atol=1e-12)


def test_kronecker_products_are_found(rng):
    W = sum(
        np.kron(rng.standard_normal((4, 6)), rng.standard_normal((5, 7))) for _ in range(2)
    ).astype(np.float32)
    factors = MixedBlock(max_error=1e-6, block_shape=(5, 7)).compress(W)
    assert factors.blocks.shape == (2, 5, 7)
    assert LowRank(ratio=W.nbytes / factors.nbytes).compress(W).error(W) > 0.1


def test_weights_without_importance_are_free(rng):
    W = np.kron(rng.standard_normal((6, 6)), rng.standard_normal((5, 7))).astype(np.float32)
    hidden = rng.random(W.shape) < 0.2
    importance = np.where(hidden, 0.0, 1.0)
    spoiled = np.where(hidden, 50 * rng.standard_normal(W.shape), W).astype(np.float32)
    factors = MixedBlock(rank=1, block_shape=(5, 7)).compress(spoiled, importance=importance)
    assert factors.error(spoiled, importance=importance) < 1e-3


def test_a_covariance_that_all_blocks_share_reaches_the_optimum(rng):
    """There the blocks need only be weighed each by itself, and an SVD has the answer."""
    W = rng.standard_normal((12, 30)) * np.tile(np.geomspace(0.2, 4, 5), 6)
    x = rng.standard_normal((50, 5)) * np.geomspace(3, 0.1, 5)
    values, vectors = np.linalg.eigh(x.T @ x / 50)
    covariance = np.kron(np.eye(6), (vectors * values) @ vectors.T)
    half = np.kron(np.eye(6), vectors * np.sqrt(values))
    singular = np.linalg.svd(laid_out(W @ half, 4, 5), compute_uv=False)
    for rank in (1, 3):
        settings = MixedBlock(rank=rank, block_shape=(4, 5))
        factors = settings.compress(W, input_covariance=covariance)
        best = np.sum(singular[rank:] ** 2) / np.sum(singular**2)
        assert factors.error(W, input_covariance=covariance) <= 1.01 * best
        assert settings.compress(W).error(W, input_covariance=covariance) > 1.05 * best


def test_sizes_and_errors_may_be_asked_for_under_a_covariance(rng):
    W = rng.standard_normal((24, 32))
    x = rng.standard_normal((100, 32)) @ rng.standard_normal((32, 32))
    given = {"input_covariance": x.T @ x / 100}
    plain = MixedBlock(rank=6).compress(W, **given)
    error = plain.error(W, **given)
    by_ratio = MixedBlock(ratio=W.nbytes / plain.nbytes).compress(W, **given)
    assert by_ratio.blocks.shape[0] == 6
    by_error = MixedBlock(max_error=error * 1.001).compress(W, **given)
    assert by_error.error(W, **given) <= error * 1.001
    assert by_error.nbytes <= plain.nbytes


@pytest.mark.parametrize(
    ("shape", "block"), [((300, 784), (15, 28)), ((17, 31), (1, 31)), ((1, 1), (1, 1))]
)
def test_blocks_are_about_as_many_as_their_entries(shape, block):
    W = np.ones(shape, np.float32)
    assert MixedBlock(rank=1).compress(W).blocks.shape[1:] == block


def test_blocks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"block_shape must divide the shape of W, \(24, 32\)"):
        MixedBlock(rank=1, block_shape=(5, 8)).compress(np.ones((24, 32)))
    with pytest.raises(ValueError, match="block_shape must be two integers"):
        MixedBlock(rank=1, block_shape=(5, 8, 1))
    with pytest.raises(ValueError, match="block_shape must be at least 1"):
        MixedBlock(rank=1, block_shape=(0, 8))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_matrices_without_weights(shape):
    factors = MixedBlock(rank=1).compress(np.zeros(shape, np.float32))
    assert factors.to_dense().shape == shape
    assert factors.linear(np.ones((2, shape[1]), np.float32)).shape == (2, shape[0])


def test_blocks_of_another_matrix_are_refused(rng):
    factors = MixedBlock(rank=2, block_shape=(4, 5)).compress(rng.standard_normal((12, 30)))
    for blocks in (np.zeros((2, 5, 5)), np.zeros((2, 4, 4)), np.zeros((2, 0, 5))):
        with pytest.raises(CorruptDataError):
            MixedBlockFactors.from_tensors(
                factors.tensors() | {"blocks": blocks}, {}, (12, 30), factors.dtype
            )
