"""Ways to compress a matrix: settings with ``compress(W) -> Factors``, one file each.

Every method takes a size, an error or its own parameter, and every `Factors` multiplies, looks up
rows, says what it takes and gives its arrays, in the same way.
"""

from .base import Factors, Method
from .codebook import Codebook, CodebookFactors
from .dictionary import Dictionary, DictionaryFactors
from .low_rank import LowRank, LowRankFactors
from .prune_codebook import PruneCodebook, PruneCodebookFactors
from .pruning import Prune, PruneFactors

__all__ = [
    "Codebook",
    "CodebookFactors",
    "Dictionary",
    "DictionaryFactors",
    "Factors",
    "LowRank",
    "LowRankFactors",
    "Method",
    "Prune",
    "PruneCodebook",
    "PruneCodebookFactors",
    "PruneFactors",
]
