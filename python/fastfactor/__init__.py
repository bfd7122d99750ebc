"""fastfactor: fast, exact kernels for compressing neural networks.

Compressing a weight matrix means factoring it, ``W ≈ B ∘ C``. The functions here find the factors
(:func:`omp`, :func:`kmeans`) or use them without building W (:func:`spmm`).
"""

__version__ = "0.1.0"

from .clustering import KMeansResult, assign, kmeans
from .coding import GapCodes, gap_decode, gap_encode, huffman_decode, huffman_encode
from .config import show_config
from .errors import CorruptDataError
from .packing import PackedCodes
from .products import spmm
from .sparse import CSR
from .sparse_coding import omp

__all__ = [
    "CSR",
    "CorruptDataError",
    "GapCodes",
    "KMeansResult",
    "PackedCodes",
    "__version__",
    "assign",
    "gap_decode",
    "gap_encode",
    "huffman_decode",
    "huffman_encode",
    "kmeans",
    "omp",
    "show_config",
    "spmm",
]
