from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from contract import MethodContract
from fastfactor import CorruptDataError, kmeans1d, prune_mask
from fastfactor.methods import Prune, PruneCodebook, PruneCodebookFactors
from fastfactor.methods.forward import NUMPY


class TestPruneCodebook(MethodContract):
    METHODS = (
        PruneCodebook(sparsity=0.5),
        PruneCodebook(sparsity=0.9, n_bits=5, codebook_dtype="bfloat16"),
        PruneCodebook(sparsity=0.5, n_bits=3, scope="row"),
        PruneCodebook(sparsity=0.5, n_bits=2, block_shape=(4, 4), codebook_dtype="float16"),
    )


@pytest.mark.parametrize("n_bits", range(1, 9))
@pytest.mark.parametrize("sparsity", [0, 0.8, 1])
def test_weights_kept_are_the_best_of_so_many_values_and_zero(rng, n_bits, sparsity):
    W = rng.standard_normal((30, 40)).astype(np.float32)
    factors = PruneCodebook(sparsity=sparsity, n_bits=n_bits).compress(W)
    mask = prune_mask(W, sparsity)
    dense = factors.to_dense()
    assert not dense[~mask].any()
    assert len(np.unique(dense)) <= 2**n_bits
    if mask.any():
        best = kmeans1d(W[mask], 2**n_bits, fixed=[0]).inertia
        lost = np.sum((W[mask] - dense[mask]).astype(np.float64) ** 2)
        assert lost == pytest.approx(best, rel=1e-5, abs=1e-9)
    x = rng.standard_normal((3, 40)).astype(np.float32)
    np.testing.assert_allclose(factors.linear(x), x @ dense.T, atol=1e-4)
    trained = {"codebook": factors.codebook}
    np.testing.assert_allclose(factors.forward(NUMPY, trained, x), x @ dense.T, atol=1e-4)


def test_what_is_stored_is_codes_table_and_positions(rng):
    W = rng.standard_normal((100, 120)).astype(np.float32)
    factors = PruneCodebook(sparsity=0.9, n_bits=3).compress(W)
    plain = Prune(sparsity=0.9).compress(W)
    np.testing.assert_array_equal(factors.kept.places(), plain.kept.places())
    expected = 1200 * 3 // 8 + 4 * 8 + plain.kept.positions.nbytes
    assert factors.nbytes == expected


def test_zeros_stay_zeros_whatever_training_makes_of_the_table(rng):
    W = rng.standard_normal((20, 30)).astype(np.float32)
    factors = PruneCodebook(sparsity=0.7, n_bits=3).compress(W)
    moved = {"codebook": factors.codebook + 5}
    product = factors.forward(NUMPY, moved, np.eye(30, dtype=np.float32)).T
    np.testing.assert_array_equal(product != 0, prune_mask(W, 0.7))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.float16, np.float16),
        (ml_dtypes.bfloat16, ml_dtypes.bfloat16),
        (np.float32, np.float32),
        (np.float64, np.float32),
    ],
)
def test_the_table_has_the_dtype_of_the_matrix(rng, dtype, expected):
    W = rng.standard_normal((10, 20)).astype(dtype)
    assert PruneCodebook(sparsity=0.5).compress(W).codebook.dtype == expected


def test_values_minimise_the_weighted_error(rng):
    W = rng.standard_normal((40, 50)).astype(np.float32)
    importance = rng.random(W.shape) ** 5
    factors = PruneCodebook(sparsity=0.5, n_bits=2).compress(W, importance=importance)
    mask = prune_mask(np.sqrt(importance) * W, 0.5)
    best = kmeans1d(W[mask], 4, sample_weight=importance[mask], fixed=[0]).inertia
    lost = best + np.sum((importance * W**2)[~mask])
    total = np.sum(importance * W.astype(np.float64) ** 2)
    error = factors.error(W, importance=importance)
    assert error == pytest.approx(lost / total, rel=1e-4)


def test_other_ways_to_prune(rng):
    W = rng.standard_normal((20, 40)).astype(np.float32)
    halves = PruneCodebook(nm_sparsity=(2, 4), n_bits=6).compress(W).to_dense()
    assert (np.count_nonzero(halves.reshape(-1, 4), axis=1) == 2).all()
    above = PruneCodebook(std_multiple=1.0, n_bits=6).compress(W).to_dense()
    np.testing.assert_array_equal(above != 0, np.abs(W) >= W.astype(np.float64).std())


def test_float64_input_is_multiplied_in_float64(rng):
    W = rng.standard_normal((30, 16)).astype(np.float32)
    factors = PruneCodebook(sparsity=0.5).compress(W)
    x = rng.standard_normal((3, 16))
    product = factors.linear(x)
    assert product.dtype == np.float64
    np.testing.assert_allclose(product, x @ factors.to_dense().T.astype(np.float64), rtol=1e-12)


def test_settings_are_checked(rng):
    with pytest.raises(ValueError, match=r"n_bits must be in \[1, 8\], got 9"):
        PruneCodebook(sparsity=0.5, n_bits=9)
    with pytest.raises(ValueError, match="codebook_dtype must be one of"):
        PruneCodebook(sparsity=0.5, codebook_dtype="int8")
    with pytest.raises(ValueError, match="W must be within ±65504 for tables of float16"):
        PruneCodebook(sparsity=0.5, codebook_dtype="float16").compress(
            1e6 * rng.standard_normal((3, 3))
        )


@pytest.mark.parametrize("shape", [(0, 8), (5, 0), (0, 0)])
def test_empty_matrices_stay_empty(shape):
    factors = PruneCodebook(sparsity=0.5).compress(np.zeros(shape, np.float32))
    assert factors.to_dense().shape == shape
    assert factors.linear(np.zeros((2, shape[1]), np.float32)).shape == (2, shape[0])


def test_a_table_without_zero_is_refused(rng):
    factors = PruneCodebook(sparsity=0.5, n_bits=2).compress(
        rng.standard_normal((4, 6)).astype(np.float32)
    )
    for broken in (factors.codebook + 100, factors.codebook * np.nan):
        tensors = {**factors.tensors(), "codebook": broken}
        with pytest.raises(CorruptDataError, match="finite and contain a zero"):
            PruneCodebookFactors.from_tensors(
                tensors, factors.config(), factors.shape, factors.dtype
            )
