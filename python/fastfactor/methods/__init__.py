"""Ways to compress a matrix: settings with ``compress(W) -> Factors``, one file each.

Every method takes a size, an error or its own parameter, and every `Factors` multiplies, looks up
rows, says what it takes and gives its arrays, in the same way.
"""

from .base import Factors, Method
from .block_diagonal import BlockDiagonal, BlockDiagonalFactors
from .block_projection import BlockProjection, BlockProjectionFactors, RandomProjectionFactors
from .codebook import Codebook, CodebookFactors
from .dictionary import Dictionary
from .dictionary_factors import DictionaryFactors
from .entropy_coded import EntropyCoded, EntropyCodedFactors
from .low_rank import LowRank, LowRankFactors
from .mixed_block import MixedBlock, MixedBlockFactors
from .prune_codebook import PruneCodebook, PruneCodebookFactors
from .pruning import Prune, PruneFactors
from .simhash import Simhash, SimhashFactors

__all__ = [
    "BlockDiagonal",
    "BlockDiagonalFactors",
    "BlockProjection",
    "BlockProjectionFactors",
    "Codebook",
    "CodebookFactors",
    "Dictionary",
    "DictionaryFactors",
    "EntropyCoded",
    "EntropyCodedFactors",
    "Factors",
    "LowRank",
    "LowRankFactors",
    "Method",
    "MixedBlock",
    "MixedBlockFactors",
    "Prune",
    "PruneCodebook",
    "PruneCodebookFactors",
    "PruneFactors",
    "RandomProjectionFactors",
    "Simhash",
    "SimhashFactors",
]
