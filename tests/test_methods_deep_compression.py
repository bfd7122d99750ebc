from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from contract import MethodContract
from fastfactor import CorruptDataError, deep_compression, huffman_encode, prune_mask
from fastfactor.methods import (
    DeepCompression,
    DeepCompressionFactors,
    Prune,
    PruneCodebook,
)
from fastfactor.methods.deep_compression.streams import decoded_stream
from fastfactor.methods.forward import NUMPY


class TestDeepCompression(MethodContract):
    METHODS = (
        DeepCompression(sparsity=0.5, init="exact"),
        DeepCompression(sparsity=0.9, n_bits=4, gap_bits=5, init="exact"),
        DeepCompression(sparsity=0.5, n_bits=3, scope="row", init="exact"),
        DeepCompression(
            sparsity=0.5, n_bits=2, block_shape=(4, 4), codebook_dtype="bfloat16", init="exact"
        ),
    )


@pytest.mark.parametrize("init", ["linear", "density", "random", "exact"])
@pytest.mark.parametrize(
    "goal", [{"sparsity": 0.8}, {"std_multiple": 1.0}, {"nm_sparsity": (1, 4)}]
)
def test_it_is_the_three_stages_one_after_the_other(rng, init, goal):
    W = rng.standard_normal((30, 40)).astype(np.float32)
    factors = DeepCompression(n_bits=4, init=init, **goal).compress(W)
    mask = Prune(**goal).compress(W).to_dense() != 0
    shared = deep_compression.share(W, mask, n_bits=4, init=init)
    expected = deep_compression.encode(shared)
    assert factors.config() == expected.config()
    for name, tensor in factors.tensors().items():
        np.testing.assert_array_equal(tensor, expected.tensors()[name])


def test_importance_decides_what_stays_and_weighs_the_values(rng):
    W = rng.standard_normal((30, 40)).astype(np.float32)
    importance = rng.random(W.shape) ** 4
    factors = DeepCompression(sparsity=0.7, n_bits=3, init="exact").compress(
        W, importance=importance
    )
    mask = prune_mask(np.sqrt(importance) * W, 0.7)
    shared = deep_compression.share(W, mask, n_bits=3, init="exact", importance=importance)
    np.testing.assert_array_equal(factors.to_dense(), shared.to_dense())
    lost = np.sum(importance * (W - shared.to_dense().astype(np.float64)) ** 2)
    expected = lost / np.sum(importance * W.astype(np.float64) ** 2)
    assert factors.error(W, importance=importance) == pytest.approx(expected, rel=1e-5)


def test_all_that_stays_may_count_for_nothing():
    W = np.diag([0, 1]).astype(np.float32)
    factors = DeepCompression(sparsity=0, n_bits=2).compress(W, importance=np.diag([1.0, 0]))
    np.testing.assert_array_equal(factors.to_dense(), W)


def test_zeros_are_not_kept_whatever_the_sparsity(rng):
    W = rng.standard_normal((20, 30)).astype(np.float32)
    pruned = np.where(prune_mask(W, 0.7), W, 0)
    for sparsity in (0, 0.3, 0.7):
        factors = DeepCompression(sparsity=sparsity, n_bits=8).compress(pruned)
        assert factors.sizes.n_kept == 180
        np.testing.assert_array_equal(factors.to_dense() != 0, pruned != 0)


def test_smaller_than_codes_and_positions_without_huffman_at_equal_error(rng):
    W = rng.standard_normal((64, 64)) * np.exp(rng.standard_normal((64, 1)))
    for error in (0.1, 0.05):
        plain = PruneCodebook(max_error=error).compress(W)
        coded = DeepCompression(max_error=error).compress(W)
        assert coded.error(W) <= error
        assert coded.nbytes < 0.85 * plain.nbytes


def test_zeros_stay_zeros_whatever_training_makes_of_the_table(rng):
    W = rng.standard_normal((20, 30)).astype(np.float32)
    factors = DeepCompression(sparsity=0.7, n_bits=3).compress(W)
    moved = {"codebook": factors.codebook + 5}
    product = factors.forward(NUMPY, moved, np.eye(30, dtype=np.float32)).T
    np.testing.assert_array_equal(product != 0, prune_mask(W, 0.7))


def test_float64_input_is_multiplied_in_float64(rng):
    W = rng.standard_normal((30, 16)).astype(np.float32)
    factors = DeepCompression(sparsity=0.5).compress(W)
    x = rng.standard_normal((3, 16))
    product = factors.linear(x)
    assert product.dtype == np.float64
    np.testing.assert_allclose(product, x @ factors.to_dense().T.astype(np.float64), rtol=1e-12)


@pytest.mark.parametrize("gap_bits", [None, 1, 4, 9, 16])
@pytest.mark.parametrize("sparsity", [0, 0.3, 0.9, 0.999, 1])
def test_no_matrix_takes_more_than_planned(rng, sparsity, gap_bits):
    """Even values in even gaps are what Huffman codes gain nothing from."""
    even = np.tile(np.arange(1, 17, dtype=np.float32), (64, 4))
    rare = np.zeros((64, 64), np.float32)
    rare[-1] = even[0]
    for W in (even, rare, rng.permuted(even, axis=1)):
        settings = DeepCompression(sparsity=sparsity, n_bits=4, gap_bits=gap_bits)
        planned = settings.planned_size(W.shape, W.dtype)
        assert settings.compress(W).nbytes <= planned.nbytes
        assert not planned.exact


def test_settings_are_checked(rng):
    for options, message in (
        ({"n_bits": 0}, r"n_bits must be in \[1, 8\], got 0"),
        ({"n_bits": 9}, r"n_bits must be in \[1, 8\], got 9"),
        ({"gap_bits": 0}, r"gap_bits must be in \[1, 16\], got 0"),
        ({"init": "best"}, "init must be one of"),
        ({"codebook_dtype": "float64"}, "codebook_dtype must be one of"),
        (
            {"std_multiple": 0.5},
            "one of sparsity, std_multiple, nm_sparsity, ratio, max_error must be given",
        ),
        ({"sparsity": 1.5}, r"sparsity must be in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            DeepCompression(**{"sparsity": 0.5, **options})
    with pytest.raises(ValueError, match="W must be within ±65504 for tables of float16"):
        DeepCompression(sparsity=0.5, codebook_dtype="float16").compress(
            1e6 * rng.standard_normal((3, 3))
        )


@pytest.mark.parametrize("shape", [(0, 8), (5, 0), (0, 0)])
def test_empty_matrices_stay_empty(shape):
    factors = DeepCompression(sparsity=0.5).compress(np.zeros(shape, np.float32))
    assert factors.to_dense().shape == shape
    assert factors.linear(np.zeros((2, shape[1]), np.float32)).shape == (2, shape[0])


def test_codebooks_that_none_may_be_are_refused(rng):
    W = rng.standard_normal((4, 6)).astype(np.float32)
    factors = DeepCompression(sparsity=0.5, n_bits=2).compress(W)
    for broken in (
        factors.codebook * np.nan,
        factors.codebook[:0],
        np.zeros((257, 1), np.float32),
        factors.codebook[:2],
    ):
        tensors = {**factors.tensors(), "codebook": broken}
        with pytest.raises(CorruptDataError):
            DeepCompressionFactors.from_tensors(
                tensors, factors.config(), factors.shape, factors.dtype
            )


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
    factors = DeepCompression(sparsity=0.5).compress(W)
    assert factors.codebook.dtype == expected
    assert factors.to_dense().dtype == dtype


def test_a_stream_that_is_too_long_is_refused_without_decoding_it():
    data = huffman_encode(np.zeros(1 << 22, np.uint8))
    with pytest.raises(CorruptDataError, match="1 numbers of 4 bits must have at most 1 bytes"):
        decoded_stream(data, 1, 4)
