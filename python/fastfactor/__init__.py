"""fastfactor: fast, exact kernels for compressing neural networks.

Compressing a weight matrix means factoring it, ``W ≈ B ∘ C``. The functions here find the factors
(:func:`omp`, :func:`kmeans`, :func:`kmeans1d`), choose which weights to keep (:func:`prune_mask`),
multiply by the factors without building W (:func:`spmm`, :func:`codebook_matmul`) or code them for
storage (:class:`PackedCodes`, :func:`huffman_encode`). :mod:`fastfactor.methods` combines them to
compress a matrix, :func:`compress_file` to compress a whole model.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .config import show_config
from .errors import CorruptDataError, LinearDependenceWarning
from .kernels.clustering import KMeansResult, assign, kmeans
from .kernels.codebooks import codebook_matmul, codebook_rows
from .kernels.gaps import GapCodes, gap_decode, gap_encode
from .kernels.huffman import huffman_decode, huffman_encode
from .kernels.packing import PackedCodes
from .kernels.scalar_clustering import kmeans1d
from .kernels.selection import magnitude_threshold, nm_sparsity_mask, prune_mask
from .kernels.sparse import CSR, spmm
from .kernels.sparse_codes import SparseCodes, sparse_codebook_matmul
from .kernels.sparse_coding import exchange_atoms, hashed_omp, omp
from .learning.dictionary_learning import DictionaryResult, learn_dictionary

if TYPE_CHECKING:
    from . import deep_compression, methods, store, training
    from .models.compare import compare_files
    from .models.compress import compress_file, decompress_file

__all__ = [
    "CSR",
    "CorruptDataError",
    "DictionaryResult",
    "GapCodes",
    "KMeansResult",
    "LinearDependenceWarning",
    "PackedCodes",
    "SparseCodes",
    "__version__",
    "assign",
    "codebook_matmul",
    "codebook_rows",
    "compare_files",
    "compress_file",
    "decompress_file",
    "deep_compression",
    "exchange_atoms",
    "gap_decode",
    "gap_encode",
    "hashed_omp",
    "huffman_decode",
    "huffman_encode",
    "kmeans",
    "kmeans1d",
    "learn_dictionary",
    "magnitude_threshold",
    "methods",
    "nm_sparsity_mask",
    "omp",
    "prune_mask",
    "show_config",
    "sparse_codebook_matmul",
    "spmm",
    "store",
    "training",
]


# These bring in all methods and file formats, which would triple the time of an import, so they are
# imported on first use.
_LAZY_MODULES = ("deep_compression", "methods", "store", "training")
_LAZY_FUNCTIONS = {
    "compare_files": "models.compare",
    "compress_file": "models.compress",
    "decompress_file": "models.compress",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return import_module(f".{name}", __name__)
    if name in _LAZY_FUNCTIONS:
        return getattr(import_module(f".{_LAZY_FUNCTIONS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
