"""fastfactor: fast, exact kernels for compressing neural networks.

Compressing a weight matrix means factoring it, ``W ≈ B ∘ C``. The functions here find the factors
(:func:`omp`, :func:`kmeans`), choose what of W is kept (:func:`prune_mask`) or use the factors
without building W (:func:`spmm`).
"""

__version__ = "0.1.0"

from .clustering import KMeansResult, assign, kmeans
from .config import show_config
from .products import spmm
from .selection import n_m_mask, prune_mask, threshold_for
from .sparse import CSR
from .sparse_coding import omp

__all__ = [
    "CSR",
    "KMeansResult",
    "__version__",
    "assign",
    "kmeans",
    "n_m_mask",
    "omp",
    "prune_mask",
    "show_config",
    "spmm",
    "threshold_for",
]
