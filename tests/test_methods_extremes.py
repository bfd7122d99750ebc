"""Every method on values near the ends of what a dtype holds: right to rounding, or refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from fastfactor import compress_file, deep_compression
from fastfactor.methods import (
    BlockDiagonal,
    BlockProjection,
    Codebook,
    DeepCompression,
    Dictionary,
    EntropyCoded,
    LowRank,
    MixedBlock,
    Prune,
    PruneCodebook,
    Simhash,
)

DICTIONARY = {"block_size": 8, "n_atoms": 16, "max_iter": 2}
METHODS = (
    BlockDiagonal(n_blocks=4),
    BlockProjection(reduction=2, block_in=8, block_out=8),
    BlockProjection(reduction=2, block_in=8, block_out=8, learned=True),
    Codebook(n_bits=3),
    Codebook(n_bits=3, codebook_dtype="bfloat16"),
    Codebook(n_bits=3, codebook_dtype="float16"),
    Codebook(n_bits=3, vector_dim=4, n_codebooks=2),
    Codebook(n_bits=4, vector_dim=2),
    DeepCompression(n_bits=3, sparsity=0.5),
    DeepCompression(n_bits=3, std_multiple=1),
    Dictionary(n_nonzero_coefs=3, **DICTIONARY),
    Dictionary(block_error=0.1, **DICTIONARY),
    Dictionary(ratio=2, **DICTIONARY),
    EntropyCoded(bits_per_weight=4),
    LowRank(rank=4),
    LowRank(max_error=0.4),
    MixedBlock(rank=4),
    Prune(max_error=0.1),
    Prune(max_error=0.1, block_shape=(2, 2)),
    Prune(nm_sparsity=(2, 4)),
    Prune(sparsity=0.5, block_shape=(2, 2)),
    Prune(std_multiple=1),
    Prune(std_multiple=1, scope="row"),
    PruneCodebook(n_bits=3, sparsity=0.5),
    Simhash(n_hashes=64),
    Simhash(n_hashes=64, axis=1),
)
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
LOST = "W must be large enough|W must have values of at least"
TOO_LARGE = "must be within|must be finite|must be farther from the end|must hold values up to"


def weights():
    W = np.random.default_rng(0).standard_normal((32, 24))
    return W / np.abs(W).max()


def metrics(rng):
    x = rng.standard_normal((60, 24))
    return {"importance": rng.random((32, 24)) + 0.1, "input_covariance": x.T @ x / 60}


def compressed(method, W, refusals, **given):
    """The factors, finite in every tensor and in W's dtype; None if they are refused."""
    try:
        factors = method.compress(W, **given)
    except ValueError as refused:
        if not any(part in str(refused) for part in f"cannot minimise|{refusals}".split("|")):
            raise
        return None
    for tensor in factors.tensors().values():
        assert np.isfinite(tensor.astype(np.float64)).all()
    assert np.isfinite(factors.to_dense().astype(np.float64)).all()
    return factors


@pytest.mark.parametrize("given", [None, "importance", "input_covariance"])
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_what_is_large_or_small_is_as_exact_or_refused(rng, method, given):
    argument = {given: metrics(rng)[given]} if given else {}
    for dtype in DTYPES:
        ends = ml_dtypes.finfo(dtype)
        plain = compressed(method, weights().astype(dtype), "", **argument)
        if plain is None:
            return
        expected = plain.error(weights().astype(dtype), **argument)
        sizes = {
            float(ends.max): TOO_LARGE,
            float(ends.max) ** 0.75: TOO_LARGE,
            float(ends.smallest_normal) * 64: LOST,
            float(ends.smallest_subnormal) * 40: LOST,
        }
        for size, refusals in sizes.items():
            W = (weights() * size).astype(dtype)
            factors = compressed(method, W, refusals, **argument)
            if factors is not None:
                allowed = max(1.5 * expected + 0.01, getattr(method, "block_error", None) or 0)
                assert factors.error(W, **argument) <= allowed


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_one_huge_weight_among_small_ones_is_kept(method):
    for dtype, huge in ((np.float16, 3e4), (np.float32, 1e30), (np.float64, 1e160)):
        W = weights()
        W[3, 4] = huge
        factors = compressed(method, W.astype(dtype), TOO_LARGE)
        if factors is not None and not isinstance(method, BlockProjection | Simhash):
            assert factors.error(W.astype(dtype)) < 0.01


@pytest.mark.parametrize("size", [46_000, 65_504])
def test_atoms_for_large_float16_weights_give_no_infinity(rng, size):
    W = rng.choice([-size, size], (64, 32)).astype(np.float16)
    factors = Dictionary(n_nonzero_coefs=2, **DICTIONARY).compress(W)
    assert np.isfinite(factors.to_dense()).all()


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32"])
def test_what_tables_would_lose_is_refused(stored):
    least = {"float16": 1e-9, "bfloat16": 1e-42, "float32": 1e-50}[stored]
    W = weights() * least
    for method in (
        Codebook(n_bits=2, codebook_dtype=stored),
        Codebook(n_bits=2, codebook_dtype=stored, balanced=True),
        PruneCodebook(sparsity=0.5, codebook_dtype=stored),
        DeepCompression(sparsity=0.5, codebook_dtype=stored),
    ):
        with pytest.raises(ValueError, match=f"W must be large enough for tables .* {stored}"):
            method.compress(W)
    with pytest.raises(ValueError, match="W must be large enough for tables"):
        deep_compression.share(W, n_bits=2, codebook_dtype=stored)
    with pytest.raises(ValueError, match="W must be large enough for atoms"):
        Dictionary(n_nonzero_coefs=2, dictionary_dtype=stored, **DICTIONARY).compress(W)


def test_a_few_small_weights_are_no_reason_to_refuse():
    W = weights().astype(np.float32)
    W[:, ::2] *= np.float32(1e-9)
    assert Codebook(n_bits=4, codebook_dtype="float16").compress(W).error(W) < 0.02


def test_zeros_are_stored_in_every_dtype():
    W = np.zeros((8, 8))
    assert Codebook(n_bits=1, codebook_dtype="float16").compress(W).error(W) == 0


def test_a_kept_tensor_is_not_rounded_to_zeros(tmp_path):
    np.savez(tmp_path / "net.npz", small=np.full(100, 1e-9, np.float32), bias=np.ones(100))
    recipe = {"default": {"method": "keep", "dtype": "float16"}}
    with pytest.raises(ValueError, match=r"'small': values must be large enough .* float16"):
        compress_file(tmp_path / "net.npz", tmp_path / "out.safetensors", recipe)
    report = compress_file(
        tmp_path / "net.npz",
        tmp_path / "out.safetensors",
        recipe | {"if_impossible": "keep"},
    )
    reasons = {row.name: row.reason for row in report.rows}
    assert reasons["small"].startswith("impossible: values must be large enough")
