# The interface of every compiled module, whatever its level; at run time no module has this name.
from typing import Any

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]
_Labels = npt.NDArray[np.int32]
_Bytes = npt.NDArray[np.uint8]

def balanced_assign(
    x: _Array,
    centroids: _Array,
    weights: npt.NDArray[np.float64] | None,
    prices: npt.NDArray[np.float64] | None,
    n_threads: int,
) -> tuple[_Labels, float, npt.NDArray[np.float64], float]: ...
def build_info() -> dict[str, str]: ...
def default_threads() -> int: ...
def conv_prepare(
    stages: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], int]],
    order: npt.NDArray[np.int32],
) -> tuple[object, int]: ...
def conv_chain(
    x: _Array,
    chain: object,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    bias: npt.NDArray[np.float32] | None,
    out: npt.NDArray[np.float32],
    n_threads: int,
) -> None: ...
def kmeans(
    x: _Array,
    n_clusters: int,
    init: str | _Array,
    sample_weight: _Array | None,
    n_init: int,
    max_iter: int,
    tol: float,
    balanced: bool,
    seed: int,
    as_double: bool,
    n_threads: int,
) -> tuple[_Array, _Labels, npt.NDArray[np.float64], npt.NDArray[np.int64]]: ...
def kmeans1d(
    x: _Array,
    n_clusters: int,
    exact: bool,
    init: str | npt.NDArray[np.float64],
    sample_weight: _Array | None,
    fixed: npt.NDArray[np.float64] | None,
    centroid_dtype: str,
    one_vector: bool,
    as_double: bool,
    n_threads: int,
) -> tuple[_Array, _Labels, npt.NDArray[np.float64], npt.NDArray[np.int64]]: ...
def assign(
    x: _Array, centroids: _Array, as_double: bool, n_threads: int
) -> tuple[_Labels, _Array]: ...
def check_csr(
    data: _Array,
    indices: _Array,
    indptr: _Array,
    rows: int,
    cols: int,
    name: str,
    n_threads: int,
) -> None: ...
def pack_codes(codes: _Array, n_bits: int, n_threads: int) -> _Bytes: ...
def unpack_codes(
    packed: _Bytes, n_bits: int, books: int, rows: int, cols: int, n_threads: int
) -> _Array: ...
def codebook_matmul(
    x: _Array,
    data: _Bytes,
    n_bits: int,
    rows: int,
    cols: int,
    codebook: _Array,
    group_size: int,
    out: _Array,
    n_threads: int,
) -> None: ...
def codebook_rows(
    data: _Bytes,
    n_bits: int,
    rows: int,
    cols: int,
    codebook: _Array,
    group_size: int,
    ids: npt.NDArray[np.int64] | None,
    n_threads: int,
) -> npt.NDArray[np.float32]: ...
def sparse_layout(
    positions: npt.NDArray[np.int64],
    codes: _Bytes,
    rows: int,
    cols: int,
    wide: bool,
    n_threads: int,
) -> tuple[object, int]: ...
def sparse_codebook_matmul(
    x: _Array, layout: object, codebook: npt.NDArray[np.float32], out: _Array, n_threads: int
) -> None: ...
def exchange_atoms(
    x: _Array,
    dictionary: _Array,
    gram: _Array | None,
    data: _Array,
    indices: _Array,
    indptr: _Array,
    max_exchanges: int,
    as_double: bool,
    n_threads: int,
) -> tuple[_Array, npt.NDArray[np.int32], int]: ...
def gap_encode(
    positions: npt.NDArray[np.int64],
    size: int,
    n_bits: int,
    value_bits: int,
    escape: bool,
    n_threads: int,
) -> tuple[_Array, npt.NDArray[np.int64], int]: ...
def gap_decode(
    gaps: _Array, n_bits: int, size: int, escape: bool, n_threads: int
) -> npt.NDArray[np.int64]: ...
def hashed_omp(
    x: _Array,
    dictionary: _Array,
    max_nonzeros: int,
    tol: float,
    n_tables: int,
    n_bits: int,
    threshold: float,
    seed: int,
    as_double: bool,
    n_threads: int,
) -> tuple[_Array, npt.NDArray[np.int32], npt.NDArray[np.int64], int]: ...
def huffman_encode(symbols: _Array, max_length: int, block_size: int, n_threads: int) -> _Bytes: ...
def huffman_decode(data: _Bytes, max_size: int, n_threads: int) -> _Array: ...
def omp(
    x: _Array,
    dictionary: _Array,
    gram: _Array | None,
    max_nonzeros: int,
    tol: float,
    orthogonal_select: bool,
    as_double: bool,
    n_threads: int,
) -> tuple[_Array, npt.NDArray[np.int32], npt.NDArray[np.int64], int]: ...
def spmm(
    data: _Array,
    indices: _Array,
    indptr: _Array,
    rows: int,
    cols: int,
    dense: _Array,
    out: _Array,
    trusted: bool,
    n_threads: int,
) -> None: ...
def trellis_quantize(
    values: _Array,
    step: float,
    weights: _Array,
    columns: npt.NDArray[np.int8],
    row_logs: npt.NDArray[np.int32],
    shift: int,
    classes: int,
    bits: npt.NDArray[np.float32],
    centers: npt.NDArray[np.float32],
    rate_weight: float,
    with_levels: bool,
    n_threads: int,
) -> tuple[npt.NDArray[np.int32] | None, npt.NDArray[np.int64], npt.NDArray[np.float64]]: ...
def trellis_encode(
    levels: npt.NDArray[np.int32],
    row_logs: npt.NDArray[np.int32],
    block_rows: int,
    frequencies: npt.NDArray[np.uint16],
    columns: npt.NDArray[np.int8],
    shift: int,
    classes: int,
    n_threads: int,
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]: ...
def trellis_decoder(
    words: npt.NDArray[np.uint16],
    lengths: npt.NDArray[np.int64],
    rows: int,
    block_rows: int,
    frequencies: npt.NDArray[np.uint16],
    columns: npt.NDArray[np.int8],
    shift: int,
    classes: int,
    centers: npt.NDArray[np.float32],
) -> object: ...
def trellis_rows(
    decoder: object, ids: npt.NDArray[np.int64], n_threads: int
) -> npt.NDArray[np.float32]: ...
def thresholds(
    w: _Array, length: int, n_dropped: int, n_threads: int
) -> npt.NDArray[np.float64]: ...
def prune_mask(w: _Array, length: int, n_dropped: int, n_threads: int) -> npt.NDArray[np.bool_]: ...
def block_scores(
    w: _Array, block_rows: int, block_cols: int, mean: bool, n_threads: int
) -> npt.NDArray[np.float64]: ...
def expand_blocks(
    kept: npt.NDArray[np.bool_],
    rows: int,
    cols: int,
    block_rows: int,
    block_cols: int,
    n_threads: int,
) -> npt.NDArray[np.bool_]: ...
