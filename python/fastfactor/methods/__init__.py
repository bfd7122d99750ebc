"""Compression methods for a matrix, each a class of settings with ``compress(W) -> Factors``.

Every method accepts a size, an error or its own parameter. All `Factors` have the same interface:
products, row look-up, size in bytes and the stored arrays.
"""

from .base import Method
from .codebook.method import Codebook, CodebookFactors
from .convolution.base import ConvMethod
from .convolution.bicluster import ConvBicluster
from .convolution.cp import ConvCP
from .convolution.factors import ConvFactors
from .convolution.monochromatic import ConvMonochromatic, ConvMonochromaticFactors
from .convolution.separable import ConvSeparable, ConvSeparableFactors
from .convolution.svd import ConvSVD
from .convolution.two_sided import (
    BiclusterCPFactors,
    BiclusterSVDFactors,
    ConvCPFactors,
    ConvSVDFactors,
)
from .deep_compression.factors import DeepCompressionFactors
from .deep_compression.method import DeepCompression
from .dictionary.factors import DictionaryFactors
from .dictionary.method import Dictionary
from .entropy_coded.method import EntropyCoded, EntropyCodedFactors
from .factors import Factors
from .low_rank import LowRank, LowRankFactors
from .pruning.prune import Prune, PruneFactors
from .pruning.prune_codebook import PruneCodebook, PruneCodebookFactors
from .search import Problem, Size
from .structured.block_diagonal import BlockDiagonal, BlockDiagonalFactors
from .structured.block_projection import (
    BlockProjection,
    BlockProjectionFactors,
    RandomProjectionFactors,
)
from .structured.mixed_block import MixedBlock, MixedBlockFactors
from .structured.simhash import Simhash, SimhashFactors

__all__ = [
    "BiclusterCPFactors",
    "BiclusterSVDFactors",
    "BlockDiagonal",
    "BlockDiagonalFactors",
    "BlockProjection",
    "BlockProjectionFactors",
    "Codebook",
    "CodebookFactors",
    "ConvBicluster",
    "ConvCP",
    "ConvCPFactors",
    "ConvFactors",
    "ConvMethod",
    "ConvMonochromatic",
    "ConvMonochromaticFactors",
    "ConvSVD",
    "ConvSVDFactors",
    "ConvSeparable",
    "ConvSeparableFactors",
    "DeepCompression",
    "DeepCompressionFactors",
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
    "Problem",
    "Prune",
    "PruneCodebook",
    "PruneCodebookFactors",
    "PruneFactors",
    "RandomProjectionFactors",
    "Simhash",
    "SimhashFactors",
    "Size",
]
