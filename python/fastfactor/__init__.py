"""fastfactor: fast, exact kernels for compressing neural networks.

Compressing a weight matrix means factoring it, ``W ≈ B ∘ C``. The functions here find the factors
(:func:`omp`, :func:`kmeans`, :func:`kmeans1d`) or use them without building W (:func:`spmm`).
"""

__version__ = "0.1.0"

from .clustering import KMeansResult, assign, kmeans
from .config import show_config
from .products import spmm
from .scalar_clustering import kmeans1d
from .sparse import CSR
from .sparse_coding import omp

__all__ = [
    "CSR",
    "KMeansResult",
    "__version__",
    "assign",
    "kmeans",
    "kmeans1d",
    "omp",
    "show_config",
    "spmm",
]
