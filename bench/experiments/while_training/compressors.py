"""The methods that are compared, at a size, and the learning rates of their factors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from fastfactor.methods import (
    Codebook,
    DeepCompression,
    Dictionary,
    EntropyCoded,
    Factors,
    LowRank,
    Prune,
    PruneCodebook,
    Simhash,
)
from fastfactor.training import Compressor, GradualPrune, SparsityRamp

# Atoms and columns of a block: what has the least error depends on the matrix and on the size.
DICTIONARIES = ((128, 16), (64, 32), (16, 48))


@dataclass(frozen=True)
class BestDictionary:
    """The dictionary of least error among several settings that have a size."""

    ratio: float
    shapes: tuple[tuple[int, int], ...] = field(default=DICTIONARIES)

    def compress(self, W: np.ndarray) -> Factors:
        found = []
        for n_atoms, block_size in self.shapes:
            method = Dictionary(
                ratio=self.ratio,
                n_atoms=n_atoms,
                block_size=block_size,
                dictionary_dtype="float16",
            )
            try:
                found.append(method.compress(W))
            except ValueError:  # the table alone is larger than the size
                continue
        return min(found, key=lambda factors: factors.error(W))


def vectors(ratio: float) -> Codebook:
    return Codebook(ratio=ratio, vector_dim=2 if ratio < 10 else 4)


@dataclass(frozen=True)
class Gradual:
    """Pruning step by step, to the share of zeros that a size allows."""

    ratio: float
    score: str

    def at_size(self, W: np.ndarray, begin: int, end: int) -> GradualPrune:
        """Return how a matrix is pruned between two steps, at some thirty of them.

        Gradients are seen for a fifth of the time before the first.
        """
        begin += (end - begin) // 5
        matrix = W.reshape(len(W), -1)
        kept = np.count_nonzero(Prune(ratio=self.ratio).compress(matrix).to_dense())
        ramp = SparsityRamp(1 - kept / W.size, begin, end, frequency=max((end - begin) // 30, 1))
        return GradualPrune(ramp, score=self.score)


# A number that stands for many weights gets the sum of their gradients: a tenth of the learning
# rate of the weights. Chosen beforehand, not by results.
METHODS: dict[str, tuple[Callable[[float], Compressor | Gradual], float]] = {
    "low rank": (lambda ratio: LowRank(ratio=ratio), 1),
    "dictionary": (BestDictionary, 1),
    "k-means": (lambda ratio: Codebook(ratio=ratio), 0.1),
    "pruning": (lambda ratio: Prune(ratio=ratio), 1),
    # Hashed rows: for a matrix of 10,000 rows it takes a fiftieth of the time of hashed columns.
    "simhash": (lambda ratio: Simhash(ratio=ratio, axis=1), 1),
    "k-means + pruning": (lambda ratio: PruneCodebook(ratio=ratio), 0.1),
    "entropy coded": (lambda ratio: EntropyCoded(ratio=ratio), 0.1),
    "k-means of vectors": (vectors, 0.1),
    "deep compression": (lambda ratio: DeepCompression(ratio=ratio), 0.1),
    "gradual pruning": (lambda ratio: Gradual(ratio, "magnitude"), 1),
    "gradual pruning by gradients": (lambda ratio: Gradual(ratio, "second_order"), 1),
}
