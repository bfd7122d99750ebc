"""fastfactor: fast, exact kernels for compressing neural networks.

Compressing a weight matrix means factoring it, ``W ≈ B ∘ C``. The functions here find the factors
(:func:`omp`, :func:`kmeans`, :func:`kmeans1d`), choose what of W is kept (:func:`prune_mask`), use
the factors without building W (:func:`spmm`, :func:`codebook_matmul`) or code them for storage
(:class:`PackedCodes`, :func:`huffman_encode`). :mod:`fastfactor.methods` puts them together for a
matrix, :func:`compress_file` for a whole model.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from .clustering import KMeansResult, assign, kmeans
from .coding import GapCodes, gap_decode, gap_encode, huffman_decode, huffman_encode
from .config import show_config
from .dictionary_learning import DictionaryResult, learn_dictionary
from .errors import CorruptDataError
from .packing import PackedCodes
from .products import codebook_matmul, codebook_rows, sparse_codebook_matmul, spmm
from .scalar_clustering import kmeans1d
from .selection import n_m_mask, prune_mask, threshold_for
from .sparse import CSR
from .sparse_codes import SparseCodes
from .sparse_coding import exchange_atoms, hashed_omp, omp

if TYPE_CHECKING:
    from .comparison import compare_files
    from .model import compress_file, decompress_file

__all__ = [
    "CSR",
    "CorruptDataError",
    "DictionaryResult",
    "GapCodes",
    "KMeansResult",
    "PackedCodes",
    "SparseCodes",
    "__version__",
    "assign",
    "codebook_matmul",
    "codebook_rows",
    "compare_files",
    "compress_file",
    "decompress_file",
    "exchange_atoms",
    "gap_decode",
    "gap_encode",
    "hashed_omp",
    "huffman_decode",
    "huffman_encode",
    "kmeans",
    "kmeans1d",
    "learn_dictionary",
    "n_m_mask",
    "omp",
    "prune_mask",
    "show_config",
    "sparse_codebook_matmul",
    "spmm",
    "threshold_for",
]


def __getattr__(name: str) -> Any:
    """Whole files stand on all methods and formats, which would triple the time of an import."""
    if name == "compare_files":
        from .comparison import compare_files

        return compare_files
    if name in ("compress_file", "decompress_file"):
        from . import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
