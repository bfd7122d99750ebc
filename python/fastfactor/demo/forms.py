"""The compressed forms in the demonstration: a description of each, and its settings."""

from __future__ import annotations

from dataclasses import dataclass

from ..methods import (
    BlockDiagonal,
    BlockProjection,
    Codebook,
    DeepCompression,
    Dictionary,
    EntropyCoded,
    LowRank,
    Method,
    MixedBlock,
    Prune,
    PruneCodebook,
    Simhash,
)

DENSE = "dense float32"


@dataclass(frozen=True)
class Form:
    """One compressed form of the network.

    Attributes
    ----------
    lesson : str
        What B and C of ``W ≈ B ∘ C`` are for the first layer, in at most 57 characters.
    layers : tuple
        The settings for each layer; None leaves it dense.
    compact : bool
        Whether the file is written in the compact form.
    """

    lesson: str
    layers: tuple[Method | None, Method | None, Method | None]
    compact: bool = False


# The settings come from bench/experiments/demo_settings.py. Without retraining all forms classify
# at least 97 % of the digits correctly, except simhash, which would need too many bytes for it, and
# block diagonal, which cannot reach it. The last layer has 0.4 % of the weights; it stays dense
# where it is too small for the method.
FORMS = {
    "low rank": Form(
        "B is tall and C wide, from the largest singular values",
        (LowRank(rank=40), LowRank(rank=10), None),
    ),
    "dictionary": Form(
        "B picks a few atoms of C that add up to each block",
        # A block of the first layer is two rows of pixels.
        (
            Dictionary(block_error=0.3, block_size=56, n_atoms=32),
            Dictionary(block_error=0.3, block_size=50, n_atoms=32),
            None,
        ),
    ),
    "codebook, 4 bits": Form(
        "B is a 4-bit code for each weight, C the table of values",
        (Codebook(n_bits=4), Codebook(n_bits=4), Codebook(n_bits=4)),
    ),
    "codebook, vectors": Form(
        "B is a code for every 8 weights, C 256 vectors of 8",
        (Codebook(n_bits=8, vector_dim=8), Codebook(n_bits=6, vector_dim=4), None),
    ),
    "sum of codebooks": Form(
        "B is two codes for every 8 weights, C vectors to add up",
        (
            Codebook(n_bits=4, vector_dim=8, n_codebooks=2),
            Codebook(n_bits=5, vector_dim=4, n_codebooks=2),
            None,
        ),
    ),
    "entropy coded": Form(
        "B is levels, likely ones in shorter codes; C a rotation",
        (EntropyCoded(bits_per_weight=0.75), EntropyCoded(bits_per_weight=1), None),
    ),
    "pruned": Form(
        "B is the weights of largest magnitude, C their positions",
        (Prune(sparsity=0.85), Prune(sparsity=0.85), None),
    ),
    "pruned + codebook": Form(
        "B is codes of the weights that are kept, C their table",
        (PruneCodebook(sparsity=0.85, n_bits=4), PruneCodebook(sparsity=0.85, n_bits=4), None),
    ),
    "deep compression": Form(
        "the same, with codes and gaps Huffman-coded",
        (
            DeepCompression(sparsity=0.85, n_bits=4),
            DeepCompression(sparsity=0.85, n_bits=4),
            DeepCompression(sparsity=0, n_bits=4),
        ),
        compact=True,
    ),
    "simhash": Form(
        "B is random, from a seed; C is signs of projections of W",
        (Simhash(n_hashes=1024), Simhash(n_hashes=512), None),
    ),
    "block projection": Form(
        "C reduces each block of inputs; B multiplies the result",
        (
            BlockProjection(reduction=6, block_in=28, block_out=1, learned=True),
            BlockProjection(reduction=2, block_in=50, block_out=1, learned=True),
            None,
        ),
    ),
    "block diagonal": Form(
        "B is diagonal blocks, C a permutation; for training",
        (BlockDiagonal(n_blocks=2), None, None),
    ),
    "mixed blocks": Form(
        "C is a few blocks; B mixes them for each position in W",
        (MixedBlock(rank=5, block_shape=(1, 28)), MixedBlock(rank=30, block_shape=(1, 100)), None),
    ),
}
