"""Factors of every kind, and what their products in another library must be: by dense matrices."""

from __future__ import annotations

import numpy as np
from fastfactor.methods import (
    BlockDiagonal,
    BlockProjection,
    Codebook,
    ConvBicluster,
    ConvCP,
    ConvMonochromatic,
    ConvSeparable,
    ConvSVD,
    DeepCompression,
    Dictionary,
    EntropyCoded,
    LowRank,
    MixedBlock,
    Prune,
    PruneCodebook,
    Simhash,
)

SHAPE = (21, 16)
CASES = {
    "block_diagonal": BlockDiagonal(n_blocks=4),
    "block_diagonal-padded": BlockDiagonal(n_blocks=5, permute=False),
    "block_diagonal-equal": BlockDiagonal(n_blocks=1),
    "block_projection-drawn": BlockProjection(reduction=2, block_in=5, block_out=4),
    "block_projection": BlockProjection(reduction=2, block_in=5, block_out=4, learned=True),
    "block_projection-own": BlockProjection(
        reduction=2, block_in=8, block_out=7, learned=True, shared=False
    ),
    "codebook": Codebook(n_bits=3),
    "codebook-vectors": Codebook(n_bits=2, vector_dim=2, granularity="row", group_size=6),
    "codebook-sum": Codebook(n_bits=2, vector_dim=4, n_codebooks=2),
    "conv_bicluster_cp": ConvBicluster(ranks=2, inside="cp", n_clusters=(2, 3), kernel_size=(2, 2)),
    "conv_bicluster_svd": ConvBicluster(ranks=(1, 2), n_clusters=(2, 3), kernel_size=(2, 2)),
    "conv_cp": ConvCP(rank=3, kernel_size=(4, 2), groups=3),
    "conv_monochromatic": ConvMonochromatic(n_colors=3, kernel_size=(2, 2)),
    "conv_separable": ConvSeparable(rank=2, kernel_size=(2, 2)),
    "conv_svd": ConvSVD(ranks=(2, 3), kernel_size=(2, 2)),
    "deep_compression": DeepCompression(sparsity=0.5, n_bits=3),
    "dictionary": Dictionary(n_nonzero_coefs=2, n_atoms=6, block_size=8, max_iter=2),
    "dictionary-uneven": Dictionary(block_error=0.5, n_atoms=6, block_size=8, max_iter=2),
    "entropy_coded": EntropyCoded(bits_per_weight=4),
    "low_rank": LowRank(rank=3),
    "mixed_block": MixedBlock(rank=2),
    "prune": Prune(sparsity=0.5),
    "prune-blocks": Prune(sparsity=0.9, block_shape=(4, 3)),
    "prune-few": Prune(sparsity=0.9, scope="row"),
    "prune_codebook-few": PruneCodebook(sparsity=0.9, n_bits=2, scope="row"),
    "prune_codebook": PruneCodebook(sparsity=0.5, n_bits=2),
    "simhash": Simhash(n_hashes=3),
    "simhash-many": Simhash(n_hashes=40),
    "simhash-rows": Simhash(n_hashes=3, axis=1),
}
FEW, MANY = 1, 40  # inputs: products may go another way for few


def factors_of(case):
    rng = np.random.default_rng(0)
    W = rng.standard_normal((SHAPE[0], 3)) @ rng.standard_normal((3, SHAPE[1]))
    return CASES[case].compress((W + 0.3 * rng.standard_normal(SHAPE)).astype(np.float32))


def trained(factors, dtype):
    """The trained tensors of factors in a dtype."""
    return {name: factors.tensors()[name].astype(dtype) for name in factors.trainable}


def dense(factors, **moved):
    """W in float64, with other values in some tensors."""
    again = type(factors).from_tensors(
        factors.tensors() | moved, factors.config(), factors.shape, factors.dtype
    )
    return again.to_dense().astype(np.float64)


def check_gradients(factors, gradients, of_dense):
    """Compare with the differences that a change of each value makes in ``sum(of_dense · W)``.

    W is linear in each value, so the differences are exact but for rounding. Zeros of a table are
    left out, because a table that must have a zero is refused without it.
    """
    before = dense(factors)
    for name in factors.trainable:
        plain, expected = factors.tensors()[name], []
        places = np.argwhere(plain)
        for place in map(tuple, places):
            moved = plain.copy()
            moved[place] *= 2
            change = np.sum(of_dense * (dense(factors, **{name: moved}) - before))
            expected.append(change / plain[place])
        assert gradients[name].shape == plain.shape
        found = np.array([gradients[name][tuple(place)] for place in places])
        scale = max(1, np.abs(expected).max())
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * scale, err_msg=name)
