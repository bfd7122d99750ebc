"""Factors to train from scratch."""

from __future__ import annotations

import numpy as np
import pytest
from fastfactor.methods import BlockDiagonal, BlockProjection, Codebook, LowRank, MixedBlock, Prune
from fastfactor.training import CompressedMatrix, FromScratch


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "method",
    [
        LowRank(rank=3),
        BlockDiagonal(n_blocks=4),
        MixedBlock(rank=2),
        BlockProjection(reduction=2, block_in=8, block_out=8),
        Codebook(n_bits=1),
        Prune(sparsity=0.9),
    ],
    ids=repr,
)
def test_the_product_is_as_large_as_the_weights(method, dtype):
    W = np.random.default_rng(0).uniform(-0.3, 0.3, (48, 32)).astype(dtype)
    before = W.copy()
    factors = FromScratch(method).compress(W)
    plain = method.compress(W)
    assert (factors.kind, factors.nbytes) == (plain.kind, plain.nbytes)
    given, wanted = np.mean(factors.to_dense() ** 2.0), np.mean(W**2.0)
    np.testing.assert_allclose(given, wanted, rtol=1e-3)
    assert np.mean(plain.to_dense() ** 2.0) < 0.97 * wanted
    np.testing.assert_array_equal(W, before)


def test_it_is_a_compressor_of_a_matrix_in_training():
    matrix = CompressedMatrix(FromScratch(LowRank(rank=2)))
    W = np.random.default_rng(0).standard_normal((6, 5))
    assert matrix.advance(0, lambda: W).finished
    assert matrix.trainable == ("B", "C")


def test_what_it_refuses():
    with pytest.raises(TypeError, match="method must be the settings of a method, got 'low_rank'"):
        FromScratch("low_rank")
    with pytest.raises(
        ValueError, match="W must be random numbers, got a matrix whose factors are"
    ):
        FromScratch(LowRank(rank=2)).compress(np.zeros((4, 3)))
