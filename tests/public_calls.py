"""Calls of everything public that takes arrays, with arrays that it takes."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from functools import partial

import fastfactor as ff
import numpy as np
from fastfactor import deep_compression, methods
from fastfactor.metrics import Covariance, Diagonal

RNG = np.random.default_rng(7)
W = RNG.standard_normal((8, 16)).astype(np.float32)
X = RNG.standard_normal((5, 16)).astype(np.float32)
IMAGES = RNG.standard_normal((2, 4, 5, 6)).astype(np.float32)
SQUARE = np.eye(16, dtype=np.float32)
COVARIANCE = W.T @ W / len(W)
POSITIVE = RNG.random(W.shape).astype(np.float32)
IDS = np.array([3, 0, 7])
ATOMS = RNG.standard_normal((20, 16)).astype(np.float32)
LABELS = RNG.integers(0, 4, W.shape).astype(np.uint8)
VALUES = np.array([0, 0.5, -1, 2], np.float32)
PACKED = ff.PackedCodes.pack(LABELS, 2)
TABLE = VALUES[:, np.newaxis]
SPARSE = ff.CSR.from_dense(np.where(W > 0.5, W, 0))
CODED = ff.SparseCodes.from_labels(LABELS, VALUES)
BYTES = LABELS.reshape(-1)
POINTS = W.reshape(-1)

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of something public, and its array arguments by the names that messages give them."""

    run: Callable[[Arrays], object]
    arrays: Arrays
    only_numpy: bool = False  # the arrays of a foreign CSR must be NumPy's


def call(function, **arrays):
    """Return the call of a function whose messages name arguments as its signature does."""
    return Call(lambda given: function(**given), arrays)


KERNELS = {
    "CSR": [
        call(
            partial(ff.CSR, shape=SPARSE.shape),
            data=SPARSE.data,
            indices=SPARSE.indices,
            indptr=SPARSE.indptr,
        ),
        call(ff.CSR.from_dense, W=W),
        Call(lambda a: SPARSE @ a["B"], {"B": X.T}),
        Call(lambda a: SPARSE.__rmatmul__(a["x"]), {"x": W.T}),
    ],
    "PackedCodes": [
        call(partial(ff.PackedCodes, n_bits=2, shape=W.shape), data=PACKED.data),
        call(partial(ff.PackedCodes.pack, n_bits=2), codes=LABELS),
    ],
    "SparseCodes": [
        call(
            partial(ff.SparseCodes, gap_bits=CODED.gap_bits, shape=W.shape),
            codes=CODED.codes,
            gaps=CODED.gaps,
            codebook=VALUES,
        ),
        call(ff.SparseCodes.from_labels, labels=LABELS, codebook=VALUES, mask=LABELS > 0),
        Call(lambda a: CODED @ a["x"], {"x": X.T}),
        Call(lambda a: CODED.__rmatmul__(a["x"]), {"x": W.T}),
    ],
    "assign": [call(ff.assign, X=X, centroids=ATOMS)],
    "codebook_matmul": [call(partial(ff.codebook_matmul, packed=PACKED), x=X, codebook=TABLE)],
    "codebook_rows": [call(partial(ff.codebook_rows, PACKED), codebook=TABLE, ids=IDS)],
    "exchange_atoms": [
        call(
            partial(ff.exchange_atoms, codes=ff.omp(X, ATOMS, n_nonzero_coefs=2)),
            X=X,
            dictionary=ATOMS,
            gram=ATOMS @ ATOMS.T,
        )
    ],
    "gap_decode": [call(partial(ff.gap_decode, gap_bits=2, size=2000), gaps=BYTES)],
    "gap_encode": [call(partial(ff.gap_encode, size=9), positions=np.array([0, 3, 7]))],
    "hashed_omp": [call(partial(ff.hashed_omp, n_nonzero_coefs=2), X=X, dictionary=ATOMS)],
    "huffman_decode": [call(ff.huffman_decode, data=ff.huffman_encode(BYTES))],
    "huffman_encode": [call(ff.huffman_encode, symbols=BYTES)],
    "kmeans": [
        call(partial(ff.kmeans, n_clusters=3), X=W, init=W[:3], sample_weight=POSITIVE[:, 0].copy())
    ],
    "kmeans1d": [
        call(
            partial(ff.kmeans1d, n_clusters=4, method="lloyd"),
            x=POINTS,
            init=np.array([-1, 1, 2], np.float32),
            fixed=np.zeros(1, np.float32),
            sample_weight=POSITIVE.reshape(-1),
        )
    ],
    "learn_dictionary": [
        call(
            partial(ff.learn_dictionary, n_atoms=3, n_nonzero_coefs=1, max_iter=2),
            X=W,
            init=ATOMS[:3],
        )
    ],
    "magnitude_threshold": [call(partial(ff.magnitude_threshold, sparsity=0.5), W=W)],
    "nm_sparsity_mask": [call(partial(ff.nm_sparsity_mask, n=2, m=4), W=W)],
    "omp": [call(partial(ff.omp, n_nonzero_coefs=2), X=X, dictionary=ATOMS, gram=ATOMS @ ATOMS.T)],
    "prune_mask": [call(partial(ff.prune_mask, sparsity=0.5), W=W)],
    "sparse_codebook_matmul": [call(partial(ff.sparse_codebook_matmul, sparse_codes=CODED), x=X)],
    "spmm": [
        call(partial(ff.spmm, SPARSE), B=X.T),
        Call(
            lambda a: ff.spmm(
                types.SimpleNamespace(
                    data=a["A.data"],
                    indices=a["A.indices"],
                    indptr=a["A.indptr"],
                    shape=SPARSE.shape,
                ),
                SQUARE,
            ),
            {f"A.{name}": getattr(SPARSE, name) for name in ("data", "indices", "indptr")},
            only_numpy=True,
        ),
    ],
}

SHARED = deep_compression.SharedWeights(LABELS, VALUES, LABELS > 0)
STAGES = {
    "SharedWeights": [
        call(deep_compression.SharedWeights, labels=LABELS, codebook=VALUES, mask=LABELS > 0),
        call(SHARED.gradient, gradient=W),
    ],
    "compress_network": [
        Call(
            lambda a: deep_compression.compress_network(
                {"fc": a["weights['fc']"]},
                deep_compression.DeepCompression(sparsity=0.5, n_bits=2),
            ),
            {"weights['fc']": W},
        )
    ],
    "prune": [call(partial(deep_compression.prune, sparsity=0.5), W=W, importance=POSITIVE)],
    "share": [
        call(partial(deep_compression.share, n_bits=2), W=W, mask=LABELS > 0, importance=POSITIVE)
    ],
}

SETTINGS = (
    methods.BlockDiagonal(n_blocks=4),
    methods.BlockProjection(reduction=2, block_in=8, block_out=4),
    methods.BlockProjection(reduction=2, block_in=8, block_out=8, learned=True),
    methods.Codebook(n_bits=2),
    methods.Codebook(n_bits=2, vector_dim=2, n_codebooks=2),
    methods.ConvBicluster(ranks=(1, 2), kernel_size=(2, 2)),
    methods.ConvBicluster(ranks=2, inside="cp", kernel_size=(2, 2)),
    methods.ConvCP(rank=2, kernel_size=(2, 2)),
    methods.ConvMonochromatic(n_colors=2, kernel_size=(2, 2)),
    methods.ConvSVD(ranks=(2, 3), kernel_size=(2, 2)),
    methods.ConvSeparable(rank=2, kernel_size=(2, 2)),
    methods.DeepCompression(sparsity=0.5, n_bits=2),
    methods.Dictionary(n_nonzero_coefs=2, n_atoms=8, max_iter=2),
    methods.EntropyCoded(bits_per_weight=3),
    methods.LowRank(rank=2),
    methods.MixedBlock(rank=2),
    methods.Prune(sparsity=0.5),
    methods.PruneCodebook(sparsity=0.5, n_bits=2),
    methods.Simhash(n_hashes=16),
)


# What takes no arrays, by the reason.
NO_ARRAYS = {
    "results": {"DictionaryResult", "KMeansResult", "GapCodes", "LayerSizes", "Size"},
    "takes what other functions give": {"encode", "decode", "Problem"},
    "files": {"compare_files", "compress_file", "decompress_file"},
    "modules": {"deep_compression", "methods", "store", "training"},
    "others": {"CorruptDataError", "LinearDependenceWarning", "__version__", "show_config"},
}

# The public names of factors, by whether they take arrays.
FACTORS_TAKE = {"error", "from_tensors", "linear", "matmul", "rows"}
FACTORS_TAKE_NONE = {
    "bits_per_weight", "config", "forward", "forward_rows", "kinds", "nbytes", "tensors",
    "to_dense", "verify",
}  # fmt: skip


def of_settings(settings):
    """Return the calls of `compress`, for each metric that the settings can minimise."""
    calls = [call(settings.compress, W=W)]
    if Diagonal in settings.metrics:
        calls.append(call(partial(settings.compress, W), importance=POSITIVE))
    if Covariance in settings.metrics:
        calls.append(call(partial(settings.compress, W), input_covariance=COVARIANCE))
    return calls


def of_factors(factors):
    """Return the calls of factors of W."""

    def from_tensors(arrays):
        tensors = {name: arrays[f"tensor {name!r}"] for name in factors.tensors()}
        return type(factors).from_tensors(tensors, factors.config(), factors.shape, factors.dtype)

    of_images = []
    if isinstance(factors, methods.ConvFactors):
        of_images.append(call(factors.conv, x=IMAGES))
    return [
        *of_images,
        call(factors.linear, x=X),
        call(factors.matmul, x=X.T),
        Call(lambda a: factors.__rmatmul__(a["x"]), {"x": W.T}),
        call(factors.rows, ids=IDS),
        call(factors.error, W=W),
        call(partial(factors.error, W), importance=POSITIVE),
        call(partial(factors.error, W), input_covariance=COVARIANCE),
        Call(from_tensors, {f"tensor {n!r}": tensor for n, tensor in factors.tensors().items()}),
    ]


def all_calls():
    """Return the calls of everything public, by its name."""
    calls = {**KERNELS, **STAGES}
    for settings in SETTINGS:
        name = f"{type(settings).__name__}.compress"
        calls[name] = calls.get(name, []) + of_settings(settings)
        factors = settings.compress(W)
        calls.setdefault(type(factors).__name__, of_factors(factors))
    return calls
