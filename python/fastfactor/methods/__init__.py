"""Ways to compress a matrix: settings with ``compress(W) -> Factors``, one file each.

Every method takes a size, an error or its own parameter, and every `Factors` multiplies, looks up
rows, says what it takes and gives its arrays, in the same way.
"""

from .base import Factors, Method
from .low_rank import LowRank, LowRankFactors
from .simhash import Simhash, SimhashFactors

__all__ = ["Factors", "LowRank", "LowRankFactors", "Method", "Simhash", "SimhashFactors"]
