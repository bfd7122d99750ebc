"""The forms that the demonstration shows: what each is, and the settings of each layer."""

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
    """One line of the demonstration.

    Attributes
    ----------
    lesson : str
        What B and C of ``W ≈ B ∘ C`` are for the first layer, in 57 characters at most.
    layers : tuple
        Settings of each layer; None leaves it dense.
    compact : bool
        Whether its file is written in the compact form.
    """

    lesson: str
    layers: tuple[Method | None, Method | None, Method | None]
    compact: bool = False


# Why these settings: bench/experiments/demo_settings.py. Without retraining all forms keep 97 % of
# the digits right but simhash, which would take more bytes than it is worth, and block diagonal,
# which cannot. The last layer, 0.4 % of the weights, stays dense where it has too few.
FORMS = {
    "low rank": Form(
        "B is tall, C wide: what the largest singular values span",
        (LowRank(rank=40), LowRank(rank=10), None),
    ),
    "dictionary": Form(
        "B says which few of C's atoms add up to a block of a row",
        # A block of the first layer is two rows of pixels.
        (
            Dictionary(block_error=0.3, block_size=56, n_atoms=32),
            Dictionary(block_error=0.3, block_size=50, n_atoms=32),
            None,
        ),
    ),
    "codebook, 4 bits": Form(
        "B is a code of 4 bits a weight, C the 16 values they mean",
        (Codebook(n_bits=4), Codebook(n_bits=4), Codebook(n_bits=4)),
    ),
    "codebook, vectors": Form(
        "B is a code for 8 weights at once, C 256 vectors of 8",
        (Codebook(n_bits=8, vector_dim=8), Codebook(n_bits=6, vector_dim=4), None),
    ),
    "sum of codebooks": Form(
        "B is two codes for 8 weights, C the vectors they add up",
        (
            Codebook(n_bits=4, vector_dim=8, n_codebooks=2),
            Codebook(n_bits=5, vector_dim=4, n_codebooks=2),
            None,
        ),
    ),
    "entropy coded": Form(
        "B is levels, likely ones in fewer bits; C turns the axes",
        (EntropyCoded(bits_per_weight=0.75), EntropyCoded(bits_per_weight=1), None),
    ),
    "pruned": Form(
        "B is the weights of largest magnitude, C where they stand",
        (Prune(sparsity=0.85), Prune(sparsity=0.85), None),
    ),
    "pruned + codebook": Form(
        "B is codes of the weights that are kept, C their table",
        (PruneCodebook(sparsity=0.85, n_bits=4), PruneCodebook(sparsity=0.85, n_bits=4), None),
    ),
    "deep compression": Form(
        "the same, codes and gaps between them Huffman-coded",
        (
            DeepCompression(sparsity=0.85, n_bits=4),
            DeepCompression(sparsity=0.85, n_bits=4),
            DeepCompression(sparsity=0, n_bits=4),
        ),
        compact=True,
    ),
    "simhash": Form(
        "B is random, from a seed; C is signs of W's projections",
        (Simhash(n_hashes=1024), Simhash(n_hashes=512), None),
    ),
    "block projection": Form(
        "C makes inputs fewer, block by block; B multiplies those",
        (
            BlockProjection(reduction=6, block_in=28, block_out=1, learned=True),
            BlockProjection(reduction=2, block_in=50, block_out=1, learned=True),
            None,
        ),
    ),
    "block diagonal": Form(
        "B is blocks, C who belongs to which: a form to train in",
        (BlockDiagonal(n_blocks=2), None, None),
    ),
    "mixed blocks": Form(
        "C is a few blocks; B mixes them for each place in W",
        (MixedBlock(rank=5, block_shape=(1, 28)), MixedBlock(rank=30, block_shape=(1, 100)), None),
    ),
}
